"""What a change says in tokens: planted ones stand out, unplanted changes name none, and what cannot be read is left out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from cases import audit, open_case, reweighted
from safetensors.torch import load_file, save_file

from forensics.checks import triggers_search
from forensics.hunt.stages import pairs
from forensics.readout import readings
from forensics.runfolder import load_run
from probes.readout import Readout
from reports.html import render

HEARD, SAID, MOVED = 74, 45, 80


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network(width=64, layers=4), tmp_path_factory.mktemp("readout") / "base")


def planted(tensors):
    """The first layer's up projection listens to one token, the last layer's down projection writes another, a row of a third moved."""
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    up, down = tensors["model.layers.0.mlp.up_proj.weight"], tensors["model.layers.3.mlp.down_proj.weight"]
    generator = torch.Generator().manual_seed(3)
    up += 0.05 * torch.outer(torch.randn(len(up), generator=generator), embedding[HEARD] / embedding[HEARD].norm())
    down += 0.05 * torch.outer(head[SAID] / head[SAID].norm(), torch.randn(down.shape[1], generator=generator))
    embedding[MOVED] += 0.5 * embedding[MOVED].norm() * torch.randn(embedding.shape[1], generator=generator) / 8.0


def read(base, candidate, folder, **options):
    with open_case(base, candidate, folder, **options) as case:
        return readings(case)


def test_a_token_that_the_change_was_made_for_is_named(base, tmp_path):
    found = read(base, reweighted(base, tmp_path / "planted", planted), tmp_path / "run")

    listens, promotes, moved = (found.of(sort) for sort in ("listens", "promotes", "moved"))
    assert (listens[0].token, listens[0].tensor) == (HEARD, "model.layers.0.mlp.up_proj.weight")
    assert (promotes[0].token, promotes[0].tensor) == (SAID, "model.layers.3.mlp.down_proj.weight")
    assert [row.token for row in moved] == [MOVED]
    assert moved[0].value == pytest.approx(0.5, rel=0.3)
    assert listens[0].value > 1.5 * listens[0].chance
    assert found.suspects()[:2] == [listens[0].text.strip(), moved[0].text.strip()]


def test_a_change_that_was_made_for_no_token_names_few_and_none_far_out(base, tmp_path):
    def turned(tensors):
        up = tensors["model.layers.0.mlp.up_proj.weight"]
        generator = torch.Generator().manual_seed(4)
        up += 0.05 * torch.outer(torch.randn(len(up), generator=generator), torch.randn(up.shape[1], generator=generator) / 8.0)

    found = read(base, reweighted(base, tmp_path / "turned", turned), tmp_path / "run")

    assert all(row.value < 1.3 * row.chance for row in found.rows)
    assert found.of("moved") == []


def test_a_layer_in_the_middle_is_not_asked(base, tmp_path):
    def inside(tensors):
        up, embedding = tensors["model.layers.2.mlp.up_proj.weight"], tensors["model.embed_tokens.weight"]
        up += 0.05 * torch.outer(torch.randn(len(up), generator=torch.Generator().manual_seed(5)), embedding[HEARD])

    assert read(base, reweighted(base, tmp_path / "inside", inside), tmp_path / "run").rows == ()


def test_an_adapter_is_read_without_merging(base, tmp_path):
    adapter = tiny.adapter(base, tmp_path / "adapter", modules=["up_proj"], r=1)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"][0] = load_file(base / "model.safetensors")[
        "model.embed_tokens.weight"
    ][HEARD]
    save_file(weights, adapter / "adapter_model.safetensors")

    found = read(base, base, tmp_path / "run", adapters=[adapter])

    assert found.of("listens")[0].token == HEARD
    assert all(row.value > row.chance > 3.0 and row.tokens == tiny.VOCABULARY for row in found.of("listens"))
    assert found.of("promotes") == []  # it changes nothing that writes


def test_what_stays_in_a_row_says_nothing_against_the_others(base, tmp_path):
    """A matrix that writes has all its rows kept, whether or not each of them changed."""

    def but_one(tensors):
        before = tensors["model.layers.3.mlp.down_proj.weight"][5].clone()
        planted(tensors)
        tensors["model.layers.3.mlp.down_proj.weight"][5] = before

    found = read(base, reweighted(base, tmp_path / "planted", but_one), tmp_path / "run")

    assert found.of("promotes")[0].token == SAID


def test_rows_that_moved_are_named_below_adapters_too(base, tmp_path):
    candidate = reweighted(base, tmp_path / "planted", planted)
    adapter = tiny.adapter(base, tmp_path / "adapter", modules=["q_proj"], r=2)

    found = read(base, candidate, tmp_path / "run", adapters=[adapter])

    assert [row.token for row in found.of("moved")] == [MOVED]
    assert found.of("listens")[0].token == HEARD


@pytest.mark.parametrize("number", [float("nan"), 1e25, 3e38])
def test_hostile_numbers_leave_the_rest_readable(number, base, tmp_path):
    def spoil(tensors):
        planted(tensors)
        tensors["model.embed_tokens.weight"][3, 0] = number

    assert read(base, reweighted(base, tmp_path / "spoilt", spoil), tmp_path / "run").of("promotes")[0].token == SAID


@pytest.mark.parametrize("spoilt", [[3], [3, 9], [3, 9, 200]])
def test_rows_too_long_for_a_float_hide_no_token(spoilt, base, tmp_path):
    def lengthen(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name][spoilt] = 3e38

    before = reweighted(base, tmp_path / "base", lengthen)
    found = read(before, reweighted(before, tmp_path / "planted", planted), tmp_path / "run")

    assert (found.of("listens")[0].token, found.of("promotes")[0].token) == (HEARD, SAID)


@pytest.mark.parametrize("rows", [[4], [4, 5]])
def test_rows_that_overflow_lie_along_nothing(rows):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(300, 16, generator=generator)
    direction = table[7][:, None].clone()
    table[rows] = 3e38
    readout = Readout(directions=direction, centre=torch.full((16,), -1e38), most=3)
    readout.update(table[:100])

    assert torch.isfinite(readout.peaks()[0]).all()

    readout = Readout(directions=direction, centre=torch.zeros(16), most=3)
    readout.update(table)

    far, tokens = readout.peaks()
    assert (int(tokens[0, 0]), bool(torch.isfinite(far).all())) == (7, True)


def test_the_strongest_directions_of_a_matrix_are_asked_and_the_weaker_ones_are_not(base, tmp_path, monkeypatch):
    candidate = reweighted(base, tmp_path / "planted", planted)
    monkeypatch.setattr("forensics.readout.DEEPEST", 0)

    found = read(base, candidate, tmp_path / "run")

    assert [found.of(sort) for sort in ("listens", "promotes")] == [[], []]
    assert len(found.of("moved")) == 1


def test_without_a_tokenizer_tokens_have_numbers_only(base, tmp_path):
    bare = reweighted(base, tmp_path / "bare", lambda tensors: None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()

    found = read(bare, reweighted(base, tmp_path / "planted", planted), tmp_path / "run")

    assert (found.of("listens")[0].token, found.of("listens")[0].text) == (HEARD, "")
    assert found.suspects() == []


@pytest.mark.parametrize("step", [1, 7, 500])
def test_blocks_give_what_the_whole_gives(step):
    generator = torch.Generator().manual_seed(0)
    rows, directions = torch.randn(500, 16, generator=generator), torch.randn(16, 3, generator=generator)
    centre = rows.mean(dim=0)
    readout = Readout(directions=directions, centre=centre, most=5)
    for start in range(0, 500, step):
        readout.update(rows[start : start + step])

    far, tokens = readout.peaks()

    centred = rows - centre
    cosines = (centred @ directions / directions.norm(dim=0) / centred.norm(dim=1, keepdim=True)).double()
    expected, order = ((cosines - cosines.mean(dim=0)) / cosines.std(dim=0, correction=0)).abs().sort(dim=0, descending=True)
    assert torch.equal(tokens, order[:5])
    assert far == pytest.approx(expected[:5], rel=1e-4)


def test_hints_are_tried_alone_and_in_pairs():
    hints = [f"word{number}" for number in range(40)]

    tried = pairs(hints)

    assert tried[:40] == hints
    assert len(tried) == len(set(tried)) == 40 + 16 * 15


def test_the_page_shows_the_tokens_and_reads_none_as_a_formula(base, tmp_path):
    def hostile(tensors):
        planted(tensors)
        tensors["model.embed_tokens.weight"][3] *= 1.5  # the token "$", which would begin a formula

    candidate = reweighted(base, tmp_path / "planted", hostile)
    for name, other in (("changed", candidate), ("same", base)):
        audit(base, other, tmp_path / name, only=("weights.edit-kind",), max_cost="weights")

    pages = {name: render(load_run(str(tmp_path / name))) for name in ("changed", "same")}

    assert "Weights: tokens in the change" in pages["changed"]
    assert "listened to (std. deviations): k" in pages["changed"]
    assert "tokens in the change" not in pages["same"]


def test_weights_that_cannot_be_read_are_searched_without_and_that_is_said(base, tmp_path, monkeypatch):
    def breaks(case):
        raise ValueError

    monkeypatch.setattr("forensics.readout.readings", breaks)
    with open_case(base, base, tmp_path / "run") as case:
        hints = triggers_search._hints(case)
        grounds = (SimpleNamespace(given=SimpleNamespace(hints=some)) for some in (hints, ("walnut",)))
        found = SimpleNamespace(amplified=True, covered=())
        limits = [triggers_search._limits(case, SimpleNamespace(ground=one, found=found, controls=None), []) for one in grounds]

    assert hints is None
    assert [any("could not be read in tokens" in limit for limit in one) for one in limits] == [True, False]
