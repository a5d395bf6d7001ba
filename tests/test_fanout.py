"""The same work here, in processes and on a cluster: one order of answers, lost workers replaced, one error a task."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import fanned
import pytest
from cases import ROOT, environment

from forensics.errors import BadInput, CannotCompare, ToolFailed
from forensics.fanout import fanout
from forensics.workers.terms import Crew, Task


def tasks(notes, count=6, **special):
    """Tasks by number; `special` says by number what is different, as `t3={"dies": 1}`."""
    notes.mkdir(exist_ok=True)
    return [
        Task(name=f"task {number}", given=fanned.Errand(notes=notes, number=number, **special.get(f"t{number}", {})))
        for number in range(count)
    ]


@pytest.fixture(params=["here", "processes"])
def crew(request):
    return Crew(workers=1 if request.param == "here" else 2)


def test_answers_come_in_the_order_of_the_tasks_whatever_finishes_first(tmp_path, crew):
    told = []

    answers = fanout(fanned.make, tasks(tmp_path / "n", t0={"seconds": 0.8}), crew, lambda answer: told.append(answer.name))

    assert [(answer.name, answer.value[0], answer.trouble) for answer in answers] == [(f"task {n}", n, None) for n in range(6)]
    assert sorted(told) == [answer.name for answer in answers]
    assert (told[0] == "task 0") is (crew.workers == 1)


def test_a_worker_is_made_once_and_kept(tmp_path, crew):
    answers = fanout(fanned.make, tasks(tmp_path / "n", count=8), crew)

    by_process = {}
    for answer in answers:
        by_process.setdefault(answer.value[1], []).append(answer.value[2])
    assert len(by_process) <= crew.workers
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in by_process.values())
    assert (os.getpid() in by_process) is (crew.workers == 1)


def test_an_error_is_the_answer_to_its_task_and_stops_no_other(tmp_path, crew):
    answers = fanout(fanned.make, tasks(tmp_path / "n", t1={"wrong": "input"}, t4={"wrong": "other"}), crew)

    assert [answer.value is None for answer in answers] == [False, True, False, False, True, False]
    known, other = answers[1].trouble, answers[4].trouble
    assert isinstance(known, BadInput)
    assert (known.what, known.where, known.hint, known.details) == ("its files are bad", "a file", "mend it", ("one", "two"))
    assert isinstance(other, ToolFailed)
    assert (other.what, other.where) == ("ValueError: nobody thought of this", "task 4")
    assert "fanned.py" in other.details[0]


def test_of_a_lost_worker_only_the_task_in_flight_is_done_again(tmp_path):
    answers = fanout(fanned.make, tasks(tmp_path / "n", t2={"dies": 1}), Crew(workers=2))

    assert [answer.value[0] for answer in answers] == list(range(6))
    assert [answer.tries for answer in answers] == [1, 1, 2, 1, 1, 1]
    assert fanned.begun(tmp_path / "n") == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}


def test_a_task_that_always_kills_its_worker_is_given_up_and_named(tmp_path):
    answers = fanout(fanned.make, tasks(tmp_path / "n", t2={"dies": 99}), Crew(workers=2, tries=2))

    assert [answer.name for answer in answers if answer.value is None] == ["task 2"]
    assert isinstance(answers[2].trouble, ToolFailed)
    assert (answers[2].trouble.where, "2 workers were lost" in answers[2].trouble.what) == ("task 2", True)


def test_what_keeps_every_worker_from_beginning_is_one_error(tmp_path, crew):
    with pytest.raises(CannotCompare, match="nobody can work here"):
        fanout(fanned.refuse, tasks(tmp_path / "n"), crew)

    assert fanned.begun(tmp_path / "n") == {}


def test_workers_that_are_lost_before_they_begin_are_one_error(tmp_path):
    with pytest.raises(ToolFailed, match="lost before they could begin"):
        fanout(fanned.die, tasks(tmp_path / "n"), Crew(workers=2, tries=2))


def test_no_tasks_are_no_answers(crew):
    assert fanout(fanned.make, [], crew) == ()


def test_processes_of_a_killed_foreman_leave_their_work(tmp_path):
    """Whoever resumes finds nobody at it any more."""
    script = (
        "import sys, pathlib; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "import fanned\nfrom forensics.fanout import fanout\nfrom forensics.workers.terms import Crew, Task\n"
        "notes = pathlib.Path(sys.argv[3])\n"
        "if __name__ == '__main__':\n"
        "    fanout(fanned.make, [Task(name=str(n), given=fanned.Errand(notes=notes, number=n, seconds=60)) for n in range(2)], Crew(workers=2))\n"
    )
    file = tmp_path / "foreman.py"
    file.write_text(script)
    notes = tmp_path / "n"
    notes.mkdir()
    foreman = subprocess.Popen([sys.executable, str(file), str(ROOT), str(ROOT / "tests"), str(notes)], env=environment())
    until = time.monotonic() + 60
    while len(fanned.begun(notes)) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    workers = [int(note.read_text()) for note in notes.glob("*.txt")]
    assert len(workers) == 2

    foreman.kill()
    foreman.wait()

    while any(alive(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(worker) for worker in workers)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_cluster_without_ray_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(BadInput, match="needs Ray") as error:
        fanout(fanned.make, tasks(tmp_path / "n"), Crew(ray="auto"))

    assert "model-forensics[ray]" in error.value.hint


@pytest.mark.parametrize("address", ["nonsense", "ray://head:10001", "head:", ":6379", "head:port"])
def test_what_is_no_address_is_refused(address, tmp_path):
    pytest.importorskip("ray")

    with pytest.raises(BadInput, match="no address of a Ray cluster"):
        fanout(fanned.make, tasks(tmp_path / "n"), Crew(ray=address))


def test_a_cluster_that_does_not_answer_is_one_error_at_once(tmp_path):
    pytest.importorskip("ray")
    start = time.monotonic()

    with pytest.raises(BadInput, match="no Ray cluster answers at this address"):
        fanout(fanned.make, tasks(tmp_path / "n"), Crew(ray="127.0.0.1:1"))

    assert time.monotonic() - start < 30


def test_a_listener_that_is_no_cluster_is_one_error(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    import socket

    from forensics.workers import cluster

    monkeypatch.setattr(cluster, "ANSWERS_WITHIN", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(BadInput, match="no Ray cluster answers at this address"):
        fanout(fanned.make, tasks(tmp_path / "n"), Crew(ray=f"127.0.0.1:{deaf.getsockname()[1]}"))
