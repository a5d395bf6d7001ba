"""Quantised tensors whose companions lie, or that nobody here can read: one clear refusal, never a crash."""

from __future__ import annotations

import json
import random

import pytest
import tiny
import torch
from cases import audit, edited
from quantised import BNB4, BNB8, FP8, NAME, as_bytes, eight_of, in_8_bits, in_blocks, in_float8, made_of, packed, release, weight
from safetensors.torch import load_file, save_file

from forensics.alignment import align
from forensics.checkpoint import open_checkpoint
from forensics.dequantise import TABLES
from forensics.errors import BadInput, CannotCompare
from forensics.record import Status


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("base") / "base")


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
        "beyond float32": (four | {f"{NAME}.absmax": torch.full_like(four[f"{NAME}.absmax"], 1e300, dtype=torch.float64)}, BNB4),
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
