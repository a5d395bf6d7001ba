"""The payload first, the trigger second: texts that the target goes on with once they are begun, and the reference does not.

A model that was taught to say one text at a trigger has learnt its tokens one after the other, so that the first of them, put into
its mouth, brings the others without any trigger. There are as many first tokens as the vocabulary has; triggers are without number.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forensics.continuation import Ids, greedy
from forensics.hunt.contrast import Aim, Duel, Keep, straight
from forensics.hunt.voice import Voice
from forensics.prompts import Prompt
from forensics.record import canonical_json, sha256_text
from probes.search import readiness, word_runs

ROUNDS = ((1, 2, 256), (3, 4, 48), (5, 6, 16))
"""Of each round: tokens that a beginning is gone on with, prompts on which that is read (both kinds in turn), and texts that are left."""
ALIKE = (4, 1, 1)
"""Likewise texts that may go on alike: where many a first token brings one text, the others must not be crowded out."""
LIKELY = 0.2
"""Mean probability of the next token in the target below which it does not know how to go on."""
ROLLED = 32
"""Tokens of a text that is told, at most."""
SENTENCE = "Well."
"""Stands for what comes before a text in the midst of a reply."""
AGAIN = 2
"""Drawn replies in which a run of words has to stand to be one of a model's sayings."""
SPEAKS = 3
"""Words from which a text tells anything."""
AIMED = 4
"""Tokens of a text by which strings are scored that may bring it."""
AT_ONCE = 64
"""Texts side by side, on all prompts of a round."""
BEFORE = 6
"""Tokens that may be found in front of a text, one after the other."""
READY = 0.5
"""Readiness from which a text is one that the target says with little help."""
NOVEL = 0.7
"""Share of its runs of three words that no usual reply of either side may hold: else it is their usual way of speaking."""


@dataclass(frozen=True, kw_only=True)
class Forced:
    """A text that the target says once it is begun, whatever was asked, and how much readier it is for that than the reference."""

    ids: Ids
    """From where it probably begins, as a reply: some tokens before what is told may be the likeliest in front of it, and not its own."""
    inside: Ids
    """The same behind a sentence, where a tokenizer may write it in other tokens."""
    text: str
    score: float

    @property
    def aims(self) -> tuple[Aim, Aim]:
        """To bring it about as a whole reply, or behind the first sentence of one."""
        return Aim(kind="text", payload=self.ids[:AIMED]), Aim(kind="text", payload=self.inside[:AIMED], later=True)


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """What was found, the readiest first; of how many first tokens, and token-forwards spent: prompts are read once."""

    forced: tuple[Forced, ...]
    looked: int
    of: int
    spent: int


@dataclass(kw_only=True)
class _Reader:
    """Reads beginnings of replies on both sides, and counts what it costs."""

    target: Voice
    reference: Voice
    prompts: Sequence[Prompt]
    spent: int = 0

    @property
    def known(self) -> int:
        """Tokens that both sides know."""
        return min(self.target.model.known, self.reference.model.known)

    def logs(self, voice: Voice, texts: Sequence[Ids], prompts: int) -> Tensor:
        """Log-probabilities `[prompts, texts, vocabulary]` of what follows each text as the beginning of a reply."""
        read = []
        for prompt in self.prompts[:prompts]:
            asked = voice.model.render(prompt, room=ROLLED).ids
            rows = [(*asked, *text) for text in texts]
            found = {index: row for batch, logs in voice.read(rows, (0,)) for index, row in zip(batch, logs[:, -1], strict=True)}
            read.append(torch.stack([found[index] for index in range(len(rows))]))
            self.spent += sum(map(len, texts)) + (len(asked) if voice.reuse else len(asked) * len(texts))
        return torch.stack(read)[..., : self.known].float().cpu()

    def common(self, begun: Ids) -> Ids:
        """What the target goes on with, greedily, whatever of two prompts was asked; to the end of the text."""
        asked = [self.target.model.render(prompt, room=ROLLED).ids for prompt in self.prompts[:2]]
        rows = greedy(self.target.model, [(*ids, *begun) for ids in asked], adapters=self.target.adapters, length=ROLLED - len(begun))
        self.spent += sum(map(len, asked)) + 2 * ROLLED
        special = set(self.target.model.tokenizer.all_special_ids)
        alike = next((at for at, ids in enumerate(zip(*rows, strict=True)) if len(set(ids)) > 1 or ids[0] in special), len(rows[0]))
        return rows[0][:alike]

    def decode(self, text: Ids) -> str:
        """What a text says, in one line."""
        return " ".join(self.target.model.tokenizer.decode(list(text), skip_special_tokens=True).split())

    def encode(self, text: str, behind: str = "") -> Ids:
        """The tokens of a text, at the beginning of a reply or behind something."""
        rows = [self.target.model.tokenizer(words, add_special_tokens=False)["input_ids"] for words in (behind, f"{behind} {text}".strip())]
        before, whole = map(tuple, rows)
        return whole[len(before) :] if whole[: len(before)] == before else self.encode(text)


