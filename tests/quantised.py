"""Tensors quantised as others do it, for tests of how they are read."""

from __future__ import annotations

import json

import torch
from cases import edited
from safetensors.torch import load_file, save_file

from forensics.checkpoint import open_checkpoint
from forensics.dequantise import TABLES

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


def release(base, target, kind):
    """The model in `base` with its matrices quantised."""
    quantise, config = RELEASES[kind]
    edited(base, target, quantization_config=config)
    tensors = load_file(target / "model.safetensors")
    for name in [name for name in tensors if name.endswith(MATRICES)]:
        tensors |= quantise(name, tensors.pop(name))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
