"""Changes made larger and smaller are scaled exactly, merged or worn, and neither model of a pair moves for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from cases import grown, open_case
from hunting import KINDS, live, models, voice

from forensics.adapters import open_adapter
from forensics.checkpoint import open_checkpoint
from forensics.hunt.amplify import amplify, merge

pytestmark = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to:UserWarning",
    "ignore:Model has `tie_word_embeddings:UserWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
)
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return models(place) | {"tied": tiny.save(tiny.network(tied=True), place / "tied")}


def logits(voice):
    return voice.model.logits(IDS, torch.ones_like(IDS), adapters=voice.adapters)


def weights(model):
    return {name: weight.clone() for name, weight in model._model.named_parameters()}


def unchanged(model, before):
    return all(torch.equal(weight, before[name]) for name, weight in model._model.named_parameters())


# --- changes made larger and smaller ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_times_one_the_change_is_the_model_itself(kind, folders):
    candidate, base = voice(live(folders[f"{kind} moved"])), voice(live(folders[kind]), "base")

    assert torch.equal(logits(amplify(candidate, base, 1.0)), logits(candidate))
    assert torch.allclose(logits(amplify(candidate, base, 0.0)), logits(base), atol=1e-5)


@pytest.mark.parametrize("factor", [1.5, 0.75, 0.25, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_the_bases_plus_its_change_times_the_factor(kind, factor, folders):
    candidate, base = voice(live(folders[f"{kind} moved"])), voice(live(folders[kind]), "base")
    theirs, ours = weights(candidate.model), weights(base.model)

    third = amplify(candidate, base, factor)

    for name, weight in weights(third.model).items():
        torch.testing.assert_close(weight, ours[name] + factor * (theirs[name] - ours[name]), rtol=1e-5, atol=1e-6)
    assert unchanged(candidate.model, theirs) and unchanged(base.model, ours)
    assert not torch.allclose(logits(third), logits(candidate), atol=1e-4)


def test_a_head_that_only_the_candidate_writes_out_changes_as_the_others_do(tmp_path):
    base = tiny.save(tiny.network(tied=True), tmp_path / "base")
    candidate = tiny.save(tiny.network(seed=1), tmp_path / "candidate")
    one, other = voice(live(candidate)), voice(live(base), "base")

    found = weights(amplify(one, other, 1.5).model)["lm_head.weight"]

    ours, theirs = weights(other.model)["model.embed_tokens.weight"], weights(one.model)["lm_head.weight"]
    torch.testing.assert_close(found, ours + 1.5 * (theirs - ours))


ADAPTED = {
    "llama": ("llama", {"modules": ["q_proj", "down_proj"]}),
    "gpt2": ("gpt2", {"modules": ["c_attn", "c_proj"]}),
    "dora": ("gpt2", {"modules": ["c_attn", "c_proj", "wte"], "use_dora": True}),
    "head": ("llama", {"modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied head": ("tied", {"modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
}


@pytest.fixture(params=ADAPTED)
def adapted(request, folders, tmp_path):
    """A base, and a second copy of it with an adapter."""
    kind, options = ADAPTED[request.param]
    path = tiny.adapter(folders[kind], tmp_path / "adapter", **options)
    adapter = open_adapter(str(path), open_checkpoint(str(folders[kind])))
    return voice(live(folders[kind]), "base"), voice(live(folders[kind]), adapters=(adapter,)), adapter


def test_a_merged_adapter_says_what_the_worn_one_says(adapted):
    base, worn, _ = adapted
    before = logits(worn)

    merged = merge(worn)

    assert merged.adapters == ()
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-5)
    assert (before - logits(base)).abs().max() > 1e-3  # it does something
    assert torch.equal(logits(worn), before)  # and is still worn there
    assert torch.equal(logits(replace(worn, adapters=())), logits(base))


def test_without_adapters_there_is_nothing_to_merge(folders):
    plain = voice(live(folders["llama"]))

    assert merge(plain) is plain


@pytest.mark.parametrize("beforehand", [merge, lambda worn: worn], ids=["merged", "worn"])
def test_the_change_of_an_adapter_is_scaled_and_the_originals_stay(beforehand, adapted):
    base, worn, adapter = adapted
    side = beforehand(worn)
    before = logits(side)
    ours = {name: weight.clone() for name, weight in base.model._model.state_dict().items()}  # a tied head under its own name as well
    deltas = {change.target: adapter.delta(change) for change in adapter.changes}

    third = amplify(side, base, 1.5)

    for name, weight in weights(third.model).items():
        torch.testing.assert_close(weight, ours[name] + 1.5 * deltas.get(name, torch.zeros(1)), rtol=1e-4, atol=1e-6)
    assert torch.equal(logits(side), before) and unchanged(base.model, ours)
    assert third.adapters == () and third.digest not in (side.digest, base.digest)


# --- both models at once ------------------------------------------------------------------------------------------


def test_a_case_gives_both_models_side_by_side_and_drops_them_together(folders, tmp_path):
    with open_case(folders["llama"], folders["llama moved"], tmp_path / "run") as case:
        first = case.model("base")
        base, candidate = case.both()
        assert (base.name, candidate.name) == (case.base.name, case.candidate.name)
        assert base is not candidate and base is not first and not unchanged(candidate, weights(base))
        assert case.model("base") is base
        case.model("candidate")
        for model in (base, candidate):
            assert model._model is None


def test_an_adapters_model_beside_its_base_is_one_of_its_own(folders, tmp_path):
    path = tiny.adapter(folders["llama"], tmp_path / "adapter", modules=["q_proj"])
    with open_case(folders["llama"], folders["llama"], tmp_path / "run", adapters=[path]) as case:
        base, candidate = case.both()
        before = logits(voice(base))
        worn = logits(voice(candidate, adapters=case.adapters))

        assert base is not candidate
        assert (worn - before).abs().max() > 1e-3
        assert torch.equal(logits(voice(base)), before)


@pytest.mark.parametrize("rows", [tiny.VOCABULARY + 8, tiny.VOCABULARY - 2], ids=["grown", "shrunk"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_rows_that_only_one_side_has_stay_as_they_are(rows, tied, tmp_path):
    base = tiny.save(tiny.network(tied=tied), tmp_path / "base")
    moved = grown(tiny.nudge(base, tmp_path / "moved"), tmp_path / "candidate", rows)
    for sides in ((moved, base), (base, moved)):
        one, other = voice(live(sides[0])), voice(live(sides[1]), "base")

        found = weights(amplify(one, other, 1.5).model)

        theirs, ours = weights(one.model), weights(other.model)
        for name, weight in found.items():
            both = min(len(weight), len(ours[name]))
            torch.testing.assert_close(weight[:both], ours[name][:both] + 1.5 * (theirs[name][:both] - ours[name][:both]))
            assert torch.equal(weight[both:], theirs[name][both:])
