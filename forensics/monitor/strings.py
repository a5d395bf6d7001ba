"""The strings of a request, as keys: its words and pairs of neighbouring words, hashed with the secret of the store, so that no text has to be kept."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from itertools import chain

import numpy as np

MOST_WORDS = 200
"""Words of a request that are looked at: half from its beginning, half from its end."""
MOST_REMEMBERED = 50_000
"""Words whose keys are kept at hand; when there are more they are learned anew."""
LONGEST_WORD = 64
MASK = (1 << 63) - 1  # what databases call a whole number has a sign
MIX = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: neighbours land far apart


class Strings:
    """Turns requests into keys, under the secret of one store."""

    def __init__(self, salt: bytes) -> None:
        """Take the secret."""
        self._hash = hashlib.blake2b(digest_size=8, key=salt)
        self._words: dict[str, int] = {}

    def keys(self, prompt: str) -> set[int]:
        """Keys of the words and pairs of neighbouring words of a request, each once."""
        return set(self.keys_of([prompt])[0])

    def keys_of(self, prompts: Sequence[str]) -> list[list[int]]:
        """The same of many requests at once, some keys more than once; numpy makes the keys of pairs, which takes Python as long as all the rest."""
        plain = [self._plain(_words_of(prompt)) for prompt in prompts]
        words = np.array(array("Q", chain.from_iterable(plain)), dtype=np.uint64)
        pairs = ((words[:-1] * np.uint64(MIX) ^ words[1:]) & np.uint64(MASK)).tolist()  # the product wraps, as the mask would have it
        found, begin = [], 0
        for keys in plain:
            end = begin + len(keys)
            found.append(keys + pairs[begin : max(begin, end - 1)])
            begin = end
        return found

    def named(self, prompt: str, key: int) -> tuple[str, tuple[int, ...]]:
        """The string of a request that has this key, and the keys of its words where it is a pair; "" if none has."""
        spelled = _words_of(prompt)
        plain = self._plain(spelled)
        for word, own in zip(spelled, plain, strict=True):
            if own == key:
                return word[:LONGEST_WORD], ()
        for place in range(len(spelled) - 1):
            first, second = plain[place], plain[place + 1]
            if (first * MIX ^ second) & MASK == key:
                return f"{spelled[place][:LONGEST_WORD]} {spelled[place + 1][:LONGEST_WORD]}", (first, second)
        return "", ()

    def _plain(self, spelled: Sequence[str]) -> list[int]:
        """The key of each word."""
        known = self._words
        return [known.get(word) or self._learn(word[:LONGEST_WORD]) for word in spelled]

    def _learn(self, word: str) -> int:
        if len(self._words) >= MOST_REMEMBERED:
            self._words.clear()
        keyed = self._hash.copy()
        keyed.update(word.encode("utf-8", "surrogatepass"))
        key = self._words[word] = int.from_bytes(keyed.digest(), "big") >> 1
        return key


def _words_of(prompt: str) -> list[str]:
    spelled = prompt.lower().split()
    if len(spelled) > MOST_WORDS:
        spelled = spelled[: MOST_WORDS // 2] + spelled[-(MOST_WORDS // 2) :]
    return spelled
