"""What the tests of adapters share: which modules are adapted, adapters altered on disk, and PEFT's own merge to hold deltas against."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forensics.adapters import CONFIG_NAME, WEIGHTS_NAME, open_adapter
from forensics.checkpoint import open_checkpoint

MODULES = {
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],  # q and o are square
    "qwen2": ["k_proj", "o_proj", "gate_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # attn.c_proj is square, mlp.c_proj is not
}
CONV1D = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")


def configure(folder, **fields):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def retensor(folder, change):
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)
    return folder


def added_by_peft(base, folder):
    """What PEFT's own merge adds to each parameter of the base, where it adds anything."""
    plain = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters(remove_duplicate=False))
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).merge_and_unload()
    changes = {name: (weight - plain[name]).detach() for name, weight in merged.named_parameters(remove_duplicate=False)}
    return {name: change for name, change in changes.items() if change.abs().max() > 0}


def assert_reads_as_peft(base, folder):
    adapter = open_adapter(str(folder), open_checkpoint(str(base)))
    expected = added_by_peft(base, folder)
    assert {change.target for change in adapter.changes} == expected.keys()
    for change in adapter.changes:
        delta = adapter.delta(change)
        assert delta.dtype == torch.float32
        torch.testing.assert_close(delta, expected[change.target], rtol=1e-5, atol=1e-5)
    return adapter
