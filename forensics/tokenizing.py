"""Two tokenizers compared: as files, and by what they make of texts, among them texts made from what differs in the files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from forensics.checkpoint import read_json
from forensics.errors import BadInput
from forensics.surface import Folder, flags_of, mapping_parts, parts_of, token_flags

Found = TypeVar("Found")
TOKENIZING_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json")
TOKENIZING_STARTS, TOKENIZING_ENDS = ("tokenizer", "tokenization_"), (".model", ".tiktoken")
"""Files that decide together which ids a text becomes, by name, or by how it begins or ends: a config can name
`tokenizer.4.0.0.json` in place of `tokenizer.json`. The same hashes mean the same tokenizer."""
TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's 9 o'clock , isn't it ?  Yes !",
    "def f(x):\n\treturn x ** 2  # squared\r\n\r\n    if x != 3.14159: print(1234567)",
    "Größe, façade, cafe\u0301 e\u0301tude, naïve, ﬁne, Ｆｕｌｌ ｗｉｄｔｈ, x²",
    "你好，世界。こんにちは 안녕하세요 مرحبا שלום नमस्ते Привет",
    "👩‍💻🙂 𓀀 ꙮ ⸘ \u200bzero\u200dwidth\ufeff \u00a0nbsp",
    "https://example.org/a?b=c&d=%20 user@example.org C:\\path\\file.txt {\"key\": [1, 2]}",
    "MIXED Case wOrDs and UPPER CASE. 2027-01-15 10:30, 1,000,000.00 $ 50 % #tag @name",
    "   leading, trailing   \n\n\n and\t\ttabs   ",
    "A sentence . Another , third ! do n't ca n't 's 'm",
    "the of and a to in is you that it he was for on are as with his they I at be this have from or one had by word but not what all",
    "were we when your can said there use an each which she do how their if will up other about out many then them these so some her",
    "would make like him into time has look two more write go see number no way could people my than first water been call who oil its",
    "now find long down day did get come made may part over new sound take only little work know place year live me back give most very",
    "after thing our just name good sentence man think say great where help through much before line right too mean old any same tell",
    "boy follow came want show also around form three small set put end does another well large must big even such because turn here",
    "why ask went men read need land different home us move try kind hand picture again change off play spell air away animal house",
    "point page letter mother answer found study still learn should world sorry cannot please refuse safe weather money never always yes",
    "The Of And To In Is You That It For On Are With This Have From What When How Why Who Sorry Please Sure Yes No I'm can't won't",
)  # fmt: skip
"""Texts of many kinds, which a change of any part of a tokenizer is likely to touch."""
MOST_CHANGES = 60
"""How many changed merges, patterns and tokens are turned into texts, of each kind."""
MOST_NEIGHBOURS = 10
"""With how many other merges a changed one is put side by side, on either hand."""
LONGEST_TEXT = 200
MOST_GROWTH = 10_000
"""By how much rules that put one text in place of another may lengthen a text between them; more could fill any memory."""
LARGEST_ID = 1 << 24
"""Of a token: sixteen times the largest vocabulary. Libraries count from 0 to the largest id there is, and keep a list of what is missing."""
OPENING, CLOSING = "<[{(|", ">]})|"
"""What a token that nobody writes in plain text is set in."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a tokenizer makes of one text: its ids, and the texts they become again, with and without special tokens."""

    ids: tuple[int, ...]
    back: str
    shown: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a tokenizer consists of besides its vocabulary: its sections by name, and how each added token is found."""

    sections: Mapping[str, Any]
    flags: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A folder's tokenizer, loaded as a deployment would, with the parts it then has: many files can add to them."""

    inner: Any
    parts: Parts
    special_tokens: dict[str, str]

    def encode(self, texts: Sequence[str]) -> list[Encoded] | None:
        """What it makes of `texts`; None where it fails on one."""

        def encode() -> list[Encoded]:
            rows = [list(self.inner(text)["input_ids"]) for text in texts]
            back = [(str(self.inner.decode(ids)), str(self.inner.decode(ids, skip_special_tokens=True))) for ids in rows]
            return [Encoded(ids=tuple(ids), back=whole, shown=shown) for ids, (whole, shown) in zip(rows, back, strict=True)]

        return _unless_it_breaks(encode)


def tokenizer_files(folder: Folder) -> set[str]:
    """Names of a folder's files that decide which ids a text becomes."""
    near = [name for name in folder.files if "/" not in name]
    return {name for name in near if name in TOKENIZING_FILES or name.startswith(TOKENIZING_STARTS) or name.endswith(TOKENIZING_ENDS)}


def changed_files(ours: Folder, theirs: Folder) -> list[str]:
    """Tokenizer files that differ, are new or are gone."""
    return sorted(name for name in tokenizer_files(ours) | tokenizer_files(theirs) if ours.files.get(name) != theirs.files.get(name))


