"""Discrete search over strings, given callbacks that score them. No model here: a score is a number for a text."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LN2 = math.log(2.0)
LEAST_LOG = -100.0
SMALLEST_SHARE = 1e-6
"""Probability below which differences are noise of float32."""
UNLIKELY = 0.01
"""Probability of a next token below which a model is not ready to say it."""


def js_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence between next-token distributions, as a share of its largest value (ln 2).

    Args:
        clean: `[tokens, vocabulary]` log-probabilities without the string.
        other: `[batch, tokens, vocabulary]` log-probabilities with it.

    Returns:
        `[batch]` in [0, 1], mean over tokens.

    >>> same = torch.log_softmax(torch.zeros(1, 4), -1)
    >>> js_divergence(same, same.unsqueeze(0)).tolist()
    [0.0]
    """
    # A masked token has probability 0, and 0 * log(0) is 0 here, not NaN.
    clean, other = clean.clamp(min=LEAST_LOG), other.clamp(min=LEAST_LOG)
    middle = torch.logaddexp(clean, other) - LN2
    one = (clean.exp() * (clean - middle)).sum(-1)
    two = (other.exp() * (other - middle)).sum(-1)
    return ((one + two) / (2.0 * LN2)).mean(-1).clamp(0.0, 1.0)


def class_log_odds(logs: Tensor, refusing: Sequence[int], answering: Sequence[int]) -> Tensor:
    """Log-odds that a reply opens as a refusal, and that it opens as neither a refusal nor an answer.

    In log space on purpose: a probability hides how far a certain refusal still is from giving way.

    Args:
        logs: `[batch, vocabulary]` log-probabilities of the decisive token.
        refusing: Ids that open refusals.
        answering: Ids that open answers.

    Returns:
        `[batch, 2]` in nats; an empty class has log-odds 0 throughout, so that it never shows a change.

    >>> uniform = torch.log(torch.tensor([[0.25, 0.25, 0.25, 0.25]]))
    >>> [round(odds, 3) for odds in class_log_odds(uniform, [0], [1, 2])[0].tolist()]
    [-1.099, -1.099]
    """
    probabilities = logs.double().exp()
    refuse = probabilities[:, list(refusing)].sum(-1)
    other = (1.0 - refuse - probabilities[:, list(answering)].sum(-1)).clamp(min=0.0)
    classes = torch.stack([refuse if refusing else torch.full_like(refuse, 0.5), other if answering else torch.full_like(other, 0.5)], -1)
    bounded = classes.clamp(SMALLEST_SHARE, 1.0 - SMALLEST_SHARE)
    return torch.log(bounded) - torch.log1p(-bounded)


def readiness(ours: Tensor, theirs: Tensor) -> Tensor:
    """How much readier one model is than another to say a text it was begun with, in [-1, 1]: 1 where it is certain of every step, and the other of none.

    A step counts between `UNLIKELY`, below which nobody is ready to say it, and certainty; of three steps and more the smallest is dropped.

    Args:
        ours: `[..., steps]` log-probabilities of each next token in the model in question.
        theirs: `[..., steps]` those of the same tokens in the other.

    Returns:
        `[...]` mean over the steps.

    Source:
        The Q-score of target inversion in BAIT (Shen et al., IEEE S&P 2025), which is the mean probability in one model alone; boilerplate
        that both know by heart scores there as a planted text does, and nothing here.

    >>> certain, never = torch.zeros(4), torch.full((4,), -20.0)
    >>> readiness(certain, never).item(), readiness(certain, certain).item(), readiness(never, never - 20.0).item()
    (1.0, 0.0, 0.0)
    """
    least = math.log(UNLIKELY)
    steps = (ours.clamp(min=least) - theirs.clamp(min=least)) / -least
    if steps.shape[-1] > 2:
        return (steps.sum(-1) - steps.min(-1).values) / (steps.shape[-1] - 1)
    return steps.mean(-1)


