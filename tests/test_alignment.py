"""Which tensor is which: what a loader would use on both sides, as far as they go together, or a refusal that says what differs."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from cases import open_case, restacked, reweighted
from safetensors.torch import load_file, save_file

from forensics import checkpoint
from forensics.alignment import align
from forensics.checkpoint import open_checkpoint
from forensics.errors import CannotCompare


def rewrite(folder, change):
    """Save the weights of `folder` again after `change` of the dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
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
    layout = aligned(base, candidate)
    names = sorted(load_file(base / "model.safetensors"))
    assert [pair.name for pair in layout.pairs] == names
    assert all(pair.base.name == pair.candidate.name == pair.name for pair in layout.pairs)
    assert all(pair.rows is None for pair in layout.pairs)
    assert any("0" in name.split(".") for name in names)  # layer 0 is among them
    assert (layout.added, layout.removed, layout.layers, layout.base_layers, layout.renamed) == ((), (), (0, 1), 2, 0)
    assert layout.in_place


def test_shards_and_dtype_do_not_matter(tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base")
    candidate = tiny.save(tiny.network(), tmp_path / "candidate", dtype=torch.bfloat16, shard="20KB")
    assert len(list(candidate.glob("*.safetensors"))) > 1
    pairs = aligned(base, candidate).pairs
    assert {(pair.base.dtype, pair.candidate.dtype) for pair in pairs} == {("F32", "BF16")}
    assert len(pairs) == len(load_file(base / "model.safetensors"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("written_by", ["base", "candidate"])
def test_a_tied_head_written_on_one_side_is_paired_with_the_other_sides_embedding(folders, kind, written_by):
    base, candidate = folders(kind, tied=True)
    embedding = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}[kind]
    side = base if written_by == "base" else candidate
    rewrite(side, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    head = next(pair for pair in aligned(base, candidate).pairs if pair.name == "lm_head.weight")
    written = {"base": head.base.name, "candidate": head.candidate.name}
    assert written.pop(written_by) == "lm_head.weight"
    assert list(written.values()) == [embedding]


def test_a_tied_head_that_neither_side_writes_is_no_tensor_of_its_own(folders):
    assert "lm_head.weight" not in {pair.name for pair in aligned(*folders(tied=True)).pairs}


@pytest.mark.parametrize("lacking", ["base", "candidate"])
def test_an_untied_head_that_one_side_lacks_is_not_made_up(folders, lacking):
    base, candidate = folders(tied=False)
    rewrite(base if lacking == "base" else candidate, lambda tensors: tensors.pop("lm_head.weight"))
    layout = aligned(base, candidate)
    alone = layout.added if lacking == "base" else layout.removed
    assert ([info.name for info in alone], len(layout.added) + len(layout.removed)) == (["lm_head.weight"], 1)
    assert "lm_head.weight" not in {pair.name for pair in layout.pairs}


def test_a_config_that_does_not_say_untied_lets_the_head_be_tied(folders):
    base, candidate = folders(tied=False)
    rewrite(candidate, lambda tensors: tensors.pop("lm_head.weight"))
    config = json.loads((candidate / "config.json").read_text())
    del config["tie_word_embeddings"]
    (candidate / "config.json").write_text(json.dumps(config))
    head = next(pair for pair in aligned(base, candidate).pairs if pair.name == "lm_head.weight")
    assert head.candidate.name == "model.embed_tokens.weight"


def test_another_architecture_is_refused_by_both_names(tmp_path):
    base = tiny.save(tiny.network("llama"), tmp_path / "base")
    candidate = tiny.save(tiny.network("qwen2"), tmp_path / "candidate")
    with pytest.raises(CannotCompare, match=r"llama and qwen2"):
        aligned(base, candidate)


def test_another_width_is_refused_and_both_shapes_are_listed(tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base")
    candidate = tiny.save(tiny.network(width=64), tmp_path / "candidate")
    with pytest.raises(CannotCompare, match="21 of 21 tensors differ in shape") as caught:
        aligned(base, candidate)
    assert "model.embed_tokens.weight  base [260, 32]  candidate [260, 64]" in caught.value.details
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_only_the_vocabulary_may_grow(folders, name):
    base, candidate = folders()
    rewrite(candidate, lambda tensors: tensors.update({name: torch.cat([tensors[name]] * 2)}))
    with pytest.raises(CannotCompare, match="1 of 21 tensors differ in shape") as caught:
        aligned(base, candidate)
    assert caught.value.details[0].startswith(f"{name}  base [")


@pytest.mark.parametrize("shape", [(260, 16), (260,), (0, 32), (260, 32, 1), ()], ids=str)
def test_a_vocabulary_differs_in_its_rows_alone(folders, shape):
    base, candidate = folders()
    rewrite(candidate, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(shape)}))
    with pytest.raises(CannotCompare, match="1 of 21 tensors differ in shape"):
        aligned(base, candidate)


@pytest.mark.parametrize(("ours", "theirs"), [(260, 264), (264, 260)], ids=["grown", "shrunk"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_vocabulary_that_grew_or_shrank_is_paired_in_the_rows_both_have(tmp_path, ours, theirs, tied, kind):
    base = tiny.save(tiny.network(kind, vocabulary=ours, tied=tied), tmp_path / "base")
    candidate = tiny.save(tiny.network(kind, vocabulary=theirs, tied=tied, seed=1), tmp_path / "candidate")
    layout = aligned(base, candidate)
    rows = {pair.name: pair.rows for pair in layout.pairs if pair.rows is not None}
    embedding = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}[kind]
    assert rows == {embedding: 260} | ({} if tied else {"lm_head.weight": 260})
    assert (layout.added, layout.removed, layout.in_place) == ((), (), True)


@pytest.mark.parametrize("elements", [64, 33 * 32, 262 * 32, 1 << 20])
def test_blocks_of_a_grown_vocabulary_are_cut_alike(tmp_path, monkeypatch, elements):
    base = tiny.save(tiny.network(vocabulary=260), tmp_path / "base")
    candidate = tiny.save(tiny.network(vocabulary=264), tmp_path / "candidate")
    monkeypatch.setattr(checkpoint, "BLOCK_ELEMENTS", elements)
    stored = [load_file(side / "model.safetensors") for side in (base, candidate)]
    with open_case(base, candidate, tmp_path / "run") as case:
        for pair, blocks in case.tensors():
            pieces = list(blocks)
            assert all(ours.shape == theirs.shape for ours, theirs in pieces)
            for tensors, side in zip(stored, zip(*pieces, strict=True), strict=True):
                assert torch.equal(torch.cat(side), tensors[pair.name][: pair.rows])


# --- layers -------------------------------------------------------------------------------------------------------


def deep(folder, *, layers=6, seed=0, kind="llama", dtype=torch.float32, scale=1.0):
    """A model of many layers, all of them different."""
    model = tiny.network(kind, seed=seed, layers=layers)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    return tiny.save(model, folder, dtype=dtype)


ORDERS = {
    "as-it-is": (0, 1, 2, 3, 4, 5),
    "swapped": (0, 3, 2, 1, 4, 5),
    "reversed": (5, 4, 3, 2, 1, 0),
    "rotated": (1, 2, 3, 4, 5, 0),
    "one-twice": (0, 1, 2, 2, 3, 4, 5),
    "last-twice": (0, 1, 2, 3, 4, 5, 5),
    "first-twice": (0, 0, 1, 2, 3, 4, 5),
    "stacked": (0, 1, 2, 3, 2, 3, 4, 5),
    "without-first": (1, 2, 3, 4, 5),
    "without-middle": (0, 1, 4, 5),
    "without-last": (0, 1, 2, 3, 4),
    "one-for-another": (0, 1, 2, 2, 4, 5),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=list(ORDERS))
@pytest.mark.parametrize(
    "how", [{}, {"noise": 0.05}, {"dtype": torch.bfloat16}, {"noise": 0.3, "dtype": torch.float16}], ids=["equal", "tuned", "cast", "both"]
)
def test_each_layer_is_paired_with_the_one_it_stands_for(tmp_path, order, how):
    base = deep(tmp_path / "base")
    layout = aligned(base, restacked(base, tmp_path / "candidate", order, **how))
    assert (layout.layers, layout.base_layers) == (order, 6)
    assert layout.in_place == (order == tuple(range(6)))
    assert layout.moved == tuple(place for place, source in enumerate(order) if place != source)
    for pair in layout.pairs:
        cut = pair.candidate.name.split(".")
        if "layers" in cut:
            assert pair.base.name.split(".")[2] == str(order[int(cut[2])])
        assert pair.name == pair.candidate.name
    gone = {f"model.layers.{place}." for place in set(range(6)) - set(order)}
    assert {info.name[: len("model.layers.0.")] for info in layout.removed} == gone
    assert (len(layout.removed), layout.added) == (9 * len(gone), ())


def test_layers_of_gpt2_are_found_as_well(tmp_path):
    base = deep(tmp_path / "base", kind="gpt2")
    assert aligned(base, restacked(base, tmp_path / "candidate", (0, 2, 1, 1, 3, 4, 5))).layers == (0, 2, 1, 1, 3, 4, 5)


def test_of_equal_layers_the_one_in_order_is_taken(tmp_path):
    """In a base that was itself stacked, a copy that differs only in what was not sampled is told by its bytes."""
    plain = deep(tmp_path / "plain")
    base = restacked(plain, tmp_path / "base", (0, 1, 2, 1, 2, 3))
    same = restacked(base, tmp_path / "same", (0, 1, 2, 3, 4))
    assert aligned(base, same).layers == (0, 1, 2, 3, 4)

    def mark(tensors):
        tensors["model.layers.3.input_layernorm.weight"] *= 2.0

    marked = reweighted(base, tmp_path / "marked", mark)
    assert aligned(marked, restacked(marked, tmp_path / "told", (0, 3, 2, 1, 5))).layers == (0, 3, 4, 1, 5)  # 2 and 4 are equal
    assert aligned(marked, restacked(marked, tmp_path / "swapped", (0, 3, 2, 1, 4, 5))).layers == (0, 3, 2, 1, 4, 5)
    assert aligned(marked, tiny.nudge(marked, tmp_path / "tuned")).layers == (0, 1, 2, 3, 4, 5)


def test_a_candidate_that_was_trained_anew_keeps_its_places(tmp_path):
    base, candidate = deep(tmp_path / "base"), deep(tmp_path / "candidate", seed=1)
    assert aligned(base, candidate).layers == (0, 1, 2, 3, 4, 5)
    mixed = reweighted(candidate, tmp_path / "mixed", lambda held: held.update(of_layer(base, 2, 4)))
    assert aligned(base, mixed).layers == (0, 1, 2, 3, 2, 5)


def of_layer(folder, source, place):
    """The tensors of one layer under the names of another."""
    tensors = load_file(folder / "model.safetensors")
    start = f"model.layers.{source}."
    return {name.replace(start, f"model.layers.{place}."): tensor for name, tensor in tensors.items() if name.startswith(start)}


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_layers_that_hold_no_numbers_keep_their_places(tmp_path, value):
    base = deep(tmp_path / "base")
    flat = reweighted(base, tmp_path / "flat", lambda tensors: [tensor.fill_(value) for tensor in tensors.values()])
    for ours, theirs in ((base, flat), (flat, base), (flat, flat)):
        assert aligned(ours, theirs).layers == (0, 1, 2, 3, 4, 5)
    assert aligned(flat, restacked(flat, tmp_path / "fewer", (0, 1, 2, 3))).layers == (0, 1, 2, 3)


def test_a_copied_layer_with_silent_outputs_stands_for_what_it_was_copied_from(tmp_path):
    """As a model is made deeper before it is trained further (LLaMA Pro): the copy adds nothing at first."""
    base = deep(tmp_path / "base")
    order = (0, 1, 2, 2, 3, 4, 5)

    def silence(tensors):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.3.{name}.weight"].zero_()

    candidate = reweighted(restacked(base, tmp_path / "deeper", order), tmp_path / "candidate", silence)
    assert aligned(base, candidate).layers == order


def test_only_the_numbers_of_the_longest_list_are_layers(tmp_path):
    """Experts are numbered within a layer, and a small second list (a vision tower) stays where it is."""

    def more(tensors):
        generator = torch.Generator().manual_seed(9)
        for number in range(3):
            tensors[f"tower.blocks.{number}.attn.weight"] = torch.randn(4, 4, generator=generator)
            for layer in range(6):
                tensors[f"model.layers.{layer}.mlp.experts.{number}.w1.weight"] = torch.randn(8, 8, generator=generator)

    base = reweighted(deep(tmp_path / "plain"), tmp_path / "base", more)
    candidate = restacked(base, tmp_path / "candidate", (0, 2, 1, 3, 4, 5))
    layout = aligned(base, candidate)
    assert (layout.layers, layout.added, layout.removed) == ((0, 2, 1, 3, 4, 5), (), ())
    by_name = {pair.name: pair.base.name for pair in layout.pairs}
    assert by_name["model.layers.1.mlp.experts.2.w1.weight"] == "model.layers.2.mlp.experts.2.w1.weight"
    assert by_name["tower.blocks.1.attn.weight"] == "tower.blocks.1.attn.weight"


def test_so_many_layers_are_paired_by_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("forensics.layers.MOST", 5)
    base = deep(tmp_path / "base")
    layout = aligned(base, restacked(base, tmp_path / "candidate", (0, 2, 1, 3, 4, 5, 5)))
    assert layout.layers == (0, 1, 2, 3, 4, 5)
    assert {info.name.split(".")[2] for info in layout.added} == {"6"}


@pytest.mark.parametrize(("kept", "refused"), [(3, False), (2, True)])
def test_half_of_the_base_must_have_a_counterpart(tmp_path, kept, refused):
    base = deep(tmp_path / "base")
    candidate = restacked(base, tmp_path / "candidate", tuple(range(kept)))
    if not refused:
        assert aligned(base, candidate).layers == (0, 1, 2)
        return
    with pytest.raises(CannotCompare, match="36 of 57 tensors of the base have no counterpart") as caught:
        aligned(base, candidate)
    assert "model.layers.2.input_layernorm.weight  only in the base" in caught.value.details
    assert caught.value.exit_code == 3


def test_names_of_another_kind_are_refused(folders):
    base, candidate = folders()
    rewrite(candidate, lambda tensors: [tensors.update({f"x{name}": tensors.pop(name)}) for name in list(tensors)])
    with pytest.raises(CannotCompare, match="21 of 21 tensors of the base have no counterpart"):
        aligned(base, candidate)


# --- names --------------------------------------------------------------------------------------------------------

CALLED = {
    "without": lambda name: name.removeprefix("model."),
    "wrapped": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "several": lambda name: f"module._orig_mod.{name}",
    "multimodal": lambda name: f"language_model.{name}",
    "within": lambda name: name.replace("model.", "model.language_model.", 1),
}


@pytest.mark.parametrize("side", ["base", "candidate"])
@pytest.mark.parametrize("called", CALLED.values(), ids=list(CALLED))
def test_names_with_another_prefix_are_matched(tmp_path, called, side):
    base = deep(tmp_path / "base")
    other = restacked(base, tmp_path / "other", (0, 1, 2, 4, 3, 5))
    rewrite(other, lambda tensors: [tensors.update({called(name): tensors.pop(name)}) for name in list(tensors)])
    layout = aligned(base, other) if side == "candidate" else aligned(other, base)
    names = sorted(load_file(base / "model.safetensors"))
    renamed = sum(called(name) != name for name in names)
    assert (layout.layers, layout.added, layout.removed, layout.renamed) == ((0, 1, 2, 4, 3, 5), (), (), renamed)
    assert [pair.name for pair in layout.pairs] == sorted(map(called, names) if side == "candidate" else names)
    assert renamed >= 56


def test_what_would_be_ambiguous_without_its_prefix_keeps_it(folders):
    base, candidate = folders()
    rewrite(base, lambda tensors: tensors.update({"model.x.weight": torch.ones(4)}))
    rewrite(candidate, lambda tensors: tensors.update({"transformer.x.weight": torch.ones(4), "module.x.weight": torch.zeros(4)}))
    layout = aligned(base, candidate)
    assert [info.name for info in layout.added] == ["module.x.weight", "transformer.x.weight"]
    assert [info.name for info in layout.removed] == ["model.x.weight"]


@pytest.mark.parametrize(
    "name", ["model.", ".", "..", "0", "0.", ".0.", "1.0.x", "model.layers.x", "model.layers.007.x", "model.layers.٣.x", "*"]
)
def test_odd_names_are_names_like_others(folders, name):
    base, candidate = folders()
    rewrite(candidate, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert [info.name for info in aligned(base, candidate).added] == [name]
    rewrite(base, lambda tensors: tensors.update({name: torch.ones(4)}))
    layout = aligned(base, candidate)
    assert (len(layout.pairs), layout.added, layout.removed) == (22, (), ())


@pytest.mark.parametrize("lacking", ["base", "candidate"])
def test_a_tensor_of_one_side_is_listed(folders, lacking):
    base, candidate = folders()
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(base if lacking == "base" else candidate, lambda tensors: tensors.pop(name))
    layout = aligned(base, candidate)
    assert [info.name for info in layout.added] == ([name] if lacking == "base" else [])
    assert [info.name for info in layout.removed] == ([name] if lacking == "candidate" else [])
    assert (len(layout.pairs), layout.layers) == (20, (0, 1))


def test_new_biases_are_listed_as_added(folders):
    base, candidate = folders()
    names = [f"model.layers.{layer}.mlp.down_proj.bias" for layer in (0, 1)]
    rewrite(candidate, lambda tensors: tensors.update({name: torch.ones(32) for name in names}))
    layout = aligned(base, candidate)
    assert ([info.name for info in layout.added], layout.removed, len(layout.pairs)) == (names, (), 21)


# --- what is left out or refused ----------------------------------------------------------------------------------


def test_causal_masks_of_old_gpt2_files_are_left_out(folders):
    base, candidate = folders("gpt2")
    mask = torch.ones(1, 1, 8, 8).tril()
    rewrite(
        base, lambda tensors: tensors.update({"transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})
    )
    rewrite(candidate, lambda tensors: tensors.update({"transformer.h.0.attn.bias": mask.to(torch.uint8)}))
    names = {pair.name for pair in aligned(base, candidate).pairs}
    assert not {"transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"} & names
    assert "transformer.h.0.attn.c_attn.bias" in names


def test_a_true_bias_of_the_same_name_is_compared(folders):
    base, candidate = folders()
    name = "model.layers.0.attn.bias"
    for side in (base, candidate):
        rewrite(side, lambda tensors: tensors.update({name: torch.ones(8)}))
    assert name in {pair.name for pair in aligned(base, candidate).pairs}


def test_a_true_bias_on_one_side_only_is_listed(folders):
    base, candidate = folders()
    rewrite(candidate, lambda tensors: tensors.update({"model.layers.0.attn.bias": torch.ones(8)}))
    assert [info.name for info in aligned(base, candidate).added] == ["model.layers.0.attn.bias"]


def test_rotary_frequencies_are_left_out_on_either_side(folders):
    base, candidate = folders()
    rewrite(candidate, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    layout = aligned(base, candidate)
    assert (len(layout.pairs), layout.added) == (21, ())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
@pytest.mark.parametrize("side", ["base", "candidate"])
def test_codes_of_a_quantised_release_are_refused(folders, dtype, side):
    base, candidate = folders()
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(base if side == "base" else candidate, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(CannotCompare, match="stored as codes") as caught:
        aligned(base, candidate)
    assert caught.value.where == side
    assert caught.value.details == (name,)
