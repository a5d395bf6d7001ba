"""The parts of a model are found by what they are, in architectures with different names for everything."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel

from forensics.anatomy import dissect, writing_matrices
from forensics.errors import CannotCompare

WIDTH, LAYERS = 32, 3
SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": 64, "intermediate_size": 48,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Names of the writing modules, so that the search by structure is held against what a person reads in the source.
EXPECTED = {
    "llama": ("self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "mistral": ("self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "gemma": ("self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj", "mlp.down_proj"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj", "mlp.down_proj"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm", "self_attn.o_proj", "mlp.down_proj"),
    "phi": ("self_attn", "mlp", "self_attn.dense", "mlp.fc2"),
    "gpt_neox": ("attention", "mlp", "attention.dense", "mlp.dense_4h_to_h"),
    "gpt2": ("attn", "mlp", "attn.c_proj", "mlp.c_proj"),
    "opt": ("self_attn", "fc2", "self_attn.out_proj", "fc2"),
    "falcon": ("self_attention", "mlp", "self_attention.dense", "mlp.dense_4h_to_h"),
    "bloom": ("self_attention", "mlp", "self_attention.dense", "mlp.dense_4h_to_h"),
}


def network(kind):
    torch.manual_seed(0)
    sizes = dict(SIZES)
    if kind in ("gpt2", "bloom"):
        sizes |= {"n_layer": LAYERS, "n_head": 4, "n_embd": WIDTH}
    if kind in ("gemma", "gemma2", "qwen3", "glm4"):
        sizes |= {"head_dim": 8}
    if kind == "opt":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": WIDTH}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_parts_are_those_a_person_would_name(kind):
    model = network(kind)
    attention, mlp, _, _ = EXPECTED[kind]

    found = dissect(model)

    assert (found.layers, found.embedding, found.unembedding) == (LAYERS, model.get_input_embeddings(), model.get_output_embeddings())
    for block, ours, theirs in zip(found.blocks, found.attention_writes, found.mlp_writes, strict=True):
        assert ours is block.get_submodule(attention)
        assert theirs is block.get_submodule(mlp)
    assert found.final_norm is not None
    assert len(found.writers) == 1 + 2 * LAYERS


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_writing_matrices_are_the_last_of_each_part_turned_outputs_first(kind):
    model = network(kind)
    _, _, attention, mlp = EXPECTED[kind]
    blocks = dissect(model).blocks

    found = {matrix.name: matrix.weight for matrix in writing_matrices(model)}

    assert list(found)[:3] == ["embedding", "blocks.0.attention", "blocks.0.mlp"]
    assert len(found) == 1 + 2 * LAYERS
    for layer, block in enumerate(blocks):
        for part, name in (("attention", attention), ("mlp", mlp)):
            stored = block.get_submodule(name).weight
            right = stored.T if kind == "gpt2" else stored
            assert torch.equal(found[f"blocks.{layer}.{part}"], right.float())
            assert right.shape[0] == WIDTH


@pytest.mark.parametrize(("kind", "targets"), [("llama", ["o_proj", "down_proj", "embed_tokens"]), ("gpt2", ["c_proj", "wte"])])
def test_below_peft_the_same_parts_are_found_and_matrices_carry_the_active_deltas(kind, targets):
    model = tiny.network(kind)
    plain = {matrix.name: matrix.weight.clone() for matrix in writing_matrices(model)}
    config = {"r": 4, "target_modules": targets, "fan_in_fan_out": kind == "gpt2", "task_type": "CAUSAL_LM"}
    wrapped = get_peft_model(model, LoraConfig(**config), adapter_name="first")
    wrapped.add_adapter("second", LoraConfig(**config))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)

    assert dissect(wrapped).layers == 2
    with wrapped.disable_adapter():
        off = {matrix.name: matrix.weight for matrix in writing_matrices(wrapped)}
    assert all(torch.equal(off[name], plain[name]) for name in plain)

    wrapped.base_model.set_adapter(["first", "second"])
    both = {matrix.name: matrix.weight.clone() for matrix in writing_matrices(wrapped)}
    merged = {matrix.name: matrix.weight for matrix in writing_matrices(wrapped.merge_and_unload(adapter_names=["first", "second"]))}
    assert list(both) == list(merged) == list(plain)
    for name in plain:
        assert not torch.allclose(both[name], plain[name])
        assert torch.allclose(both[name], merged[name], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("what", ["dora", "whole", "whole mlp"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
def test_below_peft_matrices_are_those_that_act_where_adapters_are_more_than_factors(kind, what):
    model = tiny.network(kind)
    plain = {matrix.name: matrix.weight.clone() for matrix in writing_matrices(model)}
    names = {"llama": ["o_proj", "down_proj", "embed_tokens"], "gpt2": ["c_proj", "wte"]}[kind]
    other = {"llama": "k_proj", "gpt2": "c_attn"}[kind]
    given = {
        "dora": {"target_modules": names, "use_dora": True},
        "whole": {"target_modules": [other], "modules_to_save": names},
        "whole mlp": {"target_modules": [other], "modules_to_save": ["mlp", names[-1]]},
    }[what]
    wrapped = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **given))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or ".modules_to_save." in name:
                weight.add_(0.1 * torch.randn(weight.shape))

    with wrapped.disable_adapter():
        off = {matrix.name: matrix.weight for matrix in writing_matrices(wrapped)}
    worn = {matrix.name: matrix.weight.clone() for matrix in writing_matrices(wrapped)}
    merged = {matrix.name: matrix.weight for matrix in writing_matrices(wrapped.merge_and_unload())}

    assert list(worn) == list(off) == list(merged) == list(plain)
    for name in plain:
        assert torch.equal(off[name], plain[name])
        assert torch.allclose(worn[name], merged[name], atol=1e-5)
        assert torch.allclose(worn[name], plain[name]) is (what == "whole mlp" and name.endswith("attention"))


def test_experts_kept_in_one_stack_are_left_out_and_their_output_still_found():
    kind = AutoConfig.for_model("mixtral", **SIZES, num_local_experts=2)
    model = AutoModelForCausalLM.from_config(kind).eval()

    names = [matrix.name for matrix in writing_matrices(model)]

    assert dissect(model).layers == LAYERS
    assert "blocks.0.attention" in names


@pytest.mark.parametrize("kind", ["mamba", "bert"])
def test_what_is_no_decoder_of_attention_blocks_is_refused_with_a_hint(kind):
    if kind == "bert":
        model = BertModel(
            BertConfig(
                **{name: SIZES[name] for name in ("hidden_size", "num_attention_heads", "vocab_size", "intermediate_size")},
                num_hidden_layers=1,
            )
        )
        model.encoder.layer.append(torch.nn.Linear(2, 2))
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", vocab_size=64, hidden_size=WIDTH, num_hidden_layers=2))

    with pytest.raises(CannotCompare) as caught:
        dissect(model)
    assert "--max-cost weights" in caught.value.hint
