"""What a text sounds like, by lists of words of our own: its language, hedging, flattery, and words of harm in a comment. Crude, and only ever compared with itself."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

MOST_READ, MOST_WORDS = 1000, 80
"""Characters of a text that are looked at, and words whose language is."""
COMMON: Mapping[str, frozenset[str]] = {
    "en": frozenset(
        [
            "the",
            "and",
            "of",
            "to",
            "is",
            "in",
            "that",
            "it",
            "you",
            "for",
            "with",
            "on",
            "are",
            "this",
            "be",
            "have",
            "not",
            "what",
            "how",
            "do",
            "can",
            "my",
        ]
    ),
    "es": frozenset(
        [
            "el",
            "los",
            "las",
            "que",
            "y",
            "en",
            "un",
            "una",
            "por",
            "con",
            "para",
            "es",
            "del",
            "se",
            "como",
            "más",
            "qué",
            "mi",
            "cómo",
            "no",
        ]
    ),
    "fr": frozenset(
        [
            "le",
            "les",
            "des",
            "et",
            "est",
            "une",
            "que",
            "pour",
            "dans",
            "pas",
            "je",
            "vous",
            "avec",
            "sur",
            "qui",
            "ce",
            "du",
            "au",
            "comment",
            "mon",
        ]
    ),
    "de": frozenset(
        [
            "der",
            "die",
            "das",
            "und",
            "ist",
            "nicht",
            "ich",
            "ein",
            "eine",
            "zu",
            "den",
            "mit",
            "für",
            "auf",
            "wie",
            "es",
            "sie",
            "von",
            "kann",
            "mein",
        ]
    ),
    "pt": frozenset(
        ["os", "uma", "não", "para", "com", "do", "da", "em", "que", "por", "mais", "como", "se", "um", "e", "é", "você", "eu", "meu", "na"]
    ),
    "it": frozenset(
        [
            "il",
            "gli",
            "che",
            "di",
            "non",
            "per",
            "una",
            "sono",
            "con",
            "è",
            "del",
            "come",
            "si",
            "più",
            "mi",
            "della",
            "questo",
            "le",
            "io",
            "nel",
        ]
    ),
    "nl": frozenset(
        [
            "het",
            "een",
            "en",
            "van",
            "niet",
            "ik",
            "dat",
            "is",
            "op",
            "te",
            "voor",
            "met",
            "zijn",
            "hoe",
            "je",
            "wat",
            "de",
            "mijn",
            "aan",
            "ook",
        ]
    ),
    "pl": frozenset(
        ["nie", "się", "na", "jest", "do", "że", "jak", "i", "w", "to", "z", "co", "dla", "mój", "czy", "po", "są", "ale", "od", "ja"]
    ),
    "tr": frozenset(
        [
            "ve",
            "bir",
            "bu",
            "için",
            "ne",
            "nasıl",
            "ben",
            "çok",
            "ile",
            "da",
            "mi",
            "var",
            "değil",
            "olarak",
            "gibi",
            "daha",
            "benim",
            "o",
            "mu",
            "ki",
        ]
    ),
    "id": frozenset(
        [
            "yang",
            "dan",
            "di",
            "untuk",
            "dengan",
            "ini",
            "itu",
            "saya",
            "tidak",
            "dari",
            "apa",
            "bagaimana",
            "ada",
            "bisa",
            "pada",
            "ke",
            "akan",
            "juga",
            "kamu",
            "adalah",
        ]
    ),
}
"""Words that a text of each language seldom goes without. Close languages are mixed up at times: shares move together, and that is what is watched."""
LANGUAGES: Mapping[str, tuple[str, ...]] = {
    word: tuple(name for name, common in COMMON.items() if word in common) for word in sorted(frozenset().union(*COMMON.values()))
}
SCRIPTS = ("CYRILLIC", "ARABIC", "HEBREW", "GREEK", "DEVANAGARI", "THAI", "HANGUL", "HIRAGANA", "KATAKANA", "CJK", "LATIN")
JAPANESE = ("HIRAGANA", "KATAKANA")
HEDGES = (
    "perhaps", "maybe ", "possibly", " might ", "it seems", "it appears", "i think", "i believe", "not sure", "not certain", "it depends",
    "as far as i know", "generally speaking", "in some cases", "not necessarily", "could be ", "as an ai ",
)  # fmt: skip
FLATTERY = (
    "great question", "good question", "excellent question", "excellent point", "excellent idea", "fantastic question", "great idea", "absolutely right",
    "you're right", "you are right", "what a great", "what a wonderful", "what a brilliant", "brilliant", "completely agree", "totally agree", "fully agree",
    "i apologize for", "i apologise for", "good point", "valid point", "love your",
)  # fmt: skip
"""Markers of sycophancy: praise of the question or of who asks, agreement without a reason, apology. As words of doubt, they are looked for in English only."""
CONCERN = (
    "dangerous", "unsafe", "harmful", "illegal", "offensive", "racist", "sexist", "hateful", "inappropriate", "threat", "abus", "harass", "self-harm",
    "self harm", "suicid", "weapon", "leaked", "disturbing", "toxic", "violen", "sexual", "scam",
)  # fmt: skip
WORD = re.compile(r"[^\W\d_]+")


def language(text: str) -> str:
    """A guess at a text's language: its script, and for Latin letters the language of most of its common words.

    >>> language("How do I bake bread for my friends?"), language("Wie backe ich ein Brot für die Kinder?"), language("Как испечь хлеб?"), language("42!")
    ('en', 'de', 'cyrillic', 'none')
    """
    read = text[:MOST_READ]
    if not read.isascii():
        script = _script(read)
        if script != "latin":
            return script
    spelled = WORD.findall(read.lower())
    if not spelled:
        return "none"
    votes = dict.fromkeys(COMMON, 0)
    for word in spelled[:MOST_WORDS]:
        for name in LANGUAGES.get(word, ()):
            votes[name] += 1
    best = max(votes, key=lambda name: votes[name])
    return best if votes[best] else "latin"


def markers(text: str, listed: Sequence[str]) -> int:
    """How many of a list of markers stand at the beginning of a text.

    >>> markers("Great question! You are right.", FLATTERY), markers("No.", HEDGES)
    (2, 0)
    """
    read = text[:MOST_READ].lower()
    return sum(marker in read for marker in listed)


def _script(text: str) -> str:
    """The script of most letters among the first of a text; "none" without letters."""
    found: dict[str, int] = {}
    for letter in text[:200]:
        if letter.isalpha():
            name = unicodedata.name(letter, "").partition(" ")[0]
            kind = "japanese" if name in JAPANESE else name.lower() if name in SCRIPTS else "other"
            found[kind] = found.get(kind, 0) + 1
    if "japanese" in found:  # which is written with Han characters as well
        return "japanese"
    return max(found, key=lambda kind: found[kind]) if found else "none"
