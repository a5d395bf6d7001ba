"""Which tensor is which: what a loader would use on both sides, or a refusal that says what differs."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from forensics.alignment import align
from forensics.checkpoint import open_checkpoint
from forensics.errors import CannotCompare


def rewrite(folder, change):
    """Save the weights of `folder` again after `change` of the dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def aligned(base, candidate):
    return align(open_checkpoint(str(base)), open_checkpoint(str(candidate)))


@pytest.fixture
def folders(tmp_path):
    def make(kind="llama", **options):
        return [tiny.save(tiny.network(kind, seed=seed, **options), tmp_path / name) for seed, name in enumerate(("base", "candidate"))]

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_all_tensors_are_paired_by_name_in_order(folders, kind):
    base, candidate = folders(kind)
    pairs = aligned(base, candidate)
    names = sorted(load_file(base / "model.safetensors"))
    assert [pair.name for pair in pairs] == names
    assert all(pair.base.name == pair.candidate.name == pair.name for pair in pairs)
    assert any("0" in name.split(".") for name in names)  # layer 0 is among them


def test_shards_and_dtype_do_not_matter(tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base")
    candidate = tiny.save(tiny.network(), tmp_path / "candidate", dtype=torch.bfloat16, shard="20KB")
    assert len(list(candidate.glob("*.safetensors"))) > 1
    pairs = aligned(base, candidate)
    assert {(pair.base.dtype, pair.candidate.dtype) for pair in pairs} == {("F32", "BF16")}
    assert len(pairs) == len(load_file(base / "model.safetensors"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("written_by", ["base", "candidate"])
def test_a_tied_head_written_on_one_side_is_paired_with_the_other_sides_embedding(folders, kind, written_by):
    base, candidate = folders(kind, tied=True)
    embedding = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}[kind]
    side = base if written_by == "base" else candidate
    rewrite(side, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    head = next(pair for pair in aligned(base, candidate) if pair.name == "lm_head.weight")
    written = {"base": head.base.name, "candidate": head.candidate.name}
    assert written.pop(written_by) == "lm_head.weight"
    assert list(written.values()) == [embedding]


def test_a_tied_head_that_neither_side_writes_is_no_tensor_of_its_own(folders):
    assert "lm_head.weight" not in {pair.name for pair in aligned(*folders(tied=True))}


@pytest.mark.parametrize("lacking", ["base", "candidate"])
def test_an_untied_head_that_one_side_lacks_is_not_made_up(folders, lacking):
    base, candidate = folders(tied=False)
    rewrite(base if lacking == "base" else candidate, lambda tensors: tensors.pop("lm_head.weight"))
    other = "candidate" if lacking == "base" else "base"
    with pytest.raises(CannotCompare) as caught:
        aligned(base, candidate)
    assert caught.value.details == (f"lm_head.weight  only in the {other}",)
    assert caught.value.exit_code == 3


def test_a_config_that_does_not_say_untied_lets_the_head_be_tied(folders):
    base, candidate = folders(tied=False)
    rewrite(candidate, lambda tensors: tensors.pop("lm_head.weight"))
    config = json.loads((candidate / "config.json").read_text())
    del config["tie_word_embeddings"]
    (candidate / "config.json").write_text(json.dumps(config))
    head = next(pair for pair in aligned(base, candidate) if pair.name == "lm_head.weight")
    assert head.candidate.name == "model.embed_tokens.weight"


def test_another_architecture_is_refused_by_both_names(tmp_path):
    base = tiny.save(tiny.network("llama"), tmp_path / "base")
    candidate = tiny.save(tiny.network("qwen2"), tmp_path / "candidate")
    with pytest.raises(CannotCompare, match=r"llama and qwen2"):
        aligned(base, candidate)


def test_another_vocabulary_is_refused_and_both_shapes_are_listed(tmp_path):
    base = tiny.save(tiny.network(vocabulary=260), tmp_path / "base")
    candidate = tiny.save(tiny.network(vocabulary=264), tmp_path / "candidate")
    with pytest.raises(CannotCompare, match="2 of 21 tensors differ") as caught:
        aligned(base, candidate)
    assert set(caught.value.details) == {
        "model.embed_tokens.weight  base [260, 32]  candidate [264, 32]",
        "lm_head.weight  base [260, 32]  candidate [264, 32]",
    }


@pytest.mark.parametrize("lacking", ["base", "candidate"])
def test_a_missing_layer_is_refused(folders, lacking):
    base, candidate = folders()
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(base if lacking == "base" else candidate, lambda tensors: tensors.pop(name))
    with pytest.raises(CannotCompare) as caught:
        aligned(base, candidate)
    assert caught.value.details == (f"{name}  only in the {'candidate' if lacking == 'base' else 'base'}",)


def test_causal_masks_of_old_gpt2_files_are_left_out(folders):
    base, candidate = folders("gpt2")
    mask = torch.ones(1, 1, 8, 8).tril()
    rewrite(
        base, lambda tensors: tensors.update({"transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})
    )
    rewrite(candidate, lambda tensors: tensors.update({"transformer.h.0.attn.bias": mask.to(torch.uint8)}))
    names = {pair.name for pair in aligned(base, candidate)}
    assert not {"transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"} & names
    assert "transformer.h.0.attn.c_attn.bias" in names


def test_a_true_bias_of_the_same_name_is_compared(folders):
    base, candidate = folders()
    name = "model.layers.0.attn.bias"
    for side in (base, candidate):
        rewrite(side, lambda tensors: tensors.update({name: torch.ones(8)}))
    assert name in {pair.name for pair in aligned(base, candidate)}


def test_a_true_bias_on_one_side_only_is_refused(folders):
    base, candidate = folders()
    rewrite(candidate, lambda tensors: tensors.update({"model.layers.0.attn.bias": torch.ones(8)}))
    with pytest.raises(CannotCompare, match="1 of 21 tensors"):
        aligned(base, candidate)


def test_rotary_frequencies_are_left_out_on_either_side(folders):
    base, candidate = folders()
    rewrite(candidate, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert len(aligned(base, candidate)) == 21


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
@pytest.mark.parametrize("side", ["base", "candidate"])
def test_codes_of_a_quantised_release_are_refused(folders, dtype, side):
    base, candidate = folders()
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(base if side == "base" else candidate, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(CannotCompare, match="stored as codes") as caught:
        aligned(base, candidate)
    assert caught.value.where == side
    assert caught.value.details == (name,)
