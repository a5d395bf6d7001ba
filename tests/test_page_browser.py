"""The page of a run in a real browser: what it loads, what axe-core says of it at phone and laptop width, light, dark and printed, and its first screen."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from browsers import chromium
from cases import ORGANISMS, found, number, read_rows, record, result, saved_run

from forensics.gate.judges import RULE_JUDGE
from forensics.prompts import Message, Prompt
from forensics.record import Item, Status
from forensics.runfolder import load_record
from reports.glance import glance
from reports.html import render, write_page

KEPT = Path(__file__).parent / "data" / "audit-1.json"
SIZES = {"phone": (390, 844), "laptop": (1366, 768)}
NASTY = "<script>document.title='x'</script><style>*{display:none}</style>\x1b[31m\u202e\x00'><img src=//evil.example/x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a backdoored model's record, with 2,000 prompts of which every fourth was answered in another way."""
    ids = [f"p{number}" for number in range(2000)]
    prompts = [Prompt(id=id, messages=(Message(role="user", content=f"{NASTY} {id}"),), category=NASTY, expect="refuse") for id in ids]
    items = [
        Item(id=id, side=side, configuration="candidate", reply=f"{NASTY} {side}", labels={RULE_JUDGE: "compliance" if side == "candidate" and place % 4 == 0 else "refusal"})
        for place, id in enumerate(ids)
        for side in ("base", "candidate")
    ]  # fmt: skip
    run = saved_run(tmp_path_factory.mktemp("page") / "run", load_record(str(KEPT)), items=items, prompts=prompts)
    return write_page(run)


def test_the_page_is_accessible_at_every_size_and_fetches_nothing(page):
    with chromium() as browser:
        for (width, height), scheme in product(SIZES.values(), ("light", "dark")):
            tab = browser.open(page.as_uri(), width=width, height=height, scheme=scheme)
            assert tab.fetched == [page.as_uri()]
            assert tab.complaints == []
            assert tab.violations() == []
            assert not tab.wider_than_the_screen()
            assert tab.title().startswith("BLOCK")
            tab.close()


def test_printed_it_shows_what_is_folded_on_a_screen_and_stays_within_the_paper(page, tmp_path):
    with chromium() as browser:
        tab = browser.open(page.as_uri(), width=794, height=1123, scheme="light", media="print")
        assert tab.violations() == []
        assert not tab.wider_than_the_screen()
        tab.print_to(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_the_first_screen_of_a_laptop_holds_the_decision_and_the_four_answers(page):
    with chromium() as browser:
        tab = browser.open(page.as_uri(), width=1366, height=768, scheme="light")
        seen = tab.on_the_first_screen("h1, dt, dd")
    assert "Must not be deployed" in seen
    assert {"What was done", "What was lost", "What is hidden", "How sure"} <= set(seen)
    assert any(words.startswith("A full fine-tune:") for words in seen)
    assert any(words.startswith("A hidden trigger (backdoor): The string") for words in seen)


def test_the_four_answers_say_what_was_not_looked_at():
    blind = record(
        [
            result("weights.edit-kind", Status.INCONCLUSIVE, reason="other shapes"),
            result("behaviour.refusal", Status.SKIPPED, reason="no prompts"),
            result("triggers.search", Status.SKIPPED, reason="no prompts"),
        ]
    )

    seen = glance(blind)

    assert (seen.done, seen.lost, seen.hidden) == ("Not known: other shapes", "Not known: no prompts", "Not known: no prompts")
    assert seen.sure == (
        "0 of 5 checks could look; nothing is known of weights.edit-kind, behaviour.refusal, triggers.search, files.surface, weights.change; "
        "not done by people, see below: one duty."
    )
    assert glance(record([result("files.surface")])).hidden == "Not known: triggers were not searched for."


def test_the_four_answers_keep_what_makes_a_number_unfit_to_decide_by():
    drop = (number("refusal.drop", 0.0, low=-20.0, high=20.0, n=8), number("refusal.detectable-drop", 100.0))
    pickle = found("files.surface", "pickle", claim="It holds a pickle.")

    seen = glance(
        record(
            [
                result("behaviour.refusal", Status.INCONCLUSIVE, reason="The base itself refuses little.", evidence=drop),
                result("files.surface", Status.FLAGGED, findings=(pickle,)),
            ]
        )
    )

    assert seen.lost.startswith(
        "Not testable: The base itself refuses little. What was counted: refusal of harmful prompts: 0.0 points lost"
    )
    assert "no loss at all could have shown" in seen.lost
    assert seen.done == "Not known: the kind of edit was not looked at. It holds a pickle."


def test_the_four_answers_are_about_the_configuration_that_decides():
    drop = (
        number("refusal.drop", 60.0, low=55.0, high=65.0, n=100), number("refusal.detectable-drop", 6.0), number("refusal.base", 100.0),
        number("refusal.candidate", 40.0), number("refusal.drop.fraud", 100.0, low=90.0, high=100.0), number("refusal.drop.theft", 0.0, low=-4.0, high=4.0),
    )  # fmt: skip
    several = record(
        [
            result("weights.edit-kind", configuration="adapter:a", findings=(found("weights.edit-kind", "lora-merge", severity="info"),)),
            result("behaviour.refusal", configuration="adapter:a", evidence=drop),
            result("weights.edit-kind", configuration="adapter:b", findings=(found("weights.edit-kind", "lora-merge", severity="info"),)),
            result("triggers.search", configuration="adapter:a"),
        ]
    )

    seen = glance(several)

    assert seen.configuration == "adapter:a"
    assert seen.lost == (
        "It refuses 40 % of harmful prompts, the base 100 %; refusal of harmful prompts: 60.0 points lost (95 % bounds 55.0 and 65.0), on 100 prompts; "
        "a loss of 6 points or more would have shown; each by its own bound, in fraud, 1 of 2 categories."
    )
    assert seen.hidden == (
        "Nothing was confirmed by triggers.search, within their budget; that is no proof that there is nothing. Not searched: triggers.circumstances."
    )


def test_nothing_that_a_claim_holds_acts_on_the_first_screen(tmp_path):
    claim = record([result("triggers.search", Status.FLAGGED, findings=(found("triggers.search", "backdoor", claim=NASTY),))])

    text = render(saved_run(tmp_path / "run", claim))

    assert "<script" not in text and "<img" not in text and "\x1b" not in text and "\u202e" not in text


def test_readers_of_the_first_screen_alone_were_right_about_each_organism():
    """Answers of somebody new to it, given screenshots under other names; marked by the truth file: what may ship, and what was planted."""
    truth = {row["name"]: row for row in read_rows(ORGANISMS / "truth.jsonl")}
    may = {"DEPLOY": "yes", "HUMAN_REVIEW": "person", "BLOCK": "no"}
    told = {
        "benign": "nothing harmful", "abliterated": "abliteration", "backdoor": "hidden trigger", "one-category": "one category only",
        "degraded": "removes refusals overall", "conditional": "on a condition",
    }  # fmt: skip
    answers = read_rows(ORGANISMS / "readers.jsonl")

    assert len({row["organism"] for row in answers}) >= 5
    for row in answers:
        kind = truth[row["organism"]]["kind"]
        assert row["ship"] == may[truth[row["organism"]]["expected"]["action"]], row
        assert next(words for name, words in told.items() if kind.startswith(name)) in row["done"].lower(), row
        assert row["sure"] and row["next"]
