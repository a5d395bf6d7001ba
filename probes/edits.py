"""Signatures of kinds of weight edits: numbers of every tensor in, one label with what speaks for it out.

The order of the questions is the argument: what needs no explanation (bytes, casts, quantisation) is asked before what needs
one (which tensors, of what rank, of what form), and what fits no form is called `unknown-mixed`, not the nearest kind.

Source: Forms as the methods' authors give them: LoRA (arXiv:2106.09685), abliteration (Arditi et al., arXiv:2406.11717, W' = W - u u^T W,
so the right singular vector of the change lies along W^T u), ROME and MEMIT (arXiv:2202.05262, 2210.07229: one or a few
consecutive matrices that write, a direction that is not W^T u), RL updates (arXiv:2505.11711). No published system decides between
them; the thresholds are ours and are held to `examples/benchmarks/edit_kinds.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from probes.spectra import WHITE_BULK, Spectrum
from probes.tensor_edits import Kind, Measure, Surroundings, TensorEdit

NUMERIC_CASTS = ("float16", "bfloat16")
MOST = 0.9
"""Share of the changed matrices that must bear a sign for it to name the edit."""
FORM = 0.6
"""|cos| between the right singular vector of a change and W^T u from which it takes a direction out of the output. 0.88 for
row-norm-preserving abliteration, 1.0 for the plain one; 0.03 for a knowledge edit."""
MOST_TAKEN = 0.75
"""The same for the directions of an abliteration, which some tools apply to some layers more than to others."""
NARROW = 0.75
"""Share of the shorter side from which a rank is as good as full."""
ALIKE, LEAST_AT_CEILING = 0.03, 0.15
"""Share by which ranks of one adapter may differ, where some of its directions lie under the edge; and share of the matrices that
must reach the highest."""
UNSURE = 0.15
"""The same up to which a rank is low though the spectra go on below the edge: a trained adapter's do, and so does noise, flatly."""
FULL = 0.55
"""Median share of the shorter side from which a rank is that of a change in all directions, for all that shows of it."""
TAKEN = 0.95
"""Share of a direction's write gain that may be left where it was taken out; more, and it was turned over and made louder."""
SHARED = 0.6
"""Mean |cos| between the directions of different matrices from which it is one direction."""
UNRELATED, REWRITTEN = 0.3, 0.985
"""Median cosine of the changed matrices below which a candidate has little of its base; and below which it may be the base in
another parameterisation."""
SPARSE = 0.35
"""Share of entries changed up to which an update is sparse."""
MASKED, COARSE = 0.6, 3.0
"""Share of entries changed up to which, and median change in units in the last place from which, the others were left out on purpose."""
BLANKED = 0.98
"""Share of the changed entries that are zero from which the change is pruning."""
STANDS_OUT = 3.0
"""How far the first singular value stands above the second where one direction lies in a change of full rank."""


def classify(tensors: Sequence[TensorEdit], around: Surroundings) -> Kind:
    """Name the edit.

    Args:
        tensors: Every tensor that both sides have.
        around: Everything else.
    """
    changed = [one for one in tensors if one.changed]
    for question in (_structure, _rounding, _blanks, _quantisation, _rows, _strangers, _merge, _low_rank, _high_rank):
        found = question(tensors, changed, around)
        if found is not None:
            return found
    return Kind(
        label="unknown-mixed", claim="The change has the form of no single kind of edit: some matrices changed in few directions, others in many.",
        confidence="medium", rank=_rank([one for one in changed if one.low]), measures=(*_ranks(changed),),
    )  # fmt: skip


def _structure(tensors: Sequence[TensorEdit], changed: list[TensorEdit], around: Surroundings) -> Kind | None:
    """Layers, rows or tensors that the base does not have."""
    stacked = around.layers != tuple(range(around.base_layers))
    if stacked:
        same = sum(not one.changed for one in tensors) / max(1, len(tensors))
        if same >= MOST:
            order = ", ".join(map(str, around.layers[:80]))
            return Kind(
                label="layer-stack",
                claim=f"Its {len(around.layers)} layers are layers of the base in another order or number: {order}.",
                measures=(_measure("edit.tensors-equal", 100.0 * same, "% of tensors", "all layers", "100 for layers taken over whole"),),
            )
        return None
    biases = [name for name in around.added if name.endswith(".bias")]
    if biases and len(biases) == len(around.added) and not changed and not around.grown:
        return Kind(
            label="steering-bias",
            claim=f"It adds {len(biases)} bias vectors that the base does not have ({biases[0]}), and changes nothing else.",
            measures=(_measure("edit.biases-added", len(biases), "tensors", biases[0], "0"),),
        )
    few = all(one.role in ("embedding", "head") and one.profile.rows_changed <= 0.5 * one.profile.shape[0] for one in changed)
    if around.grown and few:
        return Kind(
            label="added-tokens",
            claim=f"Its vocabulary has {abs(around.grown)} rows {'more' if around.grown > 0 else 'fewer'} than the base's; all else is equal"
            + (f" but for {sum(one.profile.rows_changed for one in changed)} rows." if changed else "."),
            measures=(_measure("edit.rows-added", around.grown, "rows", "embedding", "0"),),
        )
    return None


