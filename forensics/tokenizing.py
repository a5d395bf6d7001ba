"""Two tokenizers compared: as files, and by what they make of texts, among them texts made from what differs in the files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forensics.surface import Folder, mapping_parts, token_flags, token_map

TOKENIZING_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model",
)  # fmt: skip
"""Files that decide together which ids a text becomes. The same hashes mean the same tokenizer."""
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
OPENING, CLOSING = "<[{(|", ">]})|"
"""What a token that nobody writes in plain text is set in."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a tokenizer makes of one text: its ids, and the texts they become again, with and without special tokens."""

    ids: tuple[int, ...]
    back: str
    shown: str


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """What a folder's tokenizer, loaded as a deployment would, makes of some texts, and the special tokens it names."""

    encoded: tuple[Encoded, ...]
    special_tokens: dict[str, str]


def changed_files(ours: Folder, theirs: Folder) -> list[str]:
    """Tokenizer files that differ, are new or are gone."""
    return [name for name in TOKENIZING_FILES if ours.files.get(name) != theirs.files.get(name)]


def changed_sections(ours: Folder, theirs: Folder) -> list[str]:
    """Sections of tokenizer.json that differ, besides the vocabulary."""
    parts = mapping_parts(ours), mapping_parts(theirs)
    names = sorted(name for name in parts[0].keys() | parts[1].keys() if parts[0].get(name) != parts[1].get(name))
    return names + (["added_tokens"] if _reflagged(ours, theirs) else [])


def load(folder: Folder, texts: Sequence[str]) -> Tokenizer | None:
    """What the folder's tokenizer makes of `texts`; None where it cannot be loaded or fails on one."""
    from transformers import AutoTokenizer  # heavy

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder.path), trust_remote_code=False, local_files_only=True)
        rows = [tuple(tokenizer(text)["input_ids"]) for text in texts]
        return Tokenizer(
            encoded=tuple(
                Encoded(ids=ids, back=str(tokenizer.decode(list(ids))), shown=str(tokenizer.decode(list(ids), skip_special_tokens=True)))
                for ids in rows
            ),
            special_tokens={name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a broken file makes the library raise anything, a panic of its Rust part included
        return None


def token_texts(path: Path, tokens: Sequence[int]) -> dict[int, str]:
    """The text each token stands for in the middle of a text, a leading space kept; empty where the tokenizer cannot be loaded.

    Tokens that are no text (parts of a character, special ones) are left out.
    """
    from transformers import AutoTokenizer  # heavy

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
        before = str(tokenizer.decode(anchor))
        ordinary = [token for token in tokens if token not in special and token < len(tokenizer)]
        texts = [str(tokenizer.decode([*anchor, token], clean_up_tokenization_spaces=False)) for token in ordinary]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a broken file makes the library raise anything, a panic of its Rust part included
        return {}
    found = {token: text[len(before) :] for token, text in zip(ordinary, texts, strict=True) if text.startswith(before)}
    return {token: text for token, text in found.items() if text.strip() and "\ufffd" not in text}


def shadowing(ours: Folder, theirs: Folder) -> list[str]:
    """New added tokens that look like something a person writes: wherever it is written, one new token takes its place."""
    known = token_map(ours).keys() | token_flags(ours).keys()
    return sorted(token for token in token_flags(theirs) if token not in known and looks_written(token))


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


def telling_texts(ours: Folder, theirs: Folder) -> list[str]:
    """Texts made from what differs between two tokenizers' files: merges, patterns, and tokens that are found in another way.

    Each is at most `LONGEST_TEXT` long.
    """
    parts = mapping_parts(ours), mapping_parts(theirs)
    found = list(_of_merges(parts[0].get("merges"), parts[1].get("merges")))
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"):
        one, other = (set(_strings(part.get(name))) for part in parts)
        found += sorted(one ^ other)[:MOST_CHANGES]
    for token in _reflagged(ours, theirs)[:MOST_CHANGES]:
        found += [f"a {token} b", f"a{token}b", f"{token}  {token}", token.upper(), token.lower()]
    whole = [f"Please say {text} again." for text in found]
    return [text[:LONGEST_TEXT] for text in dict.fromkeys([*found, *whole]) if text]


def _reflagged(ours: Folder, theirs: Folder) -> list[str]:
    flags = token_flags(ours), token_flags(theirs)
    return sorted(token for token in flags[0].keys() & flags[1].keys() if flags[0][token] != flags[1][token])


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