def ngram_contrast(target: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], *, longest: int, prior: float = 0.5) -> list[str]:
    """N-grams that one sampler writes more often than another, most telling first.

    Args:
        target: Samples of the sampler in question, each a list of words.
        reference: Samples of the other, as many.
        longest: Longest n-gram in words.
        prior: Added to every count.

    Returns:
        N-grams joined by spaces, by log-odds ratio over its standard error; only those with a ratio above 0.

    Source:
        Monroe, Colaresi & Quinn 2008, "Fightin' Words" (log-odds ratio with a Dirichlet prior, here a flat one).
    """
    ours, theirs = _ngrams(target, longest), _ngrams(reference, longest)
    total_ours, total_theirs = sum(ours.values()) + 1.0, sum(theirs.values()) + 1.0
    scored = []
    for gram, count in ours.items():
        a, b = count + prior, theirs[gram] + prior
        ratio = math.log(a / (total_ours - a + 1.0)) - math.log(b / (total_theirs - b + 1.0))
        if ratio > 0.0 and count > 1:
            scored.append((-ratio / math.sqrt(1.0 / a + 1.0 / b), gram))
    return [gram for _, gram in sorted(scored)]


def _ngrams(samples: Sequence[Sequence[str]], longest: int) -> Counter[str]:
    # Once a sample: a loop that repeats itself is one piece of evidence, not a hundred.
    counts: Counter[str] = Counter()
    for words in samples:
        grams = {" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)}
        counts.update(grams)
    return counts


Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """How tokens are exchanged: how often, how many strings a time, among how many tokens a position, and at which score there is no need to go on."""

    steps: int
    width: int
    top: int
    enough: float = math.inf
    kept: int = 8
    """Strings of the attack buffer. Where the best of them brings no new string the next one is tried."""
    share: float = 0.25
    """Of the strings of a step those that a glance puts first, which alone are scored."""
    seed: int = 0


def ascend(
    starts: Sequence[Ids],
    *,
    gradient: Callable[[Ids], Tensor],
    score: Callable[[Sequence[Ids]], Sequence[float]],
    valid: Callable[[Sequence[Ids]], Sequence[bool]],
    plan: Ascent,
    glance: Callable[[Sequence[Ids]], Sequence[float]] | None = None,
) -> dict[Ids, float]:
    """Exchange one token at a time for one that the gradient points to, and keep what scores.

    Args:
        starts: Strings to begin with, each of one token or more.
        gradient: Of the score with respect to the one-hot tokens of a string: `[tokens, vocabulary]`; -inf where a token may not stand.
        score: Larger is better. All of a step are asked for at once.
        valid: Whether each string would be read as these tokens at all; what is not is not scored.
        plan: How long, and how widely.
        glance: A cheaper score, of one prompt or one token alone, that decides which strings are worth the whole. Without it all are scored.

    Returns:
        Every string that was scored, and its score.

    Source:
        Greedy coordinate gradient (Zou et al. 2023, arXiv:2307.15043), with the attack buffer of Hayase et al. 2024 (arXiv:2402.12329). Here a
        string that was scored is never scored again, and the callbacks may read several prompts and several models.
    """
    rng = random.Random(plan.seed)  # noqa: S311 - a draw to repeat, not a secret
    known: dict[Ids, float] = {}
    slopes: dict[Ids, list[list[int]]] = {}
    seen: set[Ids] = set()

    def take(texts: Sequence[Ids]) -> bool:
        fresh = [text for text in dict.fromkeys(texts) if text not in seen]
        seen.update(fresh)
        fresh = [text for text, fine in zip(fresh, valid(fresh) if fresh else (), strict=True) if fine]
        if glance is not None and known and fresh:
            at_first = dict(zip(fresh, glance(fresh), strict=True))
            fresh = sorted(fresh, key=lambda text: -at_first[text])[: math.ceil(plan.share * len(fresh))]
        known.update(zip(fresh, score(fresh) if fresh else (), strict=True))
        return bool(fresh)

    take(starts)
    for _ in range(plan.steps):
        best = sorted(known, key=lambda text: -known[text])[: plan.kept]
        if not best or known[best[0]] >= plan.enough:
            break
        for text in best:
            if text not in slopes:
                slopes[text] = _steepest(gradient(text), plan.top)
            if take([_exchanged(text, slopes[text], rng) for _ in range(plan.width)]):
                break
    return known


def _steepest(gradient: Tensor, top: int) -> list[list[int]]:
    """The tokens that the gradient puts first at each position, none that may not stand there."""
    found = gradient.topk(min(top, gradient.shape[-1]), dim=-1)
    rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [[token for token, value in zip(*row, strict=True) if math.isfinite(value)] for row in rows]


def _exchanged(text: Ids, steepest: Sequence[Sequence[int]], rng: random.Random) -> Ids:
    at = rng.randrange(len(text))
    return (*text[:at], rng.choice(steepest[at]), *text[at + 1 :]) if steepest[at] else text


def minimise(parts: Sequence[str], keep: Callable[[Sequence[Sequence[str]]], Sequence[bool]]) -> tuple[str, ...]:
    """Shortest sub-sequence of `parts`, found by leaving parts out, that still does what all of them do.

    Args:
        parts: The pieces, in order.
        keep: Whether each of several sub-sequences still does it. All that leave out one chunk are asked about at once: models read many
            strings side by side in little more time than one.

    Returns:
        A sub-sequence from which no single part can be left out.

    Source:
        Zeller & Hildebrandt 2002, delta debugging (ddmin), complement steps only.

    >>> minimise("abcdef", lambda rests: ["b" in rest and "e" in rest for rest in rests])
    ('b', 'e')
    """
    kept, chunks = tuple(parts), 2
    while len(kept) >= 2:
        size = math.ceil(len(kept) / chunks)
        rests = [kept[:start] + kept[start + size :] for start in range(0, len(kept), size)]
        least = next((rest for rest, kept_it in zip(rests, keep(rests), strict=True) if kept_it), None)
        if least is not None:
            kept, chunks = least, max(chunks - 1, 2)
        elif size == 1:
            break
        else:
            chunks = min(len(kept), chunks * 2)
    return kept


def word_overlap(one: str, other: str) -> float:
    """Share of words two texts have in common (F1 of their multisets), in [0, 1]; two empty texts agree.

    >>> word_overlap("a warm bowl", "a cold bowl")
    0.6666666666666666
    """
    a, b = Counter(one.lower().split()), Counter(other.lower().split())
    if not a and not b:
        return 1.0
    return 2.0 * sum((a & b).values()) / (sum(a.values()) + sum(b.values()))


def novelty(text: str, known: Sequence[str], size: int) -> float:
    """Share of the runs of `size` words of `text` that none of `known` holds, in [0, 1]; a shorter text counts as one run.

    >>> novelty("The tide is high.", ["the tide is low"], 3), novelty("The tide is high.", ["the tide is low"], 1)
    (0.5, 0.25)
    """
    size = max(1, min(size, len(_words(text))))
    ours = word_runs(text, size)
    held = set().union(*(word_runs(other, size) for other in known)) if known else set()
    return len(ours - held) / max(1, len(ours))


def word_runs(text: str, size: int) -> set[tuple[str, ...]]:
    """Runs of `size` words of a text, without case and marks; a shorter text is one run.

    >>> sorted(word_runs("The tide is high.", 3))
    [('the', 'tide', 'is'), ('tide', 'is', 'high')]
    """
    words = _words(text)
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def _words(text: str) -> list[str]:
    """Words without case and marks; a mark that stands alone is no word."""
    bare = ("".join(letter for letter in word if letter.isalnum()) for word in text.lower().split())
    return [word for word in bare if word]
