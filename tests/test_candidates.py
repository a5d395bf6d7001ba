"""Who is swept: models, adapters, folders of them and lists, each once and under a name of its own."""

from __future__ import annotations

import time

import pytest

from forensics.candidates import candidates_of
from forensics.errors import BadInput


@pytest.fixture
def shelf(tmp_path):
    """Two adapters and a model in one folder, beside one that only its weights betray, and folders that are none."""
    for name, file in (("b", "adapter_config.json"), ("a", "config.json"), ("torn", "model.safetensors"), ("notes", "readme.md")):
        folder = tmp_path / "shelf" / name
        folder.mkdir(parents=True)
        (folder / file).write_text("{}")
    return tmp_path / "shelf"


def test_a_folder_of_candidates_is_its_children_sorted_damaged_ones_too(shelf):
    found = candidates_of([str(shelf)])

    assert [(one.name, one.source) for one in found] == [(name, str(shelf / name)) for name in ("a", "b", "torn")]


def test_a_list_names_folders_beside_it_and_hub_ids(shelf):
    file = shelf / "list.txt"
    file.write_text("# those of autumn\n\n  b  \n./a\norg/model@main\n")

    assert [one.source for one in candidates_of([str(file)])] == [str(shelf / "b"), str(shelf / "a"), "org/model@main"]


def test_relative_folders_are_named_in_full(shelf, monkeypatch):
    monkeypatch.chdir(shelf)

    assert candidates_of(["a"])[0].source == str(shelf / "a")


def test_a_link_keeps_its_name_and_is_the_same_candidate(shelf):
    (shelf.parent / "named").symlink_to(shelf / "b")

    assert [(one.name, one.source) for one in candidates_of([str(shelf.parent / "named")])] == [("named", str(shelf.parent / "named"))]
    with pytest.raises(BadInput, match="named more than once"):
        candidates_of([str(shelf.parent / "named"), str(shelf / "b")])


def test_a_list_of_very_many_is_read_at_once(shelf):
    (shelf / "list.txt").write_text("".join(f"org/model{number}\n" for number in range(50_000)))
    start = time.monotonic()

    assert len({one.name for one in candidates_of([str(shelf / "list.txt")])}) == 50_000
    assert time.monotonic() - start < 20


def test_equal_names_are_told_apart_and_stay_what_they_are(shelf, tmp_path):
    for place in ("x", "y"):
        (tmp_path / place / "A").mkdir(parents=True)
        (tmp_path / place / "A" / "config.json").write_text("{}")
    sources = [str(tmp_path / "x" / "A"), str(tmp_path / "y" / "A"), str(shelf / "a"), str(shelf / "b")]

    names = [one.name for one in candidates_of(sources)]

    assert len(set(names)) == 4
    assert names[3] == "b"
    assert [name.rpartition("-")[0] for name in names[:3]] == ["A", "A", "a"]
    assert dict(zip(sources[:3], names[:3], strict=True)) == {one.source: one.name for one in candidates_of(sources[2::-1])}


@pytest.mark.parametrize("name", ["...", "a b\n\x1b[31m", "ü" * 200])
def test_names_are_fit_for_a_folder(name, tmp_path):
    folder = tmp_path / (name if len(name) < 100 else "ü" * 120)
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    found = candidates_of([str(folder)])[0].name

    assert found and len(found) <= 100
    assert all(letter.isalnum() or letter in "-_." for letter in found) and not found.startswith(".")


def test_no_candidates_are_refused(shelf):
    (shelf / "empty.txt").write_text("# nobody\n")
    for sources in ([], [str(shelf / "empty.txt")]):
        with pytest.raises(BadInput, match="no candidate to examine"):
            candidates_of(sources)


@pytest.mark.parametrize("twice", [["a", "a"], ["a", "../shelf/a"], [".", "b"]])
def test_a_candidate_that_is_named_twice_is_refused(shelf, twice):
    with pytest.raises(BadInput, match="named more than once") as error:
        candidates_of([str(shelf / one) for one in twice])

    assert error.value.details


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_candidate_that_does_not_exist_is_refused(source, shelf):
    with pytest.raises(BadInput, match="does not exist"):
        candidates_of([source])


def test_a_line_that_names_nothing_is_refused_by_its_number(shelf):
    (shelf / "list.txt").write_text("a\n\nnowhere\n")

    with pytest.raises(BadInput) as error:
        candidates_of([str(shelf / "list.txt")])

    assert "line 3" in error.value.where


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"a\x00b\n"])
def test_a_list_that_is_no_text_is_refused(shelf, content):
    (shelf / "list.txt").write_bytes(content)

    with pytest.raises(BadInput, match=r"cannot be read|no text"):
        candidates_of([str(shelf / "list.txt")])


def test_a_list_of_lists_and_a_huge_one_are_refused(shelf, monkeypatch):
    (shelf / "list.txt").write_text("other.txt\n")
    (shelf / "other.txt").write_text("a\n")
    with pytest.raises(BadInput, match="names a file"):
        candidates_of([str(shelf / "list.txt")])

    monkeypatch.setattr("forensics.candidates.MAX_LIST_BYTES", 4)
    with pytest.raises(BadInput, match="larger than 4 bytes"):
        candidates_of([str(shelf / "list.txt")])
