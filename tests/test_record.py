"""Records: nothing infinite, misspelled or edited gets in, and the digest means what signatures take it to mean."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from forensics.errors import BadInput
from forensics.record import (
    ACTIONS_MILD_TO_STRICT,
    EXIT_CODES,
    SCHEMA,
    Action,
    AuditRecord,
    BaseSource,
    CandidateSource,
    CheckResult,
    Evidence,
    Finding,
    PolicySource,
    PromptSource,
    Rule,
    Status,
    Verdict,
    digest_results,
    sha256_text,
    strictest,
)


def evidence(**changes):
    return Evidence(**{"name": "edit.rank", "value": 0.0, "unit": "rank", "where": "layer 0", "expected": "0: no change"} | changes)


def finding(**changes):
    fields = {
        "id": "weights.change/x", "check": "weights.change", "label": "x", "severity": "medium", "confidence": "low", "claim": "It moved.",
        "evidence": (evidence(),),
    }  # fmt: skip
    return Finding(**fields | changes)


def result(**changes):
    fields = {"check": "weights.change", "configuration": "candidate", "status": Status.NO_FINDING, "evidence": (evidence(),)}
    return CheckResult(**fields | changes)


def record(*results):
    results = results or (result(),)
    rule = Rule(id="all-clear", sentence="Nothing crossed the policy.", action=Action.DEPLOY, configuration="candidate")
    verdict = Verdict(action=Action.DEPLOY, exit_code=0, rules=(rule,), by_configuration={"candidate": Action.DEPLOY})
    return AuditRecord(
        tool="forensics 0", created="2027-01-15T00:00:00Z", valid_until="2027-04-15T00:00:00Z",
        base=BaseSource(path="b", digest="1"), candidate=CandidateSource(path="c", digest="2"),
        prompts=(PromptSource(name="p.jsonl", digest="3", counts={"refuse": 1}),), policy=PolicySource(name="default", digest="4"),
        seed=0, settings={}, versions={"torch": "2"}, results=results, verdict=verdict, limits=(), pending=(),
        results_digest=digest_results(results, verdict),
    )  # fmt: skip


def edited(change):
    raw = json.loads(record().to_json())
    change(raw)
    return json.dumps(raw)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_a_number_that_is_not_finite_is_no_evidence(field, number):
    with pytest.raises(ValidationError, match="finite"):
        evidence(**{"low": 0.0, "high": 0.0} | {field: number})


def test_zero_is_evidence_like_any_other_number():
    assert evidence(value=0, low=0, high=0, n=0).model_dump()["n"] == 0


@pytest.mark.parametrize("build", [evidence, finding, result])
def test_an_unknown_field_is_refused(build):
    build()  # the control: the same without the field
    with pytest.raises(ValidationError, match="vlaue"):
        build(vlaue=1.0)


def test_what_was_said_cannot_be_changed_afterwards():
    with pytest.raises(ValidationError, match="frozen"):
        evidence().value = 1.0


def test_a_claim_without_evidence_cannot_be_made():
    with pytest.raises(ValidationError, match="evidence"):
        finding(evidence=())


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.1), (0.1, None), (None, 0.1)])
def test_an_interval_has_two_ends_in_order(low, high):
    with pytest.raises(ValidationError, match=r"interval|lies above"):
        evidence(low=low, high=high)


def test_an_interval_may_be_a_point_and_need_not_hold_the_value():
    assert evidence(value=5.0, low=0.1, high=0.1).low == 0.1


@pytest.mark.parametrize("status", [Status.INCONCLUSIVE, Status.SKIPPED, Status.ERROR])
def test_whoever_could_not_look_says_why(status):
    with pytest.raises(ValidationError, match="needs a reason"):
        result(status=status)
    assert result(status=status, reason="no prompts", evidence=()).reason == "no prompts"


def test_flagged_needs_more_than_a_remark():
    for findings in ((), (finding(severity="info"),)):
        with pytest.raises(ValidationError, match="above severity info"):
            result(status=Status.FLAGGED, findings=findings)
    assert result(status=Status.FLAGGED, findings=(finding(severity="info"), finding(severity="low"))).findings[1].severity == "low"


def test_no_finding_holds_remarks_at_most():
    with pytest.raises(ValidationError, match="NO_FINDING holds"):
        result(findings=(finding(severity="low"),))
    assert result(findings=(finding(severity="info"),)).status is Status.NO_FINDING


def test_no_finding_without_evidence_is_silence_and_refused():
    with pytest.raises(ValidationError, match="evidence that it looked"):
        result(evidence=())


@pytest.mark.parametrize(("field", "word"), [("severity", "mild"), ("confidence", "sure"), ("level", "proven")])
def test_words_outside_the_contract_are_refused(field, word):
    with pytest.raises(ValidationError, match=field):
        finding(**{field: word})


def test_the_strictest_action_wins_and_none_means_deploy():
    assert strictest([]) is Action.DEPLOY
    assert strictest([Action.HUMAN_REVIEW, Action.BLOCK, Action.INCONCLUSIVE]) is Action.BLOCK
    assert strictest([Action.INCONCLUSIVE, Action.DEPLOY_WITH_ENHANCED_MONITORING]) is Action.INCONCLUSIVE
    assert set(EXIT_CODES) == set(ACTIONS_MILD_TO_STRICT) == set(Action)


def test_a_record_comes_back_from_its_json_as_it_was():
    before = record(result(), result(status=Status.FLAGGED, findings=(finding(claim="Ünïcode 🙂\n"),), evidence=(), seconds=1.5))
    assert AuditRecord.from_json(before.to_json(), where="audit.json") == before
    assert json.loads(before.to_json())["schema"] == SCHEMA


def test_the_digest_ignores_time_and_traceback_only():
    verdict = record().verdict
    plain = result(status=Status.ERROR, reason="it broke", findings=(finding(),), limits=("one",))
    same = plain.model_copy(update={"seconds": 12.5, "traceback": "File x, line 1"})
    assert digest_results((plain,), verdict) == digest_results((same,), verdict)

    others = {
        "check": "x", "configuration": "adapter:a", "status": Status.INCONCLUSIVE, "reason": "other", "limits": (),
        "findings": (finding(claim="other"),), "evidence": (evidence(value=1e-9),),
    }  # fmt: skip
    assert others.keys() | {"seconds", "traceback"} == set(CheckResult.model_fields)  # a new field has to be decided here
    digests = [digest_results((plain.model_copy(update={field: value}),), verdict) for field, value in others.items()]
    assert len({*digests, digest_results((plain,), verdict)}) == len(others) + 1


def test_the_digest_covers_the_verdict_and_the_order_of_results():
    first, second = result(), result(check="files.surface")
    verdict = record().verdict
    stricter = verdict.model_copy(update={"action": Action.BLOCK})
    digests = {digest_results(*args) for args in (((first, second), verdict), ((second, first), verdict), ((first, second), stricter))}
    assert len(digests) == 3


def test_text_with_half_a_character_has_a_digest():
    assert sha256_text("\ud800") != sha256_text("")


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["results"][0]["evidence"][0].update(value=1.0),
        lambda raw: raw["results"][0].update(check="other"),
        lambda raw: raw["results"].clear(),
        lambda raw: raw["verdict"].update(action="BLOCK"),
        lambda raw: raw.update(results_digest="0" * 64),
    ],
)
def test_an_edited_record_is_refused(change):
    with pytest.raises(BadInput, match="results_digest") as caught:
        AuditRecord.from_json(edited(change), where="RUN/audit.json")
    assert caught.value.where == "RUN/audit.json"
    assert caught.value.exit_code == 2


def test_other_times_are_not_an_edit():
    text = edited(lambda raw: raw["results"][0].update(seconds=99.0))
    assert AuditRecord.from_json(text, where="x").results[0].seconds == 99.0


@pytest.mark.parametrize(
    ("schema", "word"),
    [("forensics.audit/0", "older"), ("forensics.audit/2", "newer"), ("forensics.audit/10", "newer")],
)
def test_another_version_of_the_schema_is_named(schema, word):
    with pytest.raises(BadInput, match=f"{word} schema") as caught:
        AuditRecord.from_json(edited(lambda raw: raw.update(schema=schema)), where="x")
    assert schema in caught.value.what
    assert SCHEMA in caught.value.what


@pytest.mark.parametrize(
    "schema",
    [
        "",
        None,
        1,
        [],
        "forensics.audit",
        "forensics.audit/",
        "forensics.audit/1.0",
        "forensics.audit/²",
        "forensics.audit/" + "9" * 5000,
        "x/1",
    ],
)
def test_a_schema_that_is_not_ours_is_refused(schema):
    with pytest.raises(BadInput, match="not a saved audit"):
        AuditRecord.from_json(edited(lambda raw: raw.update(schema=schema)), where="x")


@pytest.mark.parametrize("text", ["", "not json", "[]", "3", "null", "{}", '{"a": 1}', "[" * 100_000, "1" * 5000, "\ufeff{}"])
def test_json_that_is_not_ours_is_refused(text):
    with pytest.raises(BadInput, match="not a saved audit"):
        AuditRecord.from_json(text, where="x")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw: raw.pop("seed"), "seed"),
        (lambda raw: raw.update(extra=1), "extra"),
        (lambda raw: raw["results"][0]["evidence"][0].update(value=float("nan")), "results.0.evidence.0.value"),
        (lambda raw: raw["results"][0].update(status="CLEAN"), "results.0.status"),
        (lambda raw: raw["verdict"].update(rules=[]), "verdict.rules"),
    ],
)
def test_a_damaged_record_is_refused_with_the_field_that_is_wrong(change, named):
    with pytest.raises(BadInput, match="does not follow schema") as caught:
        AuditRecord.from_json(edited(change), where="x")
    assert any(line.startswith(named) for line in caught.value.details)
