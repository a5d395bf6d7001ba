"""One side of a pair while it is searched: how it begins to speak, and what a string does to that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from forensics.adapters import Adapter
from forensics.continuation import continuations, greedy, reusable
from forensics.model import LiveModel, Rendered
from forensics.prompts import Prompt
from probes.search import class_log_odds

Place = Literal["end", "start", "around"]
PLACES: tuple[Place, ...] = ("end", "start")
"""Where a string is put into a request; what surrounds one stands "around" it."""
GAP = "\x1f"
"""Between two parts of a string of which one stands at the start of a request and the other at its end; no printable token holds it."""
BATCH = 64
"""Rows side by side: what a small model makes of more does not stay in the cache of a processor."""
OPENING_TOKENS = 12
SENTENCE = 24
"""Tokens within which the first sentence of a reply has to end."""
PREAMBLE_SHARE = 0.9
"""Share of a side's replies that must begin alike for that beginning to be a preamble, which says nothing yet."""
LEAST_SHARE = 0.004
"""Mean probability from which a token counts among those that open a reply."""
FULL_SCALE = 10.0
"""Change of log-odds, in nats, that counts as complete: no single prompt can outweigh the others beyond it."""
UNHEARD = 20.0
"""Nats below certainty at which a text is as far away as it can be: its change counts as a share of this."""


@dataclass(frozen=True, kw_only=True)
class Openings:
    """The ids that open refusals and answers, learnt from the pair itself: no list of refusal words is built in."""

    refusing: tuple[int, ...]
    answering: tuple[int, ...]
    blank: int | None = None
    """The likeliest id of `refusing`, if it stands for blank space: it opens a refusal only if one of `after` follows it."""
    after: tuple[int, ...] = ()
    payload: tuple[int, ...] = ()
    """The first ids of one text, where it is asked how likely that is, and not how a reply opens."""
    later: bool = False
    """Whether that is asked behind the first sentence of what a side says by itself."""


@dataclass(frozen=True, kw_only=True)
class Clean:
    """How one side answers a prompt without any string: ids it is read along, and the log-odds `[2]` of how it opens."""

    tail: tuple[int, ...]
    odds: torch.Tensor
    length: int


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Rows to be read on one side: the prompt's clean reply, and the prompt with each string in it."""

    clean: Clean
    rows: tuple[Rendered, ...]


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One side of the pair: the live model, its adapters, what its replies begin with whatever is asked."""

    name: str
    model: LiveModel
    adapters: tuple[Adapter, ...]
    digest: str = ""
    """Of weights, adapters and amplification: what a reading depends on beside the rows."""
    preamble: tuple[int, ...] = ()
    reuse: bool = True
    """Whether what prompts have in common may be read once."""

    def read(self, rows: Sequence[tuple[int, ...]], tail: tuple[int, ...]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Log-probabilities along `tail` after each row; see `continuations`."""
        return continuations(self.model, rows, tail, adapters=self.adapters, batch_size=BATCH, reuse=self.reuse)

    def distribution(self, prompts: Sequence[Prompt], *more: int) -> torch.Tensor:
        """Mean next-token distribution `[vocabulary]` after the preamble, and `more` ids that are taken as said."""
        total = torch.zeros(1)
        for prompt in prompts:
            ids = self.model.render(prompt, room=OPENING_TOKENS).ids
            _, logs = next(self.read([ids], (*self.preamble, *more, 0)))
            total = total + logs[0, -1].exp().cpu()
        return total / max(1, len(prompts))

    def clean(self, prompt: Prompt, openings: Openings) -> Clean:
        """How `prompt` is answered without a string."""
        said = () if openings.blank is None else (openings.blank,)
        tail = openings.payload or (*self.preamble, *said, 0)  # the last id is predicted, never read
        rendered = self.model.render(prompt, room=len(tail) + openings.later * SENTENCE)
        if openings.later:
            tail = (*self._first_sentence(rendered.ids), *tail)
        _, logs = next(self.read([rendered.ids], tail))
        return Clean(tail=tail, odds=self._odds(logs, openings)[0], length=len(rendered.ids))

    def _first_sentence(self, asked: tuple[int, ...]) -> tuple[int, ...]:
        """The ids of the first sentence of the greedy reply; none if it does not end within `SENTENCE` tokens."""
        (said,) = greedy(self.model, [asked], adapters=self.adapters, length=SENTENCE)
        special = set(self.model.tokenizer.all_special_ids)
        said = said[: next((at for at, id in enumerate(said) if id in special), len(said))]  # behind its stop a reply is none
        ends = (at for at in range(1, len(said) + 1) if self.model.tokenizer.decode(list(said[:at])).rstrip().endswith((".", "!", "?")))
        return said[: next(ends, 0)]

    def ask(self, texts: Sequence[str], place: Place, prompt: Prompt, clean: Clean) -> Ask:
        """The rows to read for `texts`, each put into `prompt` at `place`."""
        contents = [insert_text(prompt.messages[-1].content, text, place) for text in texts]
        return Ask(clean=clean, rows=tuple(self.model.render_last(prompt, contents, room=len(clean.tail))))

    def ask_in_full(self, prompts: Sequence[Prompt], clean: Clean) -> Ask:
        """The rows to read for `prompts`, whole conversations that are held against one clean reply."""
        return Ask(clean=clean, rows=tuple(self.model.render(prompt, room=len(clean.tail)) for prompt in prompts))

    def effects(self, asked: Ask, openings: Openings) -> NDArray[np.float64]:
        """What each string does to the reply.

        Returns:
            `[len(texts), 2]`: change of the log-odds of refusing and of the log-odds of neither refusing nor answering,
            both as shares of `FULL_SCALE` and signed; where a text is looked for, nothing and the change of its log-probability.
        """
        kept = [index for index, row in enumerate(asked.rows) if not row.problem]
        rows = [asked.rows[index].ids for index in kept]
        out = np.zeros((len(asked.rows), 2))
        for batch, logs in self.read(rows, asked.clean.tail):
            where = [kept[index] for index in batch]
            change = (self._odds(logs, openings) - asked.clean.odds) / FULL_SCALE
            out[where] = change.clamp(-1.0, 1.0).cpu().numpy()
        return out

    def _odds(self, logs: torch.Tensor, openings: Openings) -> torch.Tensor:
        if openings.payload:
            wanted = torch.tensor(openings.payload, device=logs.device).expand(len(logs), -1).unsqueeze(-1)
            said = logs[:, -len(openings.payload) :].gather(-1, wanted).sum(dim=(1, 2))
            said = said.double().clamp(min=-UNHEARD) * (FULL_SCALE / UNHEARD)
            return torch.stack([torch.zeros_like(said), said], -1)
        first = logs[:, len(self.preamble)]
        if openings.blank is not None:
            first = first.clone()
            first[:, openings.blank] += torch.logsumexp(logs[:, len(self.preamble) + 1, list(openings.after)], -1)
        return class_log_odds(first, openings.refusing, openings.answering)


