"""Synthetic checkpoints with the habits of real ones, for benches that read weights and run no model.

Rows with Student-t scales, correlated columns, a few outlier dimensions of the residual stream that writers fill and readers
damp, norms near one. Two layouts: Llama's, and GPT-2's with its matrices stored the other way round and a tied head.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY, POSITIONS = 256, 704, 6, 8, 4, 3000, 512
HEAD = HIDDEN // HEADS
GPT2_INNER = 4 * HIDDEN
FREEDOM, COMMON, OUTLIERS = 5, 16, 3
"""Degrees of freedom of the rows' scales, rank of what columns have in common, outlier dimensions."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BASES = {
    0: ("llama", "bfloat16"), 1: ("llama", "bfloat16"), 2: ("llama", "bfloat16"),
    3: ("llama", "float16"), 4: ("llama", "float32"), 5: ("gpt2", "bfloat16"),
}  # fmt: skip
"""What the base of each seed is; seeds beyond these are Llama's in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an architecture calls its parts, and how it stores them."""

    name: str
    block: str
    parts: dict[str, str]
    norms: tuple[str, ...]
    final_norm: str
    embedding: str
    head: str | None
    transposed: bool
    depth_key: str

    def part(self, layer: int, role: str) -> str:
        """Name of one tensor of a layer."""
        return f"{self.block}{layer}.{self.parts.get(role, role)}"


