"""Putting back: the live candidate becomes the base to the last digit, part by part, and is left as it was found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from cases import edited, grown, open_case, reconfigured, restacked, reweighted
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from forensics.checkpoint import Checkpoint
from forensics.errors import CannotCompare, ToolFailed
from forensics.model import open_model
from forensics.restore import BANDS, WEIGHTS, Mode, Patchwork, Piece, kind_of, regions


def values(model):
    with model.wearing(()) as whole:
        return {name: weight.detach().clone() for name, weight in whole.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Base and candidate of several builds, all matrices moved."""
    folder, made = tmp_path_factory.mktemp("pairs"), {}
    for name, kind, tied, dtype, shard in (
        ("llama", "llama", False, torch.float32, "5GB"),
        ("tied", "qwen2", True, torch.float32, "5GB"),
        ("gpt2", "gpt2", True, torch.float32, "5GB"),
        ("bfloat16", "llama", False, torch.bfloat16, "5GB"),
        ("sharded", "llama", False, torch.float32, "30KB"),
    ):
        base = tiny.save(
            tiny.network(kind, tied=tied, layers=5 if name == "llama" else 2), folder / f"{name}-base", dtype=dtype, shard=shard
        )
        made[name] = base, tiny.nudge(base, folder / name)
    made["grown"] = made["llama"][0], grown(made["llama"][1], folder / "grown", tiny.VOCABULARY + 4)
    return made


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2", "bfloat16", "sharded"])
def test_all_put_back_is_the_base_to_the_last_digit_and_the_candidate_is_left_as_it_was(name, pairs, tmp_path):
    base, candidate = pairs[name]
    with open_case(base, candidate, tmp_path / "run") as case:
        model = case.model("candidate")
        before = values(model)

        with Patchwork(case, model) as patchwork:
            patchwork.show(Mode.BASE)
            assert same(values(model), values(open_model(case.base, device="cpu")))
            patchwork.show(Mode.BASE, patchwork.pieces[:3], Mode.BESIDE_BASE)
            assert not same(values(model), before)

        assert same(values(model), before)
        assert same(values(open_model(case.candidate, device="cpu")), before), "the files were written to"


def test_one_group_put_back_changes_its_tensors_and_no_other(pairs, tmp_path):
    base, candidate = pairs["llama"]
    with open_case(base, candidate, tmp_path / "run") as case:
        model = case.model("candidate")
        ours, theirs = values(open_model(case.base, device="cpu")), values(model)
        with Patchwork(case, model) as patchwork:
            group = next(one for one in regions(patchwork.pieces, case.layout.base_layers) if one.name == "layer 2, mlp")
            patchwork.show(Mode.CANDIDATE, group.pieces)
            needed = values(model)
            patchwork.show(Mode.BASE, group.pieces, Mode.CANDIDATE)
            enough = values(model)

    inside = {piece.tensor for piece in group.pieces}
    assert inside == {f"model.layers.2.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    for name in ours:
        assert torch.equal(needed[name], (ours if name in inside else theirs)[name])
        assert torch.equal(enough[name], (theirs if name in inside else ours)[name])


def test_every_piece_is_in_one_group_and_runs_of_layers_cover_the_model(pairs, tmp_path):
    base, candidate = pairs["llama"]
    with open_case(base, candidate, tmp_path / "run") as case, Patchwork(case, case.model("candidate")) as patchwork:
        groups = regions(patchwork.pieces, 5)

    inside = [piece for group in groups for piece in group.pieces]
    assert len(inside) == len(set(inside)) == len(patchwork.pieces)
    assert {group.name for group in groups} == {
        *("embedding", "head", "norms"),
        *(f"{run}, {kind}" for run in ("layers 0-1", "layer 2", "layer 3", "layer 4") for kind in ("attention", "mlp")),
    }
    assert all(group.relative_change == pytest.approx(0.05, rel=0.02) for group in groups)


@pytest.mark.parametrize("layers", [1, 3, 4, 32, 61])
def test_no_model_has_more_runs_of_layers_than_there_are_bands(layers):
    pieces = [
        Piece(tensor=f"model.layers.{layer}.mlp.up_proj.weight", source=WEIGHTS, layer=layer, kind="mlp", change=1.0, base=4.0)
        for layer in range(layers)
    ]

    groups = regions(pieces, layers)

    assert len(groups) == min(BANDS, layers)
    assert [group.layers[0] for group in groups[1:]] == [group.layers[1] + 1 for group in groups[:-1]]
    assert (groups[0].layers[0], groups[-1].layers[1]) == (0, layers - 1)
    assert all(group.relative_change == 0.5 for group in groups)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.h.0.attn.c_attn.weight", "attention"),
        ("transformer.h.0.mlp.c_fc.bias", "mlp"),
        ("transformer.h.0.ln_1.bias", "norms"),
        ("transformer.wpe.weight", "embedding"),
        ("gpt_neox.layers.1.attention.dense.bias", "attention"),
        ("gpt_neox.layers.1.post_attention_layernorm.weight", "norms"),
        ("embed_out.weight", "head"),
        ("model.decoder.layers.1.fc1.weight", "mlp"),
        ("model.layers.0.mlp.experts.3.w2.weight", "mlp"),
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("lm_head.bias", "head"),
        ("model.layers.0.mixer.A_log", "other"),
    ],
)
def test_tensors_of_several_architectures_are_of_a_kind(name, kind):
    assert kind_of(name) == kind