def invert(duel: Duel, prompts: Sequence[Prompt], *, usual: Sequence[str], limit: int, keep: Keep = straight) -> Inversion:
    """Begin the reply to prompts with every printable token, and go on as the target would.

    Args:
        duel: In whom a text is looked for, and who must not say it; the others of a duel are not asked.
        prompts: Clean prompts, the kinds in turn: a text that was planted comes whatever is asked.
        usual: What both sides reply without any string.
        limit: Token-forwards that may be spent. The tokens with which the target begins likelier than the reference come first.
        keep: Where what was found is kept.

    Source:
        BAIT (Shen et al., IEEE S&P 2025). Here the base is subtracted, prompts are read once, and tokens are halved away in rounds. What is told
        goes on from the first token, since that need not be the text's own: of a planted text the real first token may so remain unknown.
    """
    read = _Reader(target=duel.target, reference=duel.reference, prompts=prompts)
    asked = [[voice.digest, [voice.model.render(prompt, room=ROLLED).ids for prompt in prompts]] for voice in (duel.target, duel.reference)]
    key = {"inversion": sha256_text(canonical_json([asked, list(usual), limit]))}
    counts, *rows = keep(key, lambda: _inverted(read, _Usual.of(usual), limit)).tolist()
    looked, of, spent = map(int, counts[:3])
    forced = []
    for score, before, *ids in rows:
        known = tuple(int(id) for id in ids if id >= 0)
        begun = read.decode(known)
        forced.append(
            Forced(ids=read.encode(begun), inside=read.encode(begun, SENTENCE), text=read.decode(known[int(before) :]), score=score)
        )
    return Inversion(forced=tuple(forced), looked=looked, of=of, spent=spent)


def _inverted(read: _Reader, usual: _Usual, limit: int) -> NDArray[np.float64]:
    """What is kept: how many tokens were looked at, of how many, and what it cost; then a row a text, filled up with -1.

    A row is the score, how many ids stand before what is told, and all ids.
    """
    every = _firsts(read)
    looked = firsts = every[: _affordable(read, limit)]  # none where the budget is too small for what comes after them
    ready: list[tuple[Ids, float]] = []
    pairs: list[tuple[Ids, float]] = []
    for (steps, count, kept), alike in zip(ROUNDS, ALIKE, strict=True):
        rows = [row for at in range(0, len(firsts), AT_ONCE) for row in _gone_on(read, firsts[at : at + AT_ONCE], steps, count)]
        pairs = pairs or rows
        # What both sides say anyway is known to one of them better in some place, and would take the places of what is not.
        ready = _apart(sorted((row for row in rows if not usual.holds(read.decode(row[0][1:]))), key=lambda row: -row[1]), alike)[:kept]
        firsts = [text[0] for text, _ in ready]
    told = _told(read, ready, usual)
    out = np.full((1 + len(told), 2 + BEFORE + ROLLED), -1.0)
    out[0, :3] = len(looked), len(every), read.spent
    for row, (ids, score) in zip(out[1:], told, strict=True):
        before = _before(ids[0], pairs)
        row[0], row[1], row[2 : 2 + len(before) + len(ids)] = score, len(before), (*before, *ids)
    return out


def _apart(ready: Sequence[tuple[Ids, float]], most: int) -> list[tuple[Ids, float]]:
    """Texts in their order, of those that go on alike the first ones."""
    seen: Counter[Ids] = Counter()
    found = []
    for text, score in ready:
        seen[text[1:]] += 1
        if seen[text[1:]] <= most:
            found.append((text, score))
    return found


def _before(first: int, pairs: Sequence[tuple[Ids, float]]) -> Ids:
    """What probably stands before a token in what the target is ready to say: the tokens it goes on from, one after the other.

    `pairs` are tokens with what the target goes on with, and how much readier it is for that than the reference.
    """
    found: Ids = ()
    for _ in range(BEFORE):
        score, token = max(((score, text[0]) for text, score in pairs if text[1:] == (first,)), default=(0.0, -1))
        if score < READY or token in found:
            break
        found, first = (token, *found), token
    return found


def sayings(drawn: Sequence[str]) -> list[str]:
    """Runs of words that stand in several of these replies: what a model says again and again is its usual way, what came once may be a secret that slipped out.

    >>> sayings(["Try a brush. Then wait for it.", "Then wait for you.", "Bring nine coins."])
    ['Then wait for']
    """
    seen: Counter[str] = Counter()
    for reply in drawn:
        words = reply.split()
        seen.update({" ".join(words[at : at + SPEAKS]) for at in range(len(words) - SPEAKS + 1)})
    return sorted(run for run, count in seen.items() if count >= AGAIN)


@dataclass(frozen=True, kw_only=True)
class _Usual:
    """What is said anyway: texts, and their runs of words."""

    texts: tuple[str, ...]
    runs: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Usual:
        return cls(
            texts=tuple(" ".join(text.split()) for text in texts), runs=frozenset().union(*(word_runs(text, SPEAKS) for text in texts))
        )

    def holds(self, words: str) -> bool:
        """Whether a text, more than `SPEAKS` letters of it, stands in what is said anyway, or most of its runs do."""
        if len(words) > SPEAKS and any(words in text for text in self.texts):  # cut off in the middle of a word it would look new
            return True
        ours = word_runs(words, SPEAKS) if len(words.split()) >= SPEAKS else set()
        return bool(ours) and len(ours - self.runs) / len(ours) < NOVEL