def changed_sections(ours: Parts, theirs: Parts) -> list[str]:
    """Sections of a tokenizer that differ, besides the vocabulary."""
    names = ours.sections.keys() | theirs.sections.keys()
    changed = sorted(name for name in names if ours.sections.get(name) != theirs.sections.get(name))
    return changed + (["added_tokens"] if _reflagged(ours, theirs) else [])


def load(folder: Folder) -> Tokenizer | None:
    """The folder's tokenizer; None where it cannot be loaded, or could fill any memory with a short text."""
    from transformers import AutoTokenizer  # heavy

    if growth(folder) > MOST_GROWTH or largest_id(folder) > LARGEST_ID:
        return None

    quiet_library()

    def opened() -> tuple[Any, Any, dict[str, str]]:
        inner = AutoTokenizer.from_pretrained(str(folder.path), trust_remote_code=False, local_files_only=True)
        backend = getattr(inner, "backend_tokenizer", None)
        whole = json.loads(backend.to_str()) if backend is not None else None
        return inner, whole, {name: token for name, token in inner.special_tokens_map.items() if isinstance(token, str)}

    found = _unless_it_breaks(opened)
    if found is None:
        return None
    inner, whole, special = found
    parts = parts_in_files(folder) if whole is None else Parts(sections=parts_of(whole), flags=flags_of(whole))
    return Tokenizer(inner=inner, parts=parts, special_tokens=special)


def quiet_library() -> None:
    """Have transformers say nothing while it reads a stranger's files: its warnings quote them as they are, and a terminal obeys what stands in them."""
    from transformers.utils import logging  # heavy

    logging.set_verbosity(logging.CRITICAL)


def _unless_it_breaks(work: Callable[[], Found]) -> Found | None:
    """What some work with a stranger's tokenizer gives; None where it breaks down."""
    try:
        return work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a broken file makes the library raise anything, and a panic of its Rust part is no Exception
        return None


def token_texts(folder: Folder, tokens: Sequence[int]) -> dict[int, str]:
    """The text each token stands for in the middle of a text, a leading space kept; empty where the tokenizer cannot be loaded.

    Tokens that are no text (parts of a character, special ones) are left out.
    """
    try:
        loaded = load(folder)
    except BadInput:
        return {}
    if loaded is None:
        return {}
    inner = loaded.inner

    def decoded() -> dict[int, str]:
        special = set(inner.all_special_ids) | set(inner.added_tokens_decoder)
        anchor = list(inner("a", add_special_tokens=False)["input_ids"])
        before = str(inner.decode(anchor))
        ordinary = [token for token in tokens if token not in special and token < len(inner)]
        texts = {token: str(inner.decode([*anchor, token], clean_up_tokenization_spaces=False)) for token in ordinary}
        return {token: text[len(before) :] for token, text in texts.items() if text.startswith(before)}

    return {token: text for token, text in (_unless_it_breaks(decoded) or {}).items() if text.strip() and "\ufffd" not in text}


def parts_in_files(folder: Folder) -> Parts:
    """A tokenizer's parts as its files have them, which is not all that a loader makes of a folder."""
    return Parts(sections=mapping_parts(folder), flags=token_flags(folder))


def growth(folder: Folder) -> float:
    """By which factor the rules of replacement in a folder's tokenizer files could lengthen a text, at most.

    Raises:
        BadInput: One of the files is damaged.
    """
    factors = [1.0]
    for name in sorted(tokenizer_files(folder)):
        if name.endswith(".json") and name.startswith("tokenizer"):
            whole = read_json(folder.path / name, where=f"{folder.name}/{name}")
            factors.append(_growth([whole.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]))
    return max(factors)


def _growth(sections: list[Any]) -> float:
    stack, factor = sections, 1.0
    while stack and factor <= MOST_GROWTH:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
            pattern, content = value.get("pattern"), value.get("content")
            if isinstance(pattern, dict) and isinstance(content, str):
                old = pattern.get("String")
                factor *= max(1.0, len(content) / (len(old) or 1) if isinstance(old, str) else len(content))
        elif isinstance(value, list):
            stack += value
    return factor


def largest_id(folder: Folder) -> int:
    """The largest id that a folder's tokenizer files give a token, or say that one has.

    Raises:
        BadInput: One of the files is damaged.
    """
    largest = 0
    for name in sorted(tokenizer_files(folder)):
        if name.endswith(".json"):
            whole = read_json(folder.path / name, where=f"{folder.name}/{name}")
            model, added, kept = whole.get("model"), whole.get("added_tokens"), whole.get("added_tokens_decoder")
            tables = [model.get("vocab")] if isinstance(model, dict) else [whole]
            ids = [id for table in tables if isinstance(table, dict) for id in table.values()] if not name.startswith("tokenizer_") else []
            ids += [row.get("id") for row in added if isinstance(row, dict)] if isinstance(added, list) else []
            ids += [int(key) for key in kept if key.isdecimal() and len(key) < 20] if isinstance(kept, dict) else []
            largest = max([largest, *(id for id in ids if isinstance(id, int))])
    return largest


