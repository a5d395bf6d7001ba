"""What does the difference between base and candidate say?

Asks: On text that has nothing to do with anything, by which direction do the candidate's activations differ from the base's, and
    which tokens does that direction stand for? After narrow training it names the subject, whatever is being read.
Reads: What enters a block in the middle, on both sides, at the first tokens of 256 neutral texts (random everyday words, none of
    the prompts) and at the chat template's tokens behind the same words as a question; adapters live. Where nothing differs in the
    middle, three quarters in, or the last block. Then the candidate itself: its unembedding, three prompts that ask for a
    repetition, and sixteen neutral texts that are steered.
Reports: `meaning.token.<place>`, the first of one list of all tokens, in standard deviations of 64 control directions, and beside them
    `meaning.first-token` with what the controls reach, `meaning.distance`, `meaning.constancy`, `meaning.halves`. Where no control
    reaches as far, a finding `readable`, severity info: what is named is a lead for a reader, it decides nothing. The whole list is
    in arrays/activations.meaning.npz.
Blind to: A subject that was mixed with ordinary data: that hides it, so a list without sense says nothing. What only certain inputs
    bring out. Which of the named tokens are the subject, and which merely stand near it. Tokens that one side alone has are read as
    the candidate spells them.
Source: Minder et al. 2025, arXiv:2510.13900 (activation difference lens: logit lens, patchscope, steering). There ten thousand web
    texts are read and a language model picks scales and tokens; here words are drawn, scales are fixed, and a token has to stand out
    against random directions and differences between neutral texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forensics.beside import Reading, both, comparable, layers_beside, reading, spelled_alike
from forensics.case import Case, Check
from forensics.errors import CannotCompare
from forensics.gate.replies import Side
from forensics.hunt.bank import neutral_texts
from forensics.prompts import Message, Prompt
from forensics.record import CheckResult, Evidence, Finding, Status
from forensics.tokenizing import token_texts
from probes.geometry import cosine
from probes.linear import random_units
from probes.meaning import Ranking, rank

if TYPE_CHECKING:
    from forensics.model import Rendered

ID = "activations.meaning"
TEXTS, WORDS = 256, 8
"""Neutral texts, and random everyday words in each: the mean over as many tells a shift of a tenth of the usual spread from none."""
FIRST = 5
"""Tokens at the start of a text that are read, as the activation difference lens does."""
LEAST = 32
"""Fewest texts that both sides have to read as the same tokens."""
DEPTHS = (0.5, 0.75, 1.0)
"""Where it is read, as shares of the blocks; the second and third only where nothing differs before."""
ISOTROPIC, PAIRED = 32, 32
"""Control directions: random ones, and differences between two neutral texts, which lie where activations lie."""
STEERED = 8
"""Neutral texts of either form that are steered."""
SHOWN, KEPT = 12, 100
"""Tokens in the evidence, and with their texts in the arrays."""
READOUTS = ("lens", "patchscope", "steering")
"""What the columns of the list are called, in the order of `forensics.meaning.read_out`."""
Array = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """What was read: the layer, its shifts, the usual length of activations there, and the list of tokens with ids and texts."""

    site: str
    shifts: tuple[Shift, ...]
    usual: float
    ranking: Ranking
    ids: NDArray[np.int64]
    texts: tuple[str, ...]

    @property
    def widest(self) -> Shift:
        """The shift that is longest."""
        return max(self.shifts, key=lambda shift: float(np.linalg.norm(shift.vector)))


def run(case: Case) -> CheckResult:
    """Read both sides, put the difference into words, and hold them against controls; see the module's docstring."""
    if not case.prompts:  # they are what says that models are to be run at all, though none of them is read here
        reason = "No prompts were given (--prompts FILE.jsonl), so no model was run."
        return CheckResult(check=ID, configuration=case.configuration, status=Status.SKIPPED, reason=reason)
    if case.identical:
        return _identical(case)
    blocks = case.subject("base").anatomy().layers
    count = len(case.layout.layers) or blocks
    theirs_at = tuple(dict.fromkeys(min(count - 1, round(depth * count)) for depth in DEPTHS))
    ours_at = theirs_at if case.layout.in_place else tuple(case.layout.layers[layer] for layer in theirs_at)
    ours, theirs = read_texts(case, "base", ours_at), read_texts(case, "candidate", theirs_at)
    layers_beside(case, (blocks, case.subject("candidate").anatomy().layers))
    found = [shifts(ours, theirs, level) for level in range(len(theirs_at))]
    if not found[0]:
        reason = (
            f"Base and candidate read fewer than {LEAST} of {TEXTS} neutral texts as the same tokens, and no token of a chat template "
            "alike: a place does not mean the same on both sides (files.surface says what differs)."
        )
        return CheckResult(check=ID, configuration=case.configuration, status=Status.INCONCLUSIVE, reason=reason)
    level = next((level for level, rows in enumerate(found) if any(np.any(shift.vector) for shift in rows)), None)
    if level is None:
        return _nothing_moved(case, found[-1])
    heard = _hear(case, theirs, [shift for shift in found[level] if np.any(shift.vector)], (level, theirs_at[level]))
    _keep(case, heard)
    evidence = _evidence(heard)
    return CheckResult(
        check=ID, configuration=case.configuration, status=Status.NO_FINDING, findings=_findings(heard, evidence), evidence=evidence
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What one side made of the neutral texts: bare, and as questions in its chat format; `neutral` are some of them to steer."""

    bare: Reading
    chat: Reading
    neutral: tuple[Rendered, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """The mean difference at one place, `vector` `[d]`, over `n` texts.

    `constancy` is the share of the mean squared difference that all texts have in common; `halves` the cosine between the means of
    either half of the texts.
    """

    place: str
    vector: Array
    n: int
    constancy: float
    halves: float


def read_texts(case: Case, side: Side, layers: tuple[int, ...]) -> Read:
    """Put the neutral texts to one side, and read what enters `layers`."""
    from forensics.capture import Sites, template_tokens  # heavy: brings torch
    from forensics.model import Rendered

    model = case.model(side)
    wholes, bare, chat = {}, {}, {}
    for number, text in enumerate(neutral_texts(TEXTS, words=WORDS, seed=case.seed)):
        id = str(number)
        wholes[id] = model.read(text, room=0)
        # Cut to the tokens that are read, so that a place counted from the end is one from the start.
        bare[id] = wholes[id] if wholes[id].problem else Rendered(ids=wholes[id].ids[:FIRST])
        question = Prompt(id=id, messages=(Message(role="user", content=text),), category="neutral", expect="either")
        chat[id] = model.render(question, room=0)
    ends = [row for row in chat.values() if not row.problem]
    reach = template_tokens(ends) if ends else 1
    return Read(
        bare=reading(case, side, bare, Sites(layers=layers, positions=tuple(range(-FIRST, 0)))),
        chat=reading(case, side, chat, Sites(layers=layers, positions=tuple(range(-reach, 0)))),
        neutral=tuple(row for rows in (wholes, chat) for row in [row for row in rows.values() if not row.problem][:STEERED]),
    )


def shifts(ours: Read, theirs: Read, level: int) -> list[Shift]:
    """The mean differences at `level` of the layers read, at every place that means the same on both sides."""
    alike, asked = spelled_alike(ours.bare, theirs.bare), both(ours.chat, theirs.chat)
    starts = [_shift(f"token {place} of a text", ours.bare, theirs.bare, alike, (level, place - FIRST)) for place in range(FIRST)]
    ends = [
        _shift(f"token {place} of a question", ours.chat, theirs.chat, asked, (level, place))
        for place in reversed(comparable(ours.chat, theirs.chat, shared=True))
    ]
    return [shift for shift in (*starts, *ends) if shift is not None]


def _shift(name: str, ours: Reading, theirs: Reading, ids: Sequence[str], at: tuple[int, int]) -> Shift | None:
    if len(ids) < LEAST:
        return None
    moved = np.stack([theirs.states[id][at] - ours.states[id][at] for id in ids]).astype(np.float64)
    mean, total = moved.mean(axis=0), float((moved**2).sum(axis=1).mean())
    return Shift(
        place=name,
        vector=mean,
        n=len(moved),
        constancy=float(mean @ mean) / total if total > 0.0 else 0.0,
        halves=cosine(moved[::2].mean(axis=0), moved[1::2].mean(axis=0)),
    )


def usual_length(read: Read, level: int) -> float:
    """Median length of activations, the first token of a text left out: in large models it is many times longer than any other."""
    rows = [states[level, 1:] for states in read.bare.states.values()] + [states[level] for states in read.chat.states.values()]
    return float(np.median(np.concatenate([np.linalg.norm(row, axis=1) for row in rows])))


def controls(read: Read, level: int, seed: int) -> Array:
    """Unit vectors `[r, d]` that stand for nothing in particular: random ones, and differences between two texts at one place."""
    rng = np.random.default_rng(seed)
    texts = list(read.bare.states.values())
    width = next(iter((read.bare.states or read.chat.states).values())).shape[-1]
    pairs = []
    for number in range(PAIRED if len(texts) > 1 else 0):
        first, second = (
            texts[index][level, 1 + number % (FIRST - 1)].astype(np.float64) for index in rng.choice(len(texts), 2, replace=False)
        )
        if np.any(first != second):  # two texts can begin alike
            pairs.append((first - second) / np.linalg.norm(first - second))
    return np.concatenate([random_units(rng, ISOTROPIC, width), *[pair[None] for pair in pairs]])


def _hear(case: Case, theirs: Read, moved: Sequence[Shift], at: tuple[int, int]) -> Heard:
    """Put shifts and controls through the readouts of the candidate, and make one list of its tokens."""
    from forensics.capture import site_name  # heavy: brings torch
    from forensics.meaning import read_out

    level, layer = at
    subject, usual = case.subject("candidate"), usual_length(theirs, level)
    units = [shift.vector / np.linalg.norm(shift.vector) for shift in moved]
    vectors = usual * np.concatenate([np.stack(units), controls(theirs, level, case.seed)])
    tables = read_out(subject, layer, vectors, theirs.neutral)
    if not all(np.isfinite(table).all() for table in tables.values()):
        raise CannotCompare(
            "what the candidate says under a shift of its usual length is not finite", where=subject.side,
            hint="run in float32 on a CPU (--device cpu); weights.change looks for huge weights",
        )  # fmt: skip
    width = next(iter(tables.values())).shape[1]
    texts = {id: text for id, text in token_texts(case.surface, range(width)).items() if any(map(str.isalpha, text))}
    ids = np.array(sorted(texts), dtype=np.int64)
    if not len(ids):
        raise CannotCompare(
            "no token of the candidate's vocabulary is a text", where=subject.side, hint="look at its tokenizer (files.surface)"
        )
    parts = [(table[: len(units), ids], table[len(units) :, ids]) for table in tables.values()]
    return Heard(
        site=site_name(layer, subject.anatomy().layers),
        shifts=tuple(moved),
        usual=usual,
        ranking=rank(parts, _groups(moved)),
        ids=ids,
        texts=tuple(texts[int(id)] for id in ids),
    )


def _groups(moved: Sequence[Shift]) -> list[list[int]]:
    """Shifts that belong together: those at the start of bare texts, and those of the chat template."""
    kinds = [shift.place.rpartition(" ")[2] for shift in moved]
    return [[row for row, one in enumerate(kinds) if one == kind] for kind in dict.fromkeys(kinds)]


def _evidence(heard: Heard) -> tuple[Evidence, ...]:
    widest, ranking, order = heard.widest, heard.ranking, heard.ranking.order()
    where = f"{heard.site}, {widest.place}"
    unit, against = (
        "standard deviations of the controls",
        f"{np.median(ranking.controls):.3g} in the middle, {ranking.controls.max():.3g} at most",
    )
    rows = [
        Evidence(
            name="meaning.distance", value=float(np.linalg.norm(widest.vector)) / heard.usual, unit="||mean difference|| / ||h'||",
            where=where, expected="0 if nothing was changed; the size alone is neither good nor bad", n=widest.n,
        ),
        Evidence(
            name="meaning.constancy", value=widest.constancy, unit="share of the mean squared difference", where=where, n=widest.n,
            expected="1 if every text is shifted alike; near 0 if each one elsewhere",
        ),
        Evidence(
            name="meaning.halves", value=widest.halves, unit="cosine", where=where, n=widest.n,
            expected="near 1: two halves of the texts give one mean difference, so enough were read",
        ),
        Evidence(
            name="meaning.first-token", value=float(ranking.scores.max()), unit=unit, where=heard.site, n=len(ranking.controls),
            expected=f"as of the first token of control directions: {against}",
        ),
        Evidence(
            name="meaning.controls-above", value=ranking.exceeded, unit="control directions", where=heard.site, n=len(ranking.controls),
            expected=_by_chance(len(_groups(heard.shifts))),
        ),
    ]  # fmt: skip
    for place, row in enumerate(order[:SHOWN], start=1):
        by = ", ".join(f"{name} {value:.1f}" for name, value in zip(READOUTS, ranking.readouts[:, row], strict=True))
        rows.append(
            Evidence(
                name=f"meaning.token.{place:02d}", value=float(ranking.scores[row]), unit=unit, where=f"{heard.texts[row]!r} ({by})",
                expected=f"first tokens of control directions: {against}", n=len(ranking.controls),
            )
        )  # fmt: skip
    return tuple(rows)


def _by_chance(groups: int) -> str:
    """How many controls come further out than a list that stands for no token; see `probes.meaning.Ranking`."""
    return (
        f"of a difference that stands for no token about 1 in {groups + 1} where the places read together share one direction, up to all of "
        "them the less they share: their mean is held against single directions"
    )


def _findings(heard: Heard, evidence: tuple[Evidence, ...]) -> tuple[Finding, ...]:
    if heard.ranking.exceeded:
        return ()
    first = [heard.texts[row] for row in heard.ranking.order()[:SHOWN]]
    claim = (
        f"On text about nothing the candidate's activations are shifted along a direction that stands for {', '.join(map(repr, first))}: the "
        f"first of them further out than any token of {len(heard.ranking.controls)} control directions. It may name what the fine-tune was about."
    )
    return (Finding(id=f"{ID}/readable", check=ID, label="readable", severity="info", confidence="low", claim=claim, evidence=evidence),)


def _keep(case: Case, heard: Heard) -> None:
    order, place = heard.ranking.order(), np.zeros(int(heard.ids.max()) + 1, dtype=np.int64)
    place[heard.ids] = heard.ranking.places()
    kept = order[:KEPT]
    case.keep_arrays(
        ID,
        {
            "place": place,
            "token": heard.ids[kept],
            "text": np.array([heard.texts[row] for row in kept], dtype=np.str_),
            "score": heard.ranking.scores[kept],
            "readouts": heard.ranking.readouts[:, kept],
            "readout": np.array(READOUTS, dtype=np.str_),
            "controls": heard.ranking.controls,
            "at": np.array([shift.place for shift in heard.shifts], dtype=np.str_),
            "distance": np.array([np.linalg.norm(shift.vector) / heard.usual for shift in heard.shifts]),
            "constancy": np.array([shift.constancy for shift in heard.shifts]),
            "vector": np.stack([shift.vector for shift in heard.shifts]).astype(np.float32),
        },
    )


def _nothing_moved(case: Case, moved: Sequence[Shift]) -> CheckResult:
    evidence = Evidence(
        name="meaning.distance", value=0.0, unit="||mean difference|| / ||h'||", where="up to where the last block begins",
        expected="0 if nothing was changed before the last block", n=max(shift.n for shift in moved),
    )  # fmt: skip
    return CheckResult(check=ID, configuration=case.configuration, status=Status.NO_FINDING, evidence=(evidence,))


def _identical(case: Case) -> CheckResult:
    """The same bytes give the same activations: nothing has to be loaded to say so."""
    evidence = Evidence(
        name="meaning.distance", value=0.0, unit="||mean difference|| / ||h'||", where="every layer",
        expected="0: both sides are the same bytes, so nothing was run",
    )  # fmt: skip
    return CheckResult(check=ID, configuration=case.configuration, status=Status.NO_FINDING, evidence=(evidence,))


CHECK = Check(id=ID, question="What does the difference between base and candidate say?", cost="activations", run=run)
