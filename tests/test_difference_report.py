"""Figures of the activation diff: they show what was kept, and no token a model brings can act in a page."""

from __future__ import annotations

import numpy as np
import pytest
from cases import record, result, saved_run
from test_reports import HOSTILE, Page, page_of

from forensics.runfolder import load_run
from reports.difference import leanings, meaning, place_map, speech

DRIFT = {
    "map_distance_harmful": np.linspace(0.0, 1.5, 15).reshape(5, 3),
    "map_place_harmful": np.array([-2, -1, 1]),
    "map_token_harmful": np.array(["", "<|assistant|>", "Sorry"]),
    "kl_first_harmful": np.array([[2.0, 4.0], [1.0, 1.0]]),
    "kl_reply_harmful": np.array([[9.0, 0.5, 0.25], [8.0, 0.5, 0.125]]),
    "kl_number_harmful": np.array([1, 2, 3]),
}


def said(text):
    return {
        "score": np.array([9.0, 3.0]), "text": np.array([text, "plain"]), "readouts": np.array([[9.0, 3.0], [8.0, 3.0], [10.0, 3.0]]),
        "readout": np.array(["lens", "patchscope", "steering"]), "controls": np.array([1.0, 2.0, 4.0]),
    }  # fmt: skip


def leant(text):
    return {"gain": np.array([3.0, 0.5]), "text": np.array([text, "plain"]), "frequency": np.array([[0.02, 0.004], [0.0, 0.002]])}


def run_with(folder, **arrays):
    saved_run(folder, record([result("activations.drift"), result("activations.meaning"), result("behaviour.leanings")]))
    (folder / "arrays").mkdir(exist_ok=True)
    for check, rows in arrays.items():
        with (folder / "arrays" / f"{'behaviour' if check == 'leanings' else 'activations'}.{check}.npz").open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{f"candidate/{name}": array for name, array in rows.items()})
    return load_run(str(folder))


def test_a_run_without_an_activation_diff_has_no_such_figures(tmp_path):
    saved = run_with(tmp_path / "run")

    assert (place_map(saved, "candidate"), speech(saved, "candidate"), meaning(saved, "candidate")) == (None, None, None)
    assert leanings(saved, "candidate") is None
    assert "What the difference says" not in page_of(saved).text


def test_the_figures_say_in_words_what_they_show(tmp_path):
    saved = run_with(tmp_path / "run", drift=DRIFT, meaning=said("Sure"), leanings=leant("lamp"))

    assert place_map(saved, "candidate").description == "Largest distances: harmful 1.5 at layer 4, token +1."
    assert "harmful 3 and 1 nats at the first token" in speech(saved, "candidate").description
    assert meaning(saved, "candidate").description == "First tokens: Sure, plain; the first is 9.0 standard deviations out."
    assert leanings(saved, "candidate").description == "Tokens that gained most: lamp, plain; the first 20 times likelier."
    page = page_of(saved)
    assert page.broken == []
    assert {"Inside: at which tokens the models part", "What the difference says"} <= {text.strip() for text in page.texts}


def test_cells_that_were_left_out_are_gaps_and_not_a_distance_of_nothing(tmp_path):
    held = np.ones((5, 3), dtype=bool)
    held[0] = held[4, 2] = False
    whole = place_map(run_with(tmp_path / "whole", drift=DRIFT), "candidate")

    drawn = place_map(run_with(tmp_path / "gaps", drift=DRIFT | {"map_held_harmful": held}), "candidate")
    none = place_map(run_with(tmp_path / "none", drift=DRIFT | {"map_held_harmful": np.zeros((5, 3), dtype=bool)}), "candidate")

    assert "4 cells of harmful prompts are left out." in drawn.description
    assert none.description == "Largest distances: harmful none. 15 cells of harmful prompts are left out."
    assert "Grey: one side holds nothing but zeros" in drawn.caption
    assert "Grey" not in whole.caption
    assert ("fcfdbf" in whole.svg, "fcfdbf" in drawn.svg) == (True, False)  # the colour of a distance of 0


@pytest.mark.parametrize(
    "evil", [text for name, text in HOSTILE.items() if name != "surrogate"], ids=[name for name in HOSTILE if name != "surrogate"]
)
def test_no_token_acts_in_a_page(evil, tmp_path):
    hostile = DRIFT | {"map_token_harmful": np.array([evil] * 3)}

    page = page_of(run_with(tmp_path / "run", drift=hostile, meaning=said(evil), leanings=leant(evil)))

    assert isinstance(page, Page) and page.broken == []
    assert not {tag for tag, _ in page.elements} & {"script", "img", "iframe", "b"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
