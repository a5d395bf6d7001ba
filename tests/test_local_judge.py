"""Judges that are held here: what a checkpoint says is read as a server's answer would be, and a judge that was stopped ends with the same file."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import tiny
import torch
from cases import command, edited, environment, read_rows, ready, silent, write_rows
from replaying import recorded
from transformers import LlamaConfig, LlamaForCausalLM

from forensics import gating
from forensics.errors import BadInput, CannotCompare, ToolFailed
from forensics.gate import local
from forensics.gate.judging import judge_served
from forensics.gate.local import Seat, judge_local
from forensics.gate.recorded import read_both
from forensics.gate.served import Endpoint
from forensics.model import LiveModel
from forensics.policy import load_policy

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure. First, plan ahead."
CONTEXT = 4096
WIDTH = 264


def saying(folder, chain, *, context=CONTEXT, template=tiny.TEMPLATE):
    """A checkpoint whose next token depends on the last one alone: by `chain`, and else it ends."""
    ids = tiny.tokenizer().get_vocab()
    sizes = {"hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    shape = {"vocab_size": tiny.VOCABULARY, "eos_token_id": 256, "bos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **shape, max_position_embeddings=context))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        for id in range(tiny.VOCABULARY):
            model.model.embed_tokens.weight[id, id] = 1.0
            model.lm_head.weight[ids["<|end|>"], id] = 1.0
        for before, after in chain:
            model.lm_head.weight[ids[after], ids[before]] = 2.0
    return tiny.save(model, folder, template=template)


YES = [("]", "y"), ("y", "e"), ("e", "s")]
SAFE = [("<|assistant|>", "s"), ("]", "s"), ("s", "a"), ("a", "f"), ("f", "e")]


@pytest.fixture(scope="module")
def guards(tmp_path_factory):
    """A judge that says yes, a guard that says safe, and one that says nothing that makes sense."""
    folder = tmp_path_factory.mktemp("judges")
    noise = tiny.network(seed=3)
    noise.config.max_position_embeddings = CONTEXT
    saying(folder / "yes", YES)
    saying(folder / "safe", SAFE)
    tiny.save(noise, folder / "noise")
    return folder


@pytest.fixture
def both(tmp_path):
    return recorded(tmp_path, 7, lost=3)


def judge(both, folder, out, *formats, batch=4, progress=silent):
    seat = Seat(source=str(folder), device="cpu", batch_size=batch)
    tallies = judge_local(both, seat, [ready(name, both.base.path.parent) for name in formats], out, progress)
    return [(tally.labels, tally.unread) for tally in tallies]


class Reader(LiveModel):
    """A judge that reads: it answers as WildGuard does, by what stands in the text that it was given."""

    asked = 0
    stops_after = 10_000

    def reply(self, rendered, *, adapters, max_new_tokens, sampling=None):
        said = []
        for row in rendered:
            Reader.asked += 1
            if Reader.asked > Reader.stops_after:
                raise KeyboardInterrupt
            text = self.tokenizer.decode(list(row.ids))
            assert text.startswith("<|user|>\n[INST] You are a classifier") and text.endswith("Answers: [/INST]\n<|assistant|>\n")
            words = ("yes", "no", "yes") if f"AI assistant:\n{ANSWER}" in text else ("yes", "yes", "no")
            said.append("Harmful request: {}\nResponse refusal: {}\nHarmful response: {}".format(*words))
        return said


@pytest.fixture
def reader(monkeypatch):
    """Any checkpoint that is opened reads, and may be stopped."""
    monkeypatch.setattr(Reader, "asked", 0)
    monkeypatch.setattr(Reader, "stops_after", 10_000)
    opened = local.open_model

    def open_reader(weights, **options):
        model = opened(weights, **options)
        return Reader(model._model, model.tokenizer, name=model.name, device=model.device)

    monkeypatch.setattr(local, "open_model", open_reader)
    return Reader


@pytest.mark.parametrize(("format", "which", "label"), [("harmbench", "yes", "harmful"), ("md-judge", "yes", "unparsed"), ("llama-guard-3", "safe", "harmless"), ("guard", "safe", "harmless")])  # fmt: skip
def test_what_a_checkpoint_says_is_read_and_stands_in_the_file(both, guards, tmp_path, format, which, label):
    out = tmp_path / "deep" / "labels.jsonl"
    assert judge(both, guards / which, out, format) == [(14, 14 if label == "unparsed" else 0)]

    rows = read_rows(out)
    assert {row["label"] for row in rows} == {label}
    assert {row["said"] for row in rows} == {which}
    assert len({(row["side"], row["id"]) for row in rows}) == 14
    (name,) = {row["judge"] for row in rows}
    assert name.partition(":")[2].startswith(f"{which}@")


def test_a_checkpoint_that_talks_nonsense_is_counted_and_not_asked_again(both, guards, tmp_path, monkeypatch):
    out = tmp_path / "labels.jsonl"
    assert judge(both, guards / "noise", out, "wildguard") == [(14, 14), (14, 14)]
    assert any(row["said"] for row in read_rows(out))
    before = out.read_bytes()

    monkeypatch.setattr(local, "open_model", lambda *_, **__: pytest.fail("there is nothing left to ask"))
    assert judge(both, guards / "noise", out, "wildguard") == [(14, 14), (14, 14)]
    assert out.read_bytes() == before


def test_labels_of_a_held_judge_go_into_the_gate(both, guards, tmp_path, reader):
    assert judge(both, guards / "noise", tmp_path / "labels.jsonl", "wildguard") == [(14, 0), (14, 0)]
    name = read_rows(tmp_path / "labels.jsonl")[0]["judge"].partition(":")[2]
    wanted = gating.Replay(
        base=both.base.path, candidate=both.candidate.path, labels=(tmp_path / "labels.jsonl",), judge=f"wildguard-refusal/1:{name}",
        policy=gating.alone(load_policy()), out=tmp_path / "run",
    )  # fmt: skip
    result = gating.replay(wanted).record.results[0]

    assert result.find("refusal.drop").value == pytest.approx(300 / 7)
    assert result.find(f"judge.harmful-rise.wildguard-harm/1:{name}").value == pytest.approx(300 / 7)
    assert result.find("judge.kappa.rules/1.candidate").value == 1.0


@pytest.mark.parametrize("after", [1, 4, 6, 13])
def test_a_judge_that_was_stopped_ends_with_the_same_file(both, guards, tmp_path, reader, after):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    judge(both, guards / "noise", whole, "wildguard")
    reader.asked, reader.stops_after = 0, after
    with pytest.raises(KeyboardInterrupt):
        judge(both, guards / "noise", broken, "wildguard")
    done = len(read_rows(broken)) // 2
    assert done == after // 4 * 4 and broken.read_bytes() == whole.read_bytes()[: len(broken.read_bytes())]
    broken.write_bytes(whole.read_bytes()[: len(broken.read_bytes()) + 30])

    reader.asked, reader.stops_after = 0, 10_000
    assert judge(both, guards / "noise", broken, "wildguard") == [(14, 0), (14, 0)]
    assert reader.asked == 14 - done
    assert broken.read_bytes() == whole.read_bytes()


def test_a_file_cut_within_a_batch_is_filled_and_nothing_is_written_twice(both, guards, tmp_path):
    out = tmp_path / "labels.jsonl"
    judge(both, guards / "yes", out, "harmbench")
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:6]) + lines[6][:11])

    judge(both, guards / "yes", out, "harmbench")
    assert out.read_bytes() == whole


def test_the_same_labels_whatever_stands_side_by_side(both, guards, tmp_path):
    for batch in (1, 5, 64):
        judge(both, guards / "safe", tmp_path / f"{batch}.jsonl", "llama-guard-3", batch=batch)

    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "5.jsonl").read_bytes() == (tmp_path / "64.jsonl").read_bytes()


def test_a_reply_beyond_the_context_is_unparsed_says_why_and_the_others_are_judged(tmp_path, guards):
    rows = [
        {"id": str(n), "prompt": f"Q{n}?", "category": "c", "expect": "refuse", "reply": text}
        for n, text in enumerate((REFUSAL, "long " * 1000))
    ]
    write_rows(tmp_path / "base.jsonl", rows)
    both = read_both(tmp_path / "base.jsonl", tmp_path / "base.jsonl")

    assert judge(both, guards / "yes", tmp_path / "labels.jsonl", "harmbench") == [(4, 2)]
    found = {(row["id"], row["label"]): row.get("problem") for row in read_rows(tmp_path / "labels.jsonl")}
    assert found == {("0", "harmful"): None, ("1", "unparsed"): f"it takes more than its context of {CONTEXT} tokens"}


def test_another_checkpoint_of_the_same_name_is_another_judge(both, guards, tmp_path):
    other = saying(tmp_path / "yes", [("]", "n"), ("n", "o")])
    out = tmp_path / "labels.jsonl"
    judge(both, guards / "yes", out, "harmbench")
    before = out.read_bytes()

    with pytest.raises(BadInput, match="no label of harmbench/1:yes@"):
        judge(both, other, out, "harmbench")
    assert out.read_bytes() == before


def test_progress_is_told_a_batch_at_a_time(both, guards, tmp_path):
    told = []
    judge(both, guards / "yes", tmp_path / "labels.jsonl", "harmbench", progress=lambda *what: told.append(what))

    assert told == [("harmbench: judged batches", done, 4) for done in range(5)]


def test_a_judge_without_room_for_the_format_is_one_error_and_nothing_is_written(both, tmp_path):
    small = saying(tmp_path / "small", YES, context=40)

    with pytest.raises(BadInput, match="harmbench cannot be put to this model: it takes more than its context of 40 tokens") as error:
        judge(both, small, tmp_path / "labels.jsonl", "harmbench")
    assert error.value.hint == "harmbench is for cais/HarmBench-Llama-2-13b-cls"
    assert not (tmp_path / "labels.jsonl").exists()


@pytest.mark.parametrize("format", ["llama-guard-3", "xstest"])
def test_a_judge_without_a_chat_template_is_refused_where_the_format_needs_one(both, tmp_path, format):
    bare = saying(tmp_path / "bare", YES, template=None)

    with pytest.raises(BadInput, match=f"{format} cannot be put to this model: it has no chat template"):
        judge(both, bare, tmp_path / "labels.jsonl", format)
    assert not (tmp_path / "labels.jsonl").exists()


def test_a_template_that_takes_no_system_turn_is_one_error(both, tmp_path):
    strict = saying(
        tmp_path / "strict", YES, template="{{ raise_exception('no system turn') if messages[0]['role'] == 'system' else 'x' }}"
    )

    with pytest.raises(BadInput, match="xstest cannot be put to this model: its chat template cannot be used"):
        judge(both, strict, tmp_path / "labels.jsonl", "xstest")


def test_a_folder_without_a_model_or_with_code_of_its_own_is_refused(both, guards, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "nowhere", both.base.path):
        with pytest.raises(BadInput):
            judge(both, source, tmp_path / "labels.jsonl", "harmbench")
    foreign = edited(guards / "yes", tmp_path / "foreign", model_type="made-up", auto_map={"AutoModelForCausalLM": "code.Model"})
    with pytest.raises(CannotCompare, match="cannot be loaded"):
        judge(both, foreign, tmp_path / "labels.jsonl", "harmbench")
    pickled = edited(guards / "yes", tmp_path / "pickled", files={"model.safetensors": None, "pytorch_model.bin": b"\x80\x04."})
    with pytest.raises(BadInput):
        judge(both, pickled, tmp_path / "labels.jsonl", "harmbench")
    assert not (tmp_path / "labels.jsonl").exists()


def test_too_little_memory_is_one_error_and_what_was_judged_is_kept(both, guards, tmp_path, monkeypatch):
    generate, batches = LiveModel.reply, iter(range(2))

    def tires(self, rendered, **how):
        if next(batches, None) is None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return generate(self, rendered, **how)

    monkeypatch.setattr(LiveModel, "reply", tires)
    with pytest.raises(ToolFailed, match="not enough memory for 4 replies") as error:
        judge(both, guards / "yes", tmp_path / "labels.jsonl", "harmbench")
    assert "--batch-size" in error.value.hint
    assert len(read_rows(tmp_path / "labels.jsonl")) == 8


def test_the_verb_loads_a_judge_and_says_how_to_go_on(both, guards, tmp_path):
    words = (
        "judge",
        both.base.path,
        both.candidate.path,
        "--local",
        guards / "safe",
        "--format",
        "md-judge",
        "--device",
        "cpu",
        "--out",
        "labels.jsonl",
    )
    done = subprocess.run(command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "14 labels of md-judge/1:safe@" in done.stdout and ", 0 that could not be read." in done.stdout
    assert "--labels labels.jsonl" in done.stdout
    bad = (
        ("--local", tmp_path, "--format", "md-judge"),
        ("--local", guards / "yes", "--format", "harmbench"),
        ("--local", guards / "yes", "--format", "harmbench", "--template", both.base.path),
    )
    for more in bad:
        words = ("judge", both.base.path, both.candidate.path, *more, "--out", "none.jsonl")
        done = subprocess.run(command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.count("hint:") == 1 and "Traceback" not in done.stderr
    assert "this is not the text of harmbench" in done.stderr and not (tmp_path / "none.jsonl").exists()


@pytest.mark.slow
def test_a_judge_behind_a_real_server_says_what_it_says_here(both, guards, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(Path(sys.executable).with_name("transformers")), "serve", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(1200):
                with suppress(httpx.HTTPError):
                    httpx.get(f"http://127.0.0.1:{port}/health", timeout=1)
                    break
                time.sleep(0.1)
            for which, name in (("yes", "harmbench"), ("safe", "llama-guard-3")):
                model = str(guards / which)
                endpoint = Endpoint(urls=(f"http://127.0.0.1:{port}/v1",), models=(model, model), max_new_tokens=16, at_once=2, patience=60)
                (tally,) = judge_served(both, endpoint, [ready(name, tmp_path)], tmp_path / f"{which}.jsonl", silent)
                judge(both, guards / which, tmp_path / f"{which}-here.jsonl", name)
                assert (tally.labels, tally.unread) == (14, 0)
                there, here = (
                    {(row["side"], row["id"]): (row["label"], row["said"]) for row in read_rows(tmp_path / f"{file}.jsonl")}
                    for file in (which, f"{which}-here")
                )
                assert there == here
        finally:
            server.kill()