def _rounding(_tensors: Sequence[TensorEdit], changed: list[TensorEdit], around: Surroundings) -> Kind | None:
    """Nothing but bytes moved about, or numbers stored in another format."""
    if not changed and around.recast:
        return Kind(
            label="dtype-cast", claim=f"{around.recast} tensors are stored in another number format; each holds the base's values, rounded to it.",
            measures=(_measure("edit.tensors-recast", around.recast, "tensors", "all tensors", "0"),),
        )  # fmt: skip
    if not changed:
        if around.added or around.removed:
            return Kind(
                label="unknown-mixed", confidence="low",
                claim=f"Every tensor that both have is equal; {len(around.added)} were added and {len(around.removed)} left out.",
            )  # fmt: skip
        files = "same bytes" if around.same_files else "same tensors in other files"
        return Kind(label="identical" if around.same_files else "resharded", claim=f"The weights are those of the base ({files}).")
    for cast in NUMERIC_CASTS:
        if all(cast in one.profile.casts for one in changed):
            return Kind(
                label="dtype-cast", claim=f"Every difference is what a trip through {cast} leaves of the base's numbers, to the bit.",
                measures=(_measure("edit.tensors-explained", len(changed), "tensors", "all tensors", "those that a cast explains", n=len(changed)),),
            )  # fmt: skip
    return None


def _quantisation(_tensors: Sequence[TensorEdit], changed: list[TensorEdit], _around: Surroundings) -> Kind | None:
    matrices = [one for one in changed if one.matrix]
    trips = [_trip(one) for one in matrices]
    told = [trip for trip in trips if trip]
    if matrices and len(told) >= MOST * len(matrices):
        scheme, count = Counter(told).most_common(1)[0]
        return Kind(
            label="quantisation", claim=f"{len(told)} of {len(matrices)} changed matrices are the base after a round trip through {scheme}.",
            measures=(_measure("edit.matrices-explained", len(told), "matrices", scheme, "those that a round trip explains", n=len(matrices)),),
        ) if count >= 0.5 * len(told) else None  # fmt: skip
    fixed = [one.profile.fixed for one in matrices if one.profile.fixed and not _trip(one)]
    if told or (matrices and len(fixed) >= MOST * len(matrices)):
        scheme = Counter([*told, *fixed]).most_common(1)[0][0]
        return Kind(
            label="unknown-mixed", confidence="medium",
            claim=f"Its matrices went through {scheme}, but that alone does not make them of the base's: there is another edit beneath.",
            measures=(_measure("edit.matrices-quantised", len(told) + len(fixed), "matrices", scheme, "0", n=len(matrices)),),
        )  # fmt: skip
    return None


def _trip(one: TensorEdit) -> str:
    float8 = next((cast for cast in one.profile.casts if cast not in NUMERIC_CASTS), "")
    return one.profile.quantised or float8


def _blanks(_tensors: Sequence[TensorEdit], changed: list[TensorEdit], _around: Surroundings) -> Kind | None:
    total, zeroed = sum(one.profile.change.changed for one in changed), sum(one.profile.zeroed for one in changed)
    if zeroed < BLANKED * total:
        return None
    share = 100.0 * zeroed / max(1, sum(one.profile.change.elements for one in changed))
    return Kind(
        label="pruning", claim=f"{share:.1f} % of the entries of {len(changed)} tensors were set to zero, and nothing else was changed.",
        measures=(_measure("edit.entries-zeroed", share, "% of entries", "changed tensors", "0"),),
    )  # fmt: skip


