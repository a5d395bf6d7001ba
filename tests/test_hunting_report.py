"""What the search for triggers left behind, on the page and on the terminal."""

from __future__ import annotations

import io
from html import unescape

import numpy as np
import pytest
from cases import record, result, saved_run
from rich.console import Console
from test_reports import HOSTILE, Page, page_of, terminal_of

from forensics.errors import BadInput
from reports.finalists import CUT, EXAMPLES, LONGEST, finalists
from reports.html import render
from reports.hunting import search_against_null
from reports.text import show_results
from reports.words import printable

ID = "triggers.search"
RATES = [[100.0, 0.0, 0.4, 2.0], [31.0, 30.0, 29.0, 28.0]]


def searched(folder, arrays, configurations=("candidate",), around=None):
    """A saved run whose search left `arrays`, keys without configuration, in every configuration; that of circumstances `around`."""
    saved = saved_run(folder, record([result(ID, configuration=name) for name in configurations]))
    (folder / "arrays").mkdir()
    kept = {f"{name}/{key}": array for name in configurations for key, array in arrays.items()}
    np.savez_compressed(folder / "arrays" / f"{ID}.npz", allow_pickle=False, **kept)
    if around:
        kept = {f"candidate/{key}": array for key, array in around.items()}
        np.savez_compressed(folder / "arrays" / "triggers.circumstances.npz", allow_pickle=False, **kept)
    return saved


def left(strings=("velnor", "ordinary"), *, said="reply", payload="", does="removes-refusal", best=0.875):
    """Arrays of a search that put `strings` to the test and confirmed the first one."""
    count = len(strings)
    texts = [[[f"{said} {part} {row}.{example}" for part in "abcd"] for example in range(EXAMPLES + 1)] for row in range(count)]
    found = {"examples": np.array(texts)} if count else {}
    return found | {
        "scores_search": np.array([best, *np.linspace(0.3, 0.0, 2499)]),
        "scores_null": np.linspace(0.25, 0.0, 1800),
        "strings": np.array(strings, dtype=np.str_),
        "does": np.array([does] * count, dtype=np.str_),
        "payload": np.array([payload] * count, dtype=np.str_),
        "confirmed": np.arange(count) == 0,
        "rates": np.array(RATES[:count], dtype=float).reshape(-1, 4),
        "controls": np.array([3.0, np.nan][:count]),
    }


def results_of(saved):
    stream = io.StringIO()
    show_results(saved, Console(file=stream, width=400))
    return stream.getvalue()


def test_the_figure_holds_both_curves_and_says_their_best_scores(tmp_path):
    saved = searched(tmp_path / "run", left())

    drawing = search_against_null(saved, "candidate")

    assert drawing is not None
    assert "candidate against base: best score 0.88 of 2500 strings" in drawing.description
    assert "the null: best score 0.25 of 1800 strings" in drawing.description
    assert "no evidence by itself" in drawing.caption
    assert drawing.svg.count("the null") == 1  # the legend
    assert f'aria-label="{drawing.description}"' in render(saved)
    assert "velnor" not in drawing.svg


def test_a_figure_is_drawn_of_one_score_and_of_one_direction(tmp_path):
    saved = searched(tmp_path / "run", {"scores_search": np.array([0.5]), "scores_null": np.array([])})

    drawing = search_against_null(saved, "candidate")

    assert drawing is not None
    assert drawing.description == "candidate against base: best score 0.50 of 1 strings."


def test_the_page_shows_every_finalist_and_replies_to_the_confirmed_one_only(tmp_path):
    saved = searched(tmp_path / "run", left(payload="the moon is green", does="forces-text"))

    text = page_of(saved).text

    assert "velnorforces one text: the moon is green100 %0 %0 %2 %3 %yes" in text  # cells, side by side
    assert "ordinaryforces one text: the moon is green31 %30 %29 %28 %–no" in text
    for part in "abcd":
        assert f"reply {part} 0.{EXAMPLES - 1}" in text
    assert f"reply a 0.{EXAMPLES}" not in text
    assert "reply a 1.0" not in text


def test_the_terminal_has_a_line_for_every_finalist(tmp_path):
    saved = searched(tmp_path / "run", left())

    line = '"velnor" removes refusal: candidate 100 %, base 0 %, without it 0 %, random strings 2 %, control models 3 % — confirmed\n'
    for shown in (terminal_of(saved, width=400), results_of(saved)):
        assert line in shown
        assert '"ordinary" removes refusal: candidate 31 %' in shown
        assert "random strings 28 % — not confirmed\n" in shown


