"""`forensics probe` beyond the checks: fit a probe or a monitor, keep it, follow it into the candidate, and put prompts to a saved one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from forensics import __version__
from forensics.audit import Request, Sides, cases_of, open_sides, refuse_unknown_device, run_key
from forensics.case import Case
from forensics.concept import POSITION, Kinds, activations, contrast_pairs, follow, learn, read_kinds
from forensics.errors import BadInput, CannotCompare
from forensics.gate.replies import Progress, Side
from forensics.kept import (
    RECORD,
    Arrays,
    Card,
    ConceptCard,
    Kept,
    Maker,
    MonitorCard,
    Score,
    Scores,
    load_arrays,
    load_card,
    maker_of,
    refuse_stranger,
    save,
)
from forensics.prompts import Prompt, PromptSet, load_prompts, unite
from forensics.record import PromptSource, canonical_json, sha256_text
from forensics.runfolder import RunFolder
from forensics.workbench import Workbench, spare_threads
from probes.logistic import Probe

DEFECTION = "defection"
METHODS = ("logistic regression, C = 1, on standardised columns", "difference of means at the last token of a given answer")
OTHER_SURFACE = "The candidate's tokenizer or chat template files are not the base's: it may read the same prompts differently."
CREATED = "%Y-%m-%dT%H:%M:%S+00:00"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for: a concept from two files of prompts, read at `layer` if one is named; or a monitor; or a kept one put to prompts."""

    name: str | None = None
    positive: Path | None = None
    negative: Path | None = None
    layer: int | None = None
    watch: bool = False
    defection: bool = False
    saved: Path | None = None


def conduct(request: Request, wanted: Wanted, progress: Progress) -> Kept | Scores | None:
    """Do what is asked for; None where that is the checks of `activations.*` and nothing else.

    Raises:
        BadInput: The options do not go together, or a file, a prompt or a folder cannot be used.
        CannotCompare: The models are not those of a kept probe, an activation is not finite, or the sides are built differently.
    """
    alone = _alone(request)
    files = wanted.positive is not None or wanted.negative is not None
    if files + wanted.defection + wanted.watch + (wanted.saved is not None) > 1:
        hint = "--positive with --negative, or --defection, or --watch, or --apply"
        raise BadInput("these options ask for two things", where="forensics probe", hint=hint)
    fitting = files or wanted.defection
    if fitting and request.prompts:
        raise BadInput("--prompts has no part in fitting a probe", where="--prompts", hint="put them to it with --apply once it is kept")
    if wanted.saved is not None and request.out is not None:
        raise BadInput("--apply writes nothing", where="--out", hint="leave --out away; --json prints every score")
    if not fitting and wanted.layer is not None:
        raise BadInput(
            "--layer says where a probe is fitted, and none is",
            where="--layer",
            hint="give --positive and --negative, or --defection, with it",
        )
    if (wanted.watch or not (fitting or wanted.saved)) and alone:
        raise BadInput(
            "there is no CANDIDATE",
            where="forensics probe",
            hint="give a model or PEFT adapter after BASE; only a probe of your own needs none",
        )
    if wanted.saved is not None:
        return apply(request, wanted.saved, progress)
    return fit(request, wanted, progress) if fitting or wanted.watch else None


def _alone(request: Request) -> bool:
    """Whether BASE is all there is."""
    return request.candidate == request.base and not request.adapters


def fit(request: Request, wanted: Wanted, progress: Progress) -> Kept:
    """Fit a probe or a monitor, judge it, and keep it in `request.out`.

    Raises:
        BadInput: A file, prompt or option cannot be used; nothing was written but what a later run can use.
        CannotCompare: An activation is not finite, or the candidate is built otherwise than the base.
    """
    refuse_unknown_device(request.device)
    name = wanted.name or ("weight-change" if wanted.watch else DEFECTION if wanted.defection else "concept")
    kinds = None if wanted.watch else _kinds(wanted)
    clean = tuple(load_prompts(path, plain=True) for path in request.prompts)
    sides = open_sides(replace(request, prompts=()), (), progress)
    asked = [name, wanted.layer, [source.digest for source in (kinds.sets if kinds else clean)], "concept" if kinds else "monitor"]
    key = sha256_text(canonical_json([run_key(request, sides), asked]))
    folder = request.out or Path("forensics-probes") / f"{_plain(name)}-{key[:8]}"
    with RunFolder(folder, key=key, created=datetime.now(UTC).strftime(CREATED)) as run:
        if (run.path / RECORD).exists():
            return Kept(card=load_card(run.path), folder=folder)
        with _cases(request, sides, run, progress) as cases:
            card = _concept(request, cases, kinds, replace(wanted, name=name), run) if kinds else _monitor(cases[-1], clean, name, run)
    return Kept(card=card, folder=folder)


def _kinds(wanted: Wanted) -> Kinds:
    if wanted.defection:
        return contrast_pairs(DEFECTION)
    if wanted.positive is None or wanted.negative is None:
        raise BadInput(
            "a probe is fitted to two kinds of prompts, and one is missing",
            where="--negative" if wanted.negative is None else "--positive",
            hint="give both --positive FILE.jsonl and --negative FILE.jsonl",
        )
    return read_kinds(wanted.positive, wanted.negative)


