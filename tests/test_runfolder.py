"""The folder of a run: what was finished stays, whole lines only, and nobody else's files are touched."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forensics.errors import BadInput, ToolFailed
from forensics.prompts import Message, Prompt
from forensics.record import CheckResult, Item, Status
from forensics.runfolder import ITEMS_NAME, JOURNAL_NAME, RunFolder, SavedRun, load_items, load_record, load_run, write_text, write_whole

NOW = "2027-01-15T00:00:00Z"


def item(id="p0", *, reply="Hello.\n\u2028ü🙂", side="base", configuration="base", repeat=0):
    return Item(id=id, side=side, configuration=configuration, repeat=repeat, reply=reply, labels={"rules/1": "compliance"})


def result(check="weights.change"):
    return CheckResult(check=check, configuration="candidate", status=Status.SKIPPED, reason="not asked for")


def opened(path, key="k", created=NOW):
    return RunFolder(path, key=key, created=created)


def refused(path, why, **options):
    with pytest.raises(BadInput, match=why) as caught:
        opened(path, **options)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def run(tmp_path):
    """A run with one result and two items, closed again."""
    with opened(tmp_path / "run") as folder:
        folder.add_result(result())
        folder.add_items([item("p0"), item("p1")])
    return tmp_path / "run"


def test_what_was_recorded_is_there_after_reopening(run):
    with opened(run, created="later") as folder:
        assert folder.results == [result()]
        assert list(folder.items.values()) == [item("p0"), item("p1")]
        assert folder.created == NOW
    assert load_items(run) == (item("p0"), item("p1"))


@pytest.mark.parametrize("file", [JOURNAL_NAME, ITEMS_NAME])
@pytest.mark.parametrize("torn", [b"{", b'{"event": "result", "res', b"\xf0\x9f", b"\x00" * 10])
def test_a_torn_last_line_is_cut_and_the_next_starts_afresh(run, file, torn):
    whole = (run / file).read_bytes()
    (run / file).write_bytes(whole + torn)
    with opened(run) as folder:
        assert (run / file).read_bytes() == whole
        assert (len(folder.results), len(folder.items)) == (1, 2)
        folder.add_result(result("files.surface"))
        folder.add_items([item("p2")])
    with opened(run) as folder:
        assert [row.check for row in folder.results] == ["weights.change", "files.surface"]
        assert [row.id for row in folder.items.values()] == ["p0", "p1", "p2"]


def test_a_last_line_cut_anywhere_costs_that_line_only(run):
    whole = (run / ITEMS_NAME).read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        (run / ITEMS_NAME).write_bytes(whole[:end])
        with opened(run) as folder:
            assert [row.id for row in folder.items.values()] == ["p0"]


def test_a_run_killed_before_its_first_line_starts_again(tmp_path):
    (tmp_path / JOURNAL_NAME).write_bytes(b'{"event": "sta')
    (tmp_path / ITEMS_NAME).write_bytes(b"left over")
    with opened(tmp_path) as folder:
        assert (folder.created, folder.items) == (NOW, {})
        folder.add_items([item()])
    assert len(load_items(tmp_path)) == 1


@pytest.mark.parametrize("line", [b"not json\n", b"[\n", b"\xff\n", b"[" * 100_000 + b"\n"])
@pytest.mark.parametrize("file", [JOURNAL_NAME, ITEMS_NAME])
def test_a_whole_line_that_is_damaged_is_refused_and_left(run, file, line):
    raw = (run / file).read_bytes() + line
    (run / file).write_bytes(raw)
    refused(run, "damaged")
    assert (run / file).read_bytes() == raw


@pytest.mark.parametrize("row", [{}, [], 3, {"event": "result"}, {"event": "result", "result": {"check": "x"}}])
def test_a_journal_line_of_another_shape_is_refused(run, row):
    with (run / JOURNAL_NAME).open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    refused(run, "damaged")


def test_items_are_not_repeated_after_reopening(run):
    for _ in range(2):
        with opened(run) as folder:
            folder.add_items([item("p1", reply="another"), item("p2")])
    assert [(row.id, row.reply) for row in load_items(run)] == [(id, item().reply) for id in ("p0", "p1", "p2")]


def test_an_item_is_known_by_side_configuration_id_and_repeat(run):
    others = [item(side="candidate"), item(configuration="adapter:a"), item(repeat=1)]
    with opened(run) as folder:
        folder.add_items(others)
        assert len(folder.items) == 5


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(run):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    refused(run, "another audit", key="other")
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    opened(run).__exit__(None, None, None)  # and not left locked


def test_a_second_opener_is_refused_while_the_first_is_at_work(run):
    with opened(run) as folder:
        refused(run, "another audit is writing")
        folder.add_items([item("p2")])
    with opened(run) as folder:
        assert len(folder.items) == 3


def test_another_process_is_refused_too_and_a_killed_one_leaves_no_lock(run):
    program = (
        "import sys, pathlib; from forensics.runfolder import RunFolder; from forensics.errors import BadInput\n"
        f"try: held = RunFolder(pathlib.Path({str(run)!r}), key='k', created=''); print('open', flush=True); sys.stdin.read()\n"
        "except BadInput as error: print(error.what)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", program]
    with opened(run):
        second = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, stdin=subprocess.DEVNULL)
        assert second.stdout.strip() == "another audit is writing to this folder"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"open\n"
        refused(run, "another audit is writing")
        other.kill()
    opened(run).__exit__(None, None, None)


@pytest.mark.parametrize("name", ["thesis.tex", "audit.json", ITEMS_NAME, ".hidden"])
def test_a_foreign_folder_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    refused(tmp_path, "not a run of this tool")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_an_empty_folder_and_a_deep_new_one_are_taken(tmp_path):
    for path in (tmp_path / "a" / "b" / "c", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        with opened(path) as folder:
            assert folder.created == NOW


@pytest.mark.parametrize("parent", ["file", "/proc", "/dev/null"])
def test_a_folder_that_cannot_be_written_is_the_users_affair(tmp_path, parent):
    (tmp_path / "file").write_text("x")
    place = (tmp_path / parent if parent == "file" else Path(parent)) / "run"
    error = refused(place, "cannot be written")
    assert error.exit_code == 2
    assert error.where == str(place)
    assert (tmp_path / "file").read_text() == "x"


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "cannot be written")


@pytest.fixture
def limit():
    """Sets how large a file may grow: a disk that fills up in the middle of a line, as the kernel plays it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_to(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield set_to
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, 100, 9000])
def test_a_disk_that_fills_up_leaves_whole_lines_only_and_the_run_can_go_on(run, limit, room):
    before = (run / ITEMS_NAME).read_bytes()
    long = [item(f"q{index}", reply="long " * 2000) for index in range(3)]
    folder = opened(run)
    limit(len(before) + room)
    with pytest.raises(ToolFailed, match="no space left") as caught:
        folder.add_items(long)
    assert caught.value.exit_code == 1
    assert (run / ITEMS_NAME).read_bytes() == before
    assert len(folder.items) == 2  # what is not on the disk is not held for done
    limit(resource.RLIM_INFINITY)
    folder.__exit__(None, None, None)
    assert (run / ITEMS_NAME).read_bytes() == before  # closing writes nothing late
    with opened(run) as again:
        again.add_items(long)
    assert [row.id for row in load_items(run)] == ["p0", "p1", "q0", "q1", "q2"]


