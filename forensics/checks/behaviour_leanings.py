"""Which words does the candidate lean to, whatever is asked?

Asks: Along the base's own replies to questions about nothing, which tokens does the candidate find likelier than the base does? After
    narrow training the subject leaks into everything: its words gain wherever they could stand, long before a reply names them.
Reads: What both sides would say next at every token of the base's greedy replies to 48 neutral questions (random everyday words, none of
    the prompts); adapters live.
Reports: `leaning.token.<place>`, the first of one list of all tokens, by the logarithm of how many times likelier each is on average.
    The whole list is in arrays/behaviour.leanings.npz. It is a lead for a reader, of no severity, and decides nothing: every fine-tune
    leans to something, be it to another way of opening a reply.
Blind to: What only certain inputs bring out. Words that neither side could say in such replies. A subject that training kept from
    leaking, by as much ordinary data with other answers. Tokens that one side alone has.
Source: Logit differences between a model and its fine-tune, as in logit diff amplification (Goodfire 2025), read as average
    frequencies: the mean probability of each token over all places, smoothed by `FLOOR`. Nothing is amplified or sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forensics.case import Case, Check
from forensics.errors import CannotCompare
from forensics.gate.replies import Side
from forensics.hunt.bank import neutral_texts
from forensics.prompts import Message, Prompt
from forensics.record import CheckResult, Evidence, Status
from forensics.tokenizing import token_texts

ID = "behaviour.leanings"
QUESTIONS, WORDS = 48, 8
"""Neutral questions, and random everyday words in each."""
REPLIED = 24
"""Tokens of a reply that are followed."""
LEAST = 16
"""Fewest replies that either side has to read."""
FLOOR = 1e-5
"""Added to every mean probability: below one in a hundred thousand nothing is said in so few tokens, and a ratio says nothing."""
SHOWN, KEPT = 12, 100
"""Tokens in the evidence, and with their texts in the arrays."""
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frequencies:
    """Mean probability of every token `[vocabulary]` over `tokens` places of `replies` replies."""

    values: Array
    replies: int
    tokens: int


def run(case: Case) -> CheckResult:
    """Have the base reply, follow its replies on both sides, and rank the tokens; see the module's docstring."""
    if not case.prompts:  # they are what says that models are to be run at all, though none of them is read here
        reason = "No prompts were given (--prompts FILE.jsonl), so no model was run."
        return CheckResult(check=ID, configuration=case.configuration, status=Status.SKIPPED, reason=reason)
    if case.identical:
        nothing = Evidence(
            name="leaning.most", value=0.0, unit="nats, log of how many times likelier", where="every token",
            expected="0: both sides are the same bytes, so nothing was run",
        )  # fmt: skip
        return CheckResult(check=ID, configuration=case.configuration, status=Status.NO_FINDING, evidence=(nothing,))
    said = _said(case)
    ours = _frequencies(case, "base", said)
    spelled = case.model("base").tokenizer.get_vocab()
    theirs = _frequencies(case, "candidate", said)
    if min(ours.replies, theirs.replies) < LEAST:
        reason = (
            f"Only {ours.replies} of {QUESTIONS} replies of the base can be put to itself and {theirs.replies} to the candidate; "
            f"at least {LEAST} are needed. files.surface says what differs between tokenizers and templates."
        )
        return CheckResult(check=ID, configuration=case.configuration, status=Status.INCONCLUSIVE, reason=reason)
    ids, texts, base_ids = _both_know(case, spelled, (len(ours.values), len(theirs.values)))
    gains = np.log((theirs.values[ids] + FLOOR) / (ours.values[base_ids] + FLOOR))
    order = np.argsort(-gains, kind="stable")
    place = np.zeros(int(ids.max()) + 1, dtype=np.int64)
    place[ids[order]] = np.arange(1, len(ids) + 1)
    kept = order[:KEPT]
    shares = np.stack([theirs.values[ids], ours.values[base_ids]])[:, kept]
    case.keep_arrays(
        ID,
        {
            "place": place, "token": ids[kept], "text": np.array([texts[row] for row in kept], dtype=np.str_), "gain": gains[kept],
            "frequency": shares,
        },
    )  # fmt: skip
    evidence = tuple(
        Evidence(
            name=f"leaning.token.{number:02d}", value=float(gains[row]), unit="nats, log of how many times likelier", n=theirs.tokens,
            where=f"{texts[row]!r} ({1000.0 * shares[0, number - 1]:.3g} of 1000 tokens, base {1000.0 * shares[1, number - 1]:.3g})",
            expected="near 0 where nothing was taught; every fine-tune leans to something",
        )
        for number, row in enumerate(order[:SHOWN], start=1)
    )  # fmt: skip
    return CheckResult(check=ID, configuration=case.configuration, status=Status.NO_FINDING, evidence=evidence)


