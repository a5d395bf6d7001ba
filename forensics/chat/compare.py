"""Two chat templates compared: do they write the same, and if they seem to, could one of them do otherwise when something is said?"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from forensics.chat.flow import read
from forensics.chat.questions import Question, Reading, new_questions
from forensics.chat.scenes import Clues, directed, quoted, standing, unusual
from forensics.chat.syntax import program
from forensics.templates import Rendering, Scene, TemplateFailed, render_scene

MOST_DIRECTED = 4000
"""Conversations made from what a template asks for, at most."""
ENOUGH = 5
"""Differing conversations after which no more are made: the point is made."""
LISTENED = 60
"""Conversations of each round in which the template is listened to."""
LISTENING_ROUNDS = 4
MOST_TEXTS = 60
MOST_SECONDS = 120.0
"""How long a comparison may take. Honest templates need a few; one that needs longer is not tried to the end."""
MOST_KEPT = 20_000_000
"""Characters of what was written that are kept to look for texts that never came out."""
TOO_SLOW = "it is so slow that not every conversation was tried"
MOST_UNWRITTEN = 200
"""Texts that never came out, after which no more are looked for: each is a search through all that was written."""
SHORTEST_TEXT = 2
"""Letters and digits that a text must have to count as one: marks alone stand in every template."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One template with the special tokens it is given. No template means that the turns are written one a line."""

    template: str | None
    special_tokens: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A conversation of which the two sides make different texts: what one has in place of what the other has."""

    about: str
    base: str
    other: str

    def __str__(self) -> str:
        """The difference in words, both texts shortened."""
        if not self.other:
            return f"{self.about} it leaves out {quoted(self.base)}"
        if not self.base:
            return f"{self.about} it puts in {quoted(self.other)}"
        return f"{self.about} it writes {quoted(self.other)} instead of {quoted(self.base)}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of comparing two templates.

    `open` differences were seen in conversations that every template is tried with, `hidden` ones only in those made from
    what the other template asks for. `one_sided` counts conversations that only one side accepts, leaving out usual ones that
    the base does. `questions` are those that the base does not ask; `texts` those it could write, that the base could not,
    and that never came out. `unread` says why a template could not be followed, if it could not.
    """

    changed: bool
    """Whether the templates themselves differ, and not only the special tokens they are given."""
    same_program: bool
    asked: int
    open: tuple[Difference, ...]
    differing: int
    directed: int = 0
    hidden: tuple[Difference, ...] = ()
    one_sided: int = 0
    questions: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    unread: str = ""

    @property
    def equal(self) -> bool:
        """Whether nothing that matters was found: at most another way of writing the same.

        One program can be spelled so that it only takes texts (`a + b`) or anything (`a ~ b`).
        """
        one_sided = self.one_sided and not self.same_program
        return not (self.open or self.hidden or one_sided or self.questions or self.texts or self.unread)


def compare(base: Side, other: Side, scenes: Sequence[Scene] = ()) -> Comparison:
    """Compare `other` with `base` by rendering and by reading.

    Args:
        base: The trusted side.
        other: The examined side.
        scenes: Conversations besides those that every template is tried with.

    Raises:
        ToolFailed: The process that renders cannot be started.
    """
    tried = _Trial(base, other)
    tried.put([*scenes, *standing()])
    usual = tried.differing
    tried.put(unusual(), edge=True)
    found = Comparison(
        changed=base.template != other.template,
        same_program=_same_program(base, other),
        asked=tried.asked,
        open=tuple(tried.differences[:ENOUGH]),
        differing=tried.differing,
        one_sided=tried.one_sided,
    )
    if found.same_program or usual or other.template is None:
        return found
    if tried.too_slow():
        return replace(found, unread=TOO_SLOW)
    try:
        readings = read(base.template or ""), read(other.template)
    except (TemplateFailed, RecursionError, ValueError) as error:
        return replace(found, unread=str(error) if isinstance(error, TemplateFailed) else "it is too entangled to be followed")
    questions = new_questions(*readings)
    before = len(tried.differences)
    _search(tried, readings[1], questions)
    return replace(
        found,
        unread=TOO_SLOW if tried.too_slow() else "",
        directed=tried.asked - found.asked,
        hidden=tuple(tried.differences[before:]),
        one_sided=tried.one_sided,
        questions=tuple(question.spelling for question in questions),
        texts=tuple(_never_written(readings, tried.wrote)),
    )


def _same_program(base: Side, other: Side) -> bool:
    if base.template is None or other.template is None or base.special_tokens != other.special_tokens:
        return base == other
    try:
        return base.template == other.template or program(base.template) == program(other.template)
    except (TemplateFailed, RecursionError, ValueError):  # of a number with more digits than Python writes down
        return False


