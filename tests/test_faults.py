"""A disk that is full, a file that vanishes, a pipe that nobody writes to: one clear error, no half of anything, and the same command goes on.

The disk is a real one of some kilobytes, which only the superuser can make; elsewhere those tests are skipped, and say so. (test_cli and test_runfolder
hold the same against a limit on the size of files, which everybody can set.)
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from cases import command, environment, open_case, read_rows, tiny_prompts, write_rows
from monitored import log, traffic
from serving import completion, serving

from forensics.audit import guarded
from forensics.errors import ToolFailed
from forensics.monitor.sources import files_of

pytestmark = pytest.mark.slow


class Disk:
    """A disk in memory, of a size that can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def resize(self, kilobytes: int, *, anew: bool = False) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", f"{'' if anew else 'remount,'}size={kilobytes}k", "tmpfs", str(self.path)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    if os.geteuid() or not made.resize(64, anew=True):
        pytest.skip("only the superuser can make a small disk, and not everywhere")
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made.path)], check=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    base = tiny.save(tiny.network(), place / "base")
    return base, tiny.nudge(base, place / "candidate"), tiny_prompts(place / "prompts.jsonl", 12)


def run(*words: object, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(command(*words), env=environment(), cwd=cwd, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def digest(folder: Path) -> str:
    return str(json.loads((folder / "audit.json").read_text())["results_digest"])


def filled_up_and_emptied(disk: Disk, words: list[object], expected: str, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """Give the command on disks of several sizes that are too small, and each time again once there is space."""
    steps = set()
    for number, size in enumerate(sizes):
        out = disk.path / f"run-{number}"
        assert disk.resize(sum(file.stat().st_blocks // 2 for file in disk.path.rglob("*") if file.is_file()) + size)
        code, said = run(*words, "--quiet", "--out", out, cwd=tmp_path)
        assert code == 1, said
        assert said.count("no space left") == 1
        assert not (out / "audit.json").exists()
        assert not list(disk.path.rglob("*.partial"))
        for file in out.glob("*.jsonl"):
            assert not file.stat().st_size or file.read_bytes().endswith(b"\n")
            read_rows(file)
        steps.add(tuple(sorted(file.name for file in out.rglob("*") if file.stat().st_size)) if out.exists() else ())
        assert disk.resize(64 << 10)
        code, said = run(*words, "--quiet", "--out", out, cwd=tmp_path)
        assert code in (0, 3, 10, 20), said
        assert digest(out) == expected
        rows = [(row["side"], row["configuration"], row["id"], row["repeat"]) for row in read_rows(out / "items.jsonl")]
        assert len(rows) == len(set(rows))
    assert len(steps) > 1, "it was always the same step that found no space"


@pytest.mark.parametrize("verb", ["audit", "hunt"])
def test_an_audit_and_a_hunt_on_a_full_disk_end_in_one_error_and_go_on(verb, disk, pair, tmp_path):
    base, candidate, prompts = pair
    only = (
        ["--only", "weights.change", "--only", "behaviour.refusal"]
        if verb == "audit"
        else ["--tier", "triage", "--budget", "1000", "--train-controls", "0"]
    )
    words = [verb, base, candidate, "--prompts", prompts, "--device", "cpu", *only]
    run(*words, "--quiet", "--out", tmp_path / "good", cwd=tmp_path)
    filled_up_and_emptied(disk, words, digest(tmp_path / "good"), tmp_path, (4, 16))


def test_a_gate_on_a_full_disk_ends_in_one_error_and_goes_on(disk, tmp_path):
    rows = [{"prompt": f"Question {n}? " + "x" * 200, "category": "x", "expect": "refuse" if n % 2 else "comply"} for n in range(24)]
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    with serving(lambda body: completion("I'm sorry, but I can't help with that." + body["messages"][-1]["content"][:12])) as (url, _):
        words = ["gate", "base", "candidate", "--endpoint", url, "--prompts", prompts]
        run(*words, "--quiet", "--out", tmp_path / "good", cwd=tmp_path)
        filled_up_and_emptied(disk, words, digest(tmp_path / "good"), tmp_path, (4, 20))


def test_a_monitor_on_a_full_disk_ends_in_one_error_and_goes_on(disk, accepted, tmp_path):
    assert disk.resize(8 << 10)
    store, file = disk.path / "watch.db", log(tmp_path / "server.jsonl", traffic(3000))
    assert run("monitor", "start", accepted, "--store", store, cwd=tmp_path)[0] == 0
    used = sum(held.stat().st_blocks // 2 for held in disk.path.iterdir())
    assert disk.resize(used + 24)

    code, said = run("monitor", "ingest", file, "--store", store, cwd=tmp_path)

    assert code == 1, said
    assert said.count("no space left for the store") == 1
    assert disk.resize(32 << 10)
    assert run("monitor", "check", store, cwd=tmp_path)[0] == 0
    done = subprocess.run(
        command("monitor", "ingest", file, "--store", store), env=environment(), capture_output=True, text=True, check=False
    )
    assert "3000 replies" in done.stdout, done.stderr
    assert run("monitor", "check", store, cwd=tmp_path)[0] == 0


def test_a_file_that_vanishes_under_a_check_ends_the_run_and_says_nothing_about_the_candidate(pair, tmp_path):
    base, candidate, _ = pair
    with open_case(base, candidate, tmp_path / "run") as case:
        file = candidate / "model.safetensors"
        content = file.read_bytes()

        def look(_):
            file.unlink()
            return next(iter(case.candidate.blocks(next(iter(case.candidate.tensors)))))

        try:
            with pytest.raises(ToolFailed, match="vanished") as caught:
                guarded(look, "weights.change", case)
            assert caught.value.where == "candidate/model.safetensors"
        finally:
            file.write_bytes(content)


def test_a_pipe_given_as_a_log_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    start = time.monotonic()
    with pytest.raises(Exception, match="pipe") as caught:
        files_of(tmp_path / "pipe.jsonl")
    assert "-" in caught.value.hint
    assert time.monotonic() - start < 5


def test_two_runs_on_one_folder_exclude_each_other(pair, tmp_path):
    base, candidate, prompts = pair
    words = command(
        "audit",
        base,
        candidate,
        "--prompts",
        prompts,
        "--only",
        "behaviour.refusal",
        "--device",
        "cpu",
        "--quiet",
        "--out",
        tmp_path / "run",
    )
    both = [subprocess.Popen(words, env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate()[1] for one in both]
    codes = [one.returncode for one in both]
    # Whoever comes later finds the folder taken, or the run finished.
    assert all(code in (0, 3, 10, 20) or "another audit is writing to this folder" in text for code, text in zip(codes, said, strict=True))
    rows = [(row["side"], row["id"]) for row in read_rows(tmp_path / "run" / "items.jsonl")]
    assert len(rows) == len(set(rows)) == 24
