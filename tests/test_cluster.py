"""Work on a Ray cluster: two nodes besides the head on this machine, one of which is killed in mid-run."""

from __future__ import annotations

import json
import time

import fanned
import pytest
from clusters import cluster
from sweeping import family, swept, untimed

from forensics.errors import BadInput, CannotCompare, ToolFailed
from forensics.fanout import fanout
from forensics.workers import cluster as cluster_workers
from forensics.workers.terms import Crew, Task

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings, of its own parts


@pytest.fixture(scope="module")
def running():
    with cluster(2) as made:
        yield made


def tasks(notes, count, **special):
    notes.mkdir(exist_ok=True)
    return [
        Task(name=f"task {number}", given=fanned.Errand(notes=notes, number=number, **special.get(f"t{number}", {})))
        for number in range(count)
    ]


def test_answers_errors_and_kept_workers_are_those_of_processes(running, tmp_path):
    special = {"t0": {"seconds": 0.5}, "t3": {"wrong": "input"}, "t5": {"dies": 1}}

    answers = fanout(fanned.make, tasks(tmp_path / "n", 8, **special), Crew(ray=running.address))

    assert [answer.name for answer in answers] == [f"task {number}" for number in range(8)]
    assert [answer.trouble is None for answer in answers] == [number != 3 for number in range(8)]
    assert isinstance(answers[3].trouble, BadInput)
    assert [answer.tries for answer in answers] == [1, 1, 1, 1, 1, 2, 1, 1]
    processes = {answer.value[1] for answer in answers if answer.value}
    assert 2 <= len(processes) <= 3  # one a node, and one in the place of the lost one


def test_what_keeps_workers_from_beginning_is_one_error(running, tmp_path):
    with pytest.raises(CannotCompare, match="nobody can work here"):
        fanout(fanned.refuse, tasks(tmp_path / "n", 3), Crew(ray=running.address))


def test_a_sweep_on_a_cluster_writes_what_one_here_writes(running, tmp_path):
    kin = family(tmp_path / "kin")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "adapter_config.json").write_text("{")
    candidates = [kin / "adapters", tmp_path / "torn"]

    here = swept(kin / "base", candidates, tmp_path / "here")
    there = swept(kin / "base", candidates, tmp_path / "there", ray=running.address)

    for name in ("a0", "a1", "a2"):
        assert untimed(there.folder / "runs" / name) == untimed(here.folder / "runs" / name)
    ours, theirs = (json.loads(found.record.model_dump_json(exclude={"created"})) for found in (here, there))
    assert ours == theirs


def test_a_head_that_is_gone_is_one_error_before_ray_gives_up(running, tmp_path, monkeypatch):
    def gone(address):
        raise ConnectionRefusedError(address)

    monkeypatch.setattr(cluster_workers, "HEAD_SILENT", 1.0)
    given = tasks(tmp_path / "n", 2, t0={"seconds": 20.0}, t1={"seconds": 20.0})
    listens = cluster_workers._listens
    monkeypatch.setattr(cluster_workers, "_listens", lambda address: gone(address) if fanned.begun(tmp_path / "n") else listens(address))

    with pytest.raises(ToolFailed, match="the head of the Ray cluster is gone"):
        fanout(fanned.make, given, Crew(ray=running.address))


def test_the_kill_of_a_node_costs_the_task_in_flight(running, tmp_path, capsys):
    """Last of this file: it takes a node away."""
    notes = tmp_path / "n"
    given = tasks(notes, 8, **{f"t{number}": {"seconds": 0.5} for number in range(8)})
    killed = []

    def tell(answer):
        if not killed:
            killed.append(running.list_all_nodes()[-1])
            running.remove_node(killed[0], allow_graceful=False)

    answers = fanout(fanned.make, given, Crew(ray=running.address), tell)

    assert [answer.value[0] for answer in answers] == list(range(8))
    assert sum(fanned.begun(notes).values()) - 8 == sum(answer.tries - 1 for answer in answers) <= 1
    assert capsys.readouterr().out == ""  # Ray tells of it on standard output, which is for records


def test_a_cluster_without_room_is_one_error_in_time(running, tmp_path):
    for node in running.list_all_nodes()[1:]:
        running.remove_node(node, allow_graceful=False)
    start = time.monotonic()

    with pytest.raises(ToolFailed, match="no worker was ready within 3 seconds"):
        fanout(fanned.make, tasks(tmp_path / "n", 2), Crew(ray=running.address, patience=3.0))

    assert time.monotonic() - start < 30
