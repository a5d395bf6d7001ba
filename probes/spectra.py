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
from collections.abc import Callable
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
LOUDEST_ECHO, MOST_ECHOED, REFINEMENTS, SETTLED, SILENCE = 0.25, 16, 10, 3, 0.9
"""An echo of rounding is under this share of the strongest value; echoes are looked for in changes of at most so many values; a
guess of the change is mended so often, after so many of which what is left tells; and it explains the others where nothing above so
many edges remains: rounding that is known leaves less than rounding that is not."""
UNMOVED = 0.8
"""Share of a value that is left once stronger ones were taken out and mended, from which on it is none of their echoes."""
CLEAR = 3.0
"""Edges from which on a value that does not go away is surely one of the change's own."""
PATIENCE = 1 << 20
"""Entries up to which a guess is mended as often as it may be."""
STRANGERS = 8
"""Random vectors by which what the leading values leave is measured."""
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
    change: Tensor,
    noise: Noise,
    *,
    cap: int = DEFAULT_CAP,
    dense: bool = False,
    before: Tensor | None = None,
    store: torch.dtype | None = None,
) -> Spectrum:
    """Measure a change against its rounding.

    Args:
        change: `[m, n]` float32, finite.
        noise: Of its rounding.
        cap: Singular values looked for at most; the sketch is doubled until the last lies under the edge or this is reached.
        dense: Whether it is thought to reach the cap: then it is asked for that many at once, and the result is the same.
        before: The base's values, `[m, n]`, and the storage dtype: with both, values that the rounding of the others
            explains are told apart.
        store: See `before`.
    """
    rows, columns = noise.scales()
    white = _White(change=change, rows=rows, columns=columns)
    found = _measure(white, cap, dense=dense)
    if before is None or store is None or not found.low:
        return found
    return replace(found, echoes=_echoes(found, white, before, store))


@dataclass(frozen=True, kw_only=True)
class _White:
    """A change `[m, n]` divided by its rounding's standard deviations `rows` `[m]` and `columns` `[n]`; never formed if it is large."""

    change: Tensor
    rows: Tensor
    columns: Tensor

    def onto(self, right: Tensor) -> Tensor:
        """Its product with `right` `[n, k]`."""
        return (self.change @ (right / self.columns[:, None])) / self.rows[:, None]

    def back(self, left: Tensor) -> Tensor:
        """The product of its transpose with `left` `[m, k]`."""
        # This way round the large matrix is read along its rows.
        return ((left / self.rows[:, None]).T @ self.change).T / self.columns[:, None]


@dataclass(frozen=True, kw_only=True)
class _Leading:
    """Leading singular values `[k]`, right directions `[n, k]` and their images `[m, k]`; `left_over` is the sum of squares of the
    values beyond the first so many, asked by number; `more`: some above the edge were left out.
    """

    values: Tensor
    right: Tensor
    image: Tensor
    left_over: Callable[[int], float]
    more: bool


def _measure(white: _White, cap: int, *, dense: bool = False) -> Spectrum:
    m, n = white.change.shape
    edge = noise_edge(m, n)
    found = _leading(white, edge, cap, dense=dense)
    values = found.values
    edge = max(edge, FLOAT32_SHARE * float(values[0])) if len(values) else edge
    shown = int((values > edge).sum())
    kept = max(1, shown)
    left, sizes, right = factor_spectrum((found.right[:, :kept] * white.columns[:, None]).T, found.image[:, :kept] * white.rows[:, None])
    return Spectrum(
        shape=(m, n), values=values, edge=edge, bulk=found.left_over(shown) / (m * n), capped=found.more, echoes=0, left=left.float(),
        right=right.float(), sizes=sizes.float(),
    )  # fmt: skip


