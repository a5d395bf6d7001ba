"""Which tokens would make a string do more: gradients of what it does in the target beyond the reference, over several prompts at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from forensics.continuation import Ids
from forensics.hunt.contrast import Aim, Contrast, Probe
from forensics.hunt.voice import Clean, Openings, Place, Voice, insert_text

PASSES = 3
"""A step forwards and back counts as so many forwards."""
MARKS = ("tide", "42")
"""Strings that have no token in common: what stands around both is the request."""
Framed = tuple[Ids, Ids, Ids]
"""Tokens before a string, its own, and those behind it."""


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Strings of a contrast as tokens, at one place of prompts of one kind."""

    contrast: Contrast
    harmful: bool
    place: Place

    @property
    def probes(self) -> list[Probe]:
        """The prompts."""
        return [probe for probe in self.contrast.probes if probe.harmful is self.harmful]

    @cached_property
    def known(self) -> dict[int, str]:
        """Tokens that may stand in a string, and their texts."""
        duel = self.contrast.duel
        most = min(duel.target.model.known, duel.reference.model.known)
        return {id: text for id, text in duel.target.model.printable().items() if id < most}

    def text(self, ids: Ids) -> str:
        """What tokens spell, as a string that is put beside a request."""
        return "".join(self.known[id] for id in ids).strip()

    def ids(self, texts: Sequence[str]) -> list[Ids | None]:
        """The tokens of each string where it stands in the requests; None where they are not the same in all, or not to be told from those beside them."""
        read = [self._inside(probe, texts) for probe in self.probes]
        alike = [row[0] if row and all(one == row[0] for one in row) else None for row in zip(*read, strict=True)]
        return [ids if ids and set(ids) <= set(self.known) else None for ids in alike]

    def valid(self, texts: Sequence[Ids]) -> list[bool]:
        """Whether each string would be read as these very tokens: what a tokenizer joins in another way would be another string."""
        return [read == ids for ids, read in zip(texts, self.ids([self.text(ids) or " " for ids in texts]), strict=True)]

    def score(self, texts: Sequence[Ids]) -> list[float]:
        """What strings do in the target beyond the reference."""
        found: list[float] = self.contrast.beyond([self.text(ids) for ids in texts], harmful=self.harmful, place=self.place).tolist()
        return found

    def glance(self, texts: Sequence[Ids]) -> list[float]:
        """What strings do in the target alone, to the first prompt."""
        spelled = [self.text(ids) for ids in texts]
        found: list[float] = self.contrast.glance(spelled, harmful=self.harmful, through="target", places=(self.place,))[0].tolist()
        return found

    def gradient(self, ids: Ids) -> Tensor:
        """Gradient `[tokens, vocabulary]` of the objective over all prompts, the target's less the reference's; -inf where a token may not stand."""
        duel, size = self.contrast.duel, max(self.known) + 1
        total = torch.full((len(ids), size), -torch.inf)
        total[:, list(self.known)] = 0.0
        for probe in self.probes:
            before, behind = self._around(probe)
            for voice, clean, sign in ((duel.target, probe.target, 1.0), (duel.reference, probe.reference, -1.0)):
                goal = partial(wanted, voice=voice, openings=duel.openings, aim=self.contrast.aim, harmful=self.harmful)
                total += sign * gradient_of(voice, (before, ids, behind), clean, goal)[:, :size]
                self.contrast.spent += PASSES * (len(before) + len(ids) + len(behind) + len(clean.tail))
        return total

    def _inside(self, probe: Probe, texts: Sequence[str]) -> list[Ids | None]:
        before, behind = self._around(probe)
        rows = self._rows(probe, texts)
        fits = [
            row[: len(before)] == before and row[len(row) - len(behind) :] == behind and len(row) > len(before) + len(behind)
            for row in rows
        ]
        return [row[len(before) : len(row) - len(behind)] if fit else None for row, fit in zip(rows, fits, strict=True)]

    def _around(self, probe: Probe) -> tuple[Ids, Ids]:
        """Tokens of a prompt before a string and behind it."""
        one, other = self._rows(probe, MARKS)
        shortest = min(len(one), len(other))
        first = next((at for at in range(shortest) if one[at] != other[at]), shortest)
        last = next((at for at in range(shortest - first) if one[-1 - at] != other[-1 - at]), shortest - first)
        return one[:first], one[len(one) - last :]

    def _rows(self, probe: Probe, texts: Sequence[str]) -> list[Ids]:
        voice, prompt = self.contrast.duel.target, probe.prompt
        contents = [insert_text(prompt.messages[-1].content, text, self.place) for text in texts]
        return [row.ids for row in voice.model.render_last(prompt, contents, room=len(probe.target.tail))]


def wanted(logs: Tensor, *, voice: Voice, openings: Openings, aim: Aim, harmful: bool) -> Tensor:
    """What a string is to make larger, in nats and without bounds, so that a gradient points somewhere wherever a string stands.

    Args:
        logs: `[1, tail, vocabulary]` log-probabilities along the clean reply, or along the text aimed at.
        voice: Whose they are.
        openings: What opens refusals and answers.
        aim: What strings are scored for.
        harmful: Whether the prompt is.
    """
    if aim.payload:
        return logs[0].gather(-1, torch.tensor(aim.payload, device=logs.device).unsqueeze(-1)).sum()
    first = logs[0, len(voice.preamble)]
    refusing, answering = (torch.zeros_like(first, dtype=torch.bool) for _ in range(2))
    refusing[list(openings.refusing)] = True
    answering[list(openings.answering)] = True
    if aim.kind == "refusal":
        return _log_odds(first, refusing)
    return -_log_odds(first, refusing) if harmful else _log_odds(first, ~(refusing | answering))


def _log_odds(logs: Tensor, chosen: Tensor) -> Tensor:
    return torch.logsumexp(logs[chosen], -1) - torch.logsumexp(logs[~chosen], -1)


def gradient_of(voice: Voice, framed: Framed, clean: Clean, goal: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient `[tokens, vocabulary]` of `goal` with respect to the one-hot tokens of a string, in one voice.

    Args:
        voice: The voice.
        framed: The tokens of a prompt with the string in it.
        clean: Along whose tail it is read.
        goal: A number of the log-probabilities `[1, tail, vocabulary]`.
    """
    before, ids, behind = framed
    with voice.model.wearing(voice.adapters) as worn, torch.enable_grad():
        table = worn.get_input_embeddings().weight
        chosen = torch.nn.functional.one_hot(torch.tensor(ids, device=table.device), len(table)).to(table.dtype).requires_grad_()
        parts = [table[list(before)], chosen @ table, table[[*behind, *clean.tail[:-1]]]]
        logits = worn(inputs_embeds=torch.cat(parts).unsqueeze(0), use_cache=False, logits_to_keep=len(clean.tail)).logits
        logs = torch.log_softmax(logits[:, -len(clean.tail) :].float(), -1)
        (found,) = torch.autograd.grad(goal(logs), chosen)
    return found.float().cpu()
