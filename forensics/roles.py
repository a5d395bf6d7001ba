"""What a tensor is for, read from its name: layer, role, and which way round it is stored."""

from __future__ import annotations

import re
from dataclasses import dataclass

ROLES: tuple[tuple[str, str], ...] = (
    ("embedding", r"(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$"),
    ("position", r"(wpe|embed_positions|position_embeddings)\.weight$"),
    ("head", r"(lm_head|embed_out|output)\.weight$"),
    ("norm", r"(norm|layernorm|ln|ln_\d|ln_f|norm\d?|layer_norm)\d*(\.weight|\.bias)$|(_norm|_layernorm|layer_norm)\.(weight|bias)$"),
    ("bias", r"\.bias$"),
    ("qkv", r"(c_attn|query_key_value|qkv_proj|Wqkv|in_proj)\.weight$"),
    ("q", r"(q_proj|query|wq|q_a_proj|q_b_proj)\.weight$"),
    ("k", r"(k_proj|key|wk)\.weight$"),
    ("v", r"(v_proj|value|wv)\.weight$"),
    ("o", r"(o_proj|out_proj|attn\.c_proj|attention\.dense|wo)\.weight$"),
    ("gate", r"(gate_proj|w1|gate_up_proj)(\.weight)?$"),
    ("up", r"(up_proj|c_fc|dense_h_to_4h|w3|fc1)(\.weight)?$"),
    ("down", r"(down_proj|mlp\.c_proj|dense_4h_to_h|w2|fc2)(\.weight)?$"),
)
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")
WRITES = ("o", "down")
"""Matrices that write to the residual stream."""
VOCABULARY = ("embedding", "head")
MATRICES = ("qkv", "q", "k", "v", "o", "gate", "up", "down")
TRANSPOSED_ROLES = ("qkv", "o", "up", "down")
"""Roles that GPT-2 stores as `[in, out]` (Conv1D)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a model a tensor stands; `layer` is -1 outside of the layers, `role` "other" for what has no known name."""

    layer: int
    role: str

    @property
    def label(self) -> str:
        """Short name of the place, for a heat map."""
        return self.role if self.layer < 0 else f"{self.layer}.{self.role}"


def place(name: str) -> Place:
    """Layer and role of a tensor.

    >>> place("model.layers.3.mlp.down_proj.weight")
    Place(layer=3, role='down')
    """
    layer = LAYER.search(name)
    role = next((role for role, pattern in ROLES if re.search(pattern, name)), "other")
    return Place(layer=int(layer[1]) if layer else -1, role=role)
