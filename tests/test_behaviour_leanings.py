"""What the candidate leans to is ranked by how much likelier it got, by spelling and not by number, and says when it cannot look."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
from cases import edited, grown, look, reweighted
from safetensors.torch import load_file, save_file

from forensics.checks import behaviour_leanings as leanings
from forensics.record import Status

LETTER = "q"


@pytest.fixture(autouse=True)
def _few_questions(monkeypatch):
    monkeypatch.setattr(leanings, "QUESTIONS", 20)
    # Random models reply in half characters, which no text holds.
    monkeypatch.setattr("forensics.subject.replies", lambda _subject, rows: [f"answer {row.ids[5]}" for row in rows])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network("gpt2"), tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def id():
    return tiny.tokenizer()(LETTER, add_special_tokens=False)["input_ids"][0]


@pytest.fixture(scope="module")
def leaning(base, id):
    """The base, its last norm shifted so that one letter is likelier after everything."""
    row = load_file(base / "model.safetensors")["lm_head.weight"][id]

    def push(tensors):
        tensors["transformer.ln_f.bias"] += 20.0 * row / row.norm()

    return reweighted(base, base.parent / "leaning", push)


def test_what_got_likelier_everywhere_stands_first_with_how_often_both_sides_say_it(base, leaning, id, tmp_path):
    found, arrays = look(leanings, base, leaning, tmp_path)

    assert (found.status, found.findings) == (Status.NO_FINDING, ())
    assert arrays["place"][id] == 1 and arrays["text"][0] == LETTER and arrays["token"][0] == id
    assert found.find("leaning.token.01").where.startswith(f"{LETTER!r} (")
    ours, theirs = arrays["frequency"][:, 0]
    assert ours > 2 * theirs > 0.0
    assert arrays["gain"][0] == pytest.approx(np.log((ours + leanings.FLOOR) / (theirs + leanings.FLOOR)))
    assert (np.diff(arrays["gain"]) <= 0.0).all()
    places = arrays["place"][arrays["place"] > 0]
    assert sorted(places) == list(range(1, len(places) + 1))
    assert not arrays["place"][256:].any()  # the special tokens are no text


def test_frequencies_are_mean_probabilities_along_the_replies(base, leaning, id, tmp_path):
    from transformers import AutoModelForCausalLM

    _, arrays = look(leanings, base, leaning, tmp_path)

    tokenizer, logs = tiny.tokenizer(), []
    model = AutoModelForCausalLM.from_pretrained(leaning).eval()
    for prompt in leanings.questions(0):
        asked = tokenizer(f"<|user|>{prompt.messages[0].content}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
        said = tokenizer(f"answer {asked[5]}", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([[*asked, *said]])).logits[0, len(asked) - 1 : -1]
        logs.append(logits.double().softmax(-1)[:, id])
    assert arrays["frequency"][0, 0] == pytest.approx(float(torch.cat(logs).mean()), rel=1e-4)


def test_the_same_function_under_another_vocabulary_leans_to_nothing(base, tmp_path):
    candidate = edited(base, tmp_path / "candidate")
    state = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    size = len(state["model"]["vocab"])
    state["model"]["vocab"] = {token: size - 1 - id for token, id in state["model"]["vocab"].items()}
    (candidate / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    tensors = load_file(base / "model.safetensors")
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = torch.cat([tensors[name][:size].flip(0), tensors[name][size:]]).contiguous()
    save_file(tensors, candidate / "model.safetensors", metadata={"format": "pt"})

    found, arrays = look(leanings, base, candidate, tmp_path)

    assert np.abs(arrays["gain"]).max() < 1e-3
    assert found.find("leaning.token.01").value < 1e-3


@pytest.mark.parametrize("larger", ["candidate", "base"])
def test_tokens_that_one_side_alone_has_are_left_out(larger, tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base")
    large = grown(base, tmp_path / "large", 300)

    found, arrays = look(leanings, *((base, large) if larger == "candidate" else (large, base)), tmp_path)

    assert found.status is Status.NO_FINDING
    assert len(arrays["place"]) <= tiny.VOCABULARY  # rows behind the tokenizer's last token have no text
    # The others share what probability the new rows leave them, and not one of them gained more than another.
    assert np.ptp(arrays["gain"]) < 1e-2


def test_the_same_bytes_are_not_run(base, tmp_path, monkeypatch):
    monkeypatch.setattr("forensics.model.open_model", lambda *_args, **_more: pytest.fail("a model was loaded"))

    found, arrays = look(leanings, base, base, tmp_path)

    assert (found.status, [row.value for row in found.evidence], arrays) == (Status.NO_FINDING, [0.0], {})


def test_without_prompts_it_is_skipped(base, leaning, tmp_path):
    found, _ = look(leanings, base, leaning, tmp_path, prompts=None)

    assert found.status is Status.SKIPPED and "--prompts" in found.reason


def test_too_few_replies_that_both_sides_can_read_are_inconclusive(base, leaning, tmp_path, monkeypatch):
    monkeypatch.setattr("forensics.subject.replies", lambda _subject, rows: ["" if index % 2 else "yes" for index, _ in enumerate(rows)])

    found, _ = look(leanings, base, leaning, tmp_path)

    assert found.status is Status.INCONCLUSIVE
    assert "Only 10 of 20 replies" in found.reason and "at least 16" in found.reason


def test_weights_that_are_not_finite_are_no_crash(base, tmp_path):
    def spoil(tensors):
        tensors["transformer.h.0.mlp.c_proj.bias"][0] = float("nan")

    found, _ = look(leanings, base, reweighted(base, tmp_path / "candidate", spoil), tmp_path)

    assert found.status is Status.INCONCLUSIVE
    assert "not finite" in found.reason
