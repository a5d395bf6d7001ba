"""One tensor of two models, read block by block: how it changed, and what form the change has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from probes.blocks import Block, TensorChange
from probes.kept import Kept, Rows
from probes.quantisation import Sample, explains
from probes.rounding import MANTISSA_BITS
from probes.spectra import DEFAULT_CAP, Spectrum, spectrum

CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
"""Formats through which a checkpoint may have gone before it was stored in its own."""
RATIOS_A_BLOCK, SOUGHT_A_BLOCK, LEAST_RATIOS = 2048, 8192, 64
"""Changed entries of a block of which the size in units in the last place is noted, how many entries are looked at for them, and
how few changed ones are too few."""
FIRST_CAST = 4096
"""Entries on which a cast is tried before it is on all."""
LARGEST = 1e18
"""Sum of squares up to which their own squares have a place in float32."""
CAST_ROWS = 16
"""Rows of a block without changes on which casts are tried."""
MOVED_ROWS = 64
SAMPLED_ROWS, SAMPLED_ELEMENTS, LEAST_SAMPLED = 64, 1 << 17, 4
"""Rows kept to hold quantisation schemes against: so many, but no more than make so many entries, and at least so many."""
DIRECTIONS = 4
"""Pairs of directions of a change that are kept: enough to say what it reads and writes, and few enough to keep for every tensor."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one tensor's change looks like. Shapes are those of the stored tensor, axes beyond the first folded into columns."""

    shape: tuple[int, int]
    change: TensorChange
    cosine: float
    """Of the whole tensor with the base's; 1.0 if both are zero."""
    ulps: float
    """Median size of a changed entry's change, in units in the last place; 0.0 if nothing changed."""
    kurtosis: float
    """Of all entries of the change: 3 for a Gaussian, more where few entries carry it; 0.0 if nothing changed."""
    zeroed: int
    """Changed entries that are zero in the candidate."""
    scaled: float
    """The factor that takes the base nearest to the candidate (least squares)."""
    rescaled: float
    """Share of the change (of its square) that a factor for each row explains, in [0, 1]; 0.0 if nothing changed."""
    constant: bool
    """Whether all entries of the candidate are one number."""
    rows_changed: int
    moved: tuple[tuple[int, float], ...]
    """Rows that changed most, and by what share of the row's norm, largest first."""
    casts: tuple[str, ...]
    """Formats by way of which a mere cast gives the candidate: to the bit where it changed, and in some rows of what did not."""
    quantised: str
    """The quantisation whose round trip gives the candidate; empty if none does."""
    fixed: str
    """The quantisation whose round trip leaves the candidate as it is, though it does not give it from the base; empty if none."""
    spectrum: Spectrum | None
    rows: Tensor | None
    """Which rows `spectrum.left` is of; None without a spectrum."""
    columns: Tensor | None = None
    """Which columns `spectrum.right` is of; None for all."""
    thinned: int = 1
    """Of so many changed rows, or columns, one was kept for the spectrum."""

    @property
    def share_changed(self) -> float:
        """Share of entries that changed, in [0, 1]."""
        return self.change.changed / max(1, self.change.elements)


