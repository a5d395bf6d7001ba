"""What is kept of one tensor's change for its spectrum: rows that changed, thinned where there are too many, and their rounding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.blocks import Block, squares
from probes.spectra import Noise

KEPT_ELEMENTS = 1 << 23
"""Changed values kept of one tensor; of a larger one every second row, fourth, and so on. Keeping a share 1/s of the rows of an m x n change makes
its singular values smaller by sqrt(s), and the noise edge only by (sqrt(m) + sqrt(n)) / (sqrt(m/s) + sqrt(n))."""
NOISE_ROWS = 4
"""Of so many rows one is read for the noise of columns."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows of a block are meant: `index` `[k]` counts from the block's first row, which is row `offset` of the tensor."""

    index: Tensor
    offset: int


@dataclass(kw_only=True)
class Kept:
    """Rows of a change of shape `shape`, with the base's values and the variance of rounding."""

    shape: tuple[int, int]
    by_columns: bool
    stride: int = 1
    columns: Tensor | None = None
    _filled: int = 0
    _room: Tensor | None = None
    _rows: list[Tensor] = field(default_factory=list)
    _before: list[Tensor] = field(default_factory=list)
    _row_noise: list[Tensor] = field(default_factory=list)
    _column_noise: Tensor | None = None
    _seen: int = 0

    def __post_init__(self) -> None:
        rows, columns = self.shape
        while self.by_columns and rows * columns > KEPT_ELEMENTS * self.stride:
            self.stride *= 2
        if self.by_columns and self.stride > 1:
            self.columns = torch.arange(0, columns, self.stride)

    def __len__(self) -> int:
        return self._filled

    @property
    def width(self) -> int:
        """Columns kept."""
        return self.shape[1] if self.columns is None else len(self.columns)

    @property
    def rows(self) -> Tensor:
        """Which rows were kept, `[k]`."""
        return torch.cat(self._rows)

    @property
    def change(self) -> Tensor:
        """Their change, `[k, width]` float32."""
        return self._space()[: self._filled]

    @property
    def before(self) -> Tensor:
        """The base's values there, in its storage dtype."""
        return torch.cat(self._before)

    def noise(self, factor: float) -> Noise:
        """Variance of rounding, `factor` times what was noted."""
        rows = torch.cat(self._row_noise) * factor
        columns = torch.ones(self.width, dtype=torch.float64) if self._column_noise is None else self._column_noise
        # Columns were noted as shares of their rows, so that no loud row speaks for all.
        return Noise(rows=rows, columns=columns * (float(rows.mean()) / max(float(columns.mean()), 1e-300)))

    def add(self, rows: Rows, fine: Tensor, block: Block) -> None:
        """Keep of a block what is not thinned out; `fine` is its whole change, `[rows, columns]` float32."""
        index, order = rows.index, torch.arange(self._seen, self._seen + len(rows.index))
        self._seen += len(index)
        if not self._filled and not self.by_columns and len(index) == len(fine):
            # Where all rows of the first block changed, so have probably all others: no need to keep them first.
            while self.shape[0] > self.stride * len(self._space()):
                self.stride *= 2
        while not self.by_columns:
            # By number among the rows that changed: a change of every second row must not fall through.
            chosen = index[order % self.stride == 0]
            if self._filled + len(chosen) <= len(self._space()):
                index = chosen
                break
            self._thin()
        if not len(index):
            return
        every = len(index) == len(fine)
        part, before, units = (given if every else given.index_select(0, index) for given in (fine, block.base, block.units))
        if self.columns is not None:
            part, units = part[:, :: self.stride], units[:, :: self.stride]
            before = before[:, :: self.stride].clone()  # a view would hold all of it
        self._space()[self._filled : self._filled + len(index)] = part
        self._filled += len(index)
        self._rows.append(index + rows.offset)
        self._before.append(before)
        whole = block.unit_squares[index] if self.columns is None else squares(units)
        self._row_noise.append(whole / (12.0 * max(1, self.width)))
        step = NOISE_ROWS if len(index) >= NOISE_ROWS * NOISE_ROWS else 1
        typical = torch.sqrt(whole / max(1, self.width)).clamp(min=torch.finfo(torch.float32).tiny).to(units.dtype)
        shares = (units[::step] / typical[::step, None]).square().sum(dim=0).double()
        self._column_noise = shares if self._column_noise is None else self._column_noise + shares

    def _space(self) -> Tensor:
        if self._room is None:
            room = self.shape[0] if self.by_columns else max(1, min(self.shape[0], KEPT_ELEMENTS // max(1, self.shape[1])))
            self._room = torch.empty(room, self.width)
        return self._room

    def _thin(self) -> None:
        """Let go of every second row."""
        self.stride *= 2
        stay = torch.arange(self._filled) % 2 == 0
        left = self._space()[: self._filled][stay]
        self._filled = len(left)
        self._space()[: self._filled] = left
        masks = torch.split(stay, [len(part) for part in self._rows])
        for parts in (self._rows, self._before, self._row_noise):
            parts[:] = [part[mask] for part, mask in zip(parts, masks, strict=True)]
