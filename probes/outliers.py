"""Whether one thing stands outside of a population: a permutation test on figures that need no distribution.

Source: the five figures of a LoRA's change are those of "Weight space detection of backdoors in LoRA adapters" 2026 (arXiv:2602.15195),
which trains a classifier on poisoned and clean adapters. Here only clean ones are needed, and the test is exact: had the thing been drawn
like the others, it would be the furthest out of n + 1 with probability 1 / (n + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.spectra import factor_spectrum

FIGURES = ("largest singular value", "Frobenius norm", "energy in the first direction", "spectral entropy", "kurtosis")
FURTHEST = 1e6
"""Spreads at most, of a figure in which the others are all alike."""
ELEMENTS_AT_ONCE = 1 << 21
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, kw_only=True)
class Outlying:
    """How far out one vector of figures `[f]` lies: `spreads` `[f]` in robust standard deviations of the others, and `p_value`,
    the share of all n + 1 vectors whose largest spread from the rest is at least as large; never under 1 / (n + 1).
    """

    spreads: NDArray[np.float64]
    p_value: float


def figures(down: Tensor, up: Tensor) -> NDArray[np.float64]:
    """The five `FIGURES` of the change `up @ down` (`[m, r]`, `[r, n]`), which is formed a few rows at a time.

    Raises:
        ValueError: A number is not finite.
    """
    if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise ValueError("a factor holds a number that is not finite")
    _, values, _ = factor_spectrum(down, up)
    energy = values**2
    whole = float(energy.sum())
    if whole <= 0.0:
        return np.zeros(len(FIGURES))
    shares = (energy / whole).clamp(min=1e-30)
    elements, step = up.shape[0] * down.shape[1], max(1, ELEMENTS_AT_ONCE // max(1, down.shape[1]))
    fourth = 0.0
    for start in range(0, up.shape[0], step):
        fourth += float((up[start : start + step].double() @ down.double()).square().square().sum()) / elements
    variance = whole / elements
    return np.array(
        [
            float(values.max()),
            whole**0.5,
            float(energy.max()) / whole,
            float(-(shares * shares.log()).sum()),
            fourth / variance**2,
        ]
    )


def outlying(one: NDArray[np.float64], others: NDArray[np.float64]) -> Outlying:
    """Hold `one` `[f]` against `others` `[n, f]`.

    Raises:
        ValueError: Fewer than three others: they have no spread.
    """
    if len(others) < 3:
        raise ValueError("at least three others are needed")
    everyone = np.vstack([one, others])
    furthest = np.array([_spreads(everyone[index], np.delete(everyone, index, axis=0)).max() for index in range(len(everyone))])
    return Outlying(spreads=_spreads(one, others), p_value=float(np.mean(furthest >= furthest[0])))


def _spreads(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = np.median(others, axis=0)
    spread = MAD_TO_SIGMA * np.median(np.abs(others - middle), axis=0)
    apart = np.abs(one - middle)
    found: NDArray[np.float64] = np.where(apart == 0.0, 0.0, np.minimum(apart / np.maximum(spread, 1e-300), FURTHEST))
    return found
