"""The table of a sweep: its order, the exit code, and who is called unlike the rest."""

from __future__ import annotations

import io

import numpy as np
import pytest
from cases import number, record, result
from rich.console import Console

from forensics.record import Action, Status
from forensics.siblings import PROFILE, Sibling, held_together
from forensics.swept import FailedRow, FoundRow, SweepRecord, SweepRow, by_concern, counts_of, exit_code_of
from probes.siblings import LEAST
from reports.sweeping import notes_of, said_of, show_sweep


def sibling(name, *, size=0.1, rank=8.0, changes=None, kind="adapter", looked=True):
    evidence = (number("edit.relative_change", size),) if looked else ()
    results = [
        result("weights.change", Status.NO_FINDING, evidence=evidence) if looked else result("weights.change", Status.INCONCLUSIVE),
        result("weights.edit-kind", Status.NO_FINDING, evidence=(number("edit.rank", rank),)),
    ]
    return Sibling(name=name, kind=kind, record=record(results), changes=changes or {})


def like(count, seed=0):
    """Siblings whose changes differ by a few percent."""
    sizes = 0.1 * np.exp(0.05 * np.random.default_rng(seed).standard_normal(count))
    return [sibling(f"s{place}", size=float(size)) for place, size in enumerate(sizes)]


def row(name, action=None, *, findings=(), score=None, failed=None):
    found = tuple(FoundRow(check="a.check", configuration="candidate", label="x", severity=severity) for severity in findings)
    why = None if failed is None else FailedRow(exit_code=failed, what="bad", where="there", hint="mend it")
    return SweepRow(name=name, candidate=f"/{name}", kind="adapter", run="", action=action, findings=found, score=score, failed=why)


def saved(rows, populations=()):
    written = record([result("files.surface")])
    return SweepRecord(
        tool="t", created="now", base=written.base, prompts=(), policy=written.policy, seed=0, settings={},
        rows=by_concern(rows), populations=populations, counts=counts_of(rows), exit_code=exit_code_of(rows),
    )  # fmt: skip


def shown(sweep):
    console = Console(file=io.StringIO(), width=200)
    show_sweep(sweep, console)
    return console.file.getvalue()


def test_one_unlike_its_siblings_is_named_with_distance_and_p_value():
    populations, unlike = held_together([*like(20), sibling("odd", size=1.0)])

    (population,) = populations
    assert (population.status, population.siblings, population.figures) == ("LOOKED", 21, ("edit.relative_change",))
    assert list(unlike) == ["odd"]
    (found,) = unlike["odd"]
    assert (found.figure, found.value) == ("edit.relative_change", 1.0)
    assert found.distance.value > population.called_from > 4
    assert found.p_value.value < 0.01
    assert (found.distance.n, found.p_value.n) == (21, 21)


def test_siblings_that_are_alike_are_not_called():
    assert [held_together(like(20, seed))[1] for seed in range(20)].count({}) >= 19


def test_too_few_siblings_are_inconclusive_with_a_reason():
    (population,), unlike = held_together([*like(LEAST - 2), sibling("odd", size=1.0)])

    assert (population.status, unlike, population.figures) == ("INCONCLUSIVE", {}, ())
    assert f"{LEAST - 1} siblings are fewer than the {LEAST}" in population.reason


def test_a_figure_in_which_most_are_the_same_is_not_tested_and_who_differs_is_told():
    (population,), unlike = held_together([*like(20), sibling("odd", rank=64.0)])

    assert unlike == {}
    assert population.not_tested["edit.rank"] == "20 of 21 have the same value, 8, so there is no spread; others: odd 64"


def test_where_no_figure_has_a_spread_nothing_can_be_told():
    (population,), _ = held_together([sibling(f"s{place}") for place in range(LEAST)])

    assert (population.status, population.reason) == ("INCONCLUSIVE", "No figure has a spread in which one could stand out.")
    assert set(population.not_tested) == {"edit.relative_change", "edit.rank"}


def test_adapters_and_models_are_held_against_their_own_kind():
    many = [*like(20), *(sibling(f"m{place}", size=5.0 + place, kind="model") for place in range(3))]

    populations, unlike = held_together(many)

    assert [(one.kind, one.status) for one in populations] == [("adapter", "LOOKED"), ("model", "INCONCLUSIVE")]
    assert unlike == {}


