"""Where memory runs out fewer prompts are put side by side, and the replies stay; also in a process that really has too little."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny
import torch
from cases import ROOT, environment, silent

from forensics import continuation
from forensics.checkpoint import open_checkpoint
from forensics.continuation import greedy
from forensics.errors import ToolFailed
from forensics.gate.replies import Decoding, Speaker, collect_draws, collect_replies
from forensics.model import LiveModel, open_model
from forensics.prompts import Message, Prompt
from forensics.runfolder import RunFolder

FAILURES = [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
PROMPTS = tuple(
    Prompt(id=f"{number}", messages=(Message(role="user", content="word " * (1 + number % 5)),), category="x", expect="either")
    for number in range(12)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("memory") / "base")


@pytest.fixture
def model(folder):
    return open_model(open_checkpoint(str(folder)), device="cpu")


def cramped(monkeypatch, fits, failure, sizes):
    """Memory for the replies to no more than `fits` prompts at once."""
    real = LiveModel.reply

    def reply(self, rows, **how):
        sizes.append(len(rows))
        if len(rows) > fits:
            raise failure
        return real(self, rows, **how)

    monkeypatch.setattr(LiveModel, "reply", reply)


def replies(model, place, **options):
    with RunFolder(place, key="k", created="2027-01-01T00:00:00+00:00") as run:
        decoding = Decoding(max_new_tokens=6, batch_size=8, **options)
        ask = collect_draws if options else collect_replies
        found = ask(model, Speaker(side="base", configuration="base"), PROMPTS, decoding=decoding, run=run, progress=silent)
    tables = found if isinstance(found, list) else [found]
    return [{id: item.reply for id, item in table.items()} for table in tables]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("fits", [1, 3])
def test_batches_of_replies_shrink_and_stay_small_and_say_the_same(fits, failure, model, tmp_path, monkeypatch):
    plenty, sizes = replies(model, tmp_path / "plenty"), []
    cramped(monkeypatch, fits, failure, sizes)

    assert replies(model, tmp_path / "little") == plenty
    first = next(number for number, size in enumerate(sizes) if size <= fits)
    assert max(sizes[:first]) == 8
    assert max(sizes[first:]) <= fits  # what did not fit once is not tried again


def test_drawn_replies_that_had_to_be_parted_are_the_same_each_time_and_share_no_chance(model, tmp_path, monkeypatch):
    plenty = replies(model, tmp_path / "plenty", repeats=4, seed=1)
    cramped(monkeypatch, 4, MemoryError(), [])

    one, two = (replies(model, tmp_path / name, repeats=4, seed=1) for name in ("one", "two"))

    assert one == two
    assert [len(table) for table in one] == [len(PROMPTS)] * 4
    assert one != plenty


def test_one_prompt_that_does_not_fit_ends_the_run_and_keeps_what_was_said(model, tmp_path, monkeypatch):
    cramped(monkeypatch, 0, MemoryError(), [])

    with pytest.raises(ToolFailed, match="not enough memory for one prompt") as caught:
        replies(model, tmp_path / "none")
    assert caught.value.where == "base (base)"


def test_greedy_openings_shrink_as_well(model, monkeypatch):
    rows = [model.render(prompt, room=4).ids for prompt in PROMPTS]
    plenty = greedy(model, rows, adapters=(), length=4)
    asked, real = [], continuation.unless_too_many

    def tight(work, some, *, where):
        asked.append(len(some))
        return None if len(some) > 1 else real(work, some, where=where)

    monkeypatch.setattr(continuation, "unless_too_many", tight)

    assert greedy(model, rows, adapters=(), length=4) == plenty
    assert max(asked) > 1


LIMITED = """
import json, resource, sys
import numpy as np
import torch
from forensics.capture import Reading, Spread, statistics
from forensics.checkpoint import open_checkpoint
from forensics.continuation import continuations
from forensics.model import Rendered, open_model
from forensics.subject import Subject
from forensics import errors
torch.set_num_threads(1)
model = open_model(open_checkpoint(sys.argv[1]), device="cpu")
rows = [Rendered(ids=tuple(5 + (number + place) % 90 for place in range(60))) for number in range(300)]
def read():
    subject = Subject(model=model, side="base", batch_size=300)
    means = statistics(subject, rows, Reading(sites=("blocks.1.hook_resid_post",)), Spread())[0][0].mean
    logs = np.zeros(300)
    for at, found in continuations(model, [row.ids for row in rows], (7, 8), adapters=(), batch_size=300, reuse=False):
        logs[at] = found[:, 0, 7].numpy()
    return means, logs
read_few = Subject(model=model, side="base", batch_size=8)
statistics(read_few, rows[:8], Reading(sites=("blocks.1.hook_resid_post",)), Spread())  # libraries are loaded from here on
refused, real = [], errors.is_out_of_memory
errors.is_out_of_memory = lambda error: refused.append(type(error).__name__) or real(error)
plenty = read()
before = len(refused)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[2]), resource.RLIM_INFINITY))
little = read()
apart = [float(np.abs(one - other).max()) for one, other in zip(plenty, little)]
print(json.dumps([before, len(refused), apart]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only there a process can be kept from asking for more")
def test_a_process_with_too_little_memory_reads_in_smaller_batches_and_gets_the_same_numbers(tmp_path):
    """The limit is on addresses, which is what an allocator is refused by; the model is wide enough for a batch to need more."""
    folder = tiny.save(tiny.network(width=512), tmp_path / "wide")

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(60 * 2**20)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    before, refused, (means, logs) = json.loads(done.stdout.splitlines()[-1])
    assert before == 0
    assert refused >= 2
    assert means < 1e-4
    assert logs < 1e-3
