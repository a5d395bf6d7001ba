"""Judges behind a server: labels a line each, what cannot be read is never scored, and no reply talks the judge round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import STAND_INS, read_rows, ready, silent, without_text
from replaying import recorded
from serving import completion, serving

from forensics import gating
from forensics.errors import BadInput, ToolFailed
from forensics.gate import formats, served
from forensics.gate.formats import all_formats, format_named, text_of
from forensics.gate.judging import judge_served
from forensics.gate.recorded import with_labels
from forensics.gate.served import Endpoint
from forensics.policy import load_policy
from reports.judges import judge_rows

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure. First, plan ahead."


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(served, "FIRST_WAIT", 0.005)


@pytest.fixture
def both(tmp_path):
    return recorded(tmp_path, 80, lost=20)


def judge(both, url, out, *formats, **options):
    """What the file holds then: labels, and those that could not be read, a pair for each judge."""
    endpoint = Endpoint(**({"urls": (url,), "models": ("j", "j"), "max_new_tokens": 16, "at_once": 4, "patience": 5.0} | options))
    tallies = judge_served(both, endpoint, [ready(name, both.base.path.parent) for name in formats or ("rubric",)], out, silent)
    return [(tally.labels, tally.unread) for tally in tallies]


def decided(both, tmp_path, judge):
    """What the gate makes of the recordings with the labels that were written."""
    wanted = gating.Replay(
        base=both.base.path, candidate=both.candidate.path, labels=(tmp_path / "labels.jsonl",), judge=judge,
        policy=gating.alone(load_policy()), out=tmp_path / "run",
    )  # fmt: skip
    return gating.replay(wanted).record.results[0]


def says(body):
    """A judge that sees an answer where there is one."""
    return completion("compliance" if ANSWER in body["messages"][-1]["content"] else " Refusal.\n")


def test_labels_of_a_model_stand_beside_those_of_the_rules(both, tmp_path):
    with serving(says) as (url, asked):
        assert judge(both, url, tmp_path / "labels.jsonl") == [(160, 0)]
        assert judge(both, url, tmp_path / "labels.jsonl") == [(160, 0)]
    assert len(asked) == 160
    result = decided(both, tmp_path, "rubric/1:j")

    assert result.find("refusal.drop").value == result.find("judge.refusal-drop.rules/1").value == pytest.approx(25.0)
    assert result.find("judge.kappa.rules/1.candidate").value == 1.0


def test_a_guard_says_whether_a_reply_does_harm_which_is_no_refusal(both, tmp_path):
    with serving(lambda body: completion("unsafe\nS2" if body["messages"][-1]["content"] == ANSWER else "safe")) as (url, asked):
        assert judge(both, url, tmp_path / "labels.jsonl", "guard") == [(160, 0)]
    assert [turn["role"] for turn in asked[0]["messages"]] == ["user", "assistant"]
    result = decided(both, tmp_path, "rules/1")

    assert result.find("judge.harmful-rise.guard:j").value == pytest.approx(25.0)
    assert result.find("judge.refusal-drop.guard:j") is None


def test_what_cannot_be_read_is_counted_and_the_server_may_refuse_a_text(both, tmp_path):
    answers = iter([completion("I would say it declines"), (400, {"error": "too long"}), completion(None)])
    with serving(lambda body: next(answers, None) or says(body)) as (url, _):
        assert judge(both, url, tmp_path / "labels.jsonl", at_once=1) == [(160, 3)]

    labels = with_labels(both, [tmp_path / "labels.jsonl"])
    found = [item.labels["rubric/1:j"] for side in (labels.base, labels.candidate) for item in side.items.values()]
    assert found.count("unparsed") == 3


def test_a_judge_that_was_stopped_goes_on_where_it_was(both, tmp_path):
    out = tmp_path / "labels.jsonl"
    left = iter(range(50))

    def tires(body):
        return says(body) if next(left, None) is not None else (503, {})

    with serving(tires) as (url, _), pytest.raises(ToolFailed, match="did not answer"):
        judge(both, url, out, patience=0.1)
    assert len(read_rows(out)) == 50
    out.write_bytes(out.read_bytes() + b'{"id": "7", "si')
    with serving(says) as (url, asked):
        assert judge(both, url, out) == [(160, 0)]
    assert len(asked) == 110
    rows = read_rows(out)
    assert len(rows) == len({(row["side"], row["id"]) for row in rows}) == 160


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", '"text"', "[" * 3000, '{"id": "1", "side": "base", "judge": "other", "label": "refusal"}',
        '{"id": "1", "side": "base", "judge": "other", "label": "refusal", "reply_sha256": ""}',
        '{"id": "1", "side": "left", "judge": "rubric/1:j", "label": "refusal", "reply_sha256": ""}',
        '{"id": "1", "side": "base", "judge": "rubric/1:j", "label": "refusal", "reply_sha256": "", "score": NaN}',
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_not_written_to(both, tmp_path, line):
    out = tmp_path / "labels.jsonl"
    out.write_text(line + "\n")
    with pytest.raises(BadInput, match="no label of"), serving(says) as (url, _):
        judge(both, url, out)
    assert out.read_text() == line + "\n"


@pytest.mark.parametrize("text", ["my only copy of something", '{"id": "7", "text": "whole, without a line break"}', "\ufeff", "[1, 2"])
def test_a_text_without_a_line_break_is_no_torn_label_and_is_left_alone(both, tmp_path, text):
    out = tmp_path / "notes.txt"
    out.write_text(text)
    with pytest.raises(BadInput, match="no label of"), serving(says) as (url, asked):
        judge(both, url, out)
    assert (out.read_text(), len(asked)) == (text, 0)


def wildguard(body):
    """A WildGuard that sees an answer where there is one."""
    answers = f"AI assistant:\n{ANSWER}" in body["prompt"]
    words = ("yes", "no", "yes") if answers else ("yes", "yes", "no")
    return 200, {"choices": [{"text": "\n".join(f"{what}: {word}" for what, word in zip(WILDGUARD, words, strict=True))}]}


WILDGUARD = ("Harmful request", "Response refusal", "Harmful response")


def test_wildguard_is_two_judges_one_of_refusal_and_one_of_harm(both, tmp_path):
    with serving(wildguard) as (url, asked):
        assert judge(both, url, tmp_path / "labels.jsonl", "wildguard") == [(160, 0), (160, 0)]
    assert len(asked) == 160
    assert {body["path"] for body in asked} == {"/v1/completions"}
    assert asked[0]["max_tokens"] == 128
    assert {body["prompt"] for body in asked} == {
        text_of(format_named("wildguard"), prompt, reply.reply)
        for side in (both.base, both.candidate)
        for prompt, reply in zip(both.prompts, side.items.values(), strict=True)
    }
    result = decided(both, tmp_path, "wildguard-refusal/1:j")

    assert result.find("refusal.drop").value == result.find("judge.harmful-rise.wildguard-harm/1:j").value == pytest.approx(25.0)
    assert result.find("judge.harmful-rise.wildguard-refusal/1:j") is None
    assert result.find("judge.refusal-drop.wildguard-harm/1:j") is None


def test_a_file_cut_between_two_labels_of_one_reply_gets_the_other_and_no_third(both, tmp_path):
    out = tmp_path / "labels.jsonl"
    with serving(wildguard) as (url, _):
        judge(both, url, out, "wildguard", at_once=1)
    whole = out.read_bytes()
    for kept in (whole[: whole.index(b"\n") + 1], whole[: whole.index(b"\n") + 20]):
        out.write_bytes(kept)
        with serving(wildguard) as (url, asked):
            assert judge(both, url, out, "wildguard", at_once=1) == [(160, 0), (160, 0)]
        assert len(asked) == 160
        assert out.read_bytes() == whole


def test_judges_of_several_runs_go_in_together_refusal_and_harm_apart(both, tmp_path):
    """A guard that errs on the candidate's side: its agreement with the other judge of harm says so, and refusal knows nothing of it."""

    def guarded(body):
        asked, replied = (turn["content"] for turn in body["messages"])
        return completion("unsafe\nS2" if replied == ANSWER and asked != "Question 3?" else "safe")

    with serving(wildguard) as (url, _):
        judge(both, url, tmp_path / "first.jsonl", "wildguard")
    with serving(guarded) as (url, _):
        judge(both, url, tmp_path / "second.jsonl", "llama-guard-3")
    rows = read_rows(tmp_path / "second.jsonl")
    assert {row.get("category") for row in rows} == {None, "S2"} and {row["said"] for row in rows} == {"safe", "unsafe\nS2"}
    wanted = gating.Replay(
        base=both.base.path, candidate=both.candidate.path, labels=(tmp_path / "first.jsonl", tmp_path / "second.jsonl"), judge="rules/1",
        policy=gating.alone(load_policy()), out=tmp_path / "run",
    )  # fmt: skip
    result = gating.replay(wanted).record.results[0]

    assert result.find("judge.kappa.wildguard-refusal/1:j.candidate").value == 1.0
    harm = {side: result.find(f"judge.harm-kappa.wildguard-harm/1:j.{side}") for side in ("base", "candidate")}
    assert harm["base"].value == 1.0 and 0.9 < harm["candidate"].value < 1.0 and harm["candidate"].n == 80
    assert harm["base"].where == "wildguard-harm/1:j and llama-guard-3/1:j on the base's replies"
    assert result.find("judge.harm-kappa.llama-guard-3/1:j.base") is None
    rows = {row.name: row for row in judge_rows(result)}
    assert (rows["wildguard-refusal/1:j"].agrees, rows["llama-guard-3/1:j"].agrees) == ("1.00 / 1.00", "")
    assert rows["wildguard-harm/1:j"].agrees.startswith("1.00 / 0.9")
    (said,) = [limit for limit in result.limits if "talk it round" in limit]
    assert said.startswith("Of llama-guard-3/1:j, wildguard-harm/1:j, wildguard-refusal/1:j: ")


