"""How far two models' next tokens are apart: KL both ways, over the tokens that both of them know."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.floating]
Array = NDArray[np.float64]
LOWEST = -80.0
"""Log probability below which one counts as this: some models rule tokens out entirely, and a divergence would not be a number."""


def among(log_probabilities: Table, tokens: NDArray[np.integer]) -> tuple[Array, Array]:
    """Log probabilities `[n, k]` among `tokens` `[k]` alone, and the share `[n]` of the probability that lies on others.

    >>> logs, left_out = among(np.log(np.array([[0.5, 0.25, 0.25]])), np.array([0, 2]))
    >>> np.exp(logs).round(4).tolist(), left_out.round(4).tolist()
    ([[0.6667, 0.3333]], [0.25])
    """
    chosen = np.maximum(np.asarray(log_probabilities, dtype=np.float64)[:, tokens], LOWEST)
    top = chosen.max(axis=1, keepdims=True)
    whole = np.log(np.exp(chosen - top).sum(axis=1, keepdims=True)) + top
    return chosen - whole, np.clip(1.0 - np.exp(whole[:, 0]), 0.0, 1.0)


def divergences(first: Table, second: Table) -> Array:
    """KL(first || second) of each row in nats, `[n]`, of log probabilities `[n, tokens]` of the same tokens.

    Raises:
        ValueError: The shapes differ, or a value is not a number.

    >>> half, other = np.log(np.array([[0.5, 0.5]])), np.log(np.array([[0.25, 0.75]]))
    >>> divergences(half, other).round(4).tolist()  # 0.5 ln 2 + 0.5 ln (2/3)
    [0.1438]
    """
    p, q = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 2 or np.isnan(p).any() or np.isnan(q).any():
        raise ValueError(f"two tables of log probabilities of one shape are needed, got {p.shape} and {q.shape}")
    terms = np.exp(p) * (np.maximum(p, LOWEST) - np.maximum(q, LOWEST))
    return np.asarray(np.maximum(terms.sum(axis=1), 0.0))  # rounding can take a divergence of nothing below zero