class _Trial:
    """Puts conversations to both sides and keeps what differs."""

    def __init__(self, base: Side, other: Side) -> None:
        self._base, self._other = base, other
        self._end = time.monotonic() + MOST_SECONDS
        self._kept = 0
        self.asked = self.differing = self.one_sided = 0
        self._late = False
        self.differences: list[Difference] = []
        self.wrote: dict[str, None] = {}
        """Everything the other side wrote, without repeats."""

    def put(self, scenes: Iterable[Scene], *, edge: bool = False, enough: int | None = None) -> None:
        """Render each scene on both sides, until `enough` more of them differ. At the edge a template may refuse to write."""
        before = self.differing
        for scene in scenes:
            if time.monotonic() > self._end:
                self._late = True
                return
            ours, theirs = _said(self._base, scene), _said(self._other, scene)
            self.asked += 1
            if isinstance(theirs, str) and theirs not in self.wrote and self._kept < MOST_KEPT:
                self.wrote[theirs] = None
                self._kept += len(theirs)
            if ours == theirs or (isinstance(ours, TemplateFailed) and isinstance(theirs, TemplateFailed)):
                continue
            if isinstance(ours, TemplateFailed) or (edge and isinstance(theirs, TemplateFailed)):
                self.one_sided += 1
                continue
            self.differing += 1
            if self.differing - before <= ENOUGH:
                self.differences.append(_difference(scene, ours, theirs))
            if enough is not None and self.differing - before >= enough:
                return

    def too_slow(self) -> bool:
        """Whether conversations were left out for want of time."""
        return self._late

    def overheard(self, scenes: Iterable[Scene]) -> list[str]:
        """Texts that the other side compared these conversations with."""
        found: dict[str, None] = {}
        for scene in scenes:
            if time.monotonic() > self._end:
                break
            try:
                found |= dict.fromkeys(_render(self._other, scene, listen=True).compared)
            except TemplateFailed:
                continue
        return list(found)


def _render(side: Side, scene: Scene, *, listen: bool = False) -> Rendering:
    if side.template is None:
        return Rendering(text="\n".join(str(turn.get("content", "")) for turn in scene.turns))
    return render_scene(side.template, scene, special_tokens=side.special_tokens, listen=listen)


def _said(side: Side, scene: Scene) -> str | TemplateFailed:
    try:
        return _render(side, scene).text
    except TemplateFailed as error:
        return error


def _difference(scene: Scene, ours: str, theirs: str | TemplateFailed) -> Difference:
    """Where two texts part, without what they have in common at both ends."""
    if isinstance(theirs, TemplateFailed):
        return Difference(about=scene.about, base=ours, other=f"nothing, because {theirs}")
    start = next((index for index, (one, two) in enumerate(zip(ours, theirs, strict=False)) if one != two), min(len(ours), len(theirs)))
    end = 0
    while end < min(len(ours), len(theirs)) - start and ours[-1 - end] == theirs[-1 - end]:
        end += 1
    gone, new = ours[start : len(ours) - end], theirs[start : len(theirs) - end]
    if not (gone and new):  # "b|>a<|" put in after "<|" is "<|b|>a"
        only, back = gone or new, 0
        while back < start and ours[start - 1 - back] == only[-1 - back % len(only)]:
            back += 1
        turned = only[len(only) - back % len(only) :] + only[: len(only) - back % len(only)]
        gone, new = turned if gone else "", turned if new else ""
    return Difference(about=scene.about, base=gone, other=new)


def _search(tried: _Trial, other: Reading, questions: Sequence[Question]) -> None:
    """Make conversations from what the other template asks for, listening to what it compares them with as it goes."""
    heard: list[str] = []
    left, before = MOST_DIRECTED, tried.differing
    done: set[bytes] = set()
    for _ in range(LISTENING_ROUNDS):
        clues = _clues(questions, other, heard)
        scenes = [one for one in itertools.islice(directed(clues), MOST_DIRECTED) if _digest(one) not in done][:left]
        done.update(map(_digest, scenes))
        tried.put(scenes, edge=True, enough=ENOUGH)
        left -= len(scenes)
        step = max(1, len(scenes) // LISTENED)
        more = [text for text in tried.overheard([*standing()[:LISTENED], *scenes[::step]]) if text not in heard]
        heard += more
        if tried.differing > before or tried.too_slow() or left <= 0 or not set(more) - set(clues.texts):
            return


def _digest(scene: Scene) -> bytes:
    """A scene told from others without keeping it."""
    return hashlib.sha256(repr(scene).encode("utf-8", "replace")).digest()


def _clues(questions: Sequence[Question], other: Reading, heard: Sequence[str]) -> Clues:
    """What to make conversations from: constants of new questions first, then those overheard, then all others."""
    texts = [text for question in questions for text in sorted(question.texts)] + list(heard) + sorted(other.texts)
    numbers = [number for question in questions for number in sorted(question.numbers)] + sorted(other.numbers)
    return Clues(
        texts=tuple(dict.fromkeys(text for text in texts if text.strip()))[:MOST_TEXTS],
        numbers=tuple(dict.fromkeys(numbers))[:MOST_TEXTS],
        dates=tuple(sorted(other.dates)),
        variables=tuple(sorted(other.variables)),
    )


def _never_written(readings: tuple[Reading, Reading], wrote: Mapping[str, None]) -> list[str]:
    """Texts that only the other side holds and that it wrote in no conversation."""
    everything = "\0".join(wrote)
    new = sorted(text for text in readings[1].written - readings[0].written if sum(map(str.isalnum, text)) >= SHORTEST_TEXT)
    return list(itertools.islice((text for text in new if text.strip() not in everything), MOST_UNWRITTEN))
