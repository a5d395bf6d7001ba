"""Files that no harness wrote, or that were damaged or made to harm: read, left out and counted, or one error."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harnesses
import pytest
import zstandard
from cases import write_rows
from harnesses import REFUSAL, Asked, asked
from replaying import play

from forensics.errors import BadInput, ForensicsError
from forensics.gate.importers import archive
from forensics.gate.importers.shapes import READ, read_foreign
from forensics.gate.key import key_of
from forensics.gate.recorded import read_answers, read_both
from forensics.prompts import load_prompts


@pytest.mark.parametrize("content", ['{"a": 1}', '[{"a": 1}]', '{"id": "1", "side": "base", "label": "refusal"}\n{"id": "2"}', "[1, 2]"])
def test_a_file_of_no_known_shape_is_one_error_that_lists_what_is_read(tmp_path, content):
    (tmp_path / "what.json").write_text(content)
    with pytest.raises(BadInput, match="shape of this file is not known") as caught:
        read_answers(tmp_path / "what.json", "base")
    assert all(f"read are: {one}" in str(caught.value) for one in READ)


def test_an_archive_that_is_no_log_is_of_no_known_shape(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a.txt", "x")
    with pytest.raises(BadInput, match="shape of this file is not known"):
        read_answers(tmp_path / "other.zip", "base")


def test_a_model_cannot_be_chosen_where_there_is_one_only(tmp_path):
    file = harnesses.inspect_log(tmp_path / "log#1.json", asked(1))
    assert read_answers(file, "base").items  # a `#` of the name itself
    for one in (file, write_rows(tmp_path / "ours.jsonl", [{"prompt": "a", "category": "b", "expect": "refuse", "reply": "c"}])):
        with pytest.raises(BadInput, match="holds one model only"):
            read_answers(Path(f"{one}#base"), "base")
    with pytest.raises(BadInput, match="cannot be read"):
        read_answers(tmp_path / "missing.json#base", "base")


def test_what_comes_twice_is_refused_where_a_harness_never_writes_it(tmp_path):
    twice = [harnesses.inspect_sample(row) for row in asked(1)] * 2
    with pytest.raises(BadInput, match="sample '0' appears twice"):
        read_answers(harnesses.inspect_log(tmp_path / "log.json", [], samples=twice), "base")
    with pytest.raises(BadInput, match="sample 0 appears twice"):
        read_answers(harnesses.lm_eval_samples(tmp_path / "samples.jsonl", asked(1) * 2), "base")
    members = harnesses.zstandard_archive({"header.json": b"{}", "samples/1.json": b"{}"})
    (tmp_path / "log.eval").write_bytes(members.replace(b"samples/1.json", b"header.json\0\0\0"))
    with pytest.raises(BadInput, match=r"stands twice|damaged"):
        read_answers(tmp_path / "log.eval", "base")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, archive.ZSTANDARD])
def test_an_archive_unpacks_to_no_more_than_a_limit(tmp_path, monkeypatch, method):
    file = harnesses.inspect_eval(tmp_path / "log.eval", [Asked(id=0, prompt="x" * 50_000, reply=REFUSAL)], method)
    assert read_answers(file, "base").items
    monkeypatch.setattr(archive, "MOST_BYTES", 50_000)
    with pytest.raises(BadInput, match="unpacks to more than"):
        read_foreign(file.read_bytes(), file)


def test_a_member_that_is_not_what_its_archive_says_is_refused(tmp_path):
    sample = json.dumps(harnesses.inspect_sample(asked(1)[0])).encode()
    raw = harnesses.inspect_eval(tmp_path / "log.eval", asked(1)).read_bytes()
    shorter = raw.replace(len(sample).to_bytes(4, "little"), (len(sample) - 9).to_bytes(4, "little"))
    other = raw.replace(zstandard.compress(sample), zstandard.compress(sample.replace(b"Question", b"Questing")))
    for changed in (shorter, other):
        assert changed != raw
        (tmp_path / "changed.eval").write_bytes(changed)
        with pytest.raises(BadInput, match="this archive is damaged"):
            read_answers(tmp_path / "changed.eval", "base")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    file = harnesses.inspect_log(tmp_path / "log.json", asked(1))
    monkeypatch.setattr("forensics.gate.recorded.MOST_BYTES", 100)
    with pytest.raises(BadInput, match="is larger than"):
        read_answers(file, "base")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, archive.ZSTANDARD])
def test_an_archive_with_any_byte_changed_is_read_or_one_error(tmp_path, method):
    raw = harnesses.inspect_eval(tmp_path / "log.eval", asked(1), method).read_bytes()
    outcomes = set()
    for place in range(0, len(raw), 3):
        file = tmp_path / "changed.eval"
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        outcomes.add(outcome_of(file))

    assert outcomes == {"read", "refused"}


def outcome_of(file: Path) -> str:
    """Whether a recording is read, or is one of our errors; anything else fails the test."""
    try:
        read_both(file, file)
    except ForensicsError as error:
        assert error.hint
        return "refused"
    return "read"


HOSTILE: list[Any] = [None, True, -1, 1e400, float("nan"), "", "\ud800", [], {}, [[]], {"x": {}}, "x" * 200_000]


def with_every_field_changed(value: Any) -> Iterator[Any]:
    """The same JSON with one place at a time holding something else, or gone."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            for changed in (*HOSTILE, *with_every_field_changed(value[key])):
                copy = dict(value) if isinstance(value, dict) else list(value)
                copy[key] = changed
                yield copy
            yield (
                {other: held for other, held in value.items() if other != key}
                if isinstance(value, dict)
                else value[:key] + value[key + 1 :]
            )