def test_a_judge_that_could_read_nothing_is_in_the_record(both, tmp_path):
    with serving(lambda body: completion("I am a teapot.")) as (url, _):
        assert judge(both, url, tmp_path / "labels.jsonl", "xstest") == [(160, 160)]
    result = decided(both, tmp_path, "rules/1")

    assert any(limit.startswith("80 of 80 pairs of replies were not judged by xstest/1:j") for limit in result.limits)
    assert result.find("judge.refusal-drop.xstest/1:j") is None


def test_where_the_rules_alone_judged_nothing_is_said_of_models(both, tmp_path):
    (tmp_path / "labels.jsonl").write_text("")

    assert not [limit for limit in decided(both, tmp_path, "rules/1").limits if "talk it round" in limit]


def test_several_formats_over_one_server_fill_one_file_and_scores_are_told(both, tmp_path, capsys, monkeypatch):
    import cli_people

    known = all_formats() | {"xstest": without_text("xstest")}
    monkeypatch.setattr(formats, "all_formats", lambda: known)
    template = tmp_path / "text"
    template.write_text(STAND_INS["xstest"] + "\n")

    def chats(body):
        answers = ANSWER in body["messages"][-1]["content"]
        if body["max_tokens"] == 16:
            return completion("1_full_compliance" if answers else "2_full_refusal")
        return completion("#scores\n1.a x\n1.b {}\n2.a x\n2.b {}\n3.a x\n3.b 5".format(*((0, 3) if answers else (1, 1))))

    out = tmp_path / "labels.jsonl"
    with serving(chats) as (url, asked):
        for _ in range(2):
            cli_people.judge(
                both.base.path,
                both.candidate.path,
                endpoint=[url],
                model="j",
                format=["xstest", "strongreject", "xstest"],
                template=template,
                out=out,
            )
    said = capsys.readouterr().out

    assert len(asked) == 320 == len(read_rows(out))
    filled = {
        f'Asked "Question {number}?" it says "{ANSWER if number < 20 else REFUSAL}". Which {{class}} is that?\n\nCLASS:'
        for number in range(80)
    }
    assert filled < {body["messages"][-1]["content"] for body in asked}
    assert said.count("160 labels of xstest/1:j") == said.count("160 labels of strongreject/1:j") == 2
    assert "mean score 0.000 (base), 0.188 (candidate), on 80 prompts scored on both sides" in said
    assert "The text of strongreject was not checked with its authors' own: " in said and "text of xstest" not in said
    with serving(chats) as (url, _), pytest.raises(BadInput, match=r"no label of xstest/1:j\n"):
        judge(both, url, out, "xstest")


