"""Adapters that cannot be read as deltas are refused by the name of what stands in the way; damaged ones with where and why."""

from __future__ import annotations

import pytest
import tiny
import torch
from adapting import CONV1D, configure, retensor
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from forensics.adapters import CONFIG_NAME, WEIGHTS_NAME, open_adapter
from forensics.checkpoint import open_checkpoint
from forensics.errors import BadInput, CannotCompare

pytestmark = CONV1D


def refused_by_name(folder, base, *names):
    with pytest.raises(CannotCompare) as caught:
        open_adapter(str(folder), base)
    assert all(name in caught.value.what for name in names)
    assert "merge" in caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"bias": "all"}, "bias=all"),
        ({"trainable_token_indices": [0]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_with_more_than_factors_is_refused_by_name(bases, tmp_path, llama, options, name):
    modules = ["k_proj"] if "lora_bias" not in options else ["c_attn"]
    kind = "llama" if "lora_bias" not in options else "gpt2"
    refused_by_name(tiny.adapter(bases[kind], tmp_path / "a", modules=modules, **options), llama, name)


def test_several_options_are_all_named(lora, llama):
    refused_by_name(configure(lora, lora_bias=True, use_qalora=True, bias="all"), llama, "lora_bias", "use_qalora", "bias=all")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "something-new"])
def test_an_adapter_whose_loading_changes_the_base_is_refused_by_name(lora, llama, start):
    refused_by_name(configure(lora, init_lora_weights=start), llama, f"init_lora_weights={start}")


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_such_a_loading_does_change_the_base(bases, lora, start):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"])
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    worn = PeftModel.from_pretrained(model, str(configure(lora, init_lora_weights=start)))
    assert (worn.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight - before).norm() > 0.01


def test_another_method_of_peft_is_refused_by_name(bases, tmp_path, llama):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"])
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "ia3")
    refused_by_name(tmp_path / "ia3", llama, "IA3")


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "LOHA", "lora", None, 3])
def test_a_kind_that_is_not_lora_is_refused_by_name(lora, llama, kind):
    refused_by_name(configure(lora, peft_type=kind), llama, repr(kind))


def test_a_tensor_that_is_no_factor_is_refused_by_name(lora, llama):
    refused_by_name(
        retensor(lora, lambda tensors: tensors.update({"base_model.model.extra": torch.ones(2)})), llama, "base_model.model.extra"
    )


def test_an_adapter_of_another_width_is_for_another_base(bases, tmp_path):
    wider = open_checkpoint(str(tiny.save(tiny.network(width=64), tmp_path / "wider")))
    folder = tiny.adapter(bases["llama"], tmp_path / "a", modules=["q_proj"])
    with pytest.raises(CannotCompare, match=r"another base: .*\[32, 32\], which is \[64, 64\] there"):
        open_adapter(str(folder), wider)


def test_an_adapter_of_another_architecture_is_for_another_base(bases, tmp_path, llama):
    folder = tiny.adapter(bases["gpt2"], tmp_path / "a", modules=["c_attn"])
    with pytest.raises(CannotCompare, match="another base: 2 of 2 modules") as caught:
        open_adapter(str(folder), llama)
    assert caught.value.details == ("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn")


def refused(folder, base, why):
    with pytest.raises(BadInput, match=why) as caught:
        open_adapter(str(folder), base)
    assert caught.value.hint


@pytest.mark.parametrize("fields", [{"r": 8}, {"rank_pattern": {"q_proj": 2}}, {"rank_pattern": {"model.layers.0.self_attn.v_proj": 5}}])
def test_a_rank_that_contradicts_the_tensors_is_refused(lora, llama, fields):
    open_adapter(str(lora), llama)  # the control
    refused(configure(lora, **fields), llama, r"factors of rank 4 and 4, but the config says")


@pytest.mark.parametrize(
    "fields",
    [{"r": 0}, {"r": None}, {"r": "4"}, {"r": True}, {"lora_alpha": None}, {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")}],
)
def test_a_rank_or_alpha_that_is_no_number_is_refused(lora, llama, fields):
    refused(configure(lora, **fields), llama, "rank or alpha of")


def test_a_pattern_that_is_no_pattern_is_refused(lora, llama):
    refused(configure(lora, rank_pattern={"(": 2}), llama, "is not usable")


def test_pickled_weights_only_are_refused(lora, llama):
    torch.save(load_file(lora / WEIGHTS_NAME), lora / "adapter_model.bin")
    assert open_adapter(str(lora), llama).changes  # beside safetensors it is not read
    (lora / WEIGHTS_NAME).unlink()
    refused(lora, llama, r"can run code when read \(adapter_model.bin\)")


def test_a_folder_without_weights_is_refused(lora, llama):
    (lora / WEIGHTS_NAME).unlink()
    refused(lora, llama, f"it has no {WEIGHTS_NAME}")


def test_a_missing_half_is_refused(lora, llama):
    gone = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    refused(retensor(lora, lambda tensors: tensors.pop(gone)), llama, "'model.layers.0.self_attn.v_proj' has only one of its two factors")


def test_an_adapter_without_tensors_is_refused(lora, llama):
    refused(retensor(lora, dict.clear), llama, "holds no tensor")


@pytest.mark.parametrize("value", [torch.ones(4, 32, dtype=torch.int8), torch.ones(4, 32, 1)])
def test_a_factor_that_is_no_matrix_of_numbers_is_refused(lora, llama, value):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    refused(retensor(lora, lambda tensors: tensors.update({name: value})), llama, "not a matrix of numbers")


@pytest.fixture
def dora(bases, tmp_path):
    return tiny.adapter(bases["llama"], tmp_path / "dora", modules=["q_proj"], use_dora=True)


LENGTHS = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.pop(LENGTHS), "has no lengths of outputs, but the config says use_dora=True"),
        (lambda tensors: tensors.update({LENGTHS: torch.ones(31)}), r"has \[31\] lengths for 32 outputs"),
        (lambda tensors: tensors.update({LENGTHS: torch.ones(32, 1)}), "is not a list of numbers"),
        (lambda tensors: tensors.update({LENGTHS: torch.ones(32, dtype=torch.int32)}), "is not a list of numbers"),
    ],
    ids=["none", "too few", "a matrix", "whole numbers"],
)
def test_lengths_that_fit_no_matrix_are_refused(dora, llama, change, why):
    assert open_adapter(str(dora), llama).changes  # the control
    refused(retensor(dora, change), llama, why)