def _concept(request: Request, cases: Sequence[Case], kinds: Kinds, wanted: Wanted, run: RunFolder) -> Card:
    case = cases[0]
    learned = learn(case, kinds, wanted.layer)
    followed = () if _alone(request) else tuple(follow(one, kinds, learned) for one in cases)
    chosen = learned.whole[learned.layer]
    positive, negative = kinds.counts
    card = ConceptCard(
        tool=f"forensics {__version__}",
        created=run.created,
        name=wanted.name or "concept",
        base=base_of(case),
        layer=learned.layer,
        position=POSITION,
        site=learned.layers[learned.layer].site,
        fitted=f"{METHODS[bool(kinds.answers)]}; {positive} positive and {negative} negative prompts",
        threshold=learned.threshold,
        prompts=tuple(_source(found) for found in kinds.sets),
        evidence=learned.evidence,
        layers=learned.layers,
        followed=followed,
        limits=learned.limits,
    )
    return save(run, card, {"vector": chosen.vector, "intercept": np.array([chosen.intercept])})


def _monitor(case: Case, clean: Sequence[PromptSet], name: str, run: RunFolder) -> Card:
    from forensics.watching import fit as fit_watch
    from forensics.watching import to_arrays

    found = fit_watch(case, unite(tuple(clean)))
    card = MonitorCard(
        tool=f"forensics {__version__}",
        created=run.created,
        name=name,
        base=base_of(case),
        candidate=candidate_of(case),
        adapters=tuple(adapter.digest for adapter in case.adapters),
        fitted=found.fitted,
        threshold=found.watch.threshold.value,
        promised=found.watch.threshold.promised,
        prompts=tuple(_source(one) for one in clean),
        evidence=found.evidence,
        limits=found.limits,
    )
    return save(run, card, to_arrays(found.watch))


def base_of(case: Case) -> Maker:
    """The trusted model as a card names it."""
    return maker_of(case.base, case.base, case.base.functional_digest)


def candidate_of(case: Case) -> Maker:
    """The weights below the adapters, with the tokenizer that is used."""
    return maker_of(case.candidate, case.surface, case.candidate.functional_digest)


def apply(request: Request, saved: Path, progress: Progress) -> Scores:
    """Put prompts to a saved probe or monitor.

    A probe is put to BASE, or to CANDIDATE where one is given; BASE has to be the model it was fitted on either way. A monitor is put
    to the candidate that it was made for.

    Raises:
        BadInput: The folder, or a prompt, cannot be used.
        CannotCompare: The models are not those on the card.
    """
    refuse_unknown_device(request.device)
    card = load_card(saved)
    arrays = load_arrays(saved, card)
    prompts = unite(tuple(load_prompts(path, plain=True) for path in request.prompts))
    if not prompts:
        raise BadInput("there is no prompt to score", where="--prompts", hint="give a JSONL file of prompts")
    sides = open_sides(replace(request, prompts=()), (), progress)
    with (
        TemporaryDirectory() as root,
        RunFolder(Path(root) / "run", key="apply", created="") as run,
        _cases(request, sides, run, progress) as cases,
    ):
        case = cases[-1]
        refuse_stranger(card, base_of(case), card.base, "base")
        if isinstance(card, MonitorCard):
            refuse_stranger(card, candidate_of(case), card.candidate, "candidate")
            if tuple(adapter.digest for adapter in case.adapters) != card.adapters:
                raise CannotCompare(
                    "the monitor was made for other adapters",
                    where=case.configuration,
                    hint="give the adapters it was made for, in their order",
                )
        same = _alone(request) or candidate_of(case).surface == card.base.surface
        figures = _read(card, arrays, case, prompts, side="base" if _alone(request) else "candidate")
    return Scores(
        probe=card.name,
        kind=card.kind,
        configuration="base" if _alone(request) else case.configuration,
        digest=case.candidate.functional_digest,
        threshold=card.threshold,
        rows=tuple(
            Score(id=prompt.id, score=figure, flagged=figure > card.threshold) for prompt, figure in zip(prompts, figures, strict=True)
        ),
        limits=card.limits if same else (*card.limits, OTHER_SURFACE),
    )


def _read(card: Card, arrays: Arrays, case: Case, prompts: Sequence[Prompt], *, side: Side) -> list[float]:
    """The figure of each prompt.

    Raises:
        BadInput: The arrays do not fit the card, or the model.
    """
    damaged = BadInput("its tensors do not fit its card, or this model", where=card.name, hint="fit it again")
    if isinstance(card, MonitorCard):
        from forensics.watching import extremes, from_arrays
        from probes.watch import Threshold

        try:
            watch = from_arrays(arrays, Threshold(value=card.threshold, promised=card.promised))
        except (ValueError, TypeError) as error:
            raise damaged from error
        if not all(0 <= layer <= case.subject("candidate").anatomy().layers for layer in watch.directions.layers):
            raise damaged
        return [float(figure) for figure in watch.figures(extremes(case, prompts, [watch.directions])[0])]
    vector, intercept = arrays.get("vector"), arrays.get("intercept")
    if vector is None or intercept is None or vector.ndim != 1 or intercept.shape != (1,):
        raise damaged
    if not case.layout.in_place:
        raise CannotCompare(
            "layers were added, taken out or moved, so that the probe has no place", where=case.configuration, hint="fit one on it"
        )
    if not 0 <= card.layer <= case.subject(side).anatomy().layers:
        raise damaged
    rows = activations(case, side, prompts, layers=[card.layer])[:, 0]
    if rows.shape[1] != len(vector):
        raise damaged
    return [float(score) for score in Probe(vector=vector, intercept=float(intercept[0])).score(rows)]


@contextmanager
def _cases(request: Request, sides: Sides, run: RunFolder, progress: Progress) -> Iterator[list[Case]]:
    spare_threads(sum(pair.base.elements for pair in sides.layout.pairs))
    bench = Workbench(device=request.device, decoding=request.decoding, run=run, progress=progress)
    try:
        yield cases_of(request, sides, bench)
    finally:
        bench.close()


def _source(found: PromptSet) -> PromptSource:
    return PromptSource(name=found.name, digest=found.digest, counts=found.counts)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name) or "probe"
