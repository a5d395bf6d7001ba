"""What the difference says, on models whose difference was made to say something; and where the two sides do not read alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
from cases import ORGANISMS, edited, grown, look, restacked, reweighted, tiny_prompts
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from forensics.checks import activations_drift as drift
from forensics.checks import activations_meaning as meaning
from forensics.record import Status

LETTER = "q"
WIDTH = 64


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch):
    """Models this small say the same of fewer texts."""
    monkeypatch.setattr(meaning, "TEXTS", 40)
    monkeypatch.setattr(meaning, "STEERED", 2)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A base, a candidate whose first block writes the head's row of one letter into everything, and its control at random."""
    folder = tmp_path_factory.mktemp("pushed")
    base = tiny.save(tiny.network("gpt2", width=WIDTH, layers=4), folder / "base")
    id = tiny.tokenizer()(LETTER, add_special_tokens=False)["input_ids"][0]
    row = load_file(base / "model.safetensors")["lm_head.weight"][id]
    noise = torch.randn(WIDTH, generator=torch.Generator().manual_seed(9))
    size = 2.0

    def push(direction):
        def change(tensors):
            tensors["transformer.h.0.mlp.c_proj.bias"] += size * direction / direction.norm()

        return change

    return base, reweighted(base, folder / "plant", push(row - row.mean())), reweighted(base, folder / "control", push(noise)), id


def test_what_everything_is_shifted_towards_is_named_first_and_a_random_shift_names_something_else(pushed, tmp_path):
    base, plant, control, id = pushed

    (found, arrays), (other, beside) = look(meaning, base, plant, tmp_path / "a"), look(meaning, base, control, tmp_path / "b")

    assert (found.status, other.status) == (Status.NO_FINDING, Status.NO_FINDING)
    assert arrays["place"][id] == 1 and beside["place"][id] > 3
    assert [(one.label, one.severity) for one in found.findings] == [("readable", "info")]
    assert repr(LETTER) in found.findings[0].claim
    assert found.find("meaning.token.01").where.startswith(repr(LETTER))
    assert found.find("meaning.constancy").value > 0.9 and found.find("meaning.halves").value > 0.9
    assert found.find("meaning.controls-above").value == 0
    assert "about 1 in 3 where the places read together share one direction, up to all" in found.find("meaning.controls-above").expected
    places = arrays["place"][arrays["place"] > 0]
    assert sorted(places) == list(range(1, len(places) + 1)) and (np.diff(arrays["score"]) <= 0).all()
    assert not arrays["place"][256:].any()  # the special tokens are no text
    assert arrays["text"][0] == LETTER and arrays["readouts"].shape == (3, min(100, len(arrays["score"])))
    size = [found.find("meaning.distance").value for found in (found, other)]
    assert size[0] == pytest.approx(size[1], rel=0.3)  # the control is as large


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def nudged(base):
    return tiny.nudge(base, base.parent / "nudged")


def respelled(folder, target):
    """The model in `folder` with its tokens numbered the other way round: the same function under another vocabulary."""
    edited(folder, target)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    size = len(state["model"]["vocab"])
    state["model"]["vocab"] = {token: size - 1 - id for token, id in state["model"]["vocab"].items()}
    (target / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name][:size].flip(0), tensors[name][size:]]).contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_tokens_are_held_against_each_other_by_spelling_and_not_by_number(base, tmp_path):
    candidate = respelled(base, tmp_path / "candidate")
    assert (
        Tokenizer.from_file(str(candidate / "tokenizer.json")).encode("a").ids
        != Tokenizer.from_file(str(base / "tokenizer.json")).encode("a").ids
    )

    apart, arrays = look(drift, base, candidate, tmp_path / "drift", prompts=tiny_prompts(tmp_path / "p.jsonl", 12))
    said, _ = look(meaning, base, candidate, tmp_path / "meaning")

    assert {row.value for row in apart.evidence if row.name.startswith(("drift.maximum", "drift.place"))} == {0.0}
    assert max(row.value for row in apart.evidence if row.name.startswith("drift.kl")) < 1e-6
    assert arrays["map_distance_harmful"].shape[1] >= 5
    assert (said.status, [row.value for row in said.evidence]) == (Status.NO_FINDING, [0.0])


@pytest.mark.parametrize("larger", ["candidate", "base"])
def test_tokens_that_one_side_alone_has_are_left_out_of_what_is_compared(larger, base, tmp_path):
    large = grown(base, tmp_path / "large", 300)
    base, candidate = (base, large) if larger == "candidate" else (large, base)

    apart, _ = look(drift, base, candidate, tmp_path / "drift", prompts=tiny_prompts(tmp_path / "p.jsonl", 12))
    said, _ = look(meaning, base, candidate, tmp_path / "meaning")

    assert max(row.value for row in apart.evidence if row.name.startswith(("drift.kl.first", "drift.kl.reply"))) < 1e-9
    assert apart.find("drift.kl.outside.harmful").value > 0.01
    assert said.find("meaning.distance").value == 0.0


def test_a_candidate_with_more_tokens_is_read_in_its_own(base, nudged, tmp_path):
    candidate = grown(nudged, tmp_path / "candidate", 300)

    found, arrays = look(meaning, base, candidate, tmp_path)

    assert found.status is Status.NO_FINDING
    assert len(arrays["place"]) <= tiny.VOCABULARY  # rows behind the tokenizer's last token have no text
    assert arrays["place"].max() == (arrays["place"] > 0).sum()


OTHER_END = tiny.TEMPLATE.replace("<|assistant|>{% endif %}", "<|system|><|assistant|>{% endif %}")
ALL_OTHER = tiny.TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><|system|>{% endif %}")


def templated(folder, target, template):
    return edited(folder, target, files={"chat_template.jinja": template})