def _echoes(found: Spectrum, white: _White, before: Tensor, store: torch.dtype) -> int:
    """How many values the rounding of fewer, stronger ones explains.

    Rounding swallows what is smaller than half a unit in the last place: of a change of few directions it leaves a pattern
    that is no noise. The fewest directions that, added to the base and rounded anew, give the candidate, are the change.
    """
    wide = before.float()
    large = white.change.numel() > PATIENCE  # where every look takes long, few must do
    rank = int((found.values > LOUDEST_ECHO * found.values[0]).sum())
    while rank < min(found.seen, MOST_ECHOED):
        left, sizes, right = found.left[:, :rank], found.sizes[:rank], found.right[:, :rank]
        beside = 1
        for refined in range(REFINEMENTS):
            missed = white.change - ((wide + (left * sizes) @ right.T).to(store).float() - wide)
            rest = _measure(replace(white, change=missed), DEFAULT_CAP)
            if float(rest.values[0]) <= SILENCE * rest.edge:
                return found.seen - rank
            rivals = found.values[rank : found.seen]
            rivals = rivals[rivals > CLEAR * found.edge][: len(rest.values)]
            standing = int((rest.values[: len(rivals)] > UNMOVED * rivals).sum())
            if rest.seen > 2 * MOST_ECHOED or (refined >= SETTLED and (standing or large)):
                beside = max(1, standing)
                break
            stacked = torch.cat([right.T * sizes[:, None], rest.right.T * rest.sizes[:, None]]), torch.cat([left, rest.left], dim=1)
            left, sizes, right = (part[..., :rank].float() for part in factor_spectrum(*stacked))
        rank += beside
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


def _leading(white: _White, edge: float, cap: int, *, dense: bool) -> _Leading:
    m, n = white.change.shape
    if min(m, n) <= EXACT_BELOW:
        return _exactly(white)
    want = cap if dense else min(FIRST, cap)
    while True:
        found = _sketch(white, min(want + OVERSAMPLED, m, n))
        more = want < len(found.values) and float(found.values[want]) > edge  # one of those drawn beyond what was wanted
        if dense and not more and cap > FIRST:  # a wider sketch than it needs would show other last digits
            want, dense = FIRST, False
            continue
        if not more or want >= cap:
            return replace(found, more=more)
        want = min(2 * want, cap)


def _exactly(white: _White) -> _Leading:
    """The whole spectrum, from the Gram matrix of the shorter side: in float64 its squares keep what float32 measured."""
    whole = (white.change / white.rows[:, None] / white.columns[None, :]).double()
    wide = whole.shape[0] <= whole.shape[1]
    squares, short = torch.linalg.eigh(whole @ whole.T if wide else whole.T @ whole)
    squares, short = squares.flip(0).clamp(min=0.0), short.flip(1)
    values = squares.sqrt()
    other = (whole.T if wide else whole) @ short
    right, image = (other / values.clamp(min=torch.finfo(torch.float32).tiny), short * values) if wide else (short, other)
    # What float32 arithmetic leaves of the strong values is no noise of the change's.
    slack = FLOAT32_ENERGY * float(squares.sum())
    return _Leading(
        values=values.float(), right=right.float(), image=image.float(), more=False,
        left_over=lambda shown: max(0.0, float(squares[shown:].sum()) - slack),
    )  # fmt: skip


def _sketch(white: _White, width: int) -> _Leading:
    """Randomized SVD of the `width` leading values, and a sample of what they leave."""
    n = white.change.shape[1]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(n, width, generator=generator)
    for _ in range(POWER_ITERATIONS):
        probe, _ = torch.linalg.qr(white.back(white.onto(probe)))
    strange = torch.randn(n, STRANGERS, generator=generator)
    both = white.onto(torch.cat([probe, strange], dim=1))
    image, beside = both[:, :width], both[:, width:]
    # The image is tall: its Gram matrix is small, and squares in float64 keep what float32 measured.
    squares, turn = torch.linalg.eigh((image.T @ image).double())
    order = torch.argsort(squares, descending=True)
    values = torch.sqrt(squares[order].clamp(min=0.0)).float()
    turned = turn[:, order].float()
    right, image = probe @ turned, image @ turned

    def left_over(shown: int) -> float:
        # Of vectors that hold nothing of the directions shown, the images have on average the length of the rest (Hutchinson 1989).
        apart = beside - image[:, :shown] @ (right[:, :shown].T @ strange)
        return float(apart.double().square().sum()) / STRANGERS

    return _Leading(values=values, right=right, image=image, left_over=left_over, more=False)
