"""Merges un-mixed: which combination of given parents a change is.

Source: The merges as their authors and mergekit define them: weighted averages and task arithmetic (Ilharco et al. 2023, arXiv:2212.04089),
SLERP, TIES (Yadav et al. 2023, arXiv:2306.01708: the largest changes of each parent, by the sign most of them have), DARE (Yu et al.
2024, arXiv:2311.03099: random changes of each parent, scaled up). Un-mixing by least squares against the rounding, and telling
the sparse ones by which changes survived, is ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.rounding import ulp
from probes.tensor_edits import Kind, Label, Measure

SAMPLED = 4096
"""Entries of a block that are looked at one by one."""
UNEXPLAINED, ROUNDINGS = 0.02, 1.5
"""Share of a merge's change that least squares may leave, beside so many times what rounding leaves."""
EXPLAINED = 0.85
"""Share of a sparse merge's change that the nearest of its combinations must explain, entry by entry."""
SAME_EVERYWHERE = 0.08
"""Largest spread of a parent's coefficient over the tensors in a merge of one weight."""
CURVED = 0.004
"""By how much the coefficients of a SLERP must exceed one together; below it lies on the straight line."""
LARGE_ONES = 1.7
"""How much larger than those that were dropped the changes are that survive, from which they were chosen by size."""
OWN = 0.02
"""Relative difference up to which an entry is one parent's alone."""