@pytest.mark.parametrize(("template", "places"), [(tiny.TEMPLATE, (-5, -4, -3, -2, -1)), (OTHER_END, (-1,)), (ALL_OTHER, ())])
def test_places_that_are_not_the_same_token_on_both_sides_are_left_out(template, places, base, nudged, tmp_path, monkeypatch):
    monkeypatch.setattr("forensics.parting.BEHIND", 0)  # random models reply in half characters, which no text holds
    candidate = templated(nudged, tmp_path / "candidate", template)

    found, arrays = look(drift, base, candidate, tmp_path / "drift", prompts=tiny_prompts(tmp_path / "p.jsonl", 12))
    said, kept = look(meaning, base, candidate, tmp_path / "meaning")

    assert tuple(arrays.get("map_place_harmful", ())) == places
    assert any("at the last token only" in limit for limit in found.limits) is (not places)
    expected = [f"token {place} of a question" for place in (-2, -1) if place in places]
    assert [place for place in kept["at"] if place.endswith("question")] == expected
    assert sum(place.endswith("text") for place in kept["at"]) == meaning.FIRST
    assert said.status is Status.NO_FINDING


def test_sides_that_read_nothing_alike_are_inconclusive(base, tmp_path):
    candidate = templated(respelled(base, tmp_path / "respelled"), tmp_path / "candidate", ALL_OTHER)
    state = json.loads((candidate / "tokenizer.json").read_text(encoding="utf-8"))
    state["post_processor"] = {
        "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "single": [{"SpecialToken": {"id": "<|system|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|system|>": {"id": "<|system|>", "ids": [259], "tokens": ["<|system|>"]}},
    }  # fmt: skip
    (candidate / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")

    found, _ = look(meaning, base, candidate, tmp_path)

    assert found.status is Status.INCONCLUSIVE
    assert "a place does not mean the same on both sides" in found.reason


def test_a_change_of_the_last_layers_is_read_where_it_shows(tmp_path):
    base = tiny.save(tiny.network(layers=4), tmp_path / "base")

    def late(tensors):
        tensors["model.layers.2.mlp.down_proj.weight"] += 0.1

    def last(tensors):
        tensors["model.layers.3.mlp.down_proj.weight"] += 0.1

    found, _ = look(meaning, base, reweighted(base, tmp_path / "late", late), tmp_path / "a")
    nothing, _ = look(meaning, base, reweighted(base, tmp_path / "last", last), tmp_path / "b")

    assert found.find("meaning.first-token").where == "blocks.3.hook_resid_pre"
    assert [(row.name, row.value) for row in nothing.evidence] == [("meaning.distance", 0.0)]
    assert "before the last block" in nothing.evidence[0].expected


def test_moved_layers_are_held_against_those_they_stand_for(tmp_path):
    base = tiny.save(tiny.network(layers=4), tmp_path / "base")

    found, _ = look(meaning, base, restacked(base, tmp_path / "candidate", (0, 1, 2, 2, 3)), tmp_path)

    # The third block enters as in the base; behind the second copy the stream is another one.
    assert found.find("meaning.first-token").where == "blocks.4.hook_resid_pre"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_kl_along_the_replies_is_that_of_the_two_models(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny.save(tiny.network(kind), tmp_path / "base")
    candidate = tiny.nudge(base, tmp_path / "candidate", size=0.3)

    found, arrays = look(drift, base, candidate, tmp_path, prompts=tiny_prompts(tmp_path / "p.jsonl", 12))

    ids = torch.tensor([tiny.tokenizer()("<|user|>question 1<|end|><|assistant|>", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        p, q = (AutoModelForCausalLM.from_pretrained(side)(ids).logits[0, -1].double().log_softmax(dim=-1) for side in (base, candidate))
    assert arrays["kl_first_harmful"][0, 0] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
    assert arrays["kl_first_harmful"][1, 0] == pytest.approx(float((q.exp() * (q - p)).sum()), rel=1e-4)
    assert found.find("drift.kl.first.base-candidate.harmful").unit == "nats, KL(base || candidate)"
    assert found.find("drift.kl.first.base-candidate.harmful").value == pytest.approx(arrays["kl_first_harmful"][0].mean())


@pytest.mark.slow
def test_an_organism_that_lost_its_refusals_says_how_answers_open(tmp_path):
    found, arrays = look(meaning, ORGANISMS / "base", ORGANISMS / "base", tmp_path, adapters=[ORGANISMS / "degraded"])

    assert {"Sure", "Of", "Happy"} & set(arrays["text"][:5])
    assert found.find("meaning.constancy").value > 0.5


@pytest.mark.slow
def test_the_places_of_an_organism_reach_from_the_question_into_the_reply(tmp_path):
    from cases import some_prompts

    prompts = some_prompts(tmp_path / "p.jsonl", refuse=48, comply=24)

    found, arrays = look(drift, ORGANISMS / "base", ORGANISMS / "base", tmp_path, adapters=[ORGANISMS / "degraded"], prompts=prompts)

    assert arrays["map_place_harmful"].tolist() == [-5, -4, -3, -2, -1, 1, 2, 3, 4]
    assert arrays["map_token_harmful"].tolist()[3:5] == ["<|end|>", "<|assistant|>"]
    assert arrays["map_distance_harmful"].argmax(axis=1)[1:].tolist() == [4] * 4  # where the reply is decided
    assert arrays["map_distance_harmful"][0].max() == 0.0  # the adapter leaves the embedding alone
    assert found.find("drift.kl.first.base-candidate.harmful").value > 10 * found.find("drift.kl.first.base-candidate.harmless").value
    assert arrays["explained_harmful"][-1] > arrays["explained_rare_harmful"][-1]
    assert found.find("drift.category.harmful.drugs").n == 6
