"""Adapters: the delta read from disk is what PEFT would add, or the adapter is refused by the name of what stands in the way."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forensics.adapters import CONFIG_NAME, WEIGHTS_NAME, is_adapter, open_adapter
from forensics.checkpoint import open_checkpoint
from forensics.errors import BadInput, CannotCompare

MODULES = {
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],  # q and o are square
    "qwen2": ["k_proj", "o_proj", "gate_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # attn.c_proj is square, mlp.c_proj is not
}
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {kind: tiny.save(tiny.network(kind), folder / kind) for kind in MODULES}


@pytest.fixture
def llama(bases):
    return open_checkpoint(str(bases["llama"]))


@pytest.fixture
def lora(bases, tmp_path):
    """A plain adapter for the llama, to be damaged."""
    return tiny.adapter(bases["llama"], tmp_path / "lora", modules=["q_proj", "v_proj"])


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
    plain = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).merge_and_unload()
    changes = {name: (weight - plain[name]).detach() for name, weight in merged.named_parameters()}
    return {name: change for name, change in changes.items() if change.abs().max() > 0}


def assert_reads_as_peft(base, folder):
    adapter = open_adapter(str(folder), open_checkpoint(str(base)))
    expected = added_by_peft(base, folder)
    assert {factor.target for factor in adapter.factors} == expected.keys()
    for factor in adapter.factors:
        delta = adapter.delta(factor)
        assert delta.dtype == torch.float32
        torch.testing.assert_close(delta, expected[factor.target], rtol=1e-5, atol=1e-5)
    return adapter


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
    assert any(".0." in factor.target for factor in adapter.factors)  # layer 0 is among them


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
    assert {factor.target: factor.transposed for factor in adapter.factors} == {
        "lm_head.weight": False, "transformer.h.0.attn.c_proj.weight": True, "transformer.h.1.attn.c_proj.weight": True,
        "transformer.h.0.mlp.c_proj.weight": True, "transformer.h.1.mlp.c_proj.weight": True,
    }  # fmt: skip


def test_factors_stored_in_half_precision_are_multiplied_in_full(bases, tmp_path, llama):
    folder = tiny.adapter(bases["llama"], tmp_path / "a", modules=["q_proj"])
    retensor(folder, lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}))
    adapter = open_adapter(str(folder), llama)
    stored = load_file(folder / WEIGHTS_NAME)
    factor = adapter.factors[0]
    assert torch.equal(adapter.delta(factor), 2.0 * stored[factor.b.name].float() @ stored[factor.a.name].float())


def test_a_base_without_the_outer_prefix_is_the_same_base(bases, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    tensors = load_file(bases["gpt2"] / "model.safetensors")
    save_file({name.removeprefix("transformer."): value for name, value in tensors.items()}, bare / "model.safetensors")
    (bare / "config.json").write_text((bases["gpt2"] / "config.json").read_text())
    folder = tiny.adapter(bases["gpt2"], tmp_path / "a", modules=["c_attn"])
    adapter = open_adapter(str(folder), open_checkpoint(str(bare)))
    assert [factor.target for factor in adapter.factors] == ["h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"]


def refused_by_name(folder, base, *names):
    with pytest.raises(CannotCompare) as caught:
        open_adapter(str(folder), base)
    assert all(name in caught.value.what for name in names)
    assert "merge" in caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
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
    refused_by_name(configure(lora, use_dora=True, use_qalora=True, bias="all"), llama, "use_dora", "use_qalora", "bias=all")


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
    assert open_adapter(str(lora), llama).factors  # beside safetensors it is not read
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


def test_a_folder_that_is_no_adapter_is_refused(bases, llama):
    refused(bases["llama"], llama, f"has no {CONFIG_NAME}")


def test_an_adapter_is_told_from_a_model_by_its_files(bases, lora, tmp_path):
    assert is_adapter(str(lora))
    assert not is_adapter(str(bases["llama"]))
    assert not is_adapter(str(tmp_path / "none"))


def test_weights_behind_a_link_that_leaves_the_folder_are_refused(lora, llama, tmp_path):
    (lora / WEIGHTS_NAME).rename(tmp_path / "outside.safetensors")
    (lora / WEIGHTS_NAME).symlink_to(tmp_path / "outside.safetensors")
    refused(lora, llama, "leaves its folder")


def test_the_digest_follows_every_file(lora, llama):
    before = open_adapter(str(lora), llama).digest
    assert open_adapter(str(lora), llama).digest == before
    configure(lora, lora_alpha=9)
    assert open_adapter(str(lora), llama).digest != before
