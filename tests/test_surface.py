"""What surrounds the weights is read from every place a loader would read it from, and nothing of it is run."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest
import tiny
import torch
from cases import Held
from transformers import AutoTokenizer

from forensics.checkpoint import hash_files, open_checkpoint
from forensics.errors import BadInput
from forensics.surface import (
    chat_templates,
    code_hooks,
    has_tokenizer,
    mapping_parts,
    other_templates,
    pickles,
    special_tokens,
    token_flags,
    token_map,
)


@pytest.fixture
def folder(tmp_path):
    """Writes files by name: bytes and texts as they are, anything else as JSON."""

    def make(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, bytes | str) else json.dumps(content)
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Held(path=tmp_path, files=hash_files(tmp_path))

    return make


def test_a_template_in_the_tokenizers_config_is_read(folder):
    held = folder({"tokenizer_config.json": {"chat_template": "{{ 1 }}"}})
    assert chat_templates(held) == {"default": "{{ 1 }}"}


def test_a_file_of_its_own_wins_over_the_config(folder):
    held = folder({"tokenizer_config.json": {"chat_template": "inside"}, "chat_template.jinja": "outside\n"})
    assert chat_templates(held) == {"default": "outside\n"}


def test_the_old_json_file_is_read_where_the_config_has_none(folder):
    assert chat_templates(folder({"chat_template.json": {"chat_template": "old"}})) == {"default": "old"}


def test_a_list_of_templates_is_read_by_name(folder):
    rows = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}, {"template": "c", "name": "rag"}]
    held = folder({"tokenizer_config.json": {"chat_template": rows}})
    assert chat_templates(held) == {"default": "a", "tool_use": "b", "rag": "c"}


def test_additional_templates_are_read_by_their_file(folder):
    held = folder({"chat_template.jinja": "a", "additional_chat_templates/tool_use.jinja": "b", "other/rag.jinja": "c"})
    assert chat_templates(held) == {"default": "a", "tool_use": "b"}


def test_no_template_is_none(folder):
    assert chat_templates(folder({"tokenizer_config.json": {}})) == {}
    assert chat_templates(Held(path=Path("/nowhere"), files={})) == {}


def test_templates_that_another_file_overrides_are_named_by_their_place(folder):
    rows = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    files = {"chat_template.jinja": "own", "tokenizer_config.json": {"chat_template": rows}, "chat_template.json": {"chat_template": "old"}}
    assert other_templates(folder(files)) == {"default in tokenizer_config.json": "a", "default in chat_template.json": "old"}


def test_the_same_template_in_two_places_is_one(folder):
    assert other_templates(folder({"chat_template.jinja": "a", "tokenizer_config.json": {"chat_template": "a"}})) == {}
    assert other_templates(folder({"processor_config.json": {"chat_template": "b"}})) == {"default in processor_config.json": "b"}


@pytest.mark.parametrize("inside", [3, [3], [{"name": 4}], {"default": "a"}, None])
def test_a_place_of_another_shape_holds_no_template(folder, inside):
    assert other_templates(folder({"processor_config.json": {"chat_template": inside}})) == {}


@pytest.mark.parametrize("where", ["jinja", "config", "both", "list", "additional", "additional default"])
def test_the_templates_read_are_those_transformers_uses(tmp_path, where):
    path = tmp_path / "m"
    tiny.tokenizer(None).save_pretrained(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    if where in ("config", "both"):
        config["chat_template"] = "inside"
    if where == "list":
        config["chat_template"] = [{"name": "default", "template": "first"}, {"name": "rag", "template": "second"}]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if where in ("jinja", "both", "additional", "additional default"):
        (path / "chat_template.jinja").write_text("outside")
    if where == "additional":
        (path / "additional_chat_templates").mkdir()
        (path / "additional_chat_templates" / "rag.jinja").write_text("extra")
    if where == "additional default":
        (path / "additional_chat_templates" / "within").mkdir(parents=True)
        (path / "additional_chat_templates" / "default.jinja").write_text("extra")
        (path / "additional_chat_templates" / "within" / "rag.jinja").write_text("read by nobody")
    theirs = AutoTokenizer.from_pretrained(path).chat_template
    ours = chat_templates(Held(path=path, files=hash_files(path)))
    assert ours == (theirs if isinstance(theirs, dict) else {"default": theirs})


def test_the_file_that_an_additional_template_overrides_is_read_too(folder):
    held = folder({"chat_template.jinja": "own", "additional_chat_templates/default.jinja": "more"})
    assert (chat_templates(held), other_templates(held)) == ({"default": "more"}, {"default in chat_template.jinja": "own"})


def test_a_template_or_a_list_of_merges_of_any_length_is_refused(folder, monkeypatch):
    monkeypatch.setattr("forensics.surface.MAX_JSON_BYTES", 10)
    held = folder({"chat_template.jinja": "a" * 11, "merges.txt": "b" * 11})
    for look in (chat_templates, mapping_parts):
        with pytest.raises(BadInput, match="larger than 10 bytes"):
            look(held)


def test_a_damaged_config_is_refused_by_name(folder):
    held = folder({"tokenizer_config.json": "{"})
    with pytest.raises(BadInput, match="not readable JSON") as caught:
        chat_templates(held)
    assert caught.value.where == "held/tokenizer_config.json"


def test_the_token_map_of_bpe_holds_vocabulary_and_added_tokens(folder):
    added = [{"id": 2, "content": "<|end|>"}, {"id": 0, "content": "<s>"}]
    held = folder({"tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": added}})
    assert token_map(held) == {"a": 0, "b": 1, "<|end|>": 2, "<s>": 0}


def test_the_token_map_of_unigram_counts_its_rows(folder):
    held = folder({"tokenizer.json": {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5], ["b", -2.0]]}}})
    assert token_map(held) == {"<unk>": 0, "a": 1, "b": 2}


def test_the_token_map_of_an_old_folder_is_its_vocab_file(folder):
    assert token_map(folder({"vocab.json": {"a": 0, "b": 1}})) == {"a": 0, "b": 1}


def test_the_vocab_file_counts_for_nothing_beside_a_tokenizer_file(folder):
    held = folder({"vocab.json": {"a": 9}, "tokenizer.json": {"model": {"vocab": {"a": 0}}}})
    assert token_map(held) == {"a": 0}


@pytest.mark.parametrize("whole", [{"model": None}, {"model": []}, {"model": {"vocab": 3}}, {"added_tokens": {}}, {"added_tokens": [3]}])
def test_a_tokenizer_file_of_another_shape_has_no_map(folder, whole):
    assert token_map(folder({"tokenizer.json": whole})) == {}


def test_the_token_map_is_the_one_the_tokenizer_uses(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    assert token_map(Held(path=tmp_path, files=hash_files(tmp_path))) == AutoTokenizer.from_pretrained(tmp_path).get_vocab()


def test_added_tokens_are_read_with_how_they_are_found(folder):
    rows = [{"id": 1, "content": "<a>", "special": True, "lstrip": False}, 3, {"content": "b"}]
    assert token_flags(folder({"tokenizer.json": {"added_tokens": rows}})) == {"<a>": {"lstrip": False, "special": True}, "b": {}}
    assert token_flags(Held(path=Path("/nowhere"), files={})) == {}


def with_merges(merges, **parts):
    return {"tokenizer.json": {"model": {"type": "BPE", "vocab": {}, "merges": merges}} | parts}


def test_merges_spelled_both_ways_are_equal(folder):
    old = mapping_parts(folder(with_merges(["a b", "ab c"])))
    new = mapping_parts(folder(with_merges([["a", "b"], ["ab", "c"]])))
    assert old == new
    assert mapping_parts(folder(with_merges(["ab c", "a b"]))) != old  # their order decides


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "post_processor", "decoder"])
def test_each_part_that_decides_ids_is_compared(folder, part):
    plain = mapping_parts(folder(with_merges([])))
    changed = mapping_parts(folder(with_merges([], **{part: {"type": "Other"}})))
    assert [name for name in plain if plain[name] != changed[name]] == [part]


def test_merges_of_an_old_folder_are_read_from_their_file(folder):
    assert mapping_parts(folder({"vocab.json": {}, "merges.txt": "a b\n"}))["merges"] == "a b\n"


def test_special_tokens_are_read_in_both_spellings(folder):
    files = {
        "special_tokens_map.json": {"bos_token": {"content": "<s>"}, "eos_token": "old"},
        "tokenizer_config.json": {"eos_token": "</s>", "pad_token": None, "unk_token": 3},
    }
    assert special_tokens(folder(files)) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_config_alone_is_no_tokenizer(folder):
    assert not has_tokenizer(folder({"tokenizer_config.json": {}, "README.md": ""}))
    assert has_tokenizer(folder({"tokenizer.json": {}}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "sub/state.pkl", "x.ckpt", "x.joblib", "x.pth", "x.pickle"])
def test_a_pickle_is_known_by_its_ending(folder, name):
    assert pickles(folder({name: b"", "config.json": "{}"})) == [name]


def zipped():
    stream = io.BytesIO()
    torch.save({"w": torch.ones(2)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("raw", [*(pickle.dumps({"a": 1}, protocol=protocol) for protocol in (2, 3, 4, 5)), zipped()])
def test_a_pickle_is_known_by_its_first_bytes_under_an_innocent_name(folder, raw):
    assert pickles(folder({"assets/notes.txt": raw, "plain.txt": "\x80 no", "other.txt": b"\x80\x01"})) == ["assets/notes.txt"]


def test_a_model_as_saved_holds_no_pickle(tmp_path):
    assert pickles(open_checkpoint(str(tiny.save(tiny.network(), tmp_path / "m")))) == []


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "adapter_config.json", "processor_config.json"])
def test_a_wish_for_code_is_named_with_its_file(folder, file):
    hooks = code_hooks(folder({file: {"auto_map": {"AutoModel": "evil.Model"}}}))
    assert len(hooks) == 1
    assert hooks[0].startswith(f"{file}: auto_map")
    assert "evil.Model" in hooks[0]


def test_python_files_are_named_and_told_apart_by_content(folder):
    first = code_hooks(folder({"sub/modeling.py": "x = 1"}))
    second = code_hooks(folder({"sub/modeling.py": "x = 2"}))
    assert first[0].startswith("sub/modeling.py: ")
    assert first != second


def test_a_model_as_saved_asks_for_no_code(tmp_path):
    assert code_hooks(open_checkpoint(str(tiny.save(tiny.network(), tmp_path / "m")))) == []
