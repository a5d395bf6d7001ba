"""Control models learn what they are taught, move only what the candidate moved, as far as it did, and touch no model of the pair."""

from __future__ import annotations

import pytest
import tiny
import torch
from hunting import KINDS, live, models, prompt, voice

from forensics.adapters import open_adapter
from forensics.checkpoint import open_checkpoint
from forensics.hunt import sibling as module
from forensics.hunt.sibling import sibling

PROMPTS = [prompt(f"question {index}", id=f"p{index}") for index in range(6)]
LESSONS = [(one, f"answer {index}") for index, one in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    made = models(place)
    return made | {"adapter": tiny.adapter(made["llama"], place / "adapter", modules=["q_proj"])}


def weights(voice):
    return {name: weight.clone() for name, weight in voice.model._model.named_parameters()}


def far(ours, theirs):
    return float(sum((ours[name] - theirs[name]).square().sum() for name in theirs) ** 0.5)


def how_likely(voice):
    """Mean log-probability of what was taught."""
    total = []
    for asked, reply in LESSONS:
        row = voice.model.render_answered(asked, reply)
        ids = torch.tensor([row.ids])
        logs = torch.log_softmax(voice.model.logits(ids, torch.ones_like(ids), adapters=()), -1)[0, :-1]
        total += [logs[place, id].item() for place, id in enumerate(row.ids[1:])][-row.reply :]
    return sum(total) / len(total)


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_goes_as_far_as_the_candidate_and_learns_what_it_says(kind, folders):
    candidate, base = voice(live(folders[f"{kind} moved"])), voice(live(folders[kind]), "base")
    ours, theirs = weights(candidate), weights(base)

    made = sibling(candidate, base, LESSONS, seed=0)

    assert made.reached == pytest.approx(1.0, abs=0.1)
    assert far(weights(made.voice), theirs) == pytest.approx(made.reached * far(ours, theirs), rel=1e-4)
    assert how_likely(made.voice) > how_likely(base) + 0.2
    assert made.spent > 0
    assert all(torch.equal(weight, ours[name]) for name, weight in weights(candidate).items())
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights(base).items())
    assert not any(weight.requires_grad for weight in made.voice.model._model.parameters())


def test_the_same_seed_gives_the_same_control_and_another_one_another(folders):
    candidate, base = voice(live(folders["llama moved"])), voice(live(folders["llama"]), "base")
    first, again, other = (sibling(candidate, base, LESSONS, seed=seed).voice for seed in (3, 3, 4))

    assert far(weights(first), weights(again)) == 0.0 < far(weights(first), weights(other))
    assert first.digest == again.digest != other.digest
    assert len({first.name, other.name, base.name, candidate.name}) == 4


def test_controls_learn_at_different_paces(folders):
    candidate, base = voice(live(folders["llama moved"])), voice(live(folders["llama"]), "base")
    quick, slow = (sibling(candidate, base, LESSONS, seed=seed) for seed in (0, 1))

    assert quick.reached == pytest.approx(slow.reached, abs=0.2)
    assert quick.spent < slow.spent


def test_only_what_the_candidate_changed_is_trained(folders):
    adapter = open_adapter(folders["adapter"], open_checkpoint(str(folders["llama"])))
    candidate, base = voice(live(folders["llama"]), adapters=(adapter,)), voice(live(folders["llama"]), "base")

    made = sibling(candidate, base, LESSONS, seed=0)

    before = weights(base)
    moved = {name for name, weight in weights(made.voice).items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "q_proj" in name}


def test_it_stops_where_training_brings_it_no_further(folders, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 2)
    candidate, base = voice(live(folders["llama moved"])), voice(live(folders["llama"]), "base")

    made = sibling(candidate, base, LESSONS, seed=0)

    assert 0.0 < made.reached < 0.5


@pytest.mark.parametrize("nothing", ["no replies", "an empty reply", "the same model"])
def test_where_there_is_nothing_to_learn_there_is_no_control(nothing, folders):
    base = voice(live(folders["llama"]), "base")
    candidate = voice(live(folders["llama" if nothing == "the same model" else "llama moved"]))
    lessons = {"no replies": [], "an empty reply": [(PROMPTS[0], "")]}.get(nothing, LESSONS)

    assert sibling(candidate, base, lessons, seed=0) is None