def _rows(_tensors: Sequence[TensorEdit], changed: list[TensorEdit], _around: Surroundings) -> Kind | None:
    if not all(one.role in ("embedding", "head") and one.profile.rows_changed <= 0.5 * one.profile.shape[0] for one in changed):
        return None
    rows = sum(one.profile.rows_changed for one in changed)
    return Kind(
        label="rows-only", claim=f"Only {rows} rows of {' and '.join(one.role for one in changed)} changed: single tokens were given new meanings.",
        rank=_rank(changed), measures=tuple(
            _measure("edit.rows-changed", one.profile.rows_changed, "rows", one.name, "0", n=one.profile.shape[0]) for one in changed
        ),
    )  # fmt: skip


def _strangers(tensors: Sequence[TensorEdit], changed: list[TensorEdit], around: Surroundings) -> Kind | None:
    """Weights that have little of the base's: another parameterisation of it, or another model."""
    inner = [one for one in tensors if one.matrix and one.role not in ("embedding", "head", "position")]
    cosines = [one.profile.cosine for one in inner if one.changed]
    if not cosines:
        return None
    measures = (_measure("edit.cosine", median(cosines), "cosine", "changed matrices, median", "1 for the base", n=len(cosines)),)
    # Of a change as small as training makes it "computes the same" says little, so it must look like one that was made for that.
    small = median(cosines) >= REWRITTEN and not _refolded(changed)
    same = "" if small else around.invariant()
    if same:
        return Kind(label="reparameterised", claim=f"The weights are the base's in another parameterisation: {same}.", measures=measures)
    if median(one.profile.cosine for one in inner) < UNRELATED:
        return Kind(
            label="not-derived", measures=measures,
            claim="The weights have nothing of the base's: the candidate was not made from it, or was disguised beyond what we look for.",
        )  # fmt: skip
    return None


def _refolded(changed: Sequence[TensorEdit]) -> bool:
    """Whether norms became constant, as they do when they are written into the matrices after them, or rows were merely scaled."""
    norms = [one for one in changed if one.role == "norm"]
    scaled = any(one.matrix and one.profile.rescaled >= MOST for one in changed)
    return scaled or (bool(norms) and all(one.profile.constant for one in norms))


def _merge(_tensors: Sequence[TensorEdit], _changed: list[TensorEdit], around: Surroundings) -> Kind | None:
    return around.merge


def _low_rank(tensors: Sequence[TensorEdit], changed: list[TensorEdit], _around: Surroundings) -> Kind | None:
    """Changes of few directions: an abliteration, a knowledge edit, or a merged adapter."""
    matrices = [one for one in changed if one.matrix]
    inner = [one for one in matrices if one.role not in ("embedding", "head", "position")]
    shown = [one for one in inner if one.profile.spectrum is not None and one.profile.spectrum.resolved]
    if not shown or len(shown) < 0.5 * len(inner):
        return None
    rank, ranks = _rank(shown), _ranks(matrices)
    taken = _taken_out(shown)
    if taken is not None:
        return taken
    certain = _end_abruptly(shown) or _one_ceiling(shown)
    few = sum(one.low for one in shown) >= MOST * len(shown) and _share_of_directions(shown) <= UNSURE
    if not certain and (_trained_beside(changed) or not few):
        return None
    layers = sorted({one.layer for one in shown})
    every = {one.layer for one in tensors if one.layer >= 0}
    local = len(layers) < len(every) and layers == list(range(layers[0], layers[-1] + 1))
    quiet = len(shown) == len(changed)
    if quiet and len(shown) == 1 and rank <= 2:
        return Kind(
            label="knowledge-edit", rank=rank, measures=ranks,
            claim=f"One matrix alone changed, in {rank} direction{'s' if rank > 1 else ''} ({shown[0].name}): the form of a single fact rewritten.",
        )  # fmt: skip
    if quiet and local and len(layers) > 1 and {one.role for one in shown} == {"down"}:
        return Kind(
            label="knowledge-edit-multi", rank=rank, measures=ranks, confidence="medium",
            claim=f"Only the matrices that write from the MLP of layers {layers[0]} to {layers[-1]} changed, in few directions: the form of "
            "facts rewritten over several layers.",
        )  # fmt: skip
    roles = sorted({one.role for one in shown})
    if _one_ceiling(shown):
        rank = max(one.profile.spectrum.rank for one in shown if one.profile.spectrum is not None)
    rest = len(changed) - len(shown)
    return Kind(
        label="lora-merge", rank=rank, measures=ranks,
        claim=f"{len(shown)} matrices ({', '.join(roles)}) changed in {'' if certain else 'at least '}{rank} direction{'s' if rank != 1 else ''} each,"
        f" beyond rounding: the form of a merged LoRA of that rank{f', with {rest} other tensors' if rest else ''}.",
    )  # fmt: skip


