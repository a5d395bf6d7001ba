"""What a model may say of itself, for tests: the front of a card, recipes, the config of an adapter, and a text that unfolds."""

from __future__ import annotations

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9))
"""Aliases of aliases: a billion entries."""
SLERP = """
slices:
  - sources:
      - model: org/one
        layer_range: [0, 28]
      - model: org/two
        layer_range: [0, 28]
merge_method: slerp
base_model: org/one
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - value: 0.25
dtype: bfloat16
"""
TIES = """
models:
  - model: org/base
  - model: {path: org/two}
    parameters: {weight: 0.3, density: 0.5}
  - model: /home/me/three/
    parameters: {weight: 0.7, density: [0.1, 0.9]}
merge_method: dare_ties
base_model: {model: {path: org/base, revision: main}}
"""
LORA = {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "/home/me/org/base"}


def card(front, body="# A model\n"):
    return f"---\n{front}\n---\n{body}"
