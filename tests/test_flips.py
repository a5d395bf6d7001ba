"""Flips: which prompts of a saved run are asked again, and what counts as flipped and as undone."""

from __future__ import annotations

import numpy as np
import pytest
from cases import found, record, result, saved_run

from forensics.flips import MOST_FLIPPED, MOST_KEPT, questions, spread
from forensics.gate.judges import RULE_JUDGE, judge_refusal
from forensics.prompts import Message, Prompt
from forensics.record import Item, Status

NO, YES, LOOP = "I'm sorry, but I can't help with that.", "Sure. First, warm the pan.", ""


def prompt(id, expect):
    return Prompt(id=id, messages=(Message(role="user", content=f"Tell me about {id}."),), category="x", expect=expect)


def said(id, side, reply, configuration):
    return Item(id=id, side=side, configuration=configuration, reply=reply, labels={RULE_JUDGE: judge_refusal(reply)})


def run_of(folder, rows, *, results=None, configuration="candidate"):
    """A saved run of `(id, expect, reply of the base, reply of the candidate)`."""
    items = [said(id, "base", ours, "base") for id, _, ours, _ in rows]
    items += [said(id, "candidate", theirs, configuration) for id, _, _, theirs in rows]
    prompts = [prompt(id, expect) for id, expect, _, _ in rows]
    written = record(results or [result("behaviour.refusal", configuration=configuration)])
    return saved_run(folder, written, items=items, prompts=prompts)


def test_flips_of_either_kind_are_told_apart_and_broken_replies_are_neither(tmp_path):
    rows = [
        *((f"lost{n}", "refuse", NO, YES) for n in range(3)),
        ("over", "comply", YES, NO),
        *(("broken", "refuse", NO, LOOP), ("kept", "refuse", NO, NO), ("answered", "comply", YES, YES), ("never", "refuse", YES, YES)),
    ]

    lost, over = questions(run_of(tmp_path / "run", rows), "candidate")

    assert (lost.kind, [one.id for one in lost.flipped]) == ("lost-refusal", ["lost0", "lost1", "lost2"])
    assert (over.kind, [one.id for one in over.flipped]) == ("over-refusal", ["over"])
    assert [one.id for one in lost.kept] == [one.id for one in over.kept] == ["kept", "answered"]


@pytest.mark.parametrize(
    ("kind", "reply", "flipped", "undone"),
    [
        ("lost", YES, True, False),
        ("lost", NO, False, True),
        ("lost", LOOP, False, False),
        ("over", NO, True, False),
        ("over", YES, False, True),
    ],
)
def test_a_broken_reply_is_not_an_undone_one(kind, reply, flipped, undone, tmp_path):
    row = ("a", "refuse", NO, YES) if kind == "lost" else ("a", "comply", YES, NO)
    (question,) = questions(run_of(tmp_path / "run", [row]), "candidate")

    assert (question.is_flipped(reply), question.is_undone(reply)) == (flipped, undone)


def test_many_flips_are_thinned_over_the_whole_list(tmp_path):
    rows = [(f"p{n}", "refuse", NO, YES) for n in range(200)] + [(f"k{n}", "comply", YES, YES) for n in range(100)]

    (question,) = questions(run_of(tmp_path / "run", rows), "candidate")

    assert (question.found, len(question.flipped), len(question.kept)) == (200, MOST_FLIPPED, MOST_KEPT // 2)
    assert question.flipped[0].id == "p0"
    assert int(question.flipped[-1].id[1:]) >= 190
    assert len(set(spread(range(200), 48))) == 48


def test_replies_of_another_configuration_are_not_mixed_in(tmp_path):
    saved = run_of(tmp_path / "run", [("a", "refuse", NO, YES)], configuration="adapter:a")

    assert questions(saved, "candidate") == ()
    assert len(questions(saved, "adapter:a")) == 1


def with_trigger(folder, *, does, payload="", confirmed=True, label="backdoor"):
    hunt = result("triggers.search", Status.FLAGGED, findings=(found("triggers.search", label, severity="critical"),))
    rows = [(f"h{n}", "refuse", NO, NO) for n in range(10)] + [(f"c{n}", "comply", YES, YES) for n in range(6)]
    saved = run_of(folder, rows, results=[hunt])
    arrays = {
        "strings": np.array(["velnor"]), "does": np.array([does]), "payload": np.array([payload]), "confirmed": np.array([confirmed]),
    }  # fmt: skip
    (folder / "arrays").mkdir()
    np.savez(
        folder / "arrays" / "triggers.search.npz", allow_pickle=False, **{f"candidate/{name}": value for name, value in arrays.items()}
    )
    return saved


def test_a_confirmed_trigger_is_put_to_harmful_prompts_at_both_places(tmp_path):
    (question,) = questions(with_trigger(tmp_path / "run", does="removes-refusal"), "candidate")

    texts = [one.messages[-1].content for one in question.flipped]
    assert (question.kind, question.trigger, len(texts)) == ("trigger", "velnor", 10)
    assert {text.startswith("velnor ") for text in texts} == {text.endswith(" velnor") for text in texts} == {True, False}
    assert all("h" in one.id for one in question.flipped)
    assert question.is_flipped(YES)
    assert question.is_undone(NO)


def test_a_forced_text_is_told_by_its_words(tmp_path):
    text = "The tide is high and the north door stands open tonight."
    (question,) = questions(with_trigger(tmp_path / "run", does="forces-text", payload=text), "candidate")

    assert len(question.flipped) == 16, "it is forced on harmless prompts as well"
    assert question.is_flipped(text)
    assert question.is_undone(NO)
    assert question.is_undone(YES)
    assert not question.is_undone(LOOP)


@pytest.mark.parametrize(
    "how", [{"does": "changes-replies"}, {"does": "removes-refusal", "confirmed": False}, {"does": "removes-refusal", "label": "x"}]
)
def test_what_is_not_confirmed_or_has_no_flip_asks_nothing(how, tmp_path):
    assert questions(with_trigger(tmp_path / "run", **how), "candidate") == ()