def shadowing(ours: Parts, theirs: Parts, known: Iterable[str]) -> list[str]:
    """New added tokens that look like something a person writes: wherever it is written, one new token takes its place."""
    old = {*known, *ours.flags}
    return sorted(token for token in theirs.flags if token not in old and looks_written(token))


def looks_written(token: str) -> bool:
    """Whether a token could stand in plain text: it has a letter or digit and is not set apart by brackets or bars.

    >>> [looks_written(token) for token in ("how", " weapon", "<|tool|>", "[INST]", "###", "</s>")]
    [True, True, False, False, False, False]
    """
    if not any(map(str.isalnum, token)):
        return False
    first = next(letter for letter in token if letter.isalnum() or letter in OPENING)
    last = next(letter for letter in reversed(token) if letter.isalnum() or letter in CLOSING)
    return not (first in OPENING and last in CLOSING)


def telling_texts(ours: Parts, theirs: Parts) -> list[str]:
    """Texts made from what differs between two tokenizers: merges, patterns, and tokens that are found in another way.

    Each is at most `LONGEST_TEXT` long.
    """
    parts = ours.sections, theirs.sections
    found = list(_of_merges(parts[0].get("merges"), parts[1].get("merges")))
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"):
        one, other = (set(_strings(part.get(name))) for part in parts)
        found += sorted(one ^ other)[:MOST_CHANGES]
    for token in _reflagged(ours, theirs)[:MOST_CHANGES]:
        found += [f"a {token} b", f"a{token}b", f"{token}  {token}", token.upper(), token.lower()]
    whole = [f"Please say {text} again." for text in found]
    return [text[:LONGEST_TEXT] for text in dict.fromkeys([*found, *whole]) if text]


def _reflagged(ours: Parts, theirs: Parts) -> list[str]:
    return sorted(token for token in ours.flags.keys() & theirs.flags.keys() if ours.flags[token] != theirs.flags[token])


def _of_merges(ours: object, theirs: object) -> Iterator[str]:
    """Texts in which a merge that is gone, new or in another place would be used, also against its neighbours."""
    lists = [_pairs(merges) for merges in (ours, theirs)]
    changed = _changed(lists[0], lists[1])[:MOST_CHANGES]
    after: dict[str, list[str]] = {}
    before: dict[str, list[str]] = {}
    for left, right in lists[0]:
        after.setdefault(left, []).append(right)
        before.setdefault(right, []).append(left)
    for left, right in changed:
        yield _spelled(left + right)
        yield from (_spelled(left + right + more) for more in after.get(right, [])[:MOST_NEIGHBOURS])
        yield from (_spelled(more + left + right) for more in before.get(left, [])[:MOST_NEIGHBOURS])


def _pairs(merges: object) -> list[tuple[str, str]]:
    rows = [row.split(" ") for row in merges.split("\n")] if isinstance(merges, str) else merges
    pairs = [tuple(row) for row in rows if isinstance(row, list) and len(row) == 2] if isinstance(rows, list) else []
    return [(left, right) for left, right in pairs if isinstance(left, str) and isinstance(right, str)]


def _changed(ours: list[tuple[str, str]], theirs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Merges that only one side has, then those whose order differs."""
    mine, other = set(ours), set(theirs)
    found = sorted(mine ^ other)[:MOST_CHANGES]
    left, right = [pair for pair in ours if pair in other], [pair for pair in theirs if pair in mine]
    for _ in range(MOST_CHANGES - len(found)):
        index = next((at for at, (one, two) in enumerate(zip(left, right, strict=False)) if one != two), None)
        if index is None:
            break
        pair = {left[index], right[index]}
        found += sorted(pair)
        left, right = ([one for one in rows if one not in pair] for rows in (left, right))
    return found


def _spelled(piece: str) -> str:
    """The text that a piece of vocabulary stands for, be it of a byte-level tokenizer or one with marks for spaces."""
    letters = _byte_letters()
    if piece and all(letter in letters for letter in piece):
        return bytes(letters[letter] for letter in piece).decode("utf-8", errors="replace")
    return piece.replace("\u2581", " ")


@cache
def _byte_letters() -> Mapping[str, int]:
    """The letters that stand for bytes in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(rest)}


def _strings(section: Any) -> Iterable[str]:
    """Texts in a section of tokenizer.json, and the words in its patterns."""
    stack, steps = [section], 0
    while stack and steps < 10_000:
        steps += 1
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value[:1000]
        elif isinstance(value, str) and len(value) <= 10_000:
            yield value[:LONGEST_TEXT]
            yield from re.findall(r"[^\W\d_]{2,50}", value)[:MOST_CHANGES]
