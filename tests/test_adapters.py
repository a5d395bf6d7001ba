"""Adapters: the delta read from disk is what PEFT would add."""

from __future__ import annotations

import pytest
import tiny
import torch
from adapting import CONV1D, MODULES, assert_reads_as_peft, configure, retensor
from safetensors.torch import load_file, save_file

from forensics.adapters import WEIGHTS_NAME, is_adapter, open_adapter
from forensics.checkpoint import open_checkpoint

pytestmark = CONV1D


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 3, "lora_alpha": 17},
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
    ids=["plain", "alpha is not r", "rslora", "gaussian start"],
)
def test_the_delta_is_what_peft_adds(bases, tmp_path, kind, options):
    adapter = assert_reads_as_peft(bases[kind], tiny.adapter(bases[kind], tmp_path / "a", modules=MODULES[kind], **options))
    assert any(".0." in change.target for change in adapter.changes)  # layer 0 is among them


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(
    "patterns",
    [
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 6, "q_proj": 2}, "alpha_pattern": {"q_proj": 1, "layers.0.self_attn.q_proj": 32}},
        {"rank_pattern": {"^model.layers.1.self_attn.v_proj": 1}, "alpha_pattern": {r".*\.1\..*": 5}},
        {"rank_pattern": {r"layers\.[01]\.self_attn\.(q|v)_proj": 5}, "use_rslora": True},
        {"rank_pattern": {"proj": 2}},  # half a name: matches nothing
    ],
)
def test_rank_and_alpha_patterns_are_read_as_peft_reads_them(bases, tmp_path, patterns):
    assert_reads_as_peft(bases["llama"], tiny.adapter(bases["llama"], tmp_path / "a", modules=["q_proj", "v_proj"], **patterns))


@pytest.mark.parametrize(("kind", "claimed"), [("gpt2", False), ("gpt2", True), ("llama", True), ("llama", False)])
def test_a_config_that_lies_about_the_way_matrices_lie_changes_nothing(bases, tmp_path, kind, claimed):
    folder = tiny.adapter(bases[kind], tmp_path / "a", modules=MODULES[kind])
    assert_reads_as_peft(bases[kind], configure(folder, fan_in_fan_out=claimed))


def test_the_head_of_a_gpt2_is_not_transposed_even_if_it_is_square(tmp_path):
    base = tiny.save(tiny.network("gpt2", width=tiny.VOCABULARY), tmp_path / "base")
    folder = tiny.adapter(base, tmp_path / "a", modules=["lm_head", "c_proj"], save_embeddings=False)
    adapter = assert_reads_as_peft(base, folder)
    assert {change.target: change.factors.transposed for change in adapter.changes} == {
        "lm_head.weight": False, "transformer.h.0.attn.c_proj.weight": True, "transformer.h.1.attn.c_proj.weight": True,
        "transformer.h.0.mlp.c_proj.weight": True, "transformer.h.1.mlp.c_proj.weight": True,
    }  # fmt: skip


def test_factors_stored_in_half_precision_are_multiplied_in_full(bases, tmp_path, llama):
    folder = tiny.adapter(bases["llama"], tmp_path / "a", modules=["q_proj"])
    retensor(folder, lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}))
    adapter = open_adapter(str(folder), llama)
    stored = load_file(folder / WEIGHTS_NAME)
    change = adapter.changes[0]
    assert torch.equal(adapter.delta(change), 2.0 * stored[change.factors.b.name].float() @ stored[change.factors.a.name].float())


def test_a_base_without_the_outer_prefix_is_the_same_base(bases, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    tensors = load_file(bases["gpt2"] / "model.safetensors")
    save_file({name.removeprefix("transformer."): value for name, value in tensors.items()}, bare / "model.safetensors")
    (bare / "config.json").write_text((bases["gpt2"] / "config.json").read_text())
    folder = tiny.adapter(bases["gpt2"], tmp_path / "a", modules=["c_attn"])
    adapter = open_adapter(str(folder), open_checkpoint(str(bare)))
    assert [change.target for change in adapter.changes] == ["h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"]


def test_an_adapter_is_told_from_a_model_by_its_files(bases, lora, tmp_path):
    assert is_adapter(str(lora))
    assert not is_adapter(str(bases["llama"]))
    assert not is_adapter(str(tmp_path / "none"))


def test_the_digest_follows_every_file(lora, llama):
    before = open_adapter(str(lora), llama).digest
    assert open_adapter(str(lora), llama).digest == before
    configure(lora, lora_alpha=9)
    assert open_adapter(str(lora), llama).digest != before
