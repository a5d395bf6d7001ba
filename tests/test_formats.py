"""A saved run in every format: valid by the format's own schema, failing where the verdict does, and nothing a model wrote acts in it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from cases import ROOT, environment, found, number, record, result, run_cli, saved_run
from huggingface_hub import ModelCard
from junitparser import Error, Failure, JUnitXml, Skipped

from forensics.errors import BadInput
from forensics.gate.judges import RULE_JUDGE
from forensics.prompts import Message, Prompt
from forensics.record import Action, CandidateSource, Item, Status, schema_text
from forensics.runfolder import load_record
from reports.formats import FORMATS, OF_SEVERAL, OF_THE_RECORD, of_record, of_run
from reports.items import plain
from reports.junit import render_junit
from reports.markdown import safe
from reports.sarif import render_sarif
from reports.several import beside, names_of

DATA = Path(__file__).parent / "data"
ACTIVE = {
    "script": "<script>alert(1)</script>",
    "link": "[click here](https://evil.example/x)",
    "image": "![x](https://evil.example/x.png)",
    "mention": "@somebody and #1 and www.evil.example",
    "table": "a | b || c",
    "ansi": "\x1b[31mred\x1b]8;;http://x\x07",
    "bidi": "a\u202egnp.exe\u2066",
    "null": "a\x00b",
    "formula": "=HYPERLINK(\"http://evil.example\",\"x\")",
    "placeholder": "{0} {1} {{",
    "cdata": "]]></system-out><failure/>",
    "surrogate": "\ud83d half",
    "fence": "```\n# heading\n---\n- item",
    "yaml": "x: !!python/object/apply:os.system ['true']\n---\n",
}  # fmt: skip


def flagged(claim="a claim", **more):
    return result(
        "triggers.search", Status.FLAGGED, findings=(found("triggers.search", "backdoor", severity="critical", claim=claim, level="confirmed"),), **more
    )  # fmt: skip


def everything():
    """A record with a result of every kind."""
    return record(
        [
            result("weights.edit-kind"),
            result("weights.change", Status.ERROR),
            result("behaviour.opinions", Status.INCONCLUSIVE),
            result("behaviour.capability", Status.SKIPPED),
            result("behaviour.refusal", evidence=(number("refusal.drop", 40.0, low=35.0, high=45.0, n=200),)),
            flagged(),
        ]
    )


def quiet():
    """A record that lets the candidate be deployed, an optional check unseen."""
    required = [
        "files.surface",
        "weights.change",
        "weights.edit-kind",
        "activations.drift",
        "activations.refusal-direction",
        "behaviour.refusal",
    ]
    results = [result(name) for name in [*required, "triggers.search", "triggers.circumstances"]]
    drop = (number("refusal.drop", 0.0, low=-1.0, high=1.0, n=400),)
    results = [result(one.check, evidence=drop) if one.check == "behaviour.refusal" else one for one in results]
    return record([*results, result("behaviour.opinions", Status.INCONCLUSIVE)])


def hostile(text):
    """A record in which `text` stands wherever a candidate, or who names files, may write."""
    return record(
        [
            flagged(text, configuration=f"adapter:{text}"),
            result("files.surface", Status.INCONCLUSIVE, configuration=f"adapter:{text}", reason=text),
        ],
        candidate=CandidateSource(path=f"/models/{text}", digest="c" * 64),
        limits=(text,),
        pending=(text,),
    )


def test_sarif_is_valid_by_the_official_schema_and_names_every_finding():
    schema = (DATA / "sarif-2.1.0.json").read_bytes()
    assert hashlib.sha256(schema).hexdigest() in (DATA / "README.md").read_text(encoding="utf-8")
    for one in (everything(), quiet(), hostile("x"), *map(hostile, ACTIVE.values())):
        log = json.loads(render_sarif(one))
        jsonschema.Draft202012Validator(json.loads(schema), format_checker=jsonschema.FormatChecker()).validate(log)
        run = log["runs"][0]
        assert [row["ruleId"] for row in run["results"]] == [
            run["tool"]["driver"]["rules"][row["ruleIndex"]]["id"] for row in run["results"]
        ]
        assert len(run["results"]) == sum(len(each.findings) for each in one.results)


def test_sarif_says_what_a_check_asks_and_what_could_not_look():
    run = json.loads(render_sarif(everything()))["runs"][0]

    (rule,) = run["tool"]["driver"]["rules"]
    assert "Blind to:" in rule["help"]["text"] and "forensics explain triggers.search" in rule["help"]["text"]
    assert rule["properties"]["security-severity"] == "9.5"
    (row,) = run["results"]
    assert (row["level"], row["kind"]) == ("error", "fail") and "BLOCK" in row["message"]["text"]
    notices = run["invocations"][0]["toolExecutionNotifications"]
    told = [(one["descriptor"]["id"], one["level"]) for one in notices]
    assert told[:3] == [("weights.change", "error"), ("behaviour.opinions", "warning"), ("behaviour.capability", "note")]
    # What turns the verdict and is no finding is told as well: a band, and a required check that never ran.
    assert set(told[3:]) == {("band/refusal.drop", "error"), ("required/files.surface", "error")}
    assert run["invocations"][0]["exitCode"] == 20 and not run["invocations"][0]["executionSuccessful"]


def test_a_finding_has_the_same_fingerprint_again_and_another_candidate_another():
    def prints(one):
        return [row["partialFingerprints"] for row in json.loads(render_sarif(one))["runs"][0]["results"]]

    other = record([flagged()], candidate=CandidateSource(path="/models/candidate", digest="e" * 64))

    assert prints(record([flagged("one way to say it")])) == prints(record([flagged("another")])) != prints(other)


@pytest.mark.parametrize("make", [everything, quiet])
def test_junit_fails_exactly_where_the_verdict_turns_against_the_candidate(make):
    one = make()
    suites = JUnitXml.fromstring(render_junit(one).encode())
    cases = {case.name: {type(part) for part in case.result} for suite in suites for case in suite}

    failed = any(parts & {Failure, Error} for parts in cases.values())
    assert failed == (one.verdict.exit_code != 0)
    assert cases["behaviour.opinions"] == {Skipped}
    if make is quiet:
        assert one.verdict.action is Action.DEPLOY and cases["verdict"] == set()
    else:
        assert cases["verdict"] == {Failure}
        assert cases["triggers.search"] == cases["behaviour.refusal"] == {Failure}
        assert cases["weights.change"] == {Error} and cases["weights.edit-kind"] == set() and cases["behaviour.capability"] == {Skipped}
        assert cases["required/files.surface"] == {Error}  # a required check that never ran has no result of its own


def test_counts_of_a_junit_suite_are_those_of_its_tests():
    suite = next(iter(JUnitXml.fromstring(render_junit(everything()).encode())))
    kinds = [type(part) for case in suite for part in case.result]

    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (
        len(list(suite)), kinds.count(Failure), kinds.count(Error), kinds.count(Skipped),
    )  # fmt: skip


@pytest.mark.parametrize("name", ACTIVE)
@pytest.mark.parametrize("form", OF_THE_RECORD)
def test_nothing_that_a_model_wrote_acts_in_a_format(form, name):
    text = of_record(hostile(ACTIVE[name]), form)

    text.encode("utf-8", "strict" if form != "json" else "surrogatepass")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    if form in ("markdown", "model-card"):
        body = text.rpartition("\n---\n")[2] if form == "model-card" else text
        # No tag, no link, no image, no mention, no line of its own: what stands before it takes its force.
        assert not re.search(r"(?<!\\)<\w|(?<!\\)\]\(|@somebody|#1|www\.evil|https://evil", body)
        assert "\n# heading" not in body and "\n- item" not in body
    if form == "model-card":
        assert ModelCard(text).data.model_name
    if form == "junit":
        (suite,) = JUnitXml.fromstring(text.encode())
        assert len(list(suite)) == len({case.name for case in suite})
    if form == "sarif":
        messages = [row["message"]["text"] for row in json.loads(text)["runs"][0]["results"]]
        assert not any(re.search(r"(?<!\\)\[|(?<!\{)\{(?!\{)\d", message) for message in messages)


def test_a_model_card_holds_a_model_index_with_bounds_and_what_stays_unseen():
    card = ModelCard(of_record(everything(), "model-card"))

    (entry,) = card.data.eval_results
    assert (entry.metric_type, entry.metric_value, entry.metric_args["high"], entry.metric_args["n"]) == ("refusal.drop", 40.0, 45.0, 200)
    assert "one limit" in card.text and "clean" in card.text and "Must not be deployed" in card.text


def test_markdown_says_the_decision_first_and_what_stays_unseen():
    text = of_record(everything(), "markdown")

    assert text.startswith("## Must not be deployed\n")
    assert "one limit" in text and "one duty" in text and "could not tell" in text and "40.0 (35.0 to 45.0)" in text


def run_with_reply(tmp_path, reply):
    prompt = Prompt(id="a", messages=(Message(role="user", content=reply),), category=reply[:20], expect="refuse")
    items = [
        Item(id="a", side=side, configuration="candidate", reply=reply, labels={RULE_JUDGE: "compliance"}) for side in ("base", "candidate")
    ]
    return saved_run(tmp_path / "run", record([result("behaviour.refusal")]), items=items, prompts=[prompt])


@pytest.mark.parametrize("name", [name for name in ACTIVE if name != "surrogate"])
def test_a_spreadsheet_gets_every_reply_as_text(tmp_path, name):
    rows = list(csv.DictReader(io.StringIO(of_run(run_with_reply(tmp_path, ACTIVE[name]), "csv"), newline="")))

    assert [row["side"] for row in rows] == ["base", "candidate"]
    for row in rows:
        assert row[RULE_JUDGE] == "compliance"
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values())
        assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", "".join(row.values()))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1", "\n=1"])
def test_what_opens_a_formula_stands_behind_an_apostrophe(text):
    assert plain(text).startswith("'")


def test_marks_are_taken_their_force_and_no_letter_is_lost():
    for text in ACTIVE.values():
        shown = safe(text).replace("\\", "").replace("\u200b", "")
        assert shown == " ".join(shown.split())
        assert all(word in shown for word in re.findall(r"[a-z]{4,}", text.replace("\\", "")))


def test_a_saved_record_is_valid_by_the_published_schema():
    published = json.loads((ROOT / "reports" / "schemas" / "forensics.audit-1.schema.json").read_text(encoding="utf-8"))

    assert json.loads(schema_text()) == published, "run python examples/readme.py"
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(json.loads(everything().to_json()), published)
    broken = json.loads(everything().to_json())
    broken["verdict"]["action"] = "MAYBE"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, published)


def test_a_record_of_an_earlier_day_still_renders_in_every_format():
    kept = load_record(str(DATA / "audit-1.json"))

    for form in OF_THE_RECORD:
        assert kept.verdict.action in of_record(kept, form) or form == "model-card"


BLOCKED = """
import builtins, sys
real = builtins.__import__
def guarded(name, *rest, **named):
    if name.partition(".")[0] in ("torch", "transformers", "peft", "numpy", "scipy", "sklearn", "matplotlib"):
        raise ImportError(f"{name} is blocked here")
    return real(name, *rest, **named)
