"""A model that is spread by accelerate gives the numbers of the whole one; what needs it whole is refused. Nothing with an encoder is loaded."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload
from cases import open_case, tiny_prompts
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from forensics import placement
from forensics.adapters import open_adapter
from forensics.anatomy import writing_matrices
from forensics.audit import refuse_unknown_device
from forensics.capture import Reading, Spread, activations, statistics
from forensics.checkpoint import open_checkpoint
from forensics.errors import CannotCompare, ToolFailed
from forensics.interventions import ablating, adding
from forensics.model import LiveModel, open_model
from forensics.placement import Placement, is_spread, place
from forensics.prompts import Message, Prompt
from forensics.subject import Subject, first_token, replies

READING = Reading(
    sites=("embed.hook_out", "blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid", "blocks.1.attn.hook_out", "blocks.1.hook_resid_post")
)
MAPS = {
    "one block on disk": {"model.layers.1": "disk", "": "cpu"},
    "all but the embedding on disk": {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "": "disk"},
    "everything on disk": {"": "disk"},
    "nothing on disk": {"": "cpu"},
}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def folder(request, tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("placed") / "base", dtype=request.param, shard="40KB")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """For what does not depend on how numbers are stored."""
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("plain") / "base", shard="40KB")


def full(wanted):
    """Every module of the tiny llama by its own entry, as accelerate asks for."""
    names = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head")
    return {name: wanted.get(name, wanted[""]) for name in names}


def opened(folder, **options):
    return Subject(model=open_model(open_checkpoint(str(folder)), device="cpu"), side="base", batch_size=2, max_new_tokens=6, **options)


def spread(folder, monkeypatch, wanted):
    monkeypatch.setattr(Placement, "options", property(lambda self: {"device_map": full(wanted)} if self.spread else {}))
    model = open_model(open_checkpoint(str(folder)), device="spread")
    return Subject(model=model, side="base", batch_size=2, max_new_tokens=6)


def rows_of(subject):
    texts = ("a", "a much longer question than the first", "middling one")
    prompts = [Prompt(id=text, messages=(Message(role="user", content=text),), category="x", expect="either") for text in texts]
    return [subject.model.render(prompt, room=0) for prompt in prompts]


@pytest.mark.parametrize("wanted", MAPS.values(), ids=MAPS)
def test_a_spread_model_gives_the_numbers_of_the_whole_one(wanted, folder, monkeypatch):
    whole, parts = opened(folder), spread(folder, monkeypatch, wanted)
    rows, vector = rows_of(whole), np.eye(32)[3]
    assert rows_of(parts) == rows

    with parts.model.wearing(()) as model:
        meta = sum(weight.is_meta for weight in model.parameters())
        assert bool(meta) is ("disk" in wanted.values()) is is_spread(model)
        theirs = {matrix.name: matrix.weight for matrix in writing_matrices(model)}
    with whole.model.wearing(()) as model:
        ours = {matrix.name: matrix.weight for matrix in writing_matrices(model)}
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert np.array_equal(activations(parts, rows, READING), activations(whole, rows, READING))
    assert np.array_equal(first_token(parts, rows), first_token(whole, rows))
    assert replies(parts, rows) == replies(whole, rows)
    assert parts.precision == whole.precision
    steering = (lambda one: ablating(one, vector), lambda one: adding(one, 5.0 * vector, 1))
    for steer in steering:
        with steer(parts), steer(whole):
            moved = first_token(parts, rows)
            assert np.array_equal(moved, first_token(whole, rows))
        assert not np.array_equal(moved, first_token(parts, rows))


def test_weights_fetched_from_memory_give_the_numbers_of_the_whole_model(folder):
    """What a GPU that is too small does with main memory, with the processor in the GPU's place."""
    whole = opened(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cpu_offload(model.eval(), execution_device=torch.device("cpu"))
    parts = replace(whole, model=LiveModel(model, whole.model.tokenizer, name="fetched", device=torch.device("cpu")))

    rows, how = rows_of(whole), Spread(kind="covariance")
    assert is_spread(model)
    assert np.array_equal(activations(parts, rows, READING), activations(whole, rows, READING))
    ours, theirs = (statistics(one, rows, READING, how)[1][0].arrays() for one in (whole, parts))
    assert all(np.array_equal(array, theirs[name]) for name, array in ours.items())
    assert replies(parts, rows) == replies(whole, rows)


def test_an_adapter_on_fetched_weights_is_refused_and_one_on_whole_weights_is_not(plain, tmp_path, monkeypatch):
    path = tiny.adapter(plain, tmp_path / "lora", modules=["q_proj", "down_proj"])
    adapter = open_adapter(str(path), open_checkpoint(str(plain)))
    whole = opened(plain, adapters=(adapter,))
    rows = rows_of(whole)

    there = replace(spread(plain, monkeypatch, MAPS["nothing on disk"]), adapters=(adapter,))
    assert np.array_equal(activations(there, rows, READING), activations(whole, rows, READING))
    fetched = replace(spread(plain, monkeypatch, MAPS["one block on disk"]), adapters=(adapter,))
    with pytest.raises(CannotCompare, match="too large for the accelerator's memory") as caught:
        activations(fetched, rows, READING)
    assert "merge_and_unload" in caught.value.hint
    assert np.isfinite(activations(replace(fetched, adapters=()), rows, READING)).all()


def test_two_models_side_by_side_must_be_whole(plain, tmp_path, monkeypatch):
    with open_case(plain, plain, tmp_path / "run", prompts=tiny_prompts(tmp_path / "p.jsonl")) as case:
        case.both()
        monkeypatch.setattr(Placement, "options", property(lambda self: {"device_map": full({"": "disk"})}))
        with pytest.raises(ToolFailed, match="does not fit onto one device"):
            case.both()


@pytest.mark.parametrize(
    ("device", "free", "expected"),
    [
        ("auto", None, ("cpu", False)),
        ("spread", None, ("cpu", True)),
        ("cpu", 1e12, ("cpu", False)),
        ("cuda:1", 0, ("cuda:1", False)),
        ("auto", 1e12, ("cuda", False)),
        ("auto", 1000, ("cuda", True)),
        ("spread", 1e12, ("cuda", True)),
    ],
)
def test_where_a_model_goes(device, free, expected, plain, monkeypatch):
    monkeypatch.setattr(placement.torch, "cuda", SimpleNamespace(is_available=lambda: free is not None, mem_get_info=lambda: (free, 1e12)))

    found = place(open_checkpoint(str(plain)), device)

    assert (str(found.device), found.spread) == expected
    assert found.dtype == (torch.float32 if expected[0] == "cpu" else "auto")
    assert found.options == ({"device_map": "auto"} if expected[1] else {})


def test_room_is_measured_by_what_the_files_hold(folder, monkeypatch):
    weights = open_checkpoint(str(folder))
    size = sum(weight.numel() * weight.element_size() for weight in AutoModelForCausalLM.from_pretrained(folder, dtype="auto").parameters())

    for share, spread_out in ((1.1, True), (1.3, False)):
        monkeypatch.setattr(
            placement.torch, "cuda", SimpleNamespace(is_available=lambda: True, mem_get_info=lambda free=share * size: (free, 0))
        )
        assert place(weights, "auto").spread is spread_out


def test_the_device_is_known_to_the_command_line():
    refuse_unknown_device("spread")


ENCODERS = {
    "t5": {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_model_with_an_encoder_is_refused_for_what_it_is(kind, tmp_path):
    shape = {"vocab_size": 260, "d_model": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    folder = tiny.save(AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **shape, **ENCODERS[kind])), tmp_path / kind)

    with pytest.raises(CannotCompare, match=rf"an encoder-decoder model \({kind}\)") as caught:
        opened(folder)
    assert "--max-cost weights" in caught.value.hint
