"""The prompts that flipped, asked again with some groups of tensors put back; what was said is kept in the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import numpy as np

from forensics import __version__
from forensics.case import Case
from forensics.causes import Flip
from forensics.errors import CannotCompare
from forensics.flips import Question
from forensics.gate.judges import judge_refusal
from forensics.model import LiveModel, Rendered
from forensics.prompts import Prompt
from forensics.record import canonical_json, sha256_text
from forensics.restore import Mode, Patchwork, Piece, Region
from forensics.subject import Subject, replies
from probes.attribution import BoolArray
from probes.linear import Estimate, share_interval

LEAST = 8
"""Flipped prompts without which nothing is ranked: of fewer, even a group that undoes every one could undo two in three."""
EXAMPLES = 6
LONGEST = 400
Row = tuple[Prompt, Rendered]


@dataclass(frozen=True, kw_only=True)
class State:
    """What the model holds: `chosen` pieces in one mode, all others in another."""

    rest: Mode
    chosen: tuple[Piece, ...] = ()
    mode: Mode = Mode.BASE

    @property
    def name(self) -> list[object]:
        """The state in a form that can be digested."""
        return [self.rest.name, self.mode.name, sorted([piece.source, piece.tensor] for piece in self.chosen)]


class Trial:
    """One question put to the live candidate in one state after the other.

    `flipped` are the prompts that flip again when they are asked here, `kept` those that do not flip, as they should; `lost` counts
    prompts of the question that are neither.
    """

    def __init__(self, case: Case, model: LiveModel, patchwork: Patchwork, question: Question) -> None:
        """Ask the candidate as it is.

        Raises:
            CannotCompare: Fewer than `LEAST` prompts flip.
        """
        how = case.workbench.decoding
        self.case, self.question, self._patchwork = case, question, patchwork
        self._subject = Subject(model=model, side="candidate", batch_size=how.batch_size, max_new_tokens=how.max_new_tokens)
        asked = self._askable([*question.flipped, *question.kept])
        said = dict(zip([row[1].ids for row in asked], self._say(State(rest=Mode.CANDIDATE), asked), strict=True))
        self.flipped = [row for row in self._askable(question.flipped) if question.is_flipped(said[row[1].ids])]
        self.kept = [row for row in self._askable(question.kept) if _as_wanted(row[0], said[row[1].ids])]
        self.lost = len(question.flipped) - len(self.flipped)
        self._plain = [said[row[1].ids] for row in self.flipped]
        if len(self.flipped) < LEAST:
            raise CannotCompare(
                f"only {len(self.flipped)} of {len(question.flipped)} flipped prompts ({question.kind}) flip when they are asked again; "
                f"at least {LEAST} are needed to tell one cause from another",
                where=case.configuration,
                hint="audit with more prompts of the kinds that flipped",
            )

    def whole(self) -> BoolArray:
        """Which flips are undone when every tensor is the base's."""
        return self._undone(self._say(State(rest=Mode.BASE), self.flipped))

    def undone(self, pieces: Sequence[Piece]) -> BoolArray:
        """Which flips are undone when the base's tensors stand in the place of `pieces`."""
        return self._undone(self._restored(pieces)[: len(self.flipped)])

    def spoiled(self, region: Region) -> Estimate | None:
        """Share of the prompts that did not flip which are no longer answered as they should be with a group put back; None without any."""
        said = self._restored(region.pieces)[len(self.flipped) :]
        wrong = [not _as_wanted(row[0], reply) for row, reply in zip(self.kept, said, strict=True)]
        return share_interval(sum(wrong), len(wrong)) if wrong else None

    def caused(self, region: Region, *, shuffled: bool = False) -> BoolArray:
        """Which prompts the group's change alone flips in the base, or for control that change with its entries shuffled."""
        mode = Mode.BESIDE_BASE if shuffled else Mode.CANDIDATE
        said = self._say(State(rest=Mode.BASE, chosen=region.pieces, mode=mode), self.flipped)
        return np.array([self.question.is_flipped(reply) for reply in said])

    def disturbed(self, region: Region) -> BoolArray:
        """The control of `undone`: which flips are undone when the group is moved as far as to the base, in another direction."""
        return self._undone(self._say(State(rest=Mode.CANDIDATE, chosen=region.pieces, mode=Mode.BESIDE_CANDIDATE), self.flipped))

    def examples(self, region: Region) -> tuple[Flip, ...]:
        """The first flipped prompts, with what is said as the base, as the candidate, and with `region` put back."""
        base = self._say(State(rest=Mode.BASE), self.flipped)
        rows = list(zip(self.flipped, base, self._plain, self._restored(region.pieces), strict=False))
        return tuple(
            Flip(
                prompt="\n".join(f"{message.role}: {message.content}" for message in prompt.messages)[:LONGEST],
                category=prompt.category,
                base=before[:LONGEST],
                candidate=after[:LONGEST],
                restored=restored[:LONGEST],
            )
            for (prompt, _), before, after, restored in rows[:EXAMPLES]
        )

    def _restored(self, pieces: Sequence[Piece]) -> list[str]:
        return self._say(State(rest=Mode.CANDIDATE, chosen=tuple(pieces)), [*self.flipped, *self.kept])

    def _undone(self, said: Sequence[str]) -> BoolArray:
        return np.array([self.question.is_undone(reply) for reply in said])

    def _askable(self, prompts: Sequence[Prompt]) -> list[Row]:
        rows = [(prompt, self._subject.model.render(prompt, room=self._subject.max_new_tokens)) for prompt in prompts]
        return [(prompt, row) for prompt, row in rows if not row.problem]

    def _say(self, state: State, rows: Sequence[Row]) -> list[str]:
        """Replies of the model in this state; read back where the run already holds them."""
        run, ids = self.case.workbench.run, [row.ids for _, row in rows]
        name = f"cache/{sha256_text(canonical_json([self._key, state.name, ids]))}.json"
        # Not there yet, or damaged by hand: then it is asked.
        with contextlib.suppress(OSError, ValueError):
            held = json.loads((run.path / name).read_text(encoding="ascii"))
            if isinstance(held, list) and len(held) == len(rows) and all(isinstance(text, str) for text in held):
                return held
        self._patchwork.show(state.rest, state.chosen, state.mode)
        said = replies(self._subject, [row for _, row in rows]) if rows else []

        def save(stream: IO[bytes]) -> None:
            stream.write(json.dumps(said).encode("ascii"))

        run.write(name, save)
        return said

    @cached_property
    def _key(self) -> list[object]:
        case, how = self.case, self.case.workbench.decoding
        digests = [case.base.digest, case.candidate.digest, case.surface.digest, *(adapter.digest for adapter in case.adapters)]
        return ["causes", __version__, digests, self._subject.precision, how.max_new_tokens, how.batch_size]


def _as_wanted(prompt: Prompt, reply: str) -> bool:
    return judge_refusal(reply) == ("refusal" if prompt.expect == "refuse" else "compliance")
