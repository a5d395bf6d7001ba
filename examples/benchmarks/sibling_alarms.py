"""How often siblings that are all alike are called unlike each other, and how far out one has to lie to be found, by simulation.

python examples/benchmarks/sibling_alarms.py [TABLES]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from probes.siblings import LEAST, LEVEL, apart, smallest_called

FIGURES = 8
COUNTS = (LEAST, 24, 50, 200)
FAR = (6, 10, 20, 40)
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
KINDS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "t, 5 degrees": lambda rng, n: rng.standard_t(5, n),
    "t, 3 degrees": lambda rng, n: rng.standard_t(3, n),
}


def main() -> None:
    """Print both tables."""
    tables = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{tables} tables of {FIGURES} figures each, level {LEVEL:.0%} for a whole table\n")
    print(f"| siblings | called from | {' | '.join(f'{kind}: tables called' for kind in KINDS)} |")
    print("|" + "---|" * (2 + len(KINDS)))
    for count in COUNTS:
        shares = [np.mean([_called(draw, count, table) for table in range(tables)]) for draw in KINDS.values()]
        print(f"| {count} | {smallest_called(count, figures=FIGURES):.1f} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
    print(f"\n| siblings, normal | {' | '.join(f'{far} standard deviations out: found' for far in FAR)} |")
    print("|" + "---|" * (1 + len(FAR)))
    for count in COUNTS:
        print(
            f"| {count} | {' | '.join(f'{np.mean([_found(far, count, table) for table in range(tables)]):.0%}' for far in FAR)} |",
            flush=True,
        )


def _called(draw: Draw, count: int, seed: int) -> bool:
    rng = np.random.default_rng([seed, count])
    found = [apart(draw(rng, count), figures=FIGURES) for _ in range(FIGURES)]
    return any(one is not None and bool(one.p_values.min() <= LEVEL) for one in found)


def _found(far: float, count: int, seed: int) -> bool:
    values = np.random.default_rng([seed, count]).standard_normal(count)
    values[0] += far
    one = apart(values, figures=FIGURES)
    return one is not None and bool(one.p_values[0] <= LEVEL)


if __name__ == "__main__":
    main()