def test_the_control_moves_a_group_as_far_with_the_same_singular_values(pairs, tmp_path):
    base, candidate = pairs["llama"]
    with open_case(base, candidate, tmp_path / "run") as case:
        model = case.model("candidate")
        ours, theirs = values(open_model(case.base, device="cpu")), values(model)
        with Patchwork(case, model) as patchwork:
            piece = next(one for one in patchwork.pieces if one.tensor.endswith("1.mlp.up_proj.weight"))
            patchwork.show(Mode.CANDIDATE, [piece], Mode.BESIDE_CANDIDATE)
            beside = values(model)[piece.tensor] - theirs[piece.tensor]
            patchwork.show(Mode.BASE, [piece], Mode.BESIDE_BASE)
            shuffled = values(model)[piece.tensor] - ours[piece.tensor]

    change = theirs[piece.tensor] - ours[piece.tensor]
    assert math.sqrt(piece.change) == pytest.approx(float(change.norm()), rel=1e-5)
    assert torch.allclose(beside, -shuffled, atol=1e-6)
    assert torch.allclose(torch.linalg.svdvals(shuffled), torch.linalg.svdvals(change), rtol=1e-3, atol=1e-5)
    assert float((shuffled * change).sum()) / piece.change < 0.2, "it is another direction"


def test_of_a_grown_vocabulary_the_rows_that_both_have_are_put_back(pairs, tmp_path):
    base, candidate = pairs["grown"]
    with open_case(base, candidate, tmp_path / "run") as case:
        model = case.model("candidate")
        ours, theirs = values(open_model(case.base, device="cpu")), values(model)
        with Patchwork(case, model) as patchwork:
            patchwork.show(Mode.BASE)
            name = "model.embed_tokens.weight"
            now = values(model)[name]

    assert torch.equal(now[: tiny.VOCABULARY], ours[name])
    assert torch.equal(now[tiny.VOCABULARY :], theirs[name][tiny.VOCABULARY :])