def test_space_that_comes_back_is_used_by_the_same_process(run, limit):
    with opened(run) as folder:
        limit((run / ITEMS_NAME).stat().st_size + 10)
        with pytest.raises(ToolFailed):
            folder.add_items([item("q0")])
        limit(resource.RLIM_INFINITY)
        folder.add_items([item("q1")])
    assert [row.id for row in load_items(run)] == ["p0", "p1", "q1"]


def test_a_disk_that_is_full_again_and_again_leaves_whole_lines_only(run, limit):
    """As where many answers are in flight, and each of them finds the disk full."""
    before = (run / ITEMS_NAME).read_bytes()
    with opened(run) as folder:
        limit(len(before) + 100)
        for index in range(3):
            with pytest.raises(ToolFailed):
                folder.add_items([item(f"q{index}", reply="long " * 2000)])
            assert (run / ITEMS_NAME).read_bytes() == before
        limit(resource.RLIM_INFINITY)
        folder.add_items([item("q9")])
    assert [row.id for row in load_items(run)] == ["p0", "p1", "q9"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_flush_that_finds_the_disk_full_takes_the_lines_back(run, monkeypatch, code):
    def full(_descriptor):
        raise OSError(code, os.strerror(code))

    with opened(run) as folder:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ToolFailed, match="no space left"):
            folder.add_result(result("files.surface"))
        assert len(folder.results) == 1
        monkeypatch.undo()
    with opened(run) as folder:
        assert folder.results == [result()]