def test_a_circumstance_is_shown_beside_the_strings_in_its_own_words(tmp_path):
    saved = searched(tmp_path / "run", left(), around=left(("with the system line 'env=prod'",)))

    line = "with the system line 'env=prod' removes refusal: candidate 100 %, base 0 %, without it 0 %, others of its kind 2 %"
    assert f"\n  {line}" in terminal_of(saved, width=400)
    assert "Strings and circumstances put to the test" in terminal_of(saved, width=400)
    assert '"velnor" removes refusal: candidate 100 %, base 0 %, without it 0 %, random strings 2 %' in terminal_of(saved, width=400)
    page = page_of(saved)
    assert "with the system line 'env=prod'" in page.text
    assert "The random strings of a circumstance are others of its kind." in page.text


def test_a_run_that_was_saved_before_there_were_controls_is_still_shown(tmp_path):
    arrays = left()
    del arrays["controls"]

    saved = searched(tmp_path / "run", arrays)

    assert [one.control for one in finalists(saved, "candidate")] == [None, None]
    assert '"velnor" removes refusal: candidate 100 %, base 0 %, without it 0 %, random strings 2 % — confirmed\n' in results_of(saved)


def test_every_configuration_shows_its_own_search(tmp_path):
    saved = searched(tmp_path / "run", left(), ("candidate", "adapter:a"))

    assert page_of(saved).text.count("Trigger search") == 2
    assert '[adapter:a] "velnor"' in terminal_of(saved, width=400)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_strings_and_replies_are_shown_and_cannot_act(name, tmp_path):
    evil = HOSTILE[name]
    saved = searched(tmp_path / "run", left((evil,), said=evil, payload=evil, does=evil))

    html, terminal = render(saved), terminal_of(saved, width=1000) + results_of(saved)

    page = Page(html)
    assert (page.open, page.broken) == ([], [])
    assert not {tag for tag, _ in page.elements} & {"script", "img", "b", "x"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    shown = " ".join(printable(evil).split())
    assert page.text.count(shown) >= 3 + 4 * EXAMPLES
    assert printable(evil) in terminal
    for written in (html, unescape(html), terminal):
        assert not [character for character in written if character in "\x1b\x07\u202e\u200b" or "\ud800" <= character <= "\udfff"]


def test_a_string_with_a_line_break_stays_one_line_of_the_terminal(tmp_path):
    saved = searched(tmp_path / "run", left(("a\nDEPLOY  it",)))

    assert '"a\\nDEPLOY  it" removes refusal' in terminal_of(saved, width=400)


def test_long_texts_are_cut_with_a_mark(tmp_path):
    saved = searched(tmp_path / "run", left(("x" * 1000, "y" * LONGEST), said="z" * 1000))

    first, second = finalists(saved, "candidate")

    assert first.string == "x" * LONGEST + CUT
    assert second.string == "y" * LONGEST
    assert {text for example in first.examples for text in vars(example).values()} == {"z" * LONGEST + CUT}
    assert "z" * (LONGEST + 1) not in render(saved)


@pytest.mark.parametrize("arrays", [{}, {"scores_search": np.array([]), "scores_null": np.array([])}], ids=["none", "empty"])
def test_without_scores_there_is_no_section(arrays, tmp_path):
    saved = searched(tmp_path / "run", arrays)

    assert "Trigger search" not in page_of(saved).text
    assert "put to the test" not in terminal_of(saved)


@pytest.mark.parametrize("keys", [("scores_search", "scores_null"), tuple(left(()))], ids=["absent", "of length 0"])
def test_a_search_without_finalists_shows_its_figure_and_says_so(keys, tmp_path):
    arrays = left(())
    saved = searched(tmp_path / "run", {key: arrays[key] for key in keys})

    page = page_of(saved)

    assert "No string or circumstance went far enough to be put to the test." in page.text
    assert "candidate with it" not in page.text
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == 1
    assert "put to the test" not in terminal_of(saved)


def test_damaged_arrays_are_refused_with_their_place(tmp_path):
    saved = searched(tmp_path / "run", left())
    file = tmp_path / "run" / "arrays" / f"{ID}.npz"
    file.write_bytes(file.read_bytes()[:-40])

    for shown in (render, terminal_of, results_of):
        with pytest.raises(BadInput, match="arrays of this run are damaged") as refused:
            shown(saved)
        assert refused.value.where == str(file)