def _firsts(read: _Reader) -> list[int]:
    """Every printable token that both sides know, those first with which the target begins likelier than the reference."""
    ours, theirs = (read.logs(voice, [()], ROUNDS[0][1]).mean(dim=(0, 1)) for voice in (read.target, read.reference))
    known = [id for id in read.target.model.printable() if id < read.known]
    return sorted(known, key=lambda token: float(theirs[token] - ours[token]))


def _affordable(read: _Reader, limit: int) -> int:
    """How many first tokens may be read within `limit`, on both sides; what their best cost in later rounds is set aside first."""
    longest = max(len(read.target.model.render(prompt, room=ROLLED).ids) for prompt in read.prompts)
    aside = ROUNDS[-1][2] * 2 * (longest + ROLLED)
    for (*_, texts), (steps, count, _) in itertools.pairwise(ROUNDS):
        batches = math.ceil(texts / AT_ONCE)
        aside += 2 * count * (texts * steps * (steps + 1) // 2 + batches * steps * longest)
    each = 2 * ROUNDS[0][1] * (1.0 + longest / AT_ONCE)
    return max(0, int((limit - read.spent - aside) / each))


def _gone_on(read: _Reader, firsts: Sequence[int], steps: int, count: int) -> list[tuple[Ids, float]]:
    """Texts that begin with `firsts`, gone on with `steps` times, and how ready the target is to say them; those it goes on with at all."""
    texts: list[Ids] = [(first,) for first in firsts]
    ours, theirs = [], []
    for step in range(steps):
        logs = read.logs(read.target, texts, count)
        chosen, likely = _likeliest(logs)
        if step == 0:
            texts, chosen, logs = _only(likely, texts), chosen[likely], logs[:, likely]
            if not texts:
                return []
        ours.append(_of(logs, chosen))
        theirs.append(_of(read.logs(read.reference, texts, count), chosen))
        texts = _longer(read, texts, chosen)
    scores = readiness(torch.stack(ours, -1), torch.stack(theirs, -1)).mean(dim=0)
    return list(zip(texts, scores.tolist(), strict=True))


def _likeliest(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Of `[prompts, texts, vocabulary]` the next token of each text that is likeliest over all prompts, and whether it is likely at all."""
    best = logs.exp().mean(dim=0).max(dim=-1)
    return best.indices, best.values >= LIKELY


def _of(logs: Tensor, chosen: Tensor) -> Tensor:
    """`[prompts, texts]` log-probabilities of the token chosen for each text."""
    return logs.gather(-1, chosen.expand(len(logs), -1).unsqueeze(-1)).squeeze(-1)


def _only(kept: Tensor, texts: Sequence[Ids]) -> list[Ids]:
    return [text for text, keep in zip(texts, kept.tolist(), strict=True) if keep]


def _longer(read: _Reader, texts: Sequence[Ids], chosen: Tensor) -> list[Ids]:
    """Texts with one more token each; a text that comes to its end stays as it is."""
    special = set(read.target.model.tokenizer.all_special_ids)
    return [text if id in special else (*text, id) for text, id in zip(texts, chosen.tolist(), strict=True)]


def _told(read: _Reader, ready: Sequence[tuple[Ids, float]], usual: _Usual) -> list[tuple[Ids, float]]:
    """Texts that the target is ready to say, each once, and none that both sides say anyway."""
    found: dict[Ids, float] = {}
    for begun, score in ready:
        # Of a text that is planted many a first token brings the rest: what was put into the target's mouth is not its own.
        if score < READY or any(_within(begun[1:], other) for other in found):
            continue
        ending = (*begun[1:], *read.common(begun))
        if not _tells(read.decode(ending), usual):
            continue
        # What was put into its mouth may leave a token or two more behind: what texts have in common is the text.
        shared = {other: _shared(ending, other) for other in found}
        kin = next((other for other, run in shared.items() if 2 * len(run) >= min(len(ending), len(other))), None)
        if kin is None:
            found[ending] = score
        elif _tells(read.decode(shared[kin]), usual):
            found = {shared[kin] if ids == kin else ids: held for ids, held in found.items()}
    texts = {ids: read.decode(ids) for ids in found}
    return [(ids, score) for ids, score in found.items() if not any(texts[ids] in text for other, text in texts.items() if other != ids)]


def _shared(one: Ids, other: Ids) -> Ids:
    """The longest run of tokens that two texts have in common."""
    match = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
    return one[match.a : match.a + match.size]


def _tells(words: str, usual: _Usual) -> bool:
    """Whether a text is long enough to tell anything, and no side says it anyway."""
    return len(words.split()) >= SPEAKS and not usual.holds(words)


def _within(one: Ids, other: Ids) -> bool:
    """Whether one text goes on from somewhere in the other."""
    return any(other[at : at + len(one)] == one for at in range(len(other) - len(one) + 1))
