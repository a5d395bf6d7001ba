"""Quantised tensors against what was quantised here, and companions that lie: one clear refusal, never a crash."""

from __future__ import annotations

import json
import random

import pytest
import tiny
import torch
from cases import audit, edited, open_case, tiny_prompts
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forensics import checkpoint
from forensics.alignment import align
from forensics.checkpoint import open_checkpoint
from forensics.checks import weights_change
from forensics.dequantise import BLOCK_SIZES, TABLES
from forensics.errors import BadInput, CannotCompare
from forensics.record import Status

FP8 = {"quant_method": "fp8"}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FLOAT8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
NAME = "model.layers.0.mlp.up_proj.weight"


def made_of(folder, tensors, config=None):
    """A folder with these tensors and this quantization_config (none if None)."""
    folder.mkdir(parents=True)
    whole = {"model_type": "llama"} | ({} if config is None else {"quantization_config": config})
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def numbers(folder, name=NAME):
    """The tensor as it is read, put together."""
    opened = open_checkpoint(str(folder))
    pieces = list(opened.blocks(name))
    assert {piece.dtype for piece in pieces} == {torch.float32}
    return torch.cat(pieces) if pieces[0].ndim else pieces[0]


def weight(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.linspace(0.2, 3.0, shape[0]).reshape(-1, *(1 for _ in shape[1:]))


def expanded(scale, shape, block):
    """Scales `[..., a, b]` as large as what they scale: `block` rows and columns share one."""
    for axis, size in zip((-2, -1), block, strict=True):
        scale = scale.repeat_interleave(size, dim=axis)
    return scale[..., : shape[-2], : shape[-1]]


def in_float8(values, scale, dtype=torch.float8_e4m3fn):
    return (values / scale).clamp(-FLOAT8[dtype], FLOAT8[dtype]).to(dtype)


def in_blocks(values, block):
    """Codes and one scale a block, as DeepSeek quantises: the last block of either axis may be a part of one."""
    rows, columns = (-(-length // size) for length, size in zip(values.shape, block, strict=True))
    scale = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            part = values[row * block[0] : (row + 1) * block[0], column * block[1] : (column + 1) * block[1]]
            scale[row, column] = part.abs().max() / 448.0
    return in_float8(values, expanded(scale, values.shape, block)), scale


def in_8_bits(values):
    """bitsandbytes' codes of a matrix and the largest value of each row."""
    largest = values.abs().amax(dim=1)
    return (values * 127.0 / largest[:, None]).round().to(torch.int8), largest


def packed(values, kind="nf4", block=64, *, nested=False, name=NAME, storage=torch.uint8):
    """Tensors as bitsandbytes saves a matrix in 4 bits."""
    flat = values.flatten()
    blocks = -(-flat.numel() // block)
    padded = torch.zeros(blocks * block)
    padded[: flat.numel()] = flat
    absmax = padded.reshape(blocks, block).abs().amax(dim=1)
    state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(values.shape)}
    out = {}
    used = absmax
    if nested:
        table, size, offset = torch.linspace(-1.0, 1.0, 256), 256, float(absmax.mean())
        held = torch.zeros(-(-blocks // size) * size)
        held[:blocks] = absmax - offset
        own = held.reshape(-1, size).abs().amax(dim=1)
        codes = ((held.reshape(-1, size) / own[:, None])[..., None] - table).abs().argmin(dim=-1).flatten()[:blocks]
        used = table[codes] * own.repeat_interleave(size)[:blocks] + offset
        out |= {f"{name}.absmax": codes.to(torch.uint8), f"{name}.nested_absmax": own, f"{name}.nested_quant_map": table}
        state |= {"nested_blocksize": size, "nested_dtype": "float32", "nested_offset": offset}
    else:
        out[f"{name}.absmax"] = absmax
    table = torch.tensor(TABLES[kind])
    codes = ((padded.reshape(blocks, block) / used[:, None])[..., None] - table).abs().argmin(dim=-1).flatten()[: flat.numel()]
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    pairs = codes.reshape(-1, 2).to(torch.uint8)
    out[name] = ((pairs[:, 0] << 4) | pairs[:, 1]).view(storage)[:, None]
    out[f"{name}.quant_map"] = table
    out[f"{name}.quant_state.bitsandbytes__{kind}"] = as_bytes(state)
    return out


def as_bytes(state):
    return torch.tensor(list(state if isinstance(state, bytes) else json.dumps(state).encode()), dtype=torch.uint8)


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

MATRICES = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight")


def float8_of(name, values):
    scale = values.abs().max() / 448.0
    return {name: in_float8(values, scale), f"{name}_scale_inv": scale, name.removesuffix("weight") + "activation_scale": torch.tensor(1.0)}


def blocks_of(name, values):
    codes, scale = in_blocks(values, (16, 16))
    return {name: codes, f"{name}_scale_inv": scale}


def eight_of(name, values):
    codes, largest = in_8_bits(values)
    return {name: codes, name.removesuffix("weight") + "SCB": largest}


RELEASES = {
    "float8": (float8_of, FP8 | {"activation_scheme": "static"}),
    "float8-blocks": (blocks_of, FP8 | {"weight_block_size": [16, 16], "activation_scheme": "dynamic"}),
    "8-bits": (eight_of, BNB8),
    "4-bits": (lambda name, values: packed(values, name=name), BNB4),
    "4-bits-nested": (lambda name, values: packed(values, name=name, nested=True), BNB4),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("base") / "base")


def release(base, target, kind):
    """The model in `base` with its matrices quantised."""
    quantise, config = RELEASES[kind]
    edited(base, target, quantization_config=config)
    tensors = load_file(target / "model.safetensors")
    for name in [name for name in tensors if name.endswith(MATRICES)]:
        tensors |= quantise(name, tensors.pop(name))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


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


@pytest.mark.parametrize("kind", RELEASES)
def test_the_audit_of_a_quantised_candidate_runs_to_its_end(kind, base, tmp_path):
    prompts = tiny_prompts(tmp_path / "prompts.jsonl")

    record = audit(base, release(base, tmp_path / "candidate", kind), tmp_path / "run", prompts=prompts)

    assert next(one for one in record.results if one.check == "weights.change").status is Status.NO_FINDING
    assert not [one for one in record.results if one.status is Status.ERROR]


# --- what cannot be read ------------------------------------------------------------------------------------------


def integers(*shape, dtype=torch.int32):
    return torch.ones(shape, dtype=dtype)


PACKERS = {
    "gptq": {"qweight": integers(8, 64), "qzeros": integers(1, 8), "scales": torch.ones(1, 64), "g_idx": integers(64)},
    "awq": {"qweight": integers(64, 8), "qzeros": integers(1, 8), "scales": torch.ones(1, 64)},
    "mxfp4": {"weight_blocks": integers(4, 16, dtype=torch.uint8), "weight_scales": integers(4, 1, dtype=torch.uint8)},
    "compressed-tensors": {"weight_packed": integers(64, 8), "weight_scale": torch.ones(64, 1), "weight_shape": integers(2, dtype=torch.int64)},
    "hqq": {"W_q": integers(8, 64, dtype=torch.uint8), "scale": torch.ones(8), "zero": torch.ones(8)},
    "quanto": {"weight": integers(64, 64, dtype=torch.int8)},
}  # fmt: skip


@pytest.mark.parametrize("said", [True, False], ids=["said", "guessed"])
@pytest.mark.parametrize("method", PACKERS)
def test_other_ways_to_pack_are_refused_by_name(method, said, base, tmp_path):
    candidate = edited(base, tmp_path / "candidate", **({"quantization_config": {"quant_method": method}} if said else {}))
    tensors = load_file(candidate / "model.safetensors")
    module = NAME.removesuffix("weight")
    del tensors[NAME]
    save_file(tensors | {module + name: tensor for name, tensor in PACKERS[method].items()}, candidate / "model.safetensors")

    with pytest.raises(CannotCompare, match="stored as codes, not numbers") as caught:
        align(open_checkpoint(str(base)), open_checkpoint(str(candidate)))

    assert caught.value.exit_code == 3
    assert "unquantised" in caught.value.hint
    assert caught.value.where == "candidate"
    if said:
        assert f"quantised by {method}" in caught.value.what


def opened_and_read(folder):
    """Open a folder and read all of it."""
    opened = open_checkpoint(str(folder))
    for name in opened.tensors:
        for _ in opened.blocks(name):
            pass
    return opened


def lies(folder, tensors, config, why):
    with pytest.raises((BadInput, CannotCompare), match=why) as caught:
        opened_and_read(made_of(folder, tensors, config))
    assert caught.value.hint and caught.value.where


def float8_parts(**more):
    codes, scale = in_blocks(weight(300, 200), (128, 128))
    return {NAME: codes, NAME + "_scale_inv": scale} | {name.replace("NAME", NAME): tensor for name, tensor in more.items()}


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (2, 3), (200,), (300, 200), (0,), (3, 2, 1), (1, 200, 1), (301, 1)], ids=str)
def test_a_scale_that_does_not_fit_its_codes_is_refused(shape, tmp_path):
    tensors = {NAME: in_float8(weight(300, 200), 1.0), NAME + "_scale": torch.ones(shape)}
    lies(tmp_path / "m", tensors, FP8, "does not fit codes of shape")


@pytest.mark.parametrize("block", [[128], [0, 128], [-1, -1], [128.0, 128], [True, True], "128", [1 << 70, 3], [1 << 62, 1 << 62], 7, {}])
def test_a_block_size_that_does_not_fit_is_refused(block, tmp_path):
    lies(tmp_path / "m", float8_parts(), FP8 | {"weight_block_size": block}, "weight_block_size|does not fit")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_no_number_is_refused_where_it_is_read(value, tmp_path):
    eight = in_8_bits(weight(8, 8))
    four = packed(weight(16, 64))
    twice = packed(weight(16, 64), nested=True)
    many = {
        "float8": ({NAME: in_float8(weight(8, 8), 1.0), NAME + "_scale": torch.tensor(value)}, FP8),
        "8": ({NAME: eight[0], NAME.removesuffix("weight") + "SCB": torch.full((8,), value)}, BNB8),
        "4": (four | {f"{NAME}.absmax": torch.full_like(four[f"{NAME}.absmax"], value)}, BNB4),
        "nested": (twice | {f"{NAME}.nested_absmax": torch.full_like(twice[f"{NAME}.nested_absmax"], value)}, BNB4),
    }
    for name, (tensors, config) in many.items():
        folder = made_of(tmp_path / name, tensors, config)
        opened = open_checkpoint(str(folder))  # its header is in order
        with pytest.raises(BadInput, match="not finite"):
            list(opened.blocks(NAME))


def test_a_scale_that_is_no_number_leaves_the_check_without_a_word_on_the_weights(base, tmp_path):
    candidate = release(base, tmp_path / "candidate", "float8")
    tensors = load_file(candidate / "model.safetensors")
    tensors[f"{NAME}_scale_inv"].fill_(float("nan"))
    save_file(tensors, candidate / "model.safetensors")

    record = audit(base, candidate, tmp_path / "run", max_cost="weights")

    outcome = next(one for one in record.results if one.check == "weights.change")
    assert (outcome.status, "not finite" in outcome.reason) == (Status.INCONCLUSIVE, True)


@pytest.mark.parametrize(
    ("tensors", "config", "why"),
    [
        ({"NAME_scale": torch.ones(())}, FP8, "two scales"),
        ({"NAME_scale_inv": torch.ones(3, 2, dtype=torch.float8_e5m2)}, FP8, "is stored as F8_E5M2"),
        ({"NAME_scale_inv": torch.ones(3, 2, dtype=torch.int32)}, FP8, "is stored as I32"),
        ({}, None, "loaders would leave the scale out"),
        ({"model.norm.weight": torch.ones(8).to(torch.float8_e4m3fn)}, FP8, "its scale is missing"),
        ({}, ["fp8"], "not an object"),
    ],
)
def test_scales_that_loaders_would_not_use_so_are_refused(tensors, config, why, tmp_path):
    lies(tmp_path / "m", float8_parts(**tensors), config, why)


def test_a_missing_scale_is_refused(tmp_path):
    lies(tmp_path / "m", {NAME: in_float8(weight(8, 8), 1.0)}, FP8, "its scale is missing")
    lies(tmp_path / "n", {NAME: in_8_bits(weight(8, 8))[0]}, BNB8, "its scales .*SCB' are missing")
    lies(tmp_path / "o", {NAME: integers(32, 1, dtype=torch.uint8)}, BNB4, "quant_state is missing")


def test_codes_in_the_order_of_a_graphics_card_are_refused(tmp_path):
    codes, largest = in_8_bits(weight(8, 8))
    module = NAME.removesuffix("weight")
    tensors = {NAME: codes, module + "SCB": largest, module + "weight_format": torch.tensor(2, dtype=torch.uint8)}
    lies(tmp_path / "m", tensors, BNB8, "not stored row by row")


STATE = f"{NAME}.quant_state.bitsandbytes__nf4"


def with_state(**fields):
    tensors = packed(weight(16, 64))
    state = json.loads(bytes(tensors[STATE].tolist())) | fields
    return tensors | {STATE: as_bytes(state)}


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (with_state(shape=[16, 65]), "does not hold"),
        (with_state(shape=[1 << 39, 1 << 39]), "does not hold"),
        (with_state(shape=[]), "no valid shape"),
        (with_state(shape=[0, 1 << 60]), "no valid shape"),
        (with_state(shape=[16, -64]), "no valid shape"),
        (with_state(shape=[1] * 5000), "no valid shape"),
        (with_state(shape="16"), "no valid shape"),
        (with_state(quant_type="fp4"), "does not hold"),
        (with_state(blocksize=1 << 62), "does not fit 1024 values in blocks"),
        (with_state(blocksize=128), "does not fit 1024 values in blocks"),
        (with_state(blocksize=0), "does not fit 1024 values in blocks"),
        (with_state(blocksize=64.0), "does not fit 1024 values in blocks"),
        (with_state(blocksize=[64]), "does not fit 1024 values in blocks"),
        (with_state() | {STATE: as_bytes(b"\xff\xfe")}, "is not JSON"),
        (with_state() | {STATE: as_bytes(b"[" * 60000)}, "is not JSON"),
        (with_state() | {STATE: as_bytes(b"[]")}, "not a JSON object"),
        (with_state() | {STATE: as_bytes(b" " * 70000)}, "not a short text"),
        (with_state() | {STATE: torch.ones(4)}, "not a short text"),
        (with_state() | {f"{NAME}.quant_map": torch.tensor(TABLES["fp4"])}, "not the table of nf4"),
        (with_state() | {f"{NAME}.quant_map": torch.full((16,), float("nan"))}, "not the table of nf4"),
        (with_state() | {f"{NAME}.quant_map": torch.tensor(TABLES["nf4"]).half()}, "not the table of nf4"),
        (with_state() | {f"{NAME}.absmax": torch.ones(15)}, "does not fit 1024 values"),
        (with_state() | {f"{NAME}.absmax": torch.ones(16, dtype=torch.uint8)}, "does not fit 1024 values"),
        (with_state() | {f"{NAME}.nested_absmax": torch.ones(1)}, "scales of the scales"),
        (with_state() | {f"{NAME}.quant_state.bitsandbytes__fp4": as_bytes({})}, "no valid shape|two quant_states"),
        (with_state() | {f"{NAME}.quant_state.bitsandbytes__af4": as_bytes({})}, "not read yet"),
        ({name: tensor for name, tensor in with_state().items() if not name.endswith("absmax")}, "are missing"),
        ({name: tensor for name, tensor in with_state().items() if name != NAME}, "are missing"),
        ({name: tensor for name, tensor in with_state().items() if not name.endswith("quant_map")}, "are missing"),
    ],
)  # fmt: skip
def test_a_4_bit_state_that_lies_is_refused(tensors, why, tmp_path):
    lies(tmp_path / "m", tensors, BNB4, why)


@pytest.mark.parametrize("offset", [10**400, float("inf"), float("nan"), None, "0", True, [1]])
@pytest.mark.parametrize("size", [256, 1 << 62, None])
def test_scales_of_scales_that_lie_are_refused(offset, size, tmp_path):
    tensors = packed(weight(16, 64), nested=True)
    state = json.loads(bytes(tensors[STATE].tolist())) | {"nested_offset": offset, "nested_blocksize": size}
    lies(tmp_path / "m", tensors | {STATE: as_bytes(state)}, BNB4, "scales of the scales")


SEEDS = {
    "float8": ({**float8_parts(), "model.norm.weight": torch.ones(8)}, FP8 | {"weight_block_size": [128, 128]}),
    "8-bits": (eight_of(NAME, weight(33, 70)), BNB8),
    "4-bits": (packed(weight(33, 70)), BNB4),
    "4-bits-nested": (packed(weight(33, 70), nested=True), BNB4),
}


def mangled(tensors, config, chance):
    """A few companions with another shape, dtype, content or name, or left out; and now and then another config."""
    tensors, config = dict(tensors), dict(config)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(sorted(tensors))
        old = tensors[name]
        shape = [chance.choice([0, 1, 2, 3, 33, 70, 128, 300, 2310]) for _ in range(chance.randint(0, 3))]
        dtype = chance.choice([torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int64, torch.float8_e4m3fn])
        match chance.randrange(6):
            case 0:
                del tensors[name]
                tensors.setdefault("left", torch.ones(1))
            case 1:
                tensors[name] = torch.ones(shape).to(dtype)
            case 2:
                tensors[name] = old.float().to(dtype)
            case 3:
                raw = bytearray(old.contiguous().flatten().view(torch.uint8).numpy().tobytes())
                for _ in range(chance.randint(1, 8) if raw else 0):
                    raw[chance.randrange(len(raw))] = chance.randrange(256)
                tensors[name] = torch.frombuffer(raw, dtype=old.dtype).reshape(old.shape) if raw else old
            case 4:
                tensors[f"{name}{chance.choice(['_scale', '_scale_inv', '.absmax', '.quant_map', '_zero_point'])}"] = torch.ones(shape).to(
                    dtype
                )
            case _:
                config[chance.choice(["weight_block_size", "quant_method", "load_in_8bit"])] = chance.choice(
                    [None, [], [1, 1], [1 << 62, 1], "bitsandbytes", "fp8", "gptq", 3, {"a": 1}, True]
                )
    return tensors, config


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("kind", SEEDS)
def test_mangled_companions_are_read_or_refused_in_one_message(kind, seed, tmp_path):
    chance = random.Random(f"{kind} {seed}")
    folder = made_of(tmp_path / "m", *mangled(*SEEDS[kind], chance))
    try:
        opened = opened_and_read(folder)
        align(opened, opened)
    except (BadInput, CannotCompare) as error:
        assert error.what and error.hint and len(error.what) < 500


def test_the_tables_are_those_of_their_papers():
    """Codes from low to high for nf4, symmetrical but for its zero; sign, exponent and mantissa for fp4."""
    nf4, fp4 = (TABLES[kind] for kind in ("nf4", "fp4"))
    assert list(nf4) == sorted(nf4) and nf4[0] == -1.0 and nf4[7] == 0.0 and nf4[15] == 1.0
    assert min(fp4) == -1.0 and fp4[3] == 1.0 and [-value for value in fp4[:8]] == list(fp4[8:])
    assert all(size & (size - 1) == 0 for size in BLOCK_SIZES)
