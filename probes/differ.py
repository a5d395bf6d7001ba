"""One tensor of two models, read block by block: how it changed, and what form the change has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.quantisation import Sample, explains
from probes.rounding import MANTISSA_BITS, TensorChange, ulp
from probes.spectra import DEFAULT_CAP, Noise, Spectrum, spectrum

CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
"""Formats through which a checkpoint may have gone before it was stored in its own."""
KEPT_ELEMENTS = 1 << 25
"""Changed values kept of one tensor for its spectrum; of a larger one every second row, fourth, and so on."""
RATIOS_A_BLOCK = 2048
"""Changed entries of a block of which the size in units in the last place is noted."""
MOVED_ROWS = 64
SAMPLED_ROWS = 64
"""Rows kept to hold quantisation schemes against."""


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
    """Formats by way of which a mere cast gives the candidate, to the bit."""
    quantised: str
    """The quantisation whose round trip gives the candidate; empty if none does."""
    fixed: str
    """The quantisation whose round trip leaves the candidate as it is, though it does not give it from the base; empty if none."""
    spectrum: Spectrum | None
    rows: Tensor | None
    """Which rows `spectrum.left` is of; None without a spectrum."""
    thinned: int = 1
    """Of so many changed rows one was kept for the spectrum."""

    @property
    def share_changed(self) -> float:
        """Share of entries that changed, in [0, 1]."""
        return self.change.changed / max(1, self.change.elements)


@dataclass(kw_only=True)
class Meter:
    """Running measurement of one tensor. Feed it blocks with `update`, then ask for the `profile`.

    `columns` is the product of all axes but the first; `rank_cap` how many singular values are looked for, 0 for none.
    """

    columns: int
    rank_cap: int = DEFAULT_CAP
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
    _kept: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    _held: int = 0
    _stride: int = 1
    _row_noise: list[Tensor] = field(default_factory=list)
    _column_noise: Tensor | None = None
    _noise_rows: int = 0
    _sample: Sample | None = None
    _store: torch.dtype = torch.float32
    _largest: float = 0.0
    _lowest: float = math.inf
    _highest: float = -math.inf

    def update(self, base: Tensor, candidate: Tensor, delta: Tensor | None = None) -> None:
        """Add one block of rows, both sides in storage dtype; `delta` is what adapters add live (see `TensorChange`)."""
        before_count = self.change.changed
        self.change.update(base, candidate, delta)
        self._store = candidate.dtype
        height = base.shape[0] if base.ndim > 1 else 1
        ours, theirs = base.reshape(height, -1).float(), candidate.reshape(height, -1).float()
        if delta is not None:
            theirs = theirs + delta.reshape(height, -1).float()
        ours, theirs = torch.nan_to_num(ours, 0.0, 0.0, 0.0), torch.nan_to_num(theirs, 0.0, 0.0, 0.0)
        self._dot += _inner(ours, theirs)
        self._after_square += _inner(theirs, theirs)
        self._largest = max(self._largest, float(ours.abs().max()) if ours.numel() else 0.0)
        if theirs.numel():
            self._lowest, self._highest = min(self._lowest, float(theirs.min())), max(self._highest, float(theirs.max()))
        if delta is None:
            self._track_casts(base, candidate, moved=self.change.changed > before_count)
        else:
            self._casts = []
        if self.change.changed > before_count or (base.dtype != candidate.dtype and delta is None):
            self._look(ours, theirs, base.to(candidate.dtype).reshape(height, -1).float())
        self.row += height

    def _look(self, ours: Tensor, theirs: Tensor, stored: Tensor) -> None:
        """Note the form of a block that changed; `stored` is the base as the candidate's dtype would hold it."""
        fine = theirs - ours
        coarse = theirs - torch.nan_to_num(stored, 0.0, 0.0, 0.0)
        moved = coarse != 0.0
        hit = moved.any(dim=1)
        self._rows_changed += int(hit.sum())
        along = (fine * ours).sum(dim=1) / ours.norm(dim=1).clamp(min=1e-30)
        self._along_rows += float(along.double().square().sum())
        self._zeroed += int((moved & (theirs == 0.0)).sum())
        self._fourth += float(torch.sum(fine.double() ** 4))
        unit = ulp(torch.maximum(ours.abs(), theirs.abs()), self._store)
        ratios = (coarse.abs() / unit)[moved]
        self._ratios.append(ratios[:: max(1, len(ratios) // RATIOS_A_BLOCK)][:RATIOS_A_BLOCK])
        if self._sample is None and ours.numel():
            self._sample = Sample(before=ours[:SAMPLED_ROWS].clone(), after=theirs[:SAMPLED_ROWS].clone(), store=self._store)
        if self.rank_cap and self.columns > 1:
            self._keep(fine, ours, unit, hit if ours.dtype == stored.dtype and bool((ours == stored).all()) else torch.ones_like(hit))

    def _keep(self, fine: Tensor, ours: Tensor, unit: Tensor, hit: Tensor) -> None:
        index = torch.nonzero(hit).flatten()
        index = index[(index + self.row) % self._stride == 0]
        self._kept.append((index + self.row, fine[index], ours[index]))
        variance = unit[index].double() ** 2 / 12.0
        self._row_noise.append(variance.mean(dim=1))
        self._column_noise = variance.sum(dim=0) if self._column_noise is None else self._column_noise + variance.sum(dim=0)
        self._noise_rows += len(index)
        self._held += len(index) * self.columns
        while self._held > KEPT_ELEMENTS:
            self._stride *= 2
            thinned = []
            noise = []
            for (rows, change, before), variances in zip(self._kept, self._row_noise, strict=True):
                stay = rows % self._stride == 0
                thinned.append((rows[stay], change[stay], before[stay]))
                noise.append(variances[stay])
            self._kept, self._row_noise = thinned, noise
            self._held = sum(change.numel() for _, change, _ in thinned)

    def _track_casts(self, base: Tensor, candidate: Tensor, *, moved: bool) -> None:
        self._casts = [name for name in self._casts if _same(base.to(CASTS[name]).to(candidate.dtype), candidate)]
        if moved and candidate.dtype in (torch.float32, torch.float64):
            self._narrow = [name for name in self._narrow if _same(candidate.to(CASTS[name]).to(candidate.dtype), candidate)]
        elif candidate.dtype not in (torch.float32, torch.float64):
            self._narrow = []

    def profile(self) -> Profile:
        """Everything measured, the spectrum among it."""
        whole = math.sqrt(self.change.base_square * self._after_square)
        ratios = torch.cat(self._ratios) if self._ratios else torch.zeros(0)
        variance = self.change.change_square / max(1, self.change.elements)
        found, rows = self._spectrum()
        trip, fixed = explains(self._sample, self._largest) if self._sample is not None and self.change.changed else ("", "")
        return Profile(
            shape=(self.row, self.columns),
            change=self.change,
            cosine=min(1.0, self._dot / whole) if whole > 0.0 else float(self.change.base_square == self._after_square),
            ulps=float(ratios.median()) if len(ratios) else 0.0,
            kurtosis=self._fourth / max(1, self.change.elements) / variance**2 if variance > 0.0 else 0.0,
            zeroed=self._zeroed,
            scaled=self._dot / self.change.base_square if self.change.base_square > 0.0 else 1.0,
            rescaled=min(1.0, self._along_rows / self.change.change_square) if self.change.change_square > 0.0 else 0.0,
            constant=self._lowest == self._highest,
            rows_changed=self._rows_changed,
            moved=self._moved(),
            casts=tuple(self._casts) if self.change.changed else (),
            quantised=trip,
            fixed=fixed,
            spectrum=found,
            rows=rows,
            thinned=self._stride,
        )

    def _moved(self) -> tuple[tuple[int, float], ...]:
        if not self._kept:
            return ()
        rows = torch.cat([rows for rows, _, _ in self._kept])
        shares = torch.cat([change.norm(dim=1) / before.norm(dim=1).clamp(min=1e-30) for _, change, before in self._kept])
        shares = shares.clamp(max=1e6)
        top = torch.argsort(shares, descending=True, stable=True)[:MOVED_ROWS]
        return tuple((int(rows[index]), float(shares[index])) for index in top.tolist() if float(shares[index]) > 0.0)

    def _spectrum(self) -> tuple[Spectrum | None, Tensor | None]:
        if not self._kept or not self._held or self._column_noise is None or not self.change.changed:
            return None, None
        rows = torch.cat([rows for rows, _, _ in self._kept])
        fine = torch.cat([change for _, change, _ in self._kept])
        before = torch.cat([before for _, _, before in self._kept])
        self._kept = []
        store, factor = self._store, 1.0
        if self._narrow:
            # Stored wide, but rounded to a narrow format when it was made: that rounding is the noise.
            store = CASTS[self._narrow[0]]
            factor = 4.0 ** (MANTISSA_BITS[self._store] - MANTISSA_BITS[store])
        noise = Noise(rows=torch.cat(self._row_noise) * factor, columns=self._column_noise / max(1, self._noise_rows) * factor)
        return spectrum(fine, noise, cap=self.rank_cap, before=before, store=store), rows


def _inner(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten(), other.flatten()))


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (torch.isnan(one) & torch.isnan(other))).all())