def test_a_tensor_that_the_loader_calls_otherwise_is_found_by_its_values(tmp_path):
    """transformers stores GPT-NeoX's head as embed_out and holds it as lm_head."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    network = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, vocab_size=tiny.VOCABULARY, eos_token_id=256, tie_word_embeddings=False))
    base = tiny.save(network, tmp_path / "base")
    with open_case(base, tiny.nudge(base, tmp_path / "moved"), tmp_path / "run") as case:
        model = case.model("candidate")
        with Patchwork(case, model) as patchwork:
            assert "embed_out.weight" in {piece.tensor for piece in patchwork.pieces}
            patchwork.show(Mode.BASE)
            assert same(values(model), values(open_model(case.base, device="cpu")))


def test_tensors_that_did_not_move_are_no_pieces(pairs, tmp_path):
    base, _ = pairs["llama"]
    moved = reweighted(base, tmp_path / "moved", lambda held: held["model.layers.0.mlp.up_proj.weight"].mul_(1.1))
    with open_case(base, moved, tmp_path / "run") as case, Patchwork(case, case.model("candidate")) as patchwork:
        assert [piece.tensor for piece in patchwork.pieces] == ["model.layers.0.mlp.up_proj.weight"]


def test_adapters_are_put_on_and_dropped_one_at_a_time_as_peft_wears_them(pairs, tmp_path):
    base, candidate = pairs["llama"]
    one = tiny.adapter(candidate, tmp_path / "one", modules=["q_proj", "up_proj"])
    two = tiny.adapter(candidate, tmp_path / "two", modules=["q_proj"], seed=3, use_dora=False, init_lora_weights=True)
    with open_case(base, candidate, tmp_path / "run", adapters=[one, two]) as case:
        model = case.model("candidate")
        ids, mask = torch.tensor([[5, 9, 70, 33]]), torch.ones(1, 4, dtype=torch.long)
        said = {}
        with Patchwork(case, model) as patchwork:
            assert {piece.source for piece in patchwork.pieces} == {WEIGHTS, "adapter:one", "adapter:two"}
            patchwork.show(Mode.CANDIDATE)
            said["both"] = model.logits(ids, mask)
            patchwork.show(Mode.CANDIDATE, [piece for piece in patchwork.pieces if piece.source == "adapter:one"])
            said["two"] = model.logits(ids, mask)
            patchwork.show(Mode.BASE)
            said["none"] = model.logits(ids, mask)
        worn = {"both": case.adapters, "two": case.adapters[1:], "none": ()}
        for name, adapters in worn.items():
            other = open_model(case.base if name == "none" else case.candidate, device="cpu")
            assert torch.allclose(said[name], other.logits(ids, mask, adapters=adapters), atol=1e-4), name
        assert not torch.allclose(said["both"], said["two"], atol=1e-2)


def refused(base, candidate, run, **options):
    with open_case(base, candidate, run, **options) as case, pytest.raises(CannotCompare) as error:
        Patchwork(case, case.model("candidate"))
    return str(error.value)


def test_moved_layers_are_refused(pairs, tmp_path):
    base, _ = pairs["llama"]
    swapped = restacked(base, tmp_path / "swapped", [0, 2, 1, 3, 4])

    assert "layers were added, taken out or moved" in refused(base, swapped, tmp_path / "run")


def test_a_candidate_that_ties_what_the_base_does_not_is_refused(pairs, tmp_path):
    base, _ = pairs["llama"]
    tied = reconfigured(reweighted(base, tmp_path / "tied", lambda held: held.pop("lm_head.weight")), tie_word_embeddings=True)

    assert "where the base has two" in refused(base, tied, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_a_tied_head_that_an_adapter_unties_is_refused(pairs, tmp_path):
    base, _ = pairs["tied"]
    adapter = tiny.adapter(base, tmp_path / "own", modules=["q_proj"], modules_to_save=["lm_head"])

    assert "tied to the embedding" in refused(base, base, tmp_path / "run", adapters=[adapter])


def test_values_that_are_not_finite_are_refused(pairs, tmp_path):
    base, _ = pairs["llama"]
    broken = reweighted(base, tmp_path / "broken", lambda held: held["model.layers.0.mlp.up_proj.weight"].fill_(math.nan))

    assert "not finite" in refused(base, broken, tmp_path / "run")


def test_a_live_model_that_holds_something_else_is_refused(pairs, tmp_path):
    base, candidate = pairs["llama"]
    with open_case(base, candidate, tmp_path / "run") as case, pytest.raises(CannotCompare, match="does not hold"):
        Patchwork(case, open_model(case.base, device="cpu"))


def test_a_tensor_that_the_live_model_calls_otherwise_is_refused(pairs, tmp_path):
    base, candidate = pairs["llama"]
    stranger = edited(pairs["gpt2"][0], tmp_path / "stranger")
    with open_case(base, candidate, tmp_path / "run") as case:
        other = open_model(replace(case.candidate, path=stranger), device="cpu")
        with pytest.raises(CannotCompare, match="not in the live model as they are stored"):
            Patchwork(case, other)


@pytest.mark.parametrize("side", ["base", "candidate"])
def test_a_tensor_that_cannot_be_read_to_its_end_is_written_anew(side, pairs, tmp_path, monkeypatch):
    base, candidate = pairs["llama"]
    with open_case(base, candidate, tmp_path / "run") as case:
        model = case.model("candidate")
        ours, theirs = values(open_model(case.base, device="cpu")), values(model)
        other = case.candidate if side == "base" else case.base
        real = Checkpoint.blocks

        def breaking(checkpoint, name, **how):
            for block in real(checkpoint, name, **how):
                if checkpoint is other or not name.endswith("up_proj.weight"):
                    yield block
                else:
                    yield block[: len(block) // 2]
                    raise ToolFailed("the disk is gone", where=name, hint="mount it")

        with Patchwork(case, model) as patchwork:
            patchwork.show(Mode.CANDIDATE if side == "base" else Mode.BASE)
            with monkeypatch.context() as patch, pytest.raises(ToolFailed):
                patch.setattr(Checkpoint, "blocks", breaking)
                patchwork.show(Mode.BASE if side == "base" else Mode.CANDIDATE)
            assert not same(values(model), theirs if side == "base" else ours), "it is half written"
            patchwork.show(Mode.CANDIDATE if side == "base" else Mode.BASE)
            assert same(values(model), theirs if side == "base" else ours)
        assert same(values(model), theirs)