@dataclass(kw_only=True)
class Unmixing:
    """Running least squares of the candidate's change on its parents', tensor by tensor, and a sample of entries."""

    parents: int
    _gram: list[Tensor] = field(default_factory=list)
    _against: list[Tensor] = field(default_factory=list)
    _square: list[float] = field(default_factory=list)
    _rounding: float = 0.0
    _entries: list[Tensor] = field(default_factory=list)
    _store: torch.dtype = torch.float32

    def begin(self) -> None:
        """A new tensor follows."""
        size = self.parents + 1
        self._gram.append(torch.zeros(size, size, dtype=torch.float64))
        self._against.append(torch.zeros(size, dtype=torch.float64))
        self._square.append(0.0)

    def update(self, base: Tensor, candidate: Tensor, parents: Sequence[Tensor]) -> None:
        """Add one block of the tensor, all in storage dtype."""
        before, after = base.float().flatten(), candidate.float().flatten()
        change = after - before
        basis = torch.stack([*(parent.float().flatten() - before for parent in parents), before]).double()
        self._gram[-1] += basis @ basis.T
        self._against[-1] += basis @ change.double()
        self._square[-1] += float(change.double().square().sum())
        self._rounding += float(ulp(after, candidate.dtype).double().square().sum()) / 12.0
        step = max(1, len(change) // SAMPLED)
        self._entries.append(torch.stack([before, change, *basis[:-1].float()])[:, ::step])
        self._store = candidate.dtype

    def kind(self) -> Kind | None:
        """The merge that explains the change; None if none does."""
        whole = sum(self._square)
        if whole <= 0.0:
            return None
        explained = self._left() <= UNEXPLAINED + ROUNDINGS * self._rounding / whole
        return (self._smooth() if explained else None) or self._sparse()

    def _solve(self, index: int) -> Tensor:
        gram = self._gram[index]
        ridge = 1e-9 * torch.diag(gram.diagonal().clamp(min=1e-30))
        solution: Tensor = torch.linalg.solve(gram + ridge, self._against[index])
        return solution

    def _left(self) -> float:
        """Share of the change that least squares leaves."""
        left = 0.0
        for index, square in enumerate(self._square):
            weights = self._solve(index)
            left += max(0.0, square - 2.0 * float(weights @ self._against[index]) + float(weights @ self._gram[index] @ weights))
        return left / sum(self._square)

    def _smooth(self) -> Kind | None:
        total = torch.tensor(self._square, dtype=torch.float64)
        heavy = [index for index in range(len(total)) if float(total[index]) > 0.01 * float(total.max())]
        weights = torch.stack([self._solve(index) for index in heavy])
        middle, spread = weights.median(dim=0).values, weights.std(dim=0) if len(heavy) > 1 else torch.zeros(self.parents + 1)
        r_squared = 1.0 - self._left()
        over = float(weights[:, :-1].sum(dim=1).median()) - 1.0
        label: Label = "merge-linear"
        if over > CURVED and abs(float(middle[-1]) - over) < 0.5 * over:
            label = "merge-slerp"
        elif float(spread[:-1].max()) > SAME_EVERYWHERE:
            return None
        shares = ", ".join(f"{float(weight):.3f}" for weight in middle[:-1])
        how = "along the arc between its parents (SLERP)" if label == "merge-slerp" else "a weighted sum of its parents' changes"
        return Kind(
            label=label, claim=f"It is {how}, with weights {shares} (R2 {r_squared:.3f}). Between parents that are near each other SLERP and a "
            "weighted average are the same.", measures=self._measures(middle[:-1], spread[:-1], r_squared),
        )  # fmt: skip

    def _sparse(self) -> Kind | None:
        entries = torch.cat(self._entries, dim=1)
        before, change, parents = entries[0], entries[1], entries[2:]
        kept = change != 0.0
        if not bool(kept.any()):
            return None
        scales = torch.stack([_mode(change[kept & (parent != 0)] / parent[kept & (parent != 0)]) for parent in parents])
        if not bool((scales > 0.0).any()):
            return None
        best = torch.zeros_like(change)
        for chosen in itertools.product((False, True), repeat=len(parents)):
            if any(chosen):
                part = torch.stack([scale * parent for scale, parent, take in zip(scales, parents, chosen, strict=True) if take])
                for combined in (part.sum(dim=0), part.mean(dim=0)):
                    guess = (before + combined).to(self._store).float() - before  # as it would have been stored
                    nearer = (change - guess).abs() < (change - best).abs()
                    best = torch.where(nearer, guess, best)
        r_squared = 1.0 - float((change - best).square().sum() / change.square().sum())
        if r_squared < EXPLAINED:
            return None
        sizes = [_size_of_survivors(change, scale * parent) for scale, parent in zip(scales, parents, strict=True)]
        label: Label = "merge-ties" if max(sizes) >= LARGE_ONES else "merge-dare"
        share = 100.0 * float(kept.float().mean())
        how = "the largest changes of its parents (TIES)" if label == "merge-ties" else "changes of its parents drawn at random (DARE)"
        shares = ", ".join(f"{float(scale):.2f}" for scale in scales)
        return Kind(
            label=label, claim=f"It holds {how}, {share:.1f} % of the entries, scaled by {shares} (R2 {r_squared:.3f}).",
            measures=(*self._measures(scales, torch.zeros_like(scales), r_squared),
                      Measure(name="edit.survivors-size", value=max(sizes), unit="times the size of those dropped", where="changes that survived",
                              expected="1 where they were drawn at random")),
        )  # fmt: skip

    def _measures(self, weights: Tensor, spread: Tensor, r_squared: float) -> tuple[Measure, ...]:
        rows = [
            Measure(name="edit.parent-weight", value=float(weight), unit="share of the parent's change", where=f"parent {number}",
                    expected=f"spread over tensors {float(around):.3f}")
            for number, (weight, around) in enumerate(zip(weights, spread, strict=True), start=1)
        ]  # fmt: skip
        fit = Measure(
            name="edit.parents-r2", value=r_squared, unit="R2", where="all tensors", expected="1 less rounding for a merge of these"
        )
        return (fit, *rows)


def _size_of_survivors(change: Tensor, parent: Tensor) -> float:
    """Mean size of a parent's changes that the merge holds alone, in that of those it dropped; 0.0 if it dropped or holds none."""
    own = (parent != 0) & ((change - parent).abs() <= OWN * parent.abs())
    dropped = (parent != 0) & (change == 0)
    if not bool(own.any()) or not bool(dropped.any()):
        return 0.0
    return float(parent[own].abs().mean() / parent[dropped].abs().mean())


def _mode(ratios: Tensor) -> Tensor:
    """The positive ratio that most entries have, in steps of about 4 %; 0 if there is none."""
    positive = ratios[torch.isfinite(ratios) & (ratios > 0.0)]
    if not len(positive):
        return torch.tensor(0.0)
    steps = torch.round(torch.log(positive) / math.log(1.04)).to(torch.int64)
    step = steps.mode().values
    return positive[(steps - step).abs() <= 1].median()
