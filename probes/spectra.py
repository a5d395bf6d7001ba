"""The spectrum of a weight change, measured against the rounding of its storage format.

On disk a low-rank change is not low rank: every entry was rounded. The rounding is known, though: independent errors,
uniform within half a unit in the last place. Divided by its standard deviation by rows and columns it is white noise, whose
largest singular value is known in closed form, and a diagonal scaling leaves the rank of what lies beneath untouched.

Source: Tracy-Widom edge of a white Wishart matrix (Johnstone 2001), values of spikes in noise (Benaych-Georges and Nadakuditi 2012,
as in Gavish and Donoho 2017), randomized range finder with power iterations (Halko, Martinsson and Tropp 2011, arXiv:0909.4061).
Whitening by the known rounding instead of estimating the noise from the data is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DEFAULT_CAP = 64
"""Singular values looked for at most, unless told otherwise."""
EXACT_BELOW = 384
"""Shorter side up to which the whole spectrum is cheaper than a sketch of it."""
FIRST, OVERSAMPLED, POWER_ITERATIONS = 16, 8, 2
EDGE_SIGMAS, EDGE_SLACK = 4.0, 1.02
"""Tracy-Widom standard deviations above the mean edge; and what noise of not quite equal variances adds."""
WHITE_BULK = 1.5
"""Variance of what remains, in units of the rounding's, up to which rounding explains it."""
LOUDEST_ECHO, MOST_ECHOED, REFINEMENTS, SILENCE = 0.05, 16, 4, 2.0
"""An echo of rounding is under this share of the strongest value; echoes are looked for in changes of at most so many values; a
guess of the change is mended so often; and explains it where nothing above so many edges remains."""
QUIETEST = 1e-8
"""Least share of the mean noise variance that a row or column is given: rows of zeros have none."""
FLOAT32_SHARE = 3e-6
"""Share of the largest singular value below which float32 arithmetic itself is the noise."""
FLOAT32_ENERGY = 2e-5
"""The same for what the sum of their squares leaves of the whole."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values of a change of shape `shape`, in units of its rounding noise, largest first.

    `left` `[m, k]` and `right` `[n, k]` are directions of the change itself (orthonormal, of the strongest first), with
    their singular values `sizes` in units of the weights. `bulk` is the variance of what the values leave, 1.0 for rounding
    alone. `capped`: more values lie above the edge than were looked for. `echoes` of the values above the edge are what
    rounding makes of the others.
    """

    shape: tuple[int, int]
    values: Tensor
    edge: float
    bulk: float
    capped: bool
    echoes: int
    left: Tensor
    right: Tensor
    sizes: Tensor

    @property
    def seen(self) -> int:
        """Values above the noise edge as measured, echoes left out."""
        return int((self.values > self.edge).sum()) - self.echoes

    @property
    def rank(self) -> int:
        """Values above the noise edge once the noise in them is taken off: those the unrounded change had."""
        return min(self.seen, int((self._cleaned() > self.edge).sum()))

    @property
    def low(self) -> bool:
        """Whether these values and rounding are all there is."""
        return not self.capped and self.bulk <= WHITE_BULK

    @property
    def resolved(self) -> bool:
        """Whether anything but rounding shows."""
        return self.rank > 0 or self.bulk > WHITE_BULK

    @property
    def exact(self) -> bool:
        """Whether the smallest value seen stands over twice the edge, so that none hides below it."""
        return self.low and 0 < self.seen <= int((self._cleaned() > 2.0 * self.edge).sum())

    def _cleaned(self) -> Tensor:
        # Of a small change rounding swallows a part, and makes less noise than it could.
        noise = math.sqrt(min(1.0, max(self.bulk, QUIETEST)))
        return noise * underlying(self.values / noise, *self.shape)


def noise_edge(rows: int, columns: int) -> float:
    """Largest singular value that white noise of unit variance shows in a matrix of this shape.

    >>> round(noise_edge(256, 1024) / (16 + 32), 2)
    1.04
    """
    sum_of_roots = math.sqrt(rows) + math.sqrt(columns)
    spread = sum_of_roots * (1.0 / math.sqrt(rows) + 1.0 / math.sqrt(columns)) ** (1.0 / 3.0)
    return EDGE_SLACK * math.sqrt(sum_of_roots**2 + EDGE_SIGMAS * spread)


