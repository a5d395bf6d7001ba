"""Quantised tensors against what was quantised here."""

from __future__ import annotations

import pytest
import tiny
import torch
from cases import audit, open_case, tiny_prompts
from quantised import (
    BNB4,
    BNB8,
    FLOAT8,
    FP8,
    NAME,
    RELEASES,
    expanded,
    in_8_bits,
    in_blocks,
    in_float8,
    made_of,
    numbers,
    packed,
    release,
    weight,
)
from transformers import AutoModelForCausalLM

from forensics import checkpoint
from forensics.checkpoint import open_checkpoint
from forensics.checks import weights_change
from forensics.dequantise import BLOCK_SIZES, TABLES
from forensics.record import Status

# --- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_alone_is_the_number_it_stores(tmp_path, dtype):
    codes = weight(40, 30).to(dtype)
    assert torch.equal(numbers(made_of(tmp_path / "m", {NAME: codes})), codes.float())


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (300,), (300, 1)], ids=str)
@pytest.mark.parametrize("ending", ["_scale", "_scale_inv"])
def test_float8_with_a_scale_a_tensor_or_a_row(tmp_path, dtype, shape, ending):
    values = weight(300, 200)
    rows = (values.abs().amax(dim=1) if 300 in shape else values.abs().max()) / FLOAT8[dtype]
    scale = rows.reshape(shape)
    codes = in_float8(values, rows[:, None] if 300 in shape else rows, dtype)

    found = numbers(made_of(tmp_path / "m", {NAME: codes, NAME + ending: scale}, FP8))

    assert torch.allclose(found, codes.float() * (rows[:, None] if 300 in shape else rows), rtol=1e-6)
    assert (found - values).norm() / values.norm() < {torch.float8_e4m3fn: 0.04, torch.float8_e5m2: 0.08}[dtype]


@pytest.mark.parametrize("elements", [1, 200, 7777, 1 << 20])
@pytest.mark.parametrize(("block", "config"), [((128, 128), FP8), ((64, 32), FP8 | {"weight_block_size": [64, 32]}), ((1, 128), FP8)])
def test_float8_with_a_scale_a_block_however_it_is_cut(tmp_path, monkeypatch, elements, block, config):
    values = weight(300, 200)
    codes, scale = in_blocks(values, block)
    folder = made_of(tmp_path / "m", {NAME: codes, NAME + "_scale_inv": scale}, config)
    monkeypatch.setattr(checkpoint, "BLOCK_ELEMENTS", elements)

    found = numbers(folder)

    assert torch.allclose(found, codes.float() * expanded(scale, (300, 200), block), rtol=1e-6)
    assert (found - values).norm() / values.norm() < 0.04


def test_experts_in_one_float8_stack(tmp_path):
    values = weight(5, 24, 16)
    scale = values.abs().amax(dim=1, keepdim=True) / 448.0
    name = "model.layers.0.mlp.experts.gate_up_proj"

    found = numbers(made_of(tmp_path / "m", {name: in_float8(values, scale), f"{name}_scale": scale}, FP8), name)

    assert (found - values).norm() / values.norm() < 0.04