ONE = Asked(id=7, prompt="Question?", reply=REFUSAL)
WHOLE = {
    "inspect": (harnesses.inspect_head(samples=[harnesses.inspect_sample(ONE)]), False),
    "lm_eval": ([harnesses.lm_eval_sample(ONE)], True),
    "garak": ([harnesses.garak_attempt(ONE)], True),
    "promptfoo": ({"evalId": "e", "results": {"version": 3, "results": [harnesses.promptfoo_result(ONE)]}}, False),
    "promptfoo-lines": ([harnesses.promptfoo_result(ONE)], True),
    "pyrit": (harnesses.pyrit_talk(ONE), False),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_field_of_the_wrong_type_is_one_error_or_left_out_and_never_a_crash(tmp_path, name):
    whole, by_line = WHOLE[name]
    outcomes = {"read": 0, "refused": 0}
    for number, changed in enumerate(with_every_field_changed(whole)):
        file = tmp_path / "changed"
        rows = changed if by_line and isinstance(changed, list) else [changed]
        file.write_text("\n".join(json.dumps(row) for row in rows))
        try:
            both = read_both(file, file)
            outcomes["read"] += 1
        except ForensicsError as error:
            assert error.hint
            outcomes["refused"] += 1
            continue
        if number % 200 == 0:  # to the end, with whatever stands in ids, categories and replies
            write_key = write_rows(tmp_path / "key.jsonl", [{"prompt": "Question?", "category": "c", "expect": "refuse"}])
            if any(asked.same for asked in both.base.asked.values()) and key_finds(both, write_key):
                play(tmp_path, file, file, prompts=(write_key,), out=tmp_path / f"run{number}")

    assert min(outcomes.values()) > 10, outcomes


def key_finds(both, path):
    key = key_of([load_prompts(path)])
    return any(key.find(prompt.messages) is not None for prompt in both.prompts)


@pytest.mark.parametrize("opening", ['{"eval": ', '{"doc": ', '{"entry_type": ', '{"results": ', '[{"conversation_id": ', "[", '{"a": '])
def test_a_file_that_is_nested_without_end_is_one_error(tmp_path, opening):
    for depth in (900, 100_000):
        closing = "}" if opening.startswith("{") else "}]" if "{" in opening else "]"
        (tmp_path / "deep.json").write_text(opening + "[" * depth + "]" * depth + closing)

        assert outcome_of(tmp_path / "deep.json") == "refused"


def test_a_sample_in_an_archive_that_is_nested_without_end_is_one_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as log:
        log.writestr("header.json", "{}")
        log.writestr("samples/1_epoch_1.json", "[" * 100_000)
    with pytest.raises(BadInput, match="nested too deeply"):
        read_answers(tmp_path / "log.eval", "base")


def test_a_document_that_is_nested_deeply_is_read_or_refused(tmp_path):
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    rows = [harnesses.lm_eval_sample(ONE) | {"doc": {"a": deep}, "doc_hash": None}]
    (tmp_path / "samples.jsonl").write_text(json.dumps(rows[0]))

    assert outcome_of(tmp_path / "samples.jsonl") == "read"


def test_a_file_that_is_no_text_is_one_error(tmp_path):
    (tmp_path / "log.json").write_bytes(b'{"eval": "\xff"}')
    with pytest.raises(BadInput, match="not UTF-8"):
        read_answers(tmp_path / "log.json", "base")
