"""What was read once is read back: only for the same model, adapters, texts, template, sites, tokens, precision and kind of statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from cases import open_case, tiny_prompts

from forensics.capture import Reading, Sites, Spread
from forensics.sites import LAST, Spot, template_spots

READING = Reading(sites=("blocks.1.hook_resid_mid", "blocks.0.attn.hook_out"), spots=(LAST, Spot(anchor="reply-mean")))
COVARIANCE = Spread(kind="covariance")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("cached") / "base")


def rows_of(case, reply="yes"):
    model = case.model("base")
    return [model.render_answered(prompt, reply) for prompt in case.prompts]


def the_same(one, other):
    return all(
        all(np.array_equal(array, theirs.arrays()[name]) for name, array in ours.arrays().items())
        for first, second in zip(one, other, strict=True)
        for ours, theirs in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("spread", [Spread(), COVARIANCE, Spread(kind="sketch", directions=3)], ids=lambda spread: spread.kind)
def test_a_resumed_run_reads_back_exactly_what_was_measured(spread, folder, tmp_path, monkeypatch):
    prompts = tiny_prompts(tmp_path / "p.jsonl")
    with open_case(folder, folder, tmp_path / "run", prompts=prompts) as case:
        first, at = case.statistics("base", rows_of(case), READING, spread), case.activations_at("base", rows_of(case), READING)
        assert first[0][0].count == len(case.prompts)

    monkeypatch.setattr("forensics.capture.read", None)
    with open_case(folder, folder, tmp_path / "run", prompts=prompts) as case:
        again = case.statistics("base", rows_of(case), READING, spread)
        assert the_same(first, again)
        assert {type(seen) for line in again for seen in line} == {type(spread.empty(1))}
        assert np.array_equal(case.activations_at("base", rows_of(case), READING), at)
        for file in (tmp_path / "run" / "cache").iterdir():
            file.write_bytes(b"torn")
        with pytest.raises(TypeError):
            case.statistics("base", rows_of(case), READING, spread)


def everything(case, side, rows, reading, spread):
    case.activations(side, rows, Sites(layers=(0, 1), positions=tuple(spot.offset for spot in reading.spots if spot.anchor == "prompt")))
    case.activations_at(side, rows, reading)
    case.statistics(side, rows, reading, spread)


def kept(run):
    return {file.name for file in (run / "cache").iterdir()}


OTHER_PLACES = {
    "another site": (replace(READING, sites=("blocks.1.hook_resid_pre", READING.sites[1])), COVARIANCE, 2),
    "the sites in another order": (replace(READING, sites=READING.sites[::-1]), COVARIANCE, 2),
    "another token": (replace(READING, spots=(Spot(anchor="prompt", offset=-2), READING.spots[1])), COVARIANCE, 3),
    "the same number from another anchor": (replace(READING, spots=(LAST, Spot(anchor="reply"))), COVARIANCE, 2),
    "another kind of statistics": (READING, Spread(), 1),
    "another size of sketch": (READING, Spread(kind="covariance", directions=5), 1),
}


@pytest.mark.parametrize(("reading", "spread", "new"), OTHER_PLACES.values(), ids=OTHER_PLACES)
def test_another_place_is_read_anew(reading, spread, new, folder, tmp_path):
    with open_case(folder, folder, tmp_path / "run", prompts=tiny_prompts(tmp_path / "p.jsonl")) as case:
        rows = rows_of(case)
        everything(case, "base", rows, READING, COVARIANCE)
        before = kept(case.workbench.run.path)
        everything(case, "base", rows, READING, COVARIANCE)
        assert kept(case.workbench.run.path) == before

        everything(case, "base", rows, reading, spread)

        assert len(before) == 3
        assert len(kept(case.workbench.run.path) - before) == new


def test_other_texts_are_read_anew(folder, tmp_path):
    with open_case(folder, folder, tmp_path / "run", prompts=tiny_prompts(tmp_path / "p.jsonl")) as case:
        rows, seen = rows_of(case), set()
        # Another prompt, another reply, the same tokens cut elsewhere, one text less, another order.
        cut = [replace(row, reply=row.reply - 1) for row in rows]
        for texts in (rows, [*rows[:-1], rows[0]], rows_of(case, "no!"), cut, rows[1:], rows[::-1]):
            everything(case, "base", texts, READING, COVARIANCE)
            now = kept(case.workbench.run.path)
            assert len(now - seen) == 3
            seen = now


def test_another_model_adapter_template_or_precision_is_read_anew(folder, tmp_path):
    prompts, run = tiny_prompts(tmp_path / "p.jsonl"), tmp_path / "run"
    other = tiny.nudge(folder, tmp_path / "other")
    dressed = tiny.save(
        tiny.network(), tmp_path / "dressed", template=tiny.TEMPLATE.replace("{{ message['content'] }}", " {{ message['content'] }}")
    )
    worn = [tiny.adapter(folder, tmp_path / name, modules=["q_proj"], seed=seed) for name, seed in (("a", 1), ("b", 2))]
    seen: set[str] = set()
    ways = [
        (folder, ()), (other, ()), (dressed, ()), (folder, worn[:1]), (folder, worn[1:]), (folder, worn), (folder, worn[::-1]),
    ]  # fmt: skip
    for candidate, adapters in ways:
        with open_case(folder, candidate, run, adapters=adapters, prompts=prompts) as case:
            model = case.model("candidate")
            everything(
                case, "candidate", [model.render(prompt, room=0) for prompt in case.prompts], replace(READING, spots=(LAST,)), COVARIANCE
            )
        assert len(kept(run) - seen) == 3, (candidate.name, adapters)
        seen = kept(run)
    with open_case(folder, folder, run, prompts=prompts) as case:
        model = case.model("base")
        with model.wearing(()) as whole:
            whole.to(torch.float64)
        everything(case, "base", [model.render(prompt, room=0) for prompt in case.prompts], replace(READING, spots=(LAST,)), COVARIANCE)
    assert len(kept(run) - seen) == 3


def test_every_template_token_can_be_read(folder, tmp_path):
    with open_case(folder, folder, tmp_path / "run", prompts=tiny_prompts(tmp_path / "p.jsonl")) as case:
        rows = [case.model("base").render(prompt, room=0) for prompt in case.prompts]
        found = case.activations_at("base", rows, Reading(sites=("blocks.1.hook_resid_pre",), spots=template_spots(2)))

        assert np.array_equal(found, case.activations("base", rows, Sites(layers=(1,), positions=(-2, -1))))
