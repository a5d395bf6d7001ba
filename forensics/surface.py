"""The parts of a model that are not weights: tokenizer, chat templates, code it wants run, pickles. Read, never run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from forensics.checkpoint import MAX_JSON_BYTES, PICKLE_SUFFIXES, read_json
from forensics.errors import BadInput

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "vocab.txt")
MAPPING_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""Sections of tokenizer.json besides the vocabulary that decide which ids a text becomes, and back."""
OWN_TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")


class Folder(Protocol):
    """A checkpoint or an adapter: a path and the hashes of its files."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def files(self) -> dict[str, str]:
        """sha256 by relative name."""

    @property
    def name(self) -> str:
        """What messages call it."""


def has_tokenizer(folder: Folder) -> bool:
    """Whether the folder brings a tokenizer of its own."""
    return any(name in folder.files for name in TOKENIZER_FILES if name != "tokenizer_config.json")


def chat_templates(folder: Folder) -> dict[str, str]:
    """Jinja source of every chat template, by name.

    As in transformers, `chat_template.jinja` wins over tokenizer_config.json, and a file in the folder of additional templates
    over both, even where it is called `default`.

    Raises:
        BadInput: One of the files is damaged.
    """
    templates: dict[str, str] = {}
    inside = _json(folder, "tokenizer_config.json").get("chat_template") or _json(folder, "chat_template.json").get("chat_template")
    if isinstance(inside, str):
        templates["default"] = inside
    elif isinstance(inside, list):
        rows = [row for row in inside if isinstance(row, dict)]
        templates |= {str(row.get("name", "default")): str(row.get("template", "")) for row in rows}
    if OWN_TEMPLATE in folder.files:
        templates["default"] = _text(folder, OWN_TEMPLATE)
    more = [name for name in folder.files if Path(name).parent.as_posix() == MORE_TEMPLATES and name.endswith(".jinja")]
    return templates | {Path(name).name.removesuffix(".jinja"): _text(folder, name) for name in sorted(more)}


def other_templates(folder: Folder) -> dict[str, str]:
    """Templates that `chat_templates` leaves out because another file wins, by place: other loaders may read those.

    Raises:
        BadInput: One of the files is damaged.
    """
    used = chat_templates(folder)
    found: dict[str, str] = {}
    for file in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        inside = _json(folder, file).get("chat_template")
        rows = [row for row in inside if isinstance(row, dict)] if isinstance(inside, list) else [{"template": inside}]
        for row in rows:
            name, template = str(row.get("name", "default")), row.get("template")
            if isinstance(template, str) and used.get(name) != template:
                found[f"{name} in {file}"] = template
    if OWN_TEMPLATE in folder.files and used.get("default") != (own := _text(folder, OWN_TEMPLATE)):
        found[f"default in {OWN_TEMPLATE}"] = own
    return found


def special_tokens(folder: Folder) -> dict[str, str]:
    """The special tokens that tokenizer_config.json or special_tokens_map.json name."""
    found = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for name in SPECIAL:
            value = _json(folder, file).get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    return found


def token_map(folder: Folder) -> dict[str, int]:
    """Id of every token, from tokenizer.json or vocab.json; empty if neither can be read as such."""
    whole = _json(folder, "tokenizer.json")
    model = whole.get("model") if isinstance(whole.get("model"), dict) else {}
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens: dict[str, int] = {}
    if isinstance(vocabulary, dict):
        tokens = {token: id for token, id in vocabulary.items() if isinstance(id, int)}
    elif isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
        tokens = {str(row[0]): id for id, row in enumerate(vocabulary) if isinstance(row, list) and row}
    elif not whole:
        tokens = {token: id for token, id in _json(folder, "vocab.json").items() if isinstance(id, int)}
    added = whole.get("added_tokens")
    for row in added if isinstance(added, list) else []:
        if isinstance(row, dict) and isinstance(row.get("id"), int):
            tokens[str(row.get("content"))] = row["id"]
    return tokens


def mapping_parts(folder: Folder) -> dict[str, Any]:
    """What besides the vocabulary decides how text becomes ids, as the files of a folder have it."""
    whole = _json(folder, "tokenizer.json")
    merges = _text(folder, "merges.txt") if not whole and "merges.txt" in folder.files else None
    return parts_of(whole) | ({} if merges is None else {"merges": merges})


def parts_of(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a tokenizer.json, in a form that ignores mere differences of spelling."""
    model = whole.get("model") if isinstance(whole.get("model"), dict) else {}
    parts: dict[str, Any] = {name: whole.get(name) for name in MAPPING_PARTS}
    if isinstance(model, dict):  # options left out have the value that an empty one has
        parts["model"] = {name: value for name, value in model.items() if value and name not in ("vocab", "merges")}
    merges = model.get("merges") if isinstance(model, dict) else None
    if isinstance(merges, list):  # older files write "a b", newer ones ["a", "b"]
        parts["merges"] = [row.split(" ") if isinstance(row, str) else row for row in merges]
    return parts


def token_flags(folder: Folder) -> dict[str, dict[str, Any]]:
    """How each added token is found in a text, as the files of a folder have it."""
    return flags_of(_json(folder, "tokenizer.json"))


def flags_of(whole: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The same of a tokenizer.json: alone or within words, with the spaces around it, and so on."""
    rows = whole.get("added_tokens")
    flags: dict[str, dict[str, Any]] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            flags[str(row.get("content"))] = {key: value for key, value in sorted(row.items()) if key not in ("id", "content")}
    return flags


def code_hooks(folder: Folder) -> list[str]:
    """Where the folder asks for its own code to be run: `auto_map` entries and Python files."""
    hooks = []
    for file in ("config.json", "tokenizer_config.json", "adapter_config.json", "processor_config.json"):
        value = _json(folder, file)
        if value.get("auto_map"):
            hooks.append(f"{file}: auto_map {json.dumps(value['auto_map'], sort_keys=True)}")
    return hooks + [f"{name}: {digest}" for name, digest in sorted(folder.files.items()) if name.endswith(".py")]


def pickles(folder: Folder) -> list[str]:
    """Files that are, or look like, pickles: by their ending or by their first bytes."""
    return sorted(name for name in folder.files if name.endswith(PICKLE_SUFFIXES) or _smells_of_pickle(folder.path / name))


def _smells_of_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(4)
    # A pickle of protocol 2 to 5, or the zip archive that torch.save writes around one.
    return (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or start == b"PK\x03\x04"


def _json(folder: Folder, name: str) -> dict[str, Any]:
    return read_json(folder.path / name, where=f"{folder.name}/{name}") if name in folder.files else {}


def _text(folder: Folder, name: str) -> str:
    file = folder.path / name
    if file.stat().st_size > MAX_JSON_BYTES:
        raise BadInput(
            f"this file is larger than {MAX_JSON_BYTES} bytes", where=f"{folder.name}/{name}", hint="no honest file of this kind is"
        )
    return file.read_text(encoding="utf-8", errors="replace")