builtins.__import__ = guarded
sys.argv = ["forensics", *sys.argv[1:]]
import cli
cli.app()
"""


@pytest.mark.parametrize("form", [*OF_THE_RECORD, "csv"])
def test_text_formats_need_neither_torch_nor_arrays(tmp_path, form):
    run = run_with_reply(tmp_path, "Sure.").folder
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "report", str(run), "--format", form], capture_output=True, text=True, check=False, env=environment(), cwd=ROOT
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_each_format_goes_to_a_file_or_to_standard_output(tmp_path):
    run = run_with_reply(tmp_path, "Sure.").folder
    for form in FORMATS:
        shown = run_cli("report", run, "--format", form)
        written = run_cli("report", run, "--format", form, "--output", tmp_path / f"out.{form}")
        assert (shown.returncode, written.returncode, written.stdout) == (0, 0, "")
        assert (tmp_path / f"out.{form}").read_text(encoding="utf-8").strip() == shown.stdout.strip()
    assert not (run / "report.html").exists()  # it is written only where no format is asked for


def test_runs_stand_beside_each_other_and_say_what_is_not_the_same(tmp_path):
    blocked, other = everything(), record([result("behaviour.refusal")], candidate=CandidateSource(path="/o", digest="f" * 64))
    found_beside = beside([("a", blocked), ("b", other.model_copy(update={"base": blocked.base.model_copy(update={"digest": "0" * 64})}))])

    first, second = found_beside.rows
    assert (first.action, second.action) == (Action.BLOCK, Action.INCONCLUSIVE)
    assert first.found == ("backdoor",) and first.cells["refusal of harmful prompts lost"] == "40.0 (35.0 to 45.0)"
    assert found_beside.differs == ("the base of b is not the one of a",)

    runs = []
    for name, one in (("one", blocked), ("two", quiet())):
        runs.append(saved_run(tmp_path / name, one).folder)
    for form in OF_SEVERAL:
        done = run_cli("report", *runs, "--format", form)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in ("one", "two", "BLOCK", "DEPLOY"))


def test_names_of_runs_are_as_long_as_it_takes():
    assert names_of(["/x/a/run", "/x/b/run/audit.json"]) == ["a/run", "b/run"]
    assert names_of(["/x/a"]) == ["a"]


def test_bad_input_of_a_report_gets_one_clear_error(tmp_path):
    run = run_with_reply(tmp_path, "Sure.").folder
    for words, said in (
        ((run, "--format", "pdf"), "--format"),
        ((run, "--output", tmp_path / "x"), "no format"),
        ((run, "--json", "--format", "sarif"), "two formats"),
        ((run, run, "--format", "markdown"), "the same run twice"),
        ((run, tmp_path, "--format", "sarif"), "speaks of one run"),
        ((tmp_path / "none", "--format", "sarif"), "no saved audit"),
        ((run, "--format", "csv", "--output", tmp_path), "cannot be written"),
    ):
        done = run_cli("report", *words)
        assert done.returncode == 2, (words, done.stderr)
        assert said in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_record_is_one_clear_error(tmp_path):
    file = tmp_path / "audit.json"
    file.write_text(everything().to_json().replace("BLOCK", "DEPLOY"), encoding="utf-8")

    with pytest.raises(BadInput):
        load_record(str(file))


def test_findings_of_one_label_are_told_apart_and_the_gravest_gives_the_rule_its_severity():
    both = [
        flagged("one", configuration="adapter:a"),
        result("triggers.search", Status.FLAGGED, configuration="adapter:b", findings=(
            found("triggers.search", "backdoor", severity="low"), found("triggers.search", "backdoor", severity="low", id="triggers.search/2"),
        )),
    ]  # fmt: skip

    run = json.loads(render_sarif(record(both)))["runs"][0]

    assert [rule["properties"]["security-severity"] for rule in run["tool"]["driver"]["rules"]] == ["9.5"]
    assert len({row["partialFingerprints"]["finding/v1"] for row in run["results"]}) == 3


def test_runs_that_were_made_in_other_ways_say_so_and_one_run_is_one_however_it_is_named(tmp_path):
    one, other = everything(), everything()
    other = other.model_copy(update={"settings": {**other.settings, "max_cost": "files"}, "seed": 7})
    assert beside([("a", one), ("b", other)]).differs == ("the seed of b is not the one of a", "the dearest check of b is not the one of a")

    run = saved_run(tmp_path / "run", one).folder
    assert run_cli("report", run, run / "audit.json", "--format", "csv").returncode == 2
