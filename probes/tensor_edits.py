"""What is known of a tensor's edit, and what is concluded from all of them: the words of `probes/edits.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from probes.differ import Profile

Label = Literal[
    "identical", "resharded", "dtype-cast", "quantisation", "lora-merge", "full-finetune", "sparse-update", "abliteration", "knowledge-edit",
    "knowledge-edit-multi", "rows-only", "added-tokens", "steering-bias", "pruning", "merge-linear", "merge-slerp", "merge-ties", "merge-dare",
    "layer-stack", "reparameterised", "not-derived", "unknown-mixed",
]  # fmt: skip
LOW_RANK = 0.34
"""Share of the shorter side up to which a rank is low."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the strongest direction of a change lies to the matrix it changes.

    `direction` `[d]` is the change's direction in the residual stream, `input_cosine` the |cos| between the direction it
    reads and W^T u, `gain` ||u^T W'|| / ||u^T W||.
    """

    direction: Tensor
    input_cosine: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class TensorEdit:
    """One tensor of the pair: where it stands and how it changed."""

    name: str
    layer: int
    role: str
    profile: Profile
    form: Form | None = None

    @property
    def changed(self) -> bool:
        """Whether any entry differs."""
        return self.profile.change.changed > 0

    @property
    def matrix(self) -> bool:
        """Whether it is a matrix of more than one row and column."""
        return min(self.profile.shape) > 1

    @property
    def low(self) -> bool:
        """Whether rounding and few directions are all there is of its change, and something is."""
        found = self.profile.spectrum
        return found is not None and found.low and 0 < found.rank <= max(1.0, LOW_RANK * min(self.profile.shape))

    @property
    def high(self) -> bool:
        """Whether its change is of high rank, beyond rounding."""
        found = self.profile.spectrum
        return found is not None and found.resolved and not self.low


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is known beside the tensors that have a counterpart.

    `layers`: which layer of the base each layer of the candidate stands for. `added`, `removed`: names of tensors that only
    one side has. `grown`: rows by which the vocabulary grew. `recast`: tensors stored in another dtype. `merge`: what the
    parents given explain. `invariant`: whether a candidate unlike its base computes the same function, as far as that can be
    told from products that re-parameterisation leaves alone; asked only where it matters.
    """

    same_files: bool
    layers: tuple[int, ...]
    base_layers: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    grown: int = 0
    recast: int = 0
    merge: Kind | None = None
    invariant: Callable[[], str] = str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number that speaks for a label."""

    name: str
    value: float
    unit: str
    where: str
    expected: str
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The label, the claim it makes, how sure it is, and what speaks for it."""

    label: Label
    claim: str
    confidence: Literal["low", "medium", "high"] = "high"
    rank: int = 0
    unresolved: bool = False
    """Whether the change lies below what the storage format can show, so that its form cannot be told."""
    measures: tuple[Measure, ...] = ()
