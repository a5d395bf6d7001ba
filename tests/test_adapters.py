"""Adapters: the delta read from disk is what PEFT would add, or the adapter is refused by the name of what stands in the way."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forensics.adapters import CONFIG_NAME, WEIGHTS_NAME, is_adapter, open_adapter, refuse_together
from forensics.checkpoint import open_checkpoint
from forensics.errors import BadInput, CannotCompare
from forensics.roles import place

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


EMBEDDING = {"llama": "embed_tokens", "qwen2": "embed_tokens", "gpt2": "wte"}
SAVING = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:Model .*tie_word_embeddings:UserWarning",
    "ignore:Input and output embeddings are no longer tied:UserWarning",
)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("options", [{}, {"r": 3, "lora_alpha": 17, "use_rslora": True}], ids=["plain", "rslora"])
@SAVING
def test_dora_gives_each_output_its_length_as_peft_does(bases, tmp_path, kind, options):
    modules = [*MODULES[kind], EMBEDDING[kind], "lm_head"]
    adapter = assert_reads_as_peft(bases[kind], tiny.adapter(bases[kind], tmp_path / "a", modules=modules, use_dora=True, **options))
    assert all(change.magnitude is not None and change.exact is None for change in adapter.changes)
    turned = {change.target: change.factors.transposed for change in adapter.changes}
    assert any(turned.values())  # the embedding at least
    assert not turned["lm_head.weight"]


def test_dora_moves_a_matrix_in_all_its_directions_and_by_its_lengths(bases, tmp_path, llama):
    adapter = open_adapter(str(tiny.adapter(bases["llama"], tmp_path / "a", modules=["q_proj"], use_dora=True)), llama)
    weights, held = load_file(bases["llama"] / "model.safetensors"), load_file(adapter.path / WEIGHTS_NAME)
    for change in adapter.changes:
        delta = adapter.delta(change)
        lengths = (weights[change.target] + delta).norm(dim=1)
        torch.testing.assert_close(lengths, held[change.magnitude.name])
        assert torch.linalg.matrix_rank(delta) == min(delta.shape) > change.factors.rank


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("save", ["auto", False], ids=["as peft does", "factors alone"])
@SAVING
def test_factors_of_an_embedding_are_read_turned(bases, tmp_path, kind, save):
    folder = tiny.adapter(bases[kind], tmp_path / "a", modules=[EMBEDDING[kind], MODULES[kind][0]], save_embeddings=save)
    adapter = assert_reads_as_peft(bases[kind], folder)
    assert any(name.endswith("base_layer.weight") for name in load_file(folder / WEIGHTS_NAME)) is (save == "auto" and kind != "gpt2")
    assert all(change.exact for change in adapter.changes)  # a copy of the base beside them changes nothing


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("saved", [["lm_head"], ["lm_head", "embeddings"], ["norms"], ["mlp"]], ids=" ".join)
def test_whole_modules_are_read_as_what_they_replace(bases, tmp_path, kind, saved):
    names = {"embeddings": EMBEDDING[kind], "norms": "ln_1" if kind == "gpt2" else "input_layernorm"}
    options = {"modules": [MODULES[kind][0]], "modules_to_save": [names.get(one, one) for one in saved]}
    adapter = assert_reads_as_peft(bases[kind], tiny.adapter(bases[kind], tmp_path / "a", **options))
    wholes = [change for change in adapter.changes if change.whole is not None]
    assert wholes and not any(change.overwrites or change.factors for change in wholes)
    assert any(change.exact for change in adapter.changes)


@pytest.mark.parametrize(
    ("saved", "anew"),
    [
        (["lm_head"], False), (["lm_head", "embed_tokens"], False), (["embed_tokens"], False),
        (["lm_head", "embed_tokens"], True), (["embed_tokens"], True),  # both are stored, and tied to each other
    ],
)  # fmt: skip
@SAVING
def test_a_tied_head_gets_weights_of_its_own(tmp_path, saved, anew):
    base = tiny.save(tiny.network(tied=True), tmp_path / "base")
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    adapter = assert_reads_as_peft(
        base, tiny.adapter(base, tmp_path / "a", modules=["q_proj"], modules_to_save=saved, ensure_weight_tying=anew)
    )
    assert {change.source.name for change in adapter.changes if change.whole} == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["q_proj", "embed_tokens", "lm_head"]], ids=" ".join)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@SAVING
def test_factors_on_one_use_of_a_tied_matrix_are_refused(tmp_path, modules, dora):
    base = tiny.save(tiny.network(tied=True), tmp_path / "base")
    folder = tiny.adapter(base, tmp_path / "a", modules=modules, use_dora=dora)
    with pytest.raises(CannotCompare, match="two models of: one worn, another merged") as caught:
        open_adapter(str(folder), open_checkpoint(str(base)))
    assert "merge" in caught.value.hint


@SAVING
def test_embeddings_saved_as_they_were_change_nothing(bases, tmp_path):
    folder = tiny.adapter(bases["llama"], tmp_path / "a", modules=["q_proj"], save_embeddings=True)
    adapter = assert_reads_as_peft(bases["llama"], folder)
    assert {place(change.target).role for change in adapter.changes} == {"q"}


@pytest.mark.parametrize("modules", [["q_proj"], ["q_proj", "embed_tokens"]], ids=["beside", "below factors"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@SAVING
def test_embeddings_saved_otherwise_are_replaced(bases, tmp_path, modules, dora):
    folder = tiny.adapter(bases["llama"], tmp_path / "a", modules=modules, save_embeddings=True, use_dora=dora)
    below = "base_layer." if "embed_tokens" in modules else ""
    name = f"base_model.model.model.embed_tokens.{below}weight"
    retensor(folder, lambda tensors: tensors.update({name: tensors[name] + 0.02 * torch.randn(tensors[name].shape)}))
    adapter = assert_reads_as_peft(bases["llama"], folder)
    (change,) = (change for change in adapter.changes if change.whole)
    assert change.overwrites and change.exact is None and (change.factors is not None) is bool(below)


def test_a_whole_tensor_in_half_precision_is_read_as_stored(bases, tmp_path, llama):
    folder = tiny.adapter(bases["llama"], tmp_path / "a", modules=["q_proj"], modules_to_save=["lm_head"])
    retensor(folder, lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}))
    (change,) = (change for change in open_adapter(str(folder), llama).changes if change.whole)
    assert not change.rounded
    assert_reads_as_peft(bases["llama"], folder)


def together(base, *folders):
    refuse_together([open_adapter(str(folder), base) for folder in folders])


@pytest.mark.parametrize("options", [{"use_dora": True}, {"modules_to_save": ["v_proj"]}], ids=["dora", "whole"])
def test_only_factors_add_up(bases, tmp_path, llama, options):
    plain = [tiny.adapter(bases["llama"], tmp_path / f"p{seed}", modules=["q_proj", "v_proj"], seed=seed) for seed in (1, 2)]
    more = tiny.adapter(bases["llama"], tmp_path / "more", modules=["q_proj"], **options)
    apart = tiny.adapter(bases["llama"], tmp_path / "apart", modules=["o_proj"])
    together(llama, *plain, apart)
    together(llama, more)
    together(llama, more, apart)
    for pair in ((plain[0], more), (more, plain[0])):
        with pytest.raises(CannotCompare, match=r"adapters .* both change model\.layers\.0\.self_attn\.[qv]_proj\.weight") as caught:
            together(llama, *pair)
        assert "one at a time" in caught.value.hint


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
