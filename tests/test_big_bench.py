"""The pairs that are made for the benchmarks of large models: what they hold, and that nothing is left behind."""

from __future__ import annotations

import subprocess
import sys

import big_pair
import gpu_pair
import pytest
import torch
from cases import ROOT, environment, open_case
from transformers import AutoModelForCausalLM, AutoTokenizer

from forensics.differ import measured

SMALL = big_pair.Shape(layers=2, width=64, inner=96, heads=4, shared=2, vocabulary=320)
SLOW = ["--prompts", "8", "--batch", "4", "--rounds", "2"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big") / "pair"
    return folder, big_pair.make(folder, SMALL)


def test_both_sides_are_models_of_the_size_that_is_told(pair):
    folder, elements = pair
    for side in ("base", "candidate"):
        model, loaded = AutoModelForCausalLM.from_pretrained(folder / side, output_loading_info=True)
        assert not loaded["missing_keys"]
        assert sum(weight.numel() for weight in model.parameters()) == elements


def test_all_matrices_moved_a_little_and_a_few_were_edited_besides(pair, tmp_path):
    folder, _ = pair
    with open_case(folder / "base", folder / "candidate", tmp_path / "run") as case:
        profiles = measured(case)

    far = {name: profile.change.relative for name, profile in profiles.items()}
    edited = {name for name in far if name.removesuffix(".weight").endswith(big_pair.EDITS)}
    assert len(edited) == 4
    assert all(0.04 < far[name] < 0.07 for name in edited)
    assert all(far[name] == 0.0 for name in far if "norm" in name)
    assert all(0.003 < far[name] < 0.01 for name in far.keys() - edited if "norm" not in name)


def test_the_shape_of_a_7b_model_is_that_of_llama():
    shapes = big_pair.LLAMA_7B.matrices
    inside = sum(rows * columns for rows, columns in shapes.values())

    assert 32 * inside + 2 * 32000 * 4096 + 65 * 4096 == 6_738_415_616


def test_the_pair_for_a_gpu_has_a_tokenizer_that_reads_chats(tmp_path):
    folder = tmp_path / "pair"
    gpu_pair.build(folder, gpu_pair.SHAPES["tiny"])

    tokenizer = AutoTokenizer.from_pretrained(folder / "candidate")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello."}], tokenize=True)["input_ids"]
    assert max(ids) < gpu_pair.SHAPES["tiny"].vocabulary


@pytest.mark.slow
def test_the_diff_of_a_pair_that_is_there_is_measured_and_the_pair_removed(tmp_path):
    big_pair.make(tmp_path / "pair", SMALL)
    done = subprocess.run(
        [sys.executable, "examples/benchmarks/big_pair.py", "--rounds", "1", "--threads", "1", "--folder", str(tmp_path / "pair")],
        cwd=ROOT, env=environment() | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ") and "seconds" not in line]
    assert rows == ["read", "open", "bare pass", "diff", "diff, 1 threads"]
    assert "Memory: " in done.stdout
    assert not (tmp_path / "pair").exists()


def test_without_a_gpu_the_command_says_what_can_be_tried(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, "examples/benchmarks/gpu_pair.py"], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "--shape tiny --device cpu" in done.stderr


@pytest.mark.slow
def test_everything_for_a_gpu_runs_on_a_processor(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_pair.py", "--shape", "tiny", "--device", "cpu", "--folder", str(tmp_path), *SLOW])
    monkeypatch.setattr(gpu_pair, "candidates", lambda _plan, _nanogcg: [])  # minutes on a processor
    monkeypatch.setattr(gpu_pair, "audit", lambda _plan: [])  # has tests of its own

    gpu_pair.main()

    said = capsys.readouterr().out
    assert "capture, all layers, over a bare pass" in said
    assert said.count("tokens a second") == 3
    assert not list(tmp_path.iterdir())
