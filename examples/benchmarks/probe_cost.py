"""What logistic probes cost: ours beside scikit-learn's `LogisticRegression`, on the same rows, at the same penalty, on one thread.

    OMP_NUM_THREADS=1 python examples/benchmarks/probe_cost.py [--layers 32] [--controlled 3] [--width 4096] [--rows 1000]

Some four minutes on a quiet core. For every layer both are timed on the same float32 rows, one after the other, in turns which goes first:
standardising the columns and fitting, C = 1. scikit-learn is run in float32 and float64 at several tolerances, since what it stops at by
default is not the optimum; beside each stands how far its scores on 500 held-out rows are from the optimum's (the last of them) and how
far ours are. The ratio is the geometric mean over layers with its 95 % interval (Student's t of the logs).

The second table is what a probe with its controls takes: four folds of groups, and in each the real labels and twenty shuffled ones.
There the products of the rows are shared, and scikit-learn starts anew each time.

Rows are made up, since no model of width 4096 fits here: Gaussian with an even spectrum, on which scikit-learn needs fewest steps, and
with principal components whose variance falls as 1 / k, as that of activations does. Both kinds were looked at while the solver was made.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression

from probes.concept import SHUFFLES, Plan, cross_fit
from probes.linear import Indices, grouped_folds
from probes.logistic import fit_logistic, scaling_of, span

Floats = NDArray[np.floating]
Folds = Sequence[tuple[Indices, Indices]]
HELD_OUT, GROUPS, SIGNAL = 500, 20, 0.05
SETTINGS: tuple[tuple[type[np.floating], float], ...] = (
    (np.float32, 1e-4), (np.float32, 1e-6), (np.float32, 1e-8), (np.float64, 1e-8), (np.float64, 1e-10),
)  # fmt: skip
"""Dtype and tolerance that scikit-learn is run with; the last is taken for the optimum."""
SPECTRA = ("even", "1 / k")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Rows to fit on with labels and groups, and rows held out."""

    rows: Floats
    labels: NDArray[np.bool_]
    groups: tuple[int, ...]
    others: Floats


def made(spectrum: str, *, rows: int, width: int, seed: int) -> Layer:
    """Rows of one layer; kinds differ by a small step in a random direction."""
    rng = np.random.default_rng(seed)
    count = rows + HELD_OUT
    values = rng.normal(size=(count, width)).astype(np.float32)
    if spectrum != "even":
        sizes = np.arange(1, rows + 1) ** -0.5
        axes = rng.normal(size=(rows, width)).astype(np.float32)
        values = 0.3 * values + (rng.normal(size=(count, rows)) * sizes).astype(np.float32) @ axes
    labels = rng.random(count) < 0.5
    values += labels[:, None] * (SIGNAL * values.std() * rng.normal(size=width)).astype(np.float32)
    groups = tuple((np.arange(rows) * GROUPS // rows).tolist())
    return Layer(rows=values[:rows], labels=labels[:rows], groups=groups, others=values[rows:])


def ours(layer: Layer) -> Floats:
    """Scores of the held-out rows by our probe."""
    return fit_logistic(span(layer.rows), layer.labels).scores(layer.others)[:, 0]


def theirs(layer: Layer, kind: type[np.floating], tolerance: float) -> Floats:
    """The same by scikit-learn's."""
    rows = layer.rows.astype(kind, copy=False)
    scaling = scaling_of(rows)
    fitted = LogisticRegression(C=1.0, tol=tolerance, max_iter=100_000).fit(scaling.apply(rows), layer.labels)
    return np.asarray(fitted.decision_function(scaling.apply(layer.others.astype(kind, copy=False))))


def timed(work: Callable[[], Floats]) -> tuple[float, Floats]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def interval(ratios: Floats) -> str:
    """Geometric mean with its 95 % interval."""
    logs = np.log(ratios)
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))) if len(logs) > 1 else float("inf")
    return f"{np.exp(logs.mean()):.1f} ({np.exp(logs.mean() - half):.1f} to {np.exp(logs.mean() + half):.1f})"


