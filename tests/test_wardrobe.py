"""Adapters on a live model: worn they are the merged weights, taken off they leave nothing, and what PEFT cannot hold is refused."""

from __future__ import annotations

import pytest
import tiny
import torch
from adapting import configure
from asking import replies
from hunting import KINDS, live
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forensics.adapters import WEIGHTS_NAME, open_adapter
from forensics.checkpoint import open_checkpoint
from forensics.errors import CannotCompare

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {kind: tiny.save(tiny.network(kind), place / kind) for kind in KINDS}


def merged(folder, *adapters):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model


@pytest.mark.parametrize(("kind", "modules"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn", "c_proj"])])
def test_worn_adapters_are_the_merged_weights_and_come_off(folders, tmp_path, kind, modules):
    base = folders[kind]
    first = tiny.adapter(base, tmp_path / "first.v1", modules=modules, seed=2)
    second = tiny.adapter(base, tmp_path / "second", modules=modules[:1], seed=3, r=2, use_rslora=True)
    one, two = (open_adapter(str(path), open_checkpoint(str(base))) for path in (first, second))
    model = live(base)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    mask = torch.ones_like(ids)

    def expected(*adapters):
        with torch.inference_mode():
            return merged(base, *adapters)(input_ids=ids).logits

    bare = model.logits(ids, mask)
    assert torch.equal(bare, expected())
    for worn, weights in (((one,), (first,)), ((one, two), (first, second)), ((two,), (second,)), ((two, one), (first, second))):
        got = model.logits(ids, mask, adapters=worn)
        torch.testing.assert_close(got, expected(*weights), rtol=1e-4, atol=1e-4)
        assert (got - bare).abs().max() > 1e-3  # they do something
        assert torch.equal(model.logits(ids, mask), bare)


def test_what_is_worn_is_what_the_innermost_reader_asked_for(folders, tmp_path):
    base = folders["llama"]
    paths = [tiny.adapter(base, tmp_path / name, modules=["q_proj", "down_proj"], seed=seed) for name, seed in (("a", 2), ("b", 3))]
    one, two = (open_adapter(str(path), open_checkpoint(str(base))) for path in paths)
    model, ids = live(base), torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids)

    def read(worn):
        with torch.inference_mode():
            return worn(input_ids=ids).logits

    plain, first, second = (model.logits(ids, mask, adapters=adapters) for adapters in ((), (one,), (two,)))
    assert not torch.allclose(first, plain) and not torch.allclose(first, second)
    with model.wearing((one,)) as outer:
        for inner, right in (((), plain), ((two,), second), ((one,), first)):
            with model.wearing(inner) as worn:
                torch.testing.assert_close(read(worn), right)
            torch.testing.assert_close(read(outer), first)
        with pytest.raises(ZeroDivisionError), model.wearing(()):
            _ = 1 / 0
        torch.testing.assert_close(read(outer), first)
    assert torch.equal(model.logits(ids, mask), plain)


def test_adapters_are_switched_only_when_others_are_wanted(folders, tmp_path, monkeypatch):
    base = folders["llama"]
    adapter = open_adapter(str(tiny.adapter(base, tmp_path / "a", modules=["q_proj"])), open_checkpoint(str(base)))
    model, ids = live(base), torch.tensor([[5, 6, 7, 8]])
    mask, switched = torch.ones_like(ids), []
    model.logits(ids, mask, adapters=(adapter,))
    tuner = model._wardrobe._peft.base_model
    for name in ("enable_adapter_layers", "disable_adapter_layers"):
        real = getattr(tuner, name)
        monkeypatch.setattr(tuner, name, lambda real=real, name=name: (switched.append(name), real()))
    for adapters in ((), (), (adapter,), (adapter,), ()):
        model.logits(ids, mask, adapters=adapters)
    assert switched == ["disable_adapter_layers", "enable_adapter_layers", "disable_adapter_layers"]


def test_replies_with_an_adapter_are_those_of_the_merged_model(folders, tmp_path):
    base = folders["llama"]
    path = tiny.adapter(base, tmp_path / "a", modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
    model = live(base)
    before = replies(model)
    whole = tiny.save(merged(base, path), tmp_path / "merged")
    worn = replies(model, adapters=(open_adapter(str(path), open_checkpoint(str(base))),))
    assert worn == replies(live(whole)) != before
    assert replies(model) == before


WHOLE_OR_LONG = {
    "dora": {"use_dora": True},
    "dora on all": {"use_dora": True, "with_vocabulary": True},
    "embedding": {"with_vocabulary": True},
    "head": {"modules_to_save": ["lm_head"]},
    "whole mlp and head": {"modules_to_save": ["lm_head", "mlp"]},
    "saved otherwise": {"with_vocabulary": True, "overwritten": ".base_layer.weight"},
    "saved beside": {"save_embeddings": True, "overwritten": "lm_head.weight"},
}


def more_than_factors(base, target, *, kind, seed=2, with_vocabulary=False, overwritten="", **options):
    """An adapter of a kind that is more than factors in matrices."""
    modules = {"llama": ["q_proj", "o_proj"], "gpt2": ["c_attn"]}[kind]
    modules = modules + {"llama": ["embed_tokens", "lm_head"], "gpt2": ["wte", "lm_head"]}[kind] * with_vocabulary
    path = tiny.adapter(base, target, modules=modules, seed=seed, **options)
    if overwritten:
        tensors = load_file(path / WEIGHTS_NAME)
        chosen = [name for name in tensors if name.endswith(overwritten)]
        assert chosen
        tensors |= {name: tensors[name] + 0.1 * torch.randn(tensors[name].shape) for name in chosen}
        save_file(tensors, path / WEIGHTS_NAME)
    return path


SAVING = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:Model has `tie_word_embeddings:UserWarning",
    "ignore:Input and output embeddings:UserWarning",
)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("what", WHOLE_OR_LONG)
@SAVING
def test_what_is_more_than_factors_is_worn_as_it_is_merged_and_read(folders, tmp_path, kind, what):
    base = folders[kind]
    path = more_than_factors(base, tmp_path / "a", kind=kind, **WHOLE_OR_LONG[what])
    adapter, plain = (
        open_adapter(str(each), open_checkpoint(str(base)))
        for each in (path, tiny.adapter(base, tmp_path / "b", modules=["attn.c_proj" if kind == "gpt2" else "v_proj"]))
    )
    whole = tiny.save(merged(base, path), tmp_path / "merged")
    by_hand = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for change in adapter.changes:
            by_hand.get_parameter(change.target).add_(adapter.delta(change))
    model, ids = live(base), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    mask = torch.ones_like(ids)
    bare, before = model.logits(ids, mask), replies(model)

    for worn in ((adapter,), (plain, adapter), (adapter,)):
        model.logits(ids, mask, adapters=worn)
        assert torch.equal(model.logits(ids, mask), bare)  # it comes off whole
    got = model.logits(ids, mask, adapters=(adapter,))

    torch.testing.assert_close(got, live(whole).logits(ids, mask), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(got, by_hand(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert (got - bare).abs().max() > 1e-3
    assert replies(model, adapters=(adapter,)) == replies(live(whole))
    assert replies(model) == before


@SAVING
def test_a_tied_head_that_gets_weights_of_its_own_is_worn(tmp_path):
    base = tiny.save(tiny.network(tied=True), tmp_path / "base")
    path = tiny.adapter(base, tmp_path / "a", modules=["q_proj"], modules_to_save=["lm_head"])
    adapter, model, ids = open_adapter(str(path), open_checkpoint(str(base))), live(base), torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        right = merged(base, path)(input_ids=ids).logits
    bare = model.logits(ids, torch.ones_like(ids))

    torch.testing.assert_close(model.logits(ids, torch.ones_like(ids), adapters=(adapter,)), right, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.logits(ids, torch.ones_like(ids)), bare)


def test_adapters_that_do_not_add_up_are_not_worn_together(folders, tmp_path):
    base = open_checkpoint(str(folders["llama"]))
    paths = [more_than_factors(folders["llama"], tmp_path / str(seed), kind="llama", seed=seed, use_dora=True) for seed in (1, 2)]
    adapters, model = tuple(open_adapter(str(path), base) for path in paths), live(folders["llama"])
    alone = [replies(model, adapters=(adapter,)) for adapter in adapters]

    with pytest.raises(CannotCompare, match="both change"):
        replies(model, adapters=adapters)

    assert [replies(model, adapters=(adapter,)) for adapter in adapters] == alone  # the model is none the worse for it


@pytest.mark.parametrize("turned", [False, True])
def test_adapters_that_peft_cannot_hold_in_turn_are_refused_before_it_breaks(folders, tmp_path, turned):
    base = open_checkpoint(str(folders["llama"]))
    options = [{"modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {"modules": ["lm_head"], "save_embeddings": False}]
    first, second = (
        open_adapter(str(tiny.adapter(folders["llama"], tmp_path / str(number), **given)), base)
        for number, given in enumerate(options[::-1] if turned else options)
    )
    model = live(folders["llama"])
    before, worn = replies(model), replies(model, adapters=(first,))

    with pytest.raises(CannotCompare, match=r"replaces lm_head, to which [01] adds factors; PEFT cannot hold both"):
        replies(model, adapters=(second,))

    assert replies(model, adapters=(first,)) == worn
    assert replies(model) == before


def test_a_model_on_which_an_adapter_stuck_is_not_asked_again(folders, tmp_path):
    path = tiny.adapter(folders["llama"], tmp_path / "a", modules=["q_proj"], modules_to_save=["lm_head"])
    adapter = open_adapter(str(path), open_checkpoint(str(folders["llama"])))
    tensors = load_file(path / WEIGHTS_NAME)
    save_file({name: value for name, value in tensors.items() if "lm_head" not in name}, path / WEIGHTS_NAME)
    model = live(folders["llama"])

    with pytest.raises(CannotCompare, match="PEFT cannot put this adapter on the model: KeyError"):
        replies(model, adapters=(adapter,))
    with pytest.raises(CannotCompare, match="adapter a could be put on this model only in part"):
        replies(model)


def test_an_adapter_that_peft_would_leave_out_in_part_is_refused(folders, tmp_path):
    path = tiny.adapter(folders["llama"], tmp_path / "a", modules=["q_proj", "v_proj"])
    configure(path, target_modules=["q_proj"])
    adapter = open_adapter(str(path), open_checkpoint(str(folders["llama"])))
    model = live(folders["llama"])
    with pytest.raises(CannotCompare, match="only 2 of the 4 modules"):
        replies(model, adapters=(adapter,))