def test_a_server_of_chats_alone_is_one_error_that_says_why(both, tmp_path):
    with (
        serving(lambda body: (404, {"detail": "Not Found"})) as (url, _),
        pytest.raises(BadInput, match="HTTP 404") as error,
    ):
        judge(both, url, tmp_path / "labels.jsonl", "harmbench")
    assert "a bare text goes to /completions" in error.value.hint
    assert read_rows(tmp_path / "labels.jsonl") == []


@pytest.mark.parametrize(
    "answer", [{"choices": []}, {"choices": [{"message": {"content": "Yes"}}]}, {"choices": [{"text": None}]}, [], "no"]
)
def test_what_is_no_completion_is_asked_again_and_then_an_error(both, tmp_path, answer):
    with serving(lambda body: (200, answer)) as (url, _), pytest.raises(ToolFailed, match="its answer is not a completion"):
        judge(both, url, tmp_path / "labels.jsonl", "harmbench", patience=0.05)


def test_the_verb_needs_a_server_and_a_name(tmp_path, both):
    import cli_people

    for given in ({}, {"model": "j"}, {"endpoint": ["http://localhost:1/v1"]}):
        with pytest.raises(BadInput, match="needs a server"):
            cli_people.judge(both.base.path, both.candidate.path, **given)
    with pytest.raises(BadInput, match="loaded here or lies behind a server"):
        cli_people.judge(both.base.path, both.candidate.path, local="folder", model="j")
    with pytest.raises(BadInput, match="no format 'wildgard'") as error:
        cli_people.judge(both.base.path, both.candidate.path, local="folder", format=["wildgard"])
    assert "did you mean wildguard" in error.value.hint
    for format, template, problem in (
        (["xstest"], None, "the text of xstest is not shipped"),
        ([], both.base.path, "no text is missing for rubric"),
    ):
        with pytest.raises(BadInput, match=problem):
            cli_people.judge(both.base.path, both.candidate.path, local="folder", format=format, template=template, out=tmp_path / "none")
    with pytest.raises(BadInput, match="the text of harmbench is not shipped"), serving(says) as (url, _):
        judge_served(
            both,
            Endpoint(urls=(url,), models=("j", "j"), max_new_tokens=16, at_once=4),
            [format_named("harmbench")],
            tmp_path / "none",
            silent,
        )
    assert not (tmp_path / "none").exists()
    with serving(says) as (url, _):
        cli_people.judge(both.base.path, both.candidate.path, endpoint=[url], model="j", out=tmp_path / "deep" / "labels.jsonl")
    assert json.loads(Path(tmp_path / "deep" / "labels.jsonl").read_text().splitlines()[0])["judge"] == "rubric/1:j"
