"""What cannot be read inside ends the activation checks with a reason; what can be read in another way is read."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from cases import open_case, reweighted, tiny_prompts, write_rows
from transformers import AutoConfig, AutoModelForSeq2SeqLM, LlamaConfig, LlamaForCausalLM

from forensics.audit import guarded
from forensics.checks import activations_drift as drift
from forensics.checks import activations_refusal_direction as direction
from forensics.record import Status

BOTH = pytest.mark.parametrize("check", [drift, direction], ids=lambda check: check.ID)


def looked(check, base, candidate, run, prompts):
    with open_case(base, candidate, run, prompts=prompts) as case:
        return guarded(check.CHECK.run, check.ID, case)


@BOTH
def test_models_with_an_encoder_are_inconclusive_and_called_what_they_are(check, tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": tiny.VOCABULARY}
    config = AutoConfig.for_model("t5", **sizes, pad_token_id=0, eos_token_id=256, decoder_start_token_id=0)
    base = tiny.save(AutoModelForSeq2SeqLM.from_config(config), tmp_path / "base")
    config.decoder_start_token_id = 1
    candidate = tiny.save(AutoModelForSeq2SeqLM.from_config(config), tmp_path / "candidate")

    result = looked(check, base, candidate, tmp_path / "run", tiny_prompts(tmp_path / "p.jsonl", 12))

    assert result.status is Status.INCONCLUSIVE
    assert "an encoder-decoder model (t5)" in result.reason


def test_models_without_a_chat_template_are_read_as_plain_text(tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base", template=None)
    candidate = tiny.save(tiny.network(seed=1), tmp_path / "candidate", template=None)

    result = looked(drift, base, candidate, tmp_path / "run", tiny_prompts(tmp_path / "p.jsonl", 12))

    assert result.status is Status.NO_FINDING
    assert result.find("drift.onset.harmful").n == 6


@pytest.mark.parametrize("side", ["candidate", "base"])
def test_a_template_token_whose_row_is_zero_is_left_out_and_counted(side, tmp_path):
    def silenced(tensors):
        tensors["model.embed_tokens.weight"][258] = 0.0  # <|assistant|>, with which every prompt ends

    base = tiny.save(tiny.network(), tmp_path / "plain")
    candidate = tiny.nudge(base, tmp_path / "nudged")
    if side == "candidate":
        candidate = reweighted(candidate, tmp_path / "candidate", silenced)
    else:
        base = reweighted(base, tmp_path / "base", silenced)

    result = looked(drift, base, candidate, tmp_path / "run", tiny_prompts(tmp_path / "p.jsonl", 12))

    assert result.status is Status.NO_FINDING
    assert result.find("drift.maximum.harmful").value > 0.0
    assert result.find("drift.maximum.harmful").where.startswith(("blocks.1", "blocks.0.hook_resid_post"))
    said = [limit for limit in result.limits if "differs from zero on both sides" in limit]
    assert ["1 of 3 layers at the last token and 1 of " in limit for limit in said] == [True, True]
    with np.load(tmp_path / "run" / "arrays" / f"{drift.ID}.npz", allow_pickle=False) as arrays:
        assert arrays["candidate/held_harmful"].tolist() == [False, True, True]
        assert (~arrays["candidate/map_held_harmful"]).sum() == 1


def test_streams_that_are_zero_at_every_layer_are_not_measured_and_it_is_said(tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base")
    candidate = reweighted(base, tmp_path / "candidate", lambda tensors: tensors["model.embed_tokens.weight"].zero_())

    result = looked(drift, base, candidate, tmp_path / "run", tiny_prompts(tmp_path / "p.jsonl", 12))

    assert result.status is Status.INCONCLUSIVE
    assert "holds nothing but zeros at the last token" in result.reason


def test_prompts_longer_than_the_context_are_left_out_and_too_few_others_inconclusive(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 256}
    short = LlamaForCausalLM(LlamaConfig(max_position_embeddings=40, vocab_size=tiny.VOCABULARY, bos_token_id=None, **shape))
    base = tiny.save(short, tmp_path / "base")
    candidate = tiny.nudge(base, tmp_path / "candidate")

    def rows(long):
        texts = ["x" * 60 if index < 2 * long else "hello" for index in range(12)]
        return [
            {"prompt": f"{text} {index}", "category": "x", "expect": "refuse" if index % 2 else "comply"}
            for index, text in enumerate(texts)
        ]

    some = looked(drift, base, candidate, tmp_path / "some", write_rows(tmp_path / "some.jsonl", rows(2)))
    most = looked(drift, base, candidate, tmp_path / "most", write_rows(tmp_path / "most.jsonl", rows(3)))

    assert (some.status, some.find("drift.maximum.harmful").n) == (Status.NO_FINDING, 4)
    assert [limit for limit in some.limits if "2 of 6 harmful prompts were left out: they do not fit the context" in limit]
    names = [row.name for row in some.evidence]
    assert {"drift.category.harmful.x", "drift.category.harmless.x"} <= set(names)
    assert len(names) == len(set(names)), "one category stands in both kinds"
    assert most.status is Status.INCONCLUSIVE
    assert "at least 4 are needed that both models can read" in most.reason


@pytest.mark.parametrize(
    ("expect", "lacking"), [("refuse", '"expect": "comply"'), ("comply", '"expect": "refuse"')], ids=["no harmless", "no harmful"]
)
def test_one_kind_of_prompts_alone_gives_no_direction_and_says_what_is_missing(expect, lacking, tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base")
    candidate = tiny.nudge(base, tmp_path / "candidate")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"question {i}", "category": "x", "expect": expect} for i in range(8)])

    result = looked(direction, base, candidate, tmp_path / "run", prompts)

    assert result.status is Status.INCONCLUSIVE
    assert "at least 40 prompts of either kind" in result.reason
    assert f"none of the 0 prompts with {lacking}" in result.reason


@pytest.mark.parametrize(
    ("check", "words"), [(drift, "activations of the base are not finite"), (direction, "refuses none")], ids=["drift", "direction"]
)
def test_a_base_that_computes_no_numbers_is_inconclusive(check, words, tmp_path):
    broken = tiny.network()
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    base = tiny.save(broken, tmp_path / "base")
    candidate = tiny.nudge(tiny.save(tiny.network(), tmp_path / "other"), tmp_path / "candidate")

    result = looked(check, base, candidate, tmp_path / "run", tiny_prompts(tmp_path / "p.jsonl", 12))

    assert result.status is Status.INCONCLUSIVE
    assert words in result.reason