LLAMA = Layout(
    name="llama",
    block="model.layers.",
    parts={
        **{role: f"self_attn.{role}_proj.weight" for role in "qkvo"},
        **{role: f"mlp.{role}_proj.weight" for role in ("gate", "up", "down")},
    },
    norms=("input_layernorm.weight", "post_attention_layernorm.weight"),
    final_norm="model.norm.weight",
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    transposed=False,
    depth_key="num_hidden_layers",
)
GPT2 = Layout(
    name="gpt2",
    block="transformer.h.",
    parts={"qkv": "attn.c_attn.weight", "o": "attn.c_proj.weight", "up": "mlp.c_fc.weight", "down": "mlp.c_proj.weight"},
    norms=("ln_1.weight", "ln_2.weight"),
    final_norm="transformer.ln_f.weight",
    embedding="transformer.wte.weight",
    head=None,
    transposed=True,
    depth_key="n_layer",
)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint in memory: tensors as they are stored. No tensor is ever changed in place."""

    layout: Layout
    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """Storage dtype of its matrices."""
        return self.tensors[self.layout.embedding].dtype

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.config[self.layout.depth_key])

    def copy(self, **config: Any) -> Weights:
        """The same tensors in a dictionary of its own, with other lines in the config."""
        return replace(self, tensors=dict(self.tensors), config=self.config | config)

    def linear(self, roles: Sequence[str] | None = None, layers: Iterable[int] | None = None) -> list[str]:
        """Names of the matrices inside the layers."""
        roles = list(self.layout.parts) if roles is None else [role for role in roles if role in self.layout.parts]
        return [self.layout.part(layer, role) for layer in (range(self.depth) if layers is None else layers) for role in roles]

    def flipped(self, name: str) -> bool:
        """Whether a tensor is stored as [in, out]."""
        return self.layout.transposed and name.startswith(self.layout.block) and self.tensors[name].ndim == 2

    def read(self, name: str) -> Tensor:
        """A tensor in float32; matrices as [out, in] whatever the layout."""
        stored = self.tensors[name].float()
        return stored.T.contiguous() if self.flipped(name) else stored

    def put(self, name: str, values: Tensor) -> None:
        """Store a tensor, rounded to the dtype of the one it replaces."""
        old = self.tensors[name]
        self.tensors[name] = (values.T if self.flipped(name) else values).to(old.dtype).contiguous()

    def add(self, name: str, change: Tensor) -> None:
        """Add to a tensor in float32 and round once."""
        self.put(name, self.read(name) + change)


def base(seed: int, dtype: str | None = None) -> Weights:
    """The base of a seed, in its own storage dtype or in another."""
    layout, usual = BASES.get(seed, ("llama", "bfloat16"))
    return stored(layout, seed, dtype or usual)


@lru_cache(maxsize=4)
def stored(layout: str, seed: int, dtype: str) -> Weights:
    """A base of some layout, rounded to its storage dtype."""
    made = _llama(seed) if layout == "llama" else _gpt2(seed)
    tensors = {name: values.to(DTYPES[dtype]) for name, values in made.tensors.items()}
    return replace(made, tensors=tensors, config=made.config | {"torch_dtype": dtype})


def gaussian(rng: np.random.Generator, *shape: int) -> Tensor:
    """Normal noise in float32."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """What all matrices at the residual stream share."""

    common: Tensor
    outliers: Tensor


def _stream(rng: np.random.Generator) -> _Stream:
    common = gaussian(rng, COMMON, HIDDEN) / math.sqrt(COMMON)
    return _Stream(common=common, outliers=torch.from_numpy(rng.choice(HIDDEN, OUTLIERS, replace=False)))


def _matrix(
    rng: np.random.Generator, rows: int, columns: int, *, reads: _Stream | None = None, writes: _Stream | None = None, size: float = 0.6
) -> Tensor:
    """One [out, in] matrix of root mean square `size / sqrt(columns)`."""
    common = reads.common if reads else gaussian(rng, COMMON, columns) / math.sqrt(COMMON)
    spread = torch.from_numpy(rng.lognormal(0.0, 0.3, columns).astype(np.float32))
    heavy = torch.from_numpy((rng.chisquare(FREEDOM, rows) / FREEDOM).astype(np.float32)).rsqrt()
    values = heavy[:, None] * (gaussian(rng, rows, columns) * spread + 0.7 * gaussian(rng, rows, COMMON) @ common)
    values *= size / math.sqrt(columns) / float(values.square().mean().sqrt())
    if reads:
        values[:, reads.outliers] *= 0.4
    if writes:
        values[writes.outliers] *= 5.0
    return values


def _norm(rng: np.random.Generator, stream: _Stream) -> Tensor:
    values = 1.0 + 0.12 * gaussian(rng, HIDDEN)
    values[stream.outliers] *= 0.5
    return values.abs()


def _embedding(rng: np.random.Generator, stream: _Stream, rows: int = VOCABULARY) -> Tensor:
    values = _matrix(rng, rows, HIDDEN, reads=stream)
    values[:, stream.outliers] *= 10.0
    return values


def _llama(seed: int) -> Weights:
    rng = np.random.default_rng([seed, 1])
    stream = _stream(rng)
    tensors = {LLAMA.embedding: _embedding(rng, stream)}
    heights = {"q": HIDDEN, "k": KV_HEADS * HEAD, "v": KV_HEADS * HEAD, "gate": INNER, "up": INNER}
    for layer in range(LAYERS):
        for role, height in heights.items():
            tensors[LLAMA.part(layer, role)] = _matrix(rng, height, HIDDEN, reads=stream)
        tensors[LLAMA.part(layer, "o")] = _matrix(rng, HIDDEN, HIDDEN, writes=stream)
        tensors[LLAMA.part(layer, "down")] = _matrix(rng, HIDDEN, INNER, writes=stream)
        for norm in LLAMA.norms:
            tensors[LLAMA.part(layer, norm)] = _norm(rng, stream)
    tensors[LLAMA.final_norm] = _norm(rng, stream)
    tensors["lm_head.weight"] = _matrix(rng, VOCABULARY, HIDDEN, reads=stream)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return Weights(layout=LLAMA, config=config, tensors=tensors)


def _gpt2(seed: int) -> Weights:
    rng = np.random.default_rng([seed, 2])
    stream = _stream(rng)
    tensors = {GPT2.embedding: _embedding(rng, stream), "transformer.wpe.weight": 0.3 * _embedding(rng, stream, POSITIONS)}
    shapes = {"qkv": (3 * HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN), "up": (GPT2_INNER, HIDDEN), "down": (HIDDEN, GPT2_INNER)}
    for layer in range(LAYERS):
        for role, (height, width) in shapes.items():
            writes = role in ("o", "down")
            made = _matrix(rng, height, width, reads=None if writes else stream, writes=stream if writes else None)
            tensors[GPT2.part(layer, role)] = made.T.contiguous()
            tensors[GPT2.part(layer, role).replace("weight", "bias")] = 0.02 * gaussian(rng, height)
        for norm in GPT2.norms:
            tensors[GPT2.part(layer, norm)] = _norm(rng, stream)
            tensors[GPT2.part(layer, norm).replace("weight", "bias")] = 0.02 * gaussian(rng, HIDDEN)
    tensors[GPT2.final_norm] = _norm(rng, stream)
    tensors[GPT2.final_norm.replace("weight", "bias")] = 0.02 * gaussian(rng, HIDDEN)
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS,
        "n_positions": POSITIONS, "n_ctx": POSITIONS, "vocab_size": VOCABULARY, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return Weights(layout=GPT2, config=config, tensors=tensors)


def save(weights: Weights, folder: Path, *, shards: int = 1, backwards: bool = False) -> Path:
    """Write config.json and the tensors, in one file or several, by the library or in an order of our own."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(weights.config, indent=2) + "\n", encoding="utf-8")
    names = sorted(weights.tensors, reverse=backwards)
    if shards == 1:
        _save_one({name: weights.tensors[name] for name in names}, folder / "model.safetensors", backwards=backwards)
        return folder
    placed: dict[str, str] = {}
    for number, part in enumerate(_split(names, shards), 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        _save_one({name: weights.tensors[name] for name in part}, folder / file, backwards=backwards)
        placed |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def _split(names: list[str], parts: int) -> Iterator[list[str]]:
    length = -(-len(names) // parts)
    return (names[start : start + length] for start in range(0, len(names), length))


def _save_one(tensors: dict[str, Tensor], file: Path, *, backwards: bool) -> None:
    if not backwards:
        save_file(tensors, file, metadata={"format": "pt"})
        return
    # The library sorts what it writes, so another order is written by hand.
    codes = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    header: dict[str, Any] = {}
    data = bytearray()
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