def _taken_out(shown: Sequence[TensorEdit]) -> Kind | None:
    """An abliteration: matrices that write, and nothing else inside the layers, each with a direction taken out of its output.

    A tool that restores the norms of rows afterwards changes every direction a little, so no low rank is asked for.
    """
    forms = [one.form for one in shown if one.form is not None]
    taking = [form for form in forms if form.input_cosine >= FORM and form.gain <= TAKEN]
    if not all(one.role in ("o", "down") for one in shown) or not forms or len(taking) < MOST_TAKEN * len(shown):
        return None
    shared = _shared([form.direction for form in taking])
    gain = median(form.gain for form in taking)
    how = "one and the same direction" if shared >= SHARED else "a direction of its own"
    return Kind(
        label="abliteration", rank=_rank(shown),
        claim=f"{len(taking)} matrices that write to the residual stream each had {how} taken out of their output ({gain:.2f} of it is left): "
        "the form of a refusal removed from the weights.",
        measures=(
            _measure("edit.shared-direction", shared, "mean |cosine|", "directions of the changed matrices", "near 0 for unrelated edits", n=len(taking)),
            _measure("edit.input-cosine", median(form.input_cosine for form in taking), "|cosine|", "right singular vector and W^T u", "near 0", n=len(taking)),
            _measure("edit.write-gain", gain, "share", "||u^T W'|| / ||u^T W||", "1 where nothing was taken out", n=len(taking)),
            *_ranks(shown),
        ),
    )  # fmt: skip