@pytest.mark.parametrize("elements", [1, 70, 1 << 20])
def test_8_bits_of_bitsandbytes(tmp_path, monkeypatch, elements):
    values = weight(33, 70)
    codes, largest = in_8_bits(values)
    module = NAME.removesuffix(".weight")
    tensors = {NAME: codes, f"{module}.SCB": largest, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    monkeypatch.setattr(checkpoint, "BLOCK_ELEMENTS", elements)

    found = numbers(made_of(tmp_path / "m", tensors, BNB8))

    assert ((found - values).abs() <= largest[:, None] / 254.0 * 1.001).all()


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("shape", [(128, 64), (33, 7), (5, 129), (1, 1)], ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("elements", [1, 100, 1 << 20])
def test_4_bits_of_bitsandbytes_however_they_are_cut(tmp_path, monkeypatch, kind, shape, nested, elements):
    values = weight(*shape)
    folder = made_of(tmp_path / "m", packed(values, kind, nested=nested), BNB4)
    monkeypatch.setattr(checkpoint, "BLOCK_ELEMENTS", elements)

    found = numbers(folder)

    assert found.shape == shape
    steps = torch.tensor(sorted(TABLES[kind])).diff().max()
    largest = values.flatten().split(64)
    bound = torch.cat([part.abs().max().expand(len(part)) for part in largest]).reshape(shape)
    assert ((found - values).abs() <= bound * (steps / 2 + 0.02)).all()


def test_many_blocks_have_scales_of_scales(tmp_path):
    values = weight(400, 100)  # 625 blocks, three blocks of scales

    found = numbers(made_of(tmp_path / "m", packed(values, nested=True), BNB4))

    assert (found - values).norm() / values.norm() < 0.12


def test_4_bits_kept_in_another_dtype_are_the_same_bits(tmp_path):
    values = weight(16, 64)

    plain, other = (numbers(made_of(tmp_path / str(dtype), packed(values, storage=dtype), BNB4)) for dtype in (torch.uint8, torch.bfloat16))

    assert torch.equal(plain, other)


def test_the_first_of_two_codes_lies_in_the_high_half(tmp_path):
    tensors = packed(torch.zeros(1, 2))
    tensors[NAME] = torch.tensor([[0xF0]], dtype=torch.uint8)
    tensors[f"{NAME}.absmax"] = torch.tensor([2.0])

    assert numbers(made_of(tmp_path / "m", tensors, BNB4)).tolist() == [[2.0, -2.0]]


# --- a checkpoint with quantised tensors --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("kind", RELEASES)
@pytest.mark.parametrize("quantised", ["base", "candidate"])
def test_a_quantised_side_is_compared_as_the_numbers_it_stands_for(kind, quantised, base, tmp_path):
    sides = {"base": base, "candidate": base} | {quantised: release(base, tmp_path / "quantised", kind)}

    with open_case(sides["base"], sides["candidate"], tmp_path / "run") as case:
        outcome = weights_change.run(case)
        layout = case.layout

    assert (len(layout.pairs), layout.added, layout.removed, layout.layers) == (21, (), (), (0, 1))
    assert all(pair.base.shape == pair.candidate.shape for pair in layout.pairs)
    change = outcome.find("edit.relative_change").value
    assert 0.0 < change < (0.12 if kind.startswith("4") else 0.04)
    assert outcome.find("weights.tensors-changed").value == 14  # what was not quantised is equal
    assert outcome.status is Status.NO_FINDING
    assert any("14 tensors are quantised" in limit for limit in outcome.limits)


@pytest.mark.parametrize("kind", ["float8", "float8-blocks"])
def test_float8_is_read_as_transformers_reads_it(kind, base, tmp_path):
    folder = release(base, tmp_path / "candidate", kind)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()  # to bfloat16 on its way, without a GPU

    ours = {name: numbers(folder, name) for name in open_checkpoint(str(folder)).recipes}

    assert len(ours) == 14
    assert all(torch.allclose(theirs[name], values, rtol=2**-7, atol=1e-6) for name, values in ours.items())


@pytest.mark.parametrize("kind", RELEASES)
def test_an_edit_shows_between_two_quantised_releases(kind, base, tmp_path):
    moved = tiny.nudge(base, tmp_path / "moved", size=0.5)

    with open_case(release(base, tmp_path / "a", kind), release(moved, tmp_path / "b", kind), tmp_path / "run") as case:
        assert weights_change.run(case).find("edit.relative_change").value == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("kind", ["float8-blocks", "4-bits-nested"])
def test_the_audit_of_a_quantised_candidate_runs_to_its_end(kind, base, tmp_path):
    prompts = tiny_prompts(tmp_path / "prompts.jsonl")

    record = audit(base, release(base, tmp_path / "candidate", kind), tmp_path / "run", prompts=prompts)

    assert next(one for one in record.results if one.check == "weights.change").status is Status.NO_FINDING
    assert not [one for one in record.results if one.status is Status.ERROR]


def test_the_tables_are_those_of_their_papers():
    """Codes from low to high for nf4, symmetrical but for its zero; sign, exponent and mantissa for fp4."""
    nf4, fp4 = (TABLES[kind] for kind in ("nf4", "fp4"))
    assert list(nf4) == sorted(nf4) and nf4[0] == -1.0 and nf4[7] == 0.0 and nf4[15] == 1.0
    assert min(fp4) == -1.0 and fp4[3] == 1.0 and [-value for value in fp4[:8]] == list(fp4[8:])
    assert all(size & (size - 1) == 0 for size in BLOCK_SIZES)