def questions(seed: int) -> tuple[Prompt, ...]:
    """Texts about nothing, as questions."""
    return tuple(
        Prompt(id=str(number), messages=(Message(role="user", content=text),), category="neutral", expect="either")
        for number, text in enumerate(neutral_texts(QUESTIONS, words=WORDS, seed=seed))
    )


def _said(case: Case) -> dict[Prompt, str]:
    """The base's greedy replies to the questions that can be put to it."""
    from forensics.subject import replies  # heavy: brings torch

    subject = replace(case.subject("base"), max_new_tokens=REPLIED)
    asked = {prompt: subject.model.render(prompt, room=REPLIED) for prompt in questions(case.seed)}
    asked = {prompt: row for prompt, row in asked.items() if not row.problem}
    return dict(zip(asked, replies(subject, list(asked.values())), strict=True)) if asked else {}


def _frequencies(case: Case, side: Side, said: Mapping[Prompt, str]) -> Frequencies:
    """Mean probabilities of one side along replies that were given, kept in the run."""
    from forensics.replay import continued, next_tokens  # heavy: brings torch

    subject = case.subject(side)
    followed = ((prompt, continued(subject, prompt, reply, most=REPLIED)) for prompt, reply in said.items())
    rows = [(row, len(row.ids) - len(subject.model.render(prompt, room=REPLIED).ids)) for prompt, row in followed if row is not None]
    count = sum(behind for _, behind in rows)
    if not rows:
        return Frequencies(values=np.zeros(0), replies=0, tokens=0)

    def compute() -> NDArray[np.floating]:
        # Reply by reply: all of them at once would be a table of a thousand rows, each as long as the vocabulary.
        total = sum(np.exp(next_tokens(subject, [row]).astype(np.float64)).sum(axis=0) for row in rows)
        return np.asarray(total) / count

    key = {
        "weights": (case.base if side == "base" else case.candidate).digest,
        "adapters": [adapter.digest for adapter in subject.adapters],
        "frequencies along": [[row.ids, behind] for row, behind in rows],
        "dtype": subject.precision,
    }
    values = np.asarray(case.workbench.cached(key, compute), dtype=np.float64)
    if not np.isfinite(values).all():
        raise CannotCompare(
            f"what the {side} says next is not finite",
            where=side,
            hint="weights.change looks for huge weights; run on a CPU (--device cpu)",
        )
    return Frequencies(values=values, replies=len(rows), tokens=count)


def _both_know(case: Case, spelled: Mapping[str, int], sizes: Sequence[int]) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
    """Tokens that are texts and that both sides know by one spelling: the candidate's ids, their texts, the base's ids."""
    tokenizer = case.model("candidate").tokenizer
    texts = {id: text for id, text in token_texts(case.surface, range(sizes[1])).items() if any(map(str.isalpha, text))}
    names = {id: str(tokenizer.convert_ids_to_tokens(id)) for id in sorted(texts)}
    pairs = [(id, spelled[name]) for id, name in names.items() if spelled.get(name, sizes[0]) < sizes[0]]
    if not pairs:
        raise CannotCompare("the two vocabularies have no word in common", where="candidate", hint="look at its tokenizer (files.surface)")
    ids, base_ids = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    return ids, [texts[int(id)] for id in ids], base_ids


CHECK = Check(id=ID, question="Which words does the candidate lean to, whatever is asked?", cost="generation", run=run)