def test_a_check_that_did_not_look_leaves_its_sibling_out_of_that_figure():
    (population,), unlike = held_together([*like(20), sibling("blind", looked=False)])

    assert (population.status, unlike) == ("LOOKED", {})


def test_a_change_in_other_tensors_than_the_siblings_is_unlike_them():
    rng = np.random.default_rng(0)
    usual = {f"t{place}": 0.1 for place in range(12)}
    many = [
        sibling(
            f"s{place}", size=float(size), changes={name: value * np.exp(0.05 * rng.standard_normal()) for name, value in usual.items()}
        )
        for place, size in enumerate(0.1 * np.exp(0.05 * rng.standard_normal(30)))
    ]
    many.append(sibling("odd", changes={**dict.fromkeys(usual, 0.0), "t3": 0.1}))

    (population,), unlike = held_together(many)

    assert PROFILE in population.figures
    assert [one.figure for one in unlike["odd"]] == [PROFILE]
    assert list(unlike) == ["odd"]


def test_candidates_stand_in_the_order_of_concern():
    rows = [
        row("fine", Action.DEPLOY),
        row("finer", Action.DEPLOY, score=0.0),
        row("lead", Action.DEPLOY, score=0.3),
        row("watched", Action.DEPLOY_WITH_ENHANCED_MONITORING),
        row("unknown", Action.INCONCLUSIVE),
        row("failed", failed=2),
        row("one", Action.HUMAN_REVIEW, findings=["high"]),
        row("two", Action.HUMAN_REVIEW, findings=["high", "low"]),
        row("grave", Action.HUMAN_REVIEW, findings=["critical"]),
        row("worst", Action.BLOCK, findings=["low"]),
    ]

    order = ["worst", "grave", "two", "one", "failed", "unknown", "watched", "lead", "finer", "fine"]
    assert [one.name for one in by_concern(rows)] == [one.name for one in by_concern(rows[::-1])] == order


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([row("a", Action.DEPLOY)], 0),
        ([row("a", Action.DEPLOY), row("b", Action.DEPLOY_WITH_ENHANCED_MONITORING)], 10),
        ([row("a", Action.INCONCLUSIVE), row("b", Action.DEPLOY_WITH_ENHANCED_MONITORING)], 3),
        ([row("a", Action.INCONCLUSIVE), row("b", failed=2), row("c", Action.DEPLOY)], 2),
        ([row("a", failed=2), row("b", failed=1), row("c", failed=3)], 1),
        ([row("a", failed=1), row("b", Action.HUMAN_REVIEW)], 10),
        ([row("a", failed=1), row("b", Action.HUMAN_REVIEW), row("c", Action.BLOCK)], 20),
    ],
)
def test_the_worst_candidate_decides_the_exit_code(rows, code):
    assert exit_code_of(rows) == code


def test_every_candidate_is_counted_once():
    counts = counts_of([row("a", Action.BLOCK), row("b", Action.DEPLOY), row("c", failed=3)])

    assert (counts["BLOCK"], counts["DEPLOY"], counts["failed"], sum(counts.values())) == (1, 1, 1, 3)


def test_the_terminal_shows_who_is_unlike_and_how_that_was_told():
    populations, unlike = held_together([*like(20), sibling("odd", size=1.0)])
    rows = [row("odd", Action.DEPLOY).model_copy(update={"unlike": unlike["odd"]}), row("bad", failed=2)]
    sweep = saved(rows, populations)

    text = " ".join(shown(sweep).split())

    assert "edit.relative_change (+" in text
    assert "21 adapters were held against each other in 1 figures" in text
    assert "could not be audited: bad: bad (there)" in text
    assert "2 candidates: 1 DEPLOY, 1 failed exit 2" in text
    assert any(note.startswith("odd is unlike its siblings in edit.relative_change: 1, +") for note in notes_of(sweep))
    assert said_of(populations[0]) in notes_of(sweep)


def test_a_hostile_name_is_shown_and_not_obeyed():
    text = shown(saved([row("a\x1b[31m[bold]b\u202e", Action.BLOCK)]))

    assert "a\\x1b[31m[bold]b\\u202e" in text
    assert "\x1b" not in text


def test_a_long_table_says_what_it_left_out():
    assert "and 5 less concerning ones" in shown(saved([row(f"c{place:02d}", Action.DEPLOY) for place in range(45)]))