@dataclass(kw_only=True)
class Meter:
    """Running measurement of one tensor. Feed it blocks with `update`, then ask for the `profile`.

    `shape` is that of the whole tensor, all axes but the first folded into columns; `rank_cap` how many singular values are
    looked for, 0 for none, and `dense` whether so many are expected (see `spectrum`). A tensor of more than `KEPT_ELEMENTS` changed
    entries is thinned for its spectrum: by rows, or by columns where `thin_columns` says that its rows are what is asked about.
    `rounded`: the change went through the storage format; one that did not (what adapters add live) has no noise but that of float32.
    """

    shape: tuple[int, int]
    rank_cap: int = DEFAULT_CAP
    dense: bool = False
    thin_columns: bool = False
    rounded: bool = True
    change: TensorChange = field(default_factory=TensorChange)
    row: int = 0
    _dot: float = 0.0
    _after_square: float = 0.0
    _fourth: float = 0.0
    _zeroed: int = 0
    _along_rows: float = 0.0
    _rows_changed: int = 0
    _ratios: list[Tensor] = field(default_factory=list)
    _casts: list[str] = field(default_factory=lambda: list(CASTS))
    _narrow: list[str] = field(default_factory=lambda: ["bfloat16", "float16"])
    _moved: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _kept: Kept | None = None
    _sample: Sample | None = None
    _largest: float = 0.0
    _store: torch.dtype = torch.float32
    _only: float | None = None
    _constant: bool = True

    def update(self, base: Tensor, candidate: Tensor, delta: Tensor | None = None) -> None:
        """Add one block of rows, both sides in storage dtype; `delta` is what adapters add live (see `TensorChange`)."""
        block, before_count = Block(base, candidate, delta), self.change.changed
        self.change.add(block)
        self._store = block.store
        moved = self.change.changed > before_count
        self._look_for_constant(block.theirs)
        if block.ours.numel():
            low, high = torch.aminmax(block.ours)
            self._largest = max(self._largest, -float(low), float(high))
        if block.live:
            self._casts, self._narrow = [], []
        elif moved or not block.equal:
            self._track_casts(base, candidate, moved=moved)
        elif self._casts or self._narrow:
            step = max(1, block.rows // CAST_ROWS)  # of what did not change at all, a few rows tell
            self._track_casts(block.base[::step], block.candidate[::step], moved=False)
        if moved or (base.dtype != candidate.dtype and not block.live):
            self._look(block)
        else:
            own = float(block.base_squares.sum())
            self._dot += own
            self._after_square += own
        self.row += block.rows

    def _look(self, block: Block) -> None:
        """Note the form of a block that changed."""
        along = _by_rows(block.change, block.before)
        self._dot += float((block.base_squares + along).sum())
        self._after_square += float((block.base_squares + 2.0 * along + block.squares).sum())
        self._along_rows += float((along.square() / block.base_squares.clamp(min=1e-60)).sum())
        hit = block.squares > 0.0
        self._rows_changed += int(hit.sum())
        if block.zeros:
            self._zeroed += int(torch.count_nonzero((block.theirs == 0.0) & (block.change != 0.0)))
        fourth = (block.change if float(block.squares.sum()) < LARGEST else block.change.double()).square()
        self._fourth += float(_by_rows(fourth, fourth).sum())
        self._ratios.append(_sizes_in_units(block))
        if self._sample is None and block.ours.numel():
            rows = max(LEAST_SAMPLED, min(SAMPLED_ROWS, SAMPLED_ELEMENTS // max(1, self.shape[1])))
            self._sample = Sample(before=block.ours[:rows].float(), after=block.theirs[:rows].float(), store=self._store)
        if min(self.shape) <= 1:
            return
        shares = torch.sqrt(block.squares / block.base_squares.clamp(min=1e-60)).clamp(max=1e6)
        top = torch.argsort(shares, descending=True, stable=True)[:MOVED_ROWS]
        self._moved.append((top + self.row, shares[top]))
        if self.rank_cap:
            self._keep(block, hit)

    def _keep(self, block: Block, hit: Tensor) -> None:
        """Remember what the spectrum needs: where the base was cast, the cast's rounding is part of the change's noise."""
        fine = block.change
        if block.ours is not block.before:
            fine, hit = block.theirs - block.ours, torch.ones_like(hit)
            fine = fine if block.broken is None else fine.masked_fill(block.broken, 0.0)
        if self._kept is None:
            self._kept = Kept(shape=self.shape, by_columns=self.thin_columns)
        self._kept.add(Rows(index=torch.nonzero(hit).flatten(), offset=self.row), fine.float(), block)

    def _look_for_constant(self, theirs: Tensor) -> None:
        if self._constant and theirs.numel():
            first = float(theirs.flatten()[0])
            self._only = first if self._only is None else self._only
            self._constant = first == self._only and bool((theirs == self._only).all())

    def _track_casts(self, base: Tensor, candidate: Tensor, *, moved: bool) -> None:
        self._casts = [name for name in self._casts if _casts_to(base, candidate, CASTS[name])]
        if moved and candidate.dtype in (torch.float32, torch.float64):
            self._narrow = [name for name in self._narrow if _casts_to(candidate, candidate, CASTS[name])]
        elif candidate.dtype not in (torch.float32, torch.float64):
            self._narrow = []

    def profile(self) -> Profile:
        """Everything measured, the spectrum among it."""
        whole = math.sqrt(max(0.0, self.change.base_square * self._after_square))
        ratios = torch.cat(self._ratios) if self._ratios else torch.zeros(0)
        variance = self.change.change_square / max(1, self.change.elements)
        changed = self.change.changed > 0
        kept = self._kept if changed and self._kept is not None and len(self._kept) else None
        trip, fixed = explains(self._sample, self._largest) if self._sample is not None and changed else ("", "")
        return Profile(
            shape=(self.row, self.shape[1]),
            change=self.change,
            cosine=min(1.0, self._dot / whole) if whole > 0.0 else float(self.change.base_square == self._after_square),
            ulps=float(ratios.median()) if len(ratios) else 0.0,
            kurtosis=self._fourth / max(1, self.change.elements) / variance**2 if variance > 0.0 else 0.0,
            zeroed=self._zeroed,
            scaled=self._dot / self.change.base_square if self.change.base_square > 0.0 else 1.0,
            rescaled=min(1.0, self._along_rows / self.change.change_square) if self.change.change_square > 0.0 else 0.0,
            constant=self._constant and self._only is not None,
            rows_changed=self._rows_changed,
            moved=self._most_moved(),
            casts=tuple(self._casts) if changed else (),
            quantised=trip,
            fixed=fixed,
            spectrum=self._spectrum(kept) if kept is not None else None,
            rows=kept.rows if kept is not None else None,
            columns=kept.columns if kept is not None else None,
            thinned=kept.stride if kept is not None else 1,
        )

    def _most_moved(self) -> tuple[tuple[int, float], ...]:
        if not self._moved:
            return ()
        rows, shares = (torch.cat(parts) for parts in zip(*self._moved, strict=True))
        top = torch.argsort(shares, descending=True, stable=True)[:MOVED_ROWS]
        return tuple((int(rows[index]), float(shares[index])) for index in top.tolist() if float(shares[index]) > 0.0)

    def _spectrum(self, kept: Kept) -> Spectrum | None:
        store, factor = self._store, 1.0
        if not self.rounded:
            store, factor = torch.float32, 4.0 ** (MANTISSA_BITS[self._store] - MANTISSA_BITS[torch.float32])
        elif self._narrow:
            # Stored wide, but rounded to a narrow format when it was made: that rounding is the noise.
            store = CASTS[self._narrow[0]]
            factor = 4.0 ** (MANTISSA_BITS[self._store] - MANTISSA_BITS[store])
        try:
            found = spectrum(kept.change, kept.noise(factor), cap=self.rank_cap, dense=self.dense, before=kept.before, store=store)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch has it, and does not say so; numbers of such different size that no spectrum comes of them
            return None
        return replace(found, left=found.left[:, :DIRECTIONS].clone(), right=found.right[:, :DIRECTIONS].clone())


def _by_rows(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of rows, `[rows]` float64."""
    found = (one * other).sum(dim=1).double()
    return found if bool(torch.isfinite(found.sum())) else (one.double() * other.double()).sum(dim=1)


def _sizes_in_units(block: Block) -> Tensor:
    """Sizes of some changed entries, in units in the last place."""
    change, units = block.change.flatten(), block.units.flatten()
    step = max(1, len(change) // SOUGHT_A_BLOCK)
    some, beside = change[::step], units[::step]
    if step > 1 and int(torch.count_nonzero(some)) < LEAST_RATIOS:
        some, beside = change, units  # few changed: all are looked at
    hit = some != 0.0
    ratios = some[hit].abs() / beside[hit]
    return ratios[:: max(1, len(ratios) // RATIOS_A_BLOCK)][:RATIOS_A_BLOCK].float()


def _casts_to(source: Tensor, result: Tensor, by_way_of: torch.dtype) -> bool:
    """Whether a cast of `source` by way of a format gives `result`; a few entries tell nearly always."""
    few = slice(0, FIRST_CAST)
    starts = (source.flatten()[few], result.flatten()[few])
    return all(_same(one.to(by_way_of).to(other.dtype), other) for one, other in (starts, (source, result)))


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (torch.isnan(one) & torch.isnan(other))).all())
