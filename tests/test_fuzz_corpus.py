"""What the fuzzer began with, what it found, and what was a fault once: each is read or is one error, by the code that users run."""

from __future__ import annotations

import pytest
from fuzz_targets import SEEDS, TARGETS, corpus, tried

FILES: dict[str, list[object]] = {name: [] for name in TARGETS}
for target, file in corpus(SEEDS):
    FILES[target].append(file)


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_file_is_read_or_refused(name, tmp_path):
    feed = TARGETS[name].prepare(tmp_path)

    outcomes = {file.name: tried(feed, file.read_bytes()) for file in FILES[name]}

    assert outcomes
    seeds = {outcome for file, outcome in outcomes.items() if file.startswith("seed-")}
    assert "read" in seeds or name == "benchmarks", "the surroundings are not good: nothing is read"  # of a benchmark the digest is known
    assert {outcome for file, outcome in outcomes.items() if file.startswith("refused-")} <= {"refused"}


def test_an_error_of_another_kind_would_be_a_fault():
    def broken(_: bytes) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        tried(broken, b"")


def test_the_corpus_is_small():
    sizes = [file.stat().st_size for _, file in corpus(SEEDS)]

    assert max(sizes) <= 16_384
    assert sum(sizes) < 2_000_000