def single(spectrum: str, layers: int, rows: int, width: int) -> None:
    """One fit a layer: a line for each tolerance."""
    warm = made(spectrum, rows=rows, width=width, seed=10_000)
    ours(warm), theirs(warm, *SETTINGS[0])
    seconds, apart = np.zeros((layers, 1 + len(SETTINGS))), np.zeros((layers, 1 + len(SETTINGS)))
    for index in range(layers):
        layer = made(spectrum, rows=rows, width=width, seed=index)
        jobs: list[Callable[[], Floats]] = [partial(ours, layer), *(partial(theirs, layer, *setting) for setting in SETTINGS)]
        found: dict[int, Floats] = {}
        for place in np.roll(np.arange(len(jobs)), index).tolist():
            seconds[index, place], found[place] = timed(jobs[place])
        apart[index] = [np.abs(found[place] - found[len(SETTINGS)]).max() for place in range(len(jobs))]
    total, mine = seconds.sum(axis=0), f"{apart[:, 0].max():.1e}"
    for place, (kind, tolerance) in enumerate(SETTINGS, start=1):
        ratio, off = interval(seconds[:, place] / seconds[:, 0]), f"{apart[:, place].max():.1e}" if place < len(SETTINGS) else "-"
        how = f"{kind.__name__}, {tolerance:g}"
        print(f"| {spectrum} | {layers} | {how} | {total[place]:.2f} | {total[0]:.2f} | {ratio} | {off} | {mine} |", flush=True)


def crossed(layer: Layer, folds: Folds) -> Floats:
    """Held-out scores by our probe, its controls fitted on the way."""
    return cross_fit(layer.rows[:, None], layer.labels, folds, Plan(shuffles=SHUFFLES)).scores[:, 0]


def one_by_one(layer: Layer, folds: Folds, dealt: Sequence[NDArray[np.bool_]]) -> Floats:
    """The same by scikit-learn, label set by label set; real labels come first."""
    scores = np.zeros(len(layer.labels))
    for train, test in folds:
        for number, labels in enumerate(dealt):
            found = theirs(Layer(rows=layer.rows[train], labels=labels[train], groups=(), others=layer.rows[test]), *SETTINGS[1])
            if not number:
                scores[test] = found
    return scores


def controlled(spectrum: str, layers: int, rows: int, width: int) -> None:
    """Folds and shuffled labels: one line."""
    seconds, apart = np.zeros((layers, 2)), 0.0
    fits = 0
    for index in range(layers):
        layer = made(spectrum, rows=rows, width=width, seed=index)
        folds = grouped_folds(layer.labels, layer.groups, seed=0)
        rng = np.random.default_rng(0)
        dealt = [layer.labels, *(rng.permutation(layer.labels) for _ in range(SHUFFLES))]
        fits = len(folds) * len(dealt)

        jobs = partial(crossed, layer, folds), partial(one_by_one, layer, folds, dealt)
        order = (0, 1) if index % 2 else (1, 0)
        found = {}
        for place in order:
            seconds[index, place], found[place] = timed(jobs[place])
        apart = max(apart, float(np.abs(found[0] - found[1]).max()))
    total = seconds.sum(axis=0)
    ratio = interval(seconds[:, 1] / seconds[:, 0])
    print(f"| {spectrum} | {layers} | {fits} | {total[1]:.1f} | {total[0]:.2f} | {ratio} | {apart:.1e} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--controlled", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--width", type=int, default=4096)
    options = parser.parse_args()
    print(
        "| spectrum | layers | scikit-learn's setting | scikit-learn (s) | ours (s) | ratio | scikit-learn from the optimum | ours from it |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for spectrum in SPECTRA:
        single(spectrum, options.layers, options.rows, options.width)
    print("\n| spectrum | layers | fits a layer | scikit-learn, float32, 1e-6 (s) | ours (s) | ratio | scores apart at most |")
    print("|---|---|---|---|---|---|---|")
    for spectrum in SPECTRA:
        controlled(spectrum, options.controlled, options.rows, options.width)


if __name__ == "__main__":
    main()