def test_lengths_that_the_config_does_not_know_are_refused(dora, llama):
    refused(configure(dora, use_dora=False), llama, "has lengths of outputs, but the config says use_dora=False")


def test_lengths_that_are_no_numbers_come_out_as_they_are(dora, llama):
    retensor(dora, lambda tensors: tensors[LENGTHS].fill_(float("nan")))
    adapter = open_adapter(str(dora), llama)
    assert not torch.isfinite(adapter.delta(adapter.changes[0])).any()


@pytest.fixture
def saving(bases, tmp_path):
    return tiny.adapter(bases["llama"], tmp_path / "saving", modules=["q_proj"], modules_to_save=["lm_head", "mlp"])


HEAD = "base_model.model.lm_head.weight"


@pytest.mark.parametrize("value", [torch.ones(300, 32), torch.ones(260, 32, 1), torch.ones(32)], ids=["resized", "three axes", "one axis"])
def test_a_whole_tensor_of_another_shape_is_for_another_base(saving, llama, value):
    retensor(saving, lambda tensors: tensors.update({HEAD: value}))
    with pytest.raises(CannotCompare, match=r"another base: 'lm_head.weight' is \[.*\] in it, and \[260, 32\] there") as caught:
        open_adapter(str(saving), llama)
    assert "resized" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.update({HEAD: torch.ones(260, 32, dtype=torch.int8)}), "holds no numbers that can be read"),
        (lambda tensors: tensors.pop(HEAD), "'lm_head.weight' is not in the adapter, though modules_to_save names its module"),
        (lambda tensors: tensors.pop("base_model.model.model.layers.1.mlp.up_proj.weight"), "up_proj.weight' is not in the adapter"),
    ],
    ids=["codes", "no head", "half an mlp"],
)
def test_whole_modules_that_are_not_whole_are_refused(saving, llama, change, why):
    assert open_adapter(str(saving), llama).changes  # the control
    refused(retensor(saving, change), llama, why)


@pytest.mark.parametrize("value", ["lm_head", [1], [""], {"lm_head": 1}])
def test_modules_to_save_that_are_no_names_are_refused(lora, llama, value):
    refused(configure(lora, modules_to_save=value), llama, "is not a list of names")


def test_a_module_with_factors_is_not_replaced_as_well(lora, llama):
    refused(configure(lora, modules_to_save=["v_proj"]), llama, "has factors, and is in modules_to_save as well")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.weight",  # PEFT reads it below base_layer only
        "base_model.model.lm_head.base_layer.weight",  # and here without
        "base_model.model.lm_head.modules_to_save.weight",
        "base_model.model.score.weight",
        "lm_head.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
    ],
)
def test_a_tensor_where_peft_would_not_read_it_is_refused(lora, llama, name):
    retensor(lora, lambda tensors: tensors.update({name: torch.ones(32, 32)}))
    with pytest.raises(CannotCompare, match="is neither a LoRA factor nor a tensor of the model") as caught:
        open_adapter(str(lora), llama)
    assert name in caught.value.what and "merge" in caught.value.hint


@pytest.mark.parametrize(("module", "kind"), [("q_proj", "an embedding"), ("embed_tokens", "a matrix")])
def test_factors_under_the_names_of_another_kind_are_refused(bases, tmp_path, llama, module, kind):
    folder = tiny.adapter(bases["llama"], tmp_path / "a", modules=[module], save_embeddings=False)

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace("lora_embedding_", "lora_?") if "embedding" in name else name] = tensors.pop(name)
        for name in list(tensors):
            new = (
                name.replace("lora_?", "lora_") + ".weight"
                if "?" in name
                else name.replace("lora_", "lora_embedding_").removesuffix(".weight")
            )
            tensors[new] = tensors.pop(name)

    refused(retensor(folder, rename), llama, f"are stored as those of {kind}")


def test_a_folder_that_is_no_adapter_is_refused(bases, llama):
    refused(bases["llama"], llama, f"has no {CONFIG_NAME}")


def test_weights_behind_a_link_that_leaves_the_folder_are_refused(lora, llama, tmp_path):
    (lora / WEIGHTS_NAME).rename(tmp_path / "outside.safetensors")
    (lora / WEIGHTS_NAME).symlink_to(tmp_path / "outside.safetensors")
    refused(lora, llama, "leaves its folder")
