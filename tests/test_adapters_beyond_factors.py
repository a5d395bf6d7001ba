"""Adapters that do more than factors do (DoRA, whole modules, embeddings and heads): the delta is what PEFT adds, or they are refused."""

from __future__ import annotations

import pytest
import tiny
import torch
from adapting import CONV1D, MODULES, assert_reads_as_peft, retensor
from safetensors.torch import load_file

from forensics.adapters import WEIGHTS_NAME, open_adapter, refuse_together
from forensics.checkpoint import open_checkpoint
from forensics.errors import CannotCompare
from forensics.roles import place

pytestmark = CONV1D
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