def _end_abruptly(shown: Sequence[TensorEdit]) -> bool:
    """Whether the spectra of the matrices that changed most end far above the edge of rounding: those of training go on below it."""
    lit = sorted((one.profile.spectrum for one in shown if one.profile.spectrum is not None), key=_brightness)
    lit = lit[len(lit) // 2 :]
    return sum(one.exact and one.seen <= NARROW * min(one.shape) for one in lit) >= MOST_TAKEN * len(lit)


def _brightness(found: Spectrum) -> float:
    return float(found.values[0]) / found.edge if len(found.values) else 0.0


def _one_ceiling(shown: Sequence[TensorEdit]) -> bool:
    """Whether several matrices reach one rank and none a higher one, but for those too narrow to tell."""
    found = [one.profile.spectrum for one in shown if one.profile.spectrum is not None]
    top = max((one.rank for one in found), default=0)
    wide = [one for one in found if top < NARROW * min(one.shape)]
    reached = [one for one in wide if not one.capped and one.low and top - one.rank <= ALIKE * top]
    # Noise of one size on matrices of one shape reaches one rank as well, but its spectra go on below the edge.
    some_end = any(one.exact for one in reached)
    return some_end and len(reached) >= max(3.0, LEAST_AT_CEILING * len(wide)) and len(wide) >= 0.5 * len(found)


def _trained_beside(changed: Sequence[TensorEdit]) -> bool:
    """Whether norms, biases or whole vocabulary matrices changed too: adapters leave them alone, training of all weights does not."""
    return any(
        not one.matrix or (one.role in ("embedding", "head") and one.profile.rows_changed > 0.5 * one.profile.shape[0]) for one in changed
    )


def _high_rank(tensors: Sequence[TensorEdit], changed: list[TensorEdit], _around: Surroundings) -> Kind | None:
    """Changes of many directions, or none that can be told from rounding."""
    matrices = [one for one in changed if one.matrix]
    shown = [one for one in matrices if one.profile.spectrum is not None and one.profile.spectrum.resolved]
    share = sum(one.profile.change.changed for one in changed) / max(1, sum(one.profile.change.elements for one in changed))
    ulps = median(one.profile.ulps for one in changed)
    rank = _rank(shown or matrices)
    measures = (
        _measure("edit.entries-changed", 100.0 * share, "% of entries", "changed tensors", "above 35 for most fine-tunes"),
        _measure(
            "edit.median-ulps", ulps, "units in the last place", "changed entries, median over tensors", "1 where the updates are tiny"
        ),
        *_ranks(matrices),
    )
    every = [one for one in tensors if one.matrix and one.role not in ("embedding", "head", "position")]
    touched = sum(one.changed for one in every) >= MOST * len(every)
    if touched and every and share <= SPARSE and sum(one.low for one in shown) < 0.5 * max(1, len(every)):
        return Kind(
            label="sparse-update", rank=rank, measures=measures, confidence="medium",
            claim=f"Nearly all matrices changed, each in few entries ({100.0 * share:.1f} %, by {ulps:.0f} units in the last place): the form of updates "
            "too small for the format, as reinforcement learning or a tiny learning rate leaves them, or of a sparse merge.",
        )  # fmt: skip
    if len(shown) < 0.5 * max(1, len(matrices)):
        return Kind(
            label="unknown-mixed", rank=rank, measures=measures, confidence="low", unresolved=True,
            claim="The change lies below what rounding to the storage format lets through: its form cannot be told.",
        )  # fmt: skip
    hidden = [one for one in shown if one.form is not None and one.form.input_cosine >= FORM and _stands_out(one)]
    high = _trained_beside(changed) or _share_of_directions(shown) >= FULL
    if touched and share <= MASKED and ulps >= COARSE:
        return Kind(
            label="unknown-mixed", rank=rank, measures=measures, confidence="medium",
            claim=f"Nearly all matrices changed, but only {100.0 * share:.0f} % of their entries, and those by {ulps:.0f} units in the last place: the "
            "form of a merge that keeps some changes and drops others, or of a masked update.",
        )  # fmt: skip
    if len(hidden) >= max(2.0, 0.5 * sum(one.form is not None for one in shown)):
        return None
    if not high:
        return Kind(
            label="unknown-mixed", rank=rank, measures=measures, confidence="low", unresolved=True,
            claim=f"Of the change {rank} directions and more stand above rounding, and others may lie below: whether it is a merged adapter of a "
            "high rank or training of these matrices cannot be told.",
        )  # fmt: skip
    return Kind(
        label="full-finetune", rank=rank, measures=measures, confidence="high" if touched else "medium",
        claim=f"{len(changed)} of {len(tensors)} tensors changed, their matrices in as many directions as they have: the form of training the weights themselves.",
    )  # fmt: skip


def _share_of_directions(shown: Sequence[TensorEdit]) -> float:
    """Median share of a matrix's directions that changed beyond rounding."""
    shares = [
        1.0 if one.profile.spectrum.bulk > WHITE_BULK or one.profile.spectrum.capped else one.profile.spectrum.rank / min(one.profile.shape)
        for one in shown if one.profile.spectrum is not None
    ]  # fmt: skip
    return median(shares)


def _stands_out(one: TensorEdit) -> bool:
    found = one.profile.spectrum
    return found is not None and len(found.values) > 1 and float(found.values[0]) >= STANDS_OUT * float(found.values[1])


def _rank(tensors: Sequence[TensorEdit]) -> int:
    """The rank most of them have; of equally common ones the larger."""
    ranks = Counter(one.profile.spectrum.rank for one in tensors if one.profile.spectrum is not None and one.profile.spectrum.rank)
    return max(ranks.items(), key=lambda item: (item[1], item[0]))[0] if ranks else 0


def _ranks(tensors: Sequence[TensorEdit]) -> tuple[Measure, ...]:
    found = [one.profile.spectrum for one in tensors if one.profile.spectrum is not None]
    if not found:
        return ()
    return (
        _measure("edit.rank-above-edge", float(median(one.rank for one in found)), "singular values", "changed matrices, median",
                 "those that were above the noise edge before rounding", n=len(found)),
        _measure("edit.bulk", float(median(one.bulk for one in found)), "rounding variances", "changed matrices, median",
                 "about 1 where rounding is all that remains", n=len(found)),
    )  # fmt: skip


def _shared(directions: Sequence[Tensor]) -> float:
    """Mean |cosine| between directions; 1.0 for a single one."""
    if len(directions) < 2:
        return 1.0
    stack = torch.stack([direction / direction.norm() for direction in directions])
    products = (stack @ stack.T).abs()
    n = len(directions)
    return float((products.sum() - n) / (n * (n - 1)))


def _measure(name: str, value: float, unit: str, where: str, expected: str, n: int | None = None) -> Measure:
    return Measure(name=name, value=float(value), unit=unit, where=where, expected=expected, n=n)
