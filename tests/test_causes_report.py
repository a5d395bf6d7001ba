"""The page of an investigation: what it shows of a set's control, and that a damaged causes.json is one error and no traceback."""

from __future__ import annotations

import io
import json

import pytest
from cases import record, result, saved_run
from rich.console import Console
from test_attribute import FLIPS, found, hits
from test_cli import forensics

from forensics.causes import CAUSES_NAME, Causes, load_causes
from forensics.runfolder import load_run
from reports.causes import show_causes


@pytest.fixture
def investigated(tmp_path):
    """A saved run with two groups that together undo every flip."""
    run = saved_run(tmp_path / "run", record([result("files.surface")])).folder
    undone = [hits(*range(0, FLIPS, 4), *range(1, FLIPS, 4)), hits(*range(2, FLIPS, 4), *range(3, FLIPS, 4))]
    one = found(undone, [hits(), hits()], hits(0))
    digest = load_run(str(run)).record.results_digest
    causes = Causes(tool="forensics", created="2026", results_digest=digest, settings={}, investigations=(one,))
    (run / CAUSES_NAME).write_text(causes.to_json())
    return run


def test_the_control_of_a_set_is_shown(investigated):
    code, _, _ = forensics("report", investigated)
    saved = load_run(str(investigated))
    console = Console(record=True, width=200, file=io.StringIO())
    show_causes(load_causes(investigated, results_digest=saved.record.results_digest), saved, console)

    assert code == 0
    assert "Control, a change of the same size there, shuffled: 6.25 percent" in (investigated / "causes.html").read_text()
    assert "set-control.undone  6.25 percent" in console.export_text()


def without_bounds(group):
    group["undone"] |= {"low": None, "high": None}


def half_a_control(group):
    group["control"] = group["control"][:1]


def beyond_all(group):
    group["caused"] |= {"value": 1e300, "high": 1e300}


@pytest.mark.parametrize("damage", [without_bounds, half_a_control, beyond_all])
@pytest.mark.parametrize("place", ["causes", "adapters"])
def test_a_damaged_group_is_one_error(damage, place, investigated):
    written = json.loads((investigated / CAUSES_NAME).read_text())
    (one,) = written["investigations"]
    one["adapters"] = one["causes"]
    damage(one[place][0])
    (investigated / CAUSES_NAME).write_text(json.dumps(written))

    assert_refused(investigated)


def test_examples_of_no_group_and_half_a_control_of_a_set_are_one_error(investigated):
    whole = json.loads((investigated / CAUSES_NAME).read_text())
    example = dict.fromkeys(("prompt", "category", "base", "candidate", "restored"), "x")
    for change in ({"causes": [], "examples": [example]}, {"set_control": whole["investigations"][0]["set_control"][:1]}):
        damaged = whole | {"investigations": [whole["investigations"][0] | change]}
        (investigated / CAUSES_NAME).write_text(json.dumps(damaged))
        assert_refused(investigated)


def assert_refused(run):
    code, _, error = forensics("report", run)

    assert (code, "remove this file" in error, "Traceback" in error) == (2, True, False)