def underlying(values: Tensor, rows: int, columns: int) -> Tensor:
    """What singular values `values` `[k]`, measured in white noise of unit variance, were without it; 0 where noise alone would do."""
    surplus = values.double() ** 2 - rows - columns
    inside = surplus**2 - 4.0 * rows * columns
    cleaned = torch.sqrt((surplus + torch.sqrt(inside.clamp(min=0.0))) / 2.0)
    return torch.where((inside > 0.0) & (surplus > 0.0), cleaned, torch.zeros_like(cleaned))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Variance of the rounding error, mean of each row `[m]` and each column `[n]`."""

    rows: Tensor
    columns: Tensor

    def scales(self) -> tuple[Tensor, Tensor]:
        """Standard deviations by row and by column whose product is that of an entry."""
        mean = max(float(self.rows.mean()), torch.finfo(torch.float32).tiny)
        rows = torch.sqrt(self.rows.double().clamp(min=QUIETEST * mean))
        columns = torch.sqrt(self.columns.double().clamp(min=QUIETEST * mean) / mean)
        return rows.float(), columns.float()


def spectrum(
    change: Tensor, noise: Noise, *, cap: int = DEFAULT_CAP, before: Tensor | None = None, store: torch.dtype | None = None
) -> Spectrum:
    """Measure a change against its rounding.

    Args:
        change: `[m, n]` float32, finite.
        noise: Of its rounding.
        cap: Singular values looked for at most; the sketch is doubled until the last lies under the edge or this is reached.
        before: The base's values, `[m, n]` float32, and the storage dtype: with both, values that the rounding of the others
            explains are told apart.
        store: See `before`.
    """
    scales = noise.scales()
    found = _measure(change, scales, cap)
    if before is None or store is None or not found.low:
        return found
    return replace(found, echoes=_echoes(found, change, before, store, scales))


def _measure(change: Tensor, scales: tuple[Tensor, Tensor], cap: int) -> Spectrum:
    m, n = change.shape
    rows, columns = scales
    white = change / rows[:, None] / columns[None, :]
    energy = float(torch.linalg.vector_norm(white, dtype=torch.float64)) ** 2
    edge = noise_edge(m, n)
    values, right, capped = _leading(white, edge, cap)
    edge = max(edge, FLOAT32_SHARE * float(values[0])) if len(values) else edge
    shown = values[values > edge]
    left_over = max(0.0, energy * (1.0 - FLOAT32_ENERGY) - float((shown.double() ** 2).sum()))
    kept = right[:, : max(1, len(shown))]
    left, sizes, directions = factor_spectrum((kept * columns[:, None]).T, (white @ kept) * rows[:, None])
    return Spectrum(
        shape=(m, n), values=values, edge=edge, bulk=left_over / (m * n), capped=capped, echoes=0, left=left.float(),
        right=directions.float(), sizes=sizes.float(),
    )  # fmt: skip


def _echoes(found: Spectrum, change: Tensor, before: Tensor, store: torch.dtype, scales: tuple[Tensor, Tensor]) -> int:
    """How many values the rounding of fewer, stronger ones explains.

    Rounding swallows what is smaller than half a unit in the last place: of a change of few directions it leaves a pattern
    that is no noise. The fewest directions that, added to the base and rounded anew, give the candidate, are the change.
    """
    least = int((found.values > LOUDEST_ECHO * found.values[0]).sum())
    for rank in range(least, min(found.seen, MOST_ECHOED)):
        left, sizes, right = found.left[:, :rank], found.sizes[:rank], found.right[:, :rank]
        for _ in range(REFINEMENTS):
            missed = change - ((before + (left * sizes) @ right.T).to(store).float() - before)
            rest = _measure(missed, scales, DEFAULT_CAP)
            if float(rest.values[0]) <= SILENCE * rest.edge:
                return found.seen - rank
            if rest.seen > MOST_ECHOED:
                break
            stacked = torch.cat([right.T * sizes[:, None], rest.right.T * rest.sizes[:, None]]), torch.cat([left, rest.left], dim=1)
            left, sizes, right = (part[..., :rank].float() for part in factor_spectrum(*stacked))
    return 0


def exact_spectrum(down: Tensor, up: Tensor) -> Spectrum:
    """Spectrum of `up @ down` (`[m, r]` and `[r, n]`), which nothing rounded; values are in units of the weights."""
    left, sizes, right = factor_spectrum(down, up)
    edge = FLOAT32_SHARE * float(sizes[0]) if len(sizes) else 0.0
    return Spectrum(
        shape=(up.shape[0], down.shape[1]), values=sizes.float(), edge=edge, bulk=0.0, capped=False, echoes=0, left=left.float(),
        right=right.float(), sizes=sizes.float(),
    )  # fmt: skip


def factor_spectrum(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exact SVD of `up @ down` without forming it.

    Args:
        down: `[r, n]`, LoRA's A; several adapters stacked.
        up: `[m, r]`, LoRA's B with its scale.

    Returns:
        Left directions `[m, r]`, singular values `[r]`, right directions `[n, r]`, float64.
    """
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ u, s, q_down @ vh.T


def stable_rank(values: Tensor) -> float:
    """||D||_F^2 / ||D||_2^2 from singular values; 0.0 for none."""
    squares = values.double() ** 2
    return float(squares.sum() / squares.max()) if len(squares) and float(squares.max()) > 0.0 else 0.0


def _leading(white: Tensor, edge: float, cap: int) -> tuple[Tensor, Tensor, bool]:
    """Leading singular values and right directions; whether some above the edge were left out."""
    m, n = white.shape
    if min(m, n) <= EXACT_BELOW:
        _, values, vh = torch.linalg.svd(white.double(), full_matrices=False)
        return values.float(), vh.T.float(), False
    want = min(FIRST, cap)
    while True:
        values, right = _sketch(white, min(want + OVERSAMPLED, m, n))
        more = want < len(values) and float(values[want]) > edge  # one of those drawn beyond what was wanted
        if not more or want >= cap:
            return values, right, more
        want = min(2 * want, cap)


def _sketch(white: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Randomized SVD: the `width` leading singular values and right directions `[n, width]`."""
    generator = torch.Generator().manual_seed(0)
    tall = white if white.shape[0] >= white.shape[1] else white.T
    probe = torch.randn(tall.shape[1], width, generator=generator).to(white.device)
    for _ in range(POWER_ITERATIONS):
        probe, _ = torch.linalg.qr(tall.T @ (tall @ probe))
    image = tall @ probe
    # The image is tall: its Gram matrix is small, and squares in float64 keep what float32 measured.
    gram = (image.T @ image).double()
    squares, turn = torch.linalg.eigh(gram)
    order = torch.argsort(squares, descending=True)
    values = torch.sqrt(squares[order].clamp(min=0.0)).float()
    narrow = probe @ turn[:, order].float()
    if tall is white:
        return values, narrow
    wide = image @ turn[:, order].float() / values.clamp(min=torch.finfo(torch.float32).tiny)
    return values, wide