def test_a_flush_that_fails_otherwise_is_not_called_a_full_disk(run, monkeypatch):
    def broken(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(run) as folder:
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(BadInput, match="Input/output error"):
            folder.add_items([item("p2")])
        monkeypatch.undo()


def test_a_disk_full_from_the_start_leaves_no_folder_behind(tmp_path, limit):
    limit(5)
    with pytest.raises(ToolFailed, match="no space left"):
        opened(tmp_path / "run")
    limit(resource.RLIM_INFINITY)
    assert not (tmp_path / "run").exists()
    opened(tmp_path / "run").__exit__(None, None, None)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("ours"), KeyboardInterrupt()])
def test_a_file_whose_writing_fails_is_the_old_one(tmp_path, error):
    target = tmp_path / "audit.json"
    write_text(target, "old")

    def save(stream):
        stream.write(b"half of the n")
        raise error

    with pytest.raises(type(error)):
        write_whole(target, save)
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["audit.json"]
    write_text(target, "new")
    assert target.read_text() == "new"


def test_a_run_says_which_file_found_no_space(run, limit):
    with opened(run) as folder:
        folder.write("report.html", lambda stream: stream.write(b"old"))
        limit(100)
        with pytest.raises(ToolFailed) as caught:
            folder.write("report.html", lambda stream: stream.write(b"x" * 10_000))
        limit(resource.RLIM_INFINITY)
    assert caught.value.where == str(run / "report.html")
    assert (run / "report.html").read_bytes() == b"old"


def saved(run):
    return SavedRun(folder=run, record=None, items=(), prompts={})


def test_arrays_come_back_as_they_were(run):
    arrays = {"candidate/change": np.array([0.0, 1.5, np.nan]), "adapter:a+b/rank": np.arange(6, dtype=np.int32).reshape(2, 3)}
    with opened(run) as folder:
        folder.write_array("weights.change", lambda stream: np.savez_compressed(stream, allow_pickle=False, **arrays))
    back = saved(run).arrays("weights.change")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    assert saved(run).arrays("files.surface") == {}


def zipped(array, *, damaged=False):
    stream = io.BytesIO()
    np.savez_compressed(stream, a=array)
    raw = bytearray(stream.getvalue())
    if damaged:
        raw[60:80] = b"\xff" * 20
    return bytes(raw)


def single():
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    "raw",
    [b"", b"not a zip", zipped(np.arange(1000))[:-30], zipped(np.arange(1000), damaged=True), pickle.dumps([1]), single()],
    ids=["empty", "text", "truncated", "overwritten", "pickle", "one array"],
)
def test_damaged_arrays_are_refused(run, raw):
    (run / "arrays").mkdir()
    (run / "arrays" / "x.npz").write_bytes(raw)
    with pytest.raises(BadInput, match="arrays of this run are damaged"):
        saved(run).arrays("x")


def test_an_array_of_objects_is_never_unpickled(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "marker",))

    (run / "arrays").mkdir()
    (run / "arrays" / "x.npz").write_bytes(zipped(np.array([Trap()], dtype=object)))
    with pytest.raises(BadInput, match="damaged"):
        saved(run).arrays("x")
    assert not (tmp_path / "marker").exists()


def test_prompts_written_to_a_run_can_be_read_as_a_prompt_file(run):
    from forensics.prompts import load_prompts

    prompt = Prompt(id="p0", messages=(Message(role="user", content="Ünï\n\u2028code 🙂"),), category="c", expect="comply")
    with opened(run) as folder:
        assert load_prompts(folder.write_prompts([prompt])).prompts == (prompt,)


def test_a_run_that_has_no_record_yet_says_so(run, tmp_path):
    with pytest.raises(BadInput, match="not finished") as caught:
        load_run(str(run))
    assert "resumes" in caught.value.hint
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(BadInput, match="no saved audit here"):
            load_record(str(place))


def test_a_line_that_is_no_item_is_refused_on_reading(run):
    with (run / ITEMS_NAME).open("a") as stream:
        stream.write('{"id": "x"}\n')
    with pytest.raises(BadInput, match="not a recorded reply"):
        load_items(run)