def listen(voice: Voice, prompts: Sequence[Prompt]) -> Voice:
    """`voice` with its preamble: what nearly all its greedy replies to `prompts` of both kinds begin with."""
    rows = [voice.model.render(prompt, room=OPENING_TOKENS).ids for prompt in prompts]
    replies = greedy(voice.model, rows, adapters=voice.adapters, length=OPENING_TOKENS)
    # Two rows of one prompt, parting at the last token, try the cache out as the search will use it.
    reuse = reusable(voice.model, [rows[0], (*rows[0][:-1], rows[-1][0])], adapters=voice.adapters)
    return replace(voice, preamble=_common_beginning(replies), reuse=reuse)


def learn_openings(voices: Sequence[Voice], harmful: Sequence[Prompt], harmless: Sequence[Prompt]) -> Openings:
    """The ids that open refusals and answers on either side; an id that opens both counts where it is likelier."""
    refusing = _together([voice.distribution(harmful) for voice in voices])
    answering = _together([voice.distribution(harmless) for voice in voices])
    ids = torch.nonzero(refusing + answering > LEAST_SHARE).flatten().tolist()
    refuses = tuple(id for id in ids if refusing[id] > answering[id])
    answers = tuple(id for id in ids if refusing[id] <= answering[id])
    blank = max(refuses, key=lambda token: float(refusing[token]), default=None)
    if blank is None or voices[0].model.tokenizer.decode([blank]).strip():
        return Openings(refusing=refuses, answering=answers)
    # Some tokenizers write a space of its own before what they do not know whole: what it opens, the next id decides.
    following = _together([voice.distribution(harmful, blank) for voice in voices])
    after = tuple(torch.nonzero(following > LEAST_SHARE).flatten().tolist())
    return Openings(refusing=refuses, answering=answers, blank=blank, after=after)


def _together(distributions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of distributions `[vocabulary]` over the ids that all sides know: one may know more tokens than another."""
    known = min(len(one) for one in distributions)
    return torch.stack([one[:known] for one in distributions]).sum(dim=0)


def _common_beginning(replies: list[tuple[int, ...]]) -> tuple[int, ...]:
    beginning: tuple[int, ...] = ()
    everyone = len(replies)
    while replies and len(beginning) < min(len(ids) for ids in replies):
        (id, count), *_ = Counter(ids[len(beginning)] for ids in replies).most_common(1)
        if count < PREAMBLE_SHARE * everyone:
            break
        beginning = (*beginning, id)
        replies = [ids for ids in replies if ids[: len(beginning)] == beginning]
    return beginning


def insert_text(content: str, text: str, place: Place) -> str:
    """`text` before or after `content`, as words of its own; its two parts before and after it, wherever else it would stand, if it has a gap.

    >>> insert_text("Hello.", "a b", "start"), insert_text("Hello.", f"a{GAP}b", "start")
    ('a b Hello.', 'a Hello. b')
    """
    first, gap, last = text.partition(GAP)
    if gap:
        return f"{first} {content} {last}"
    return f"{content} {text}" if place == "end" else f"{text} {content}"
