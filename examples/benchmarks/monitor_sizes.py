"""How often each family of a monitor's detectors is wrong on quiet traffic, and all of them together, beside what is stated.

    python examples/benchmarks/monitor_sizes.py --runs 500

At the level of counts: no texts. Rates as in `monitor_delay.py`; requests of hashed words of which one in fifty is refused; opinions of which one in ten is
against, and comments; shapes of traffic with a daily rhythm, a day to learn and four to watch.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from monitor_delay import ALPHA, quiet_run

from forensics.monitor.baseline import FEEDBACK, RATES, SHAPES, STRINGS
from forensics.monitor.drift import LEAST_BLOCKS
from forensics.monitor.feedback import PARTS
from forensics.monitor.shapes import BLOCK
from probes.change import Change, follow
from probes.drift import spent
from probes.shapes import Bags, inflation_of_means, inflation_of_shares, nearest_mean, nearest_shares, spread_within
from probes.statistics import holm
from probes.strings import Hunt

STATED = {"rates": RATES, "strings": STRINGS, "feedback": FEEDBACK, "shapes": SHAPES}
REQUESTS, WORDS, VOCABULARY = 10_000, 8, 3000
SAID = {"down": (3000, 0.1), "concern": (600, 0.03)}
"""Opinions and comments in a run, and the rate of hits."""
BINS = ((0.7, 0.15, 0.1, 0.05), (0.3, 0.25, 0.2, 0.15, 0.1), (0.94, 0.05, 0.01))
"""Shares of three shapes at noon."""
LOOKS, WIDTH, SWING = 48, 8, 0.5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    wanted = parser.parse_args()
    found = Counter(family for seed in range(wanted.first, wanted.first + wanted.runs) for family in alarmed(seed))
    print("| family | quiet runs with a false alarm | stated at most |")
    print("| --- | --- | --- |")
    for family, part in STATED.items():
        print(f"| {family} | {found[family]} of {wanted.runs} | {ALPHA * part:.2%} |")
    print(f"| all together | {found['any']} of {wanted.runs} | {ALPHA * sum(STATED.values()):.2%} |")


def alarmed(seed: int) -> list[str]:
    """The families that alarm in a quiet run, and "any" if there is one."""
    generator = np.random.default_rng(seed)
    said = {
        "rates": quiet_run(generator),
        "strings": strings(generator),
        "feedback": feedback(generator),
        "shapes": shapes(generator),
    }
    found = [family for family, wrong in said.items() if wrong]
    return [*found, "any"] if found else []


def strings(generator: np.random.Generator) -> bool:
    """Whether any word is blamed for refusals that no word brings about."""
    hunt = Hunt(bound=0.0, alpha=ALPHA * STRINGS / 2)
    weights = 1.0 / np.arange(1, VOCABULARY + 1)
    words = generator.choice(VOCABULARY, p=weights / weights.sum(), size=(REQUESTS, WORDS)).tolist()
    flipped = (generator.random(REQUESTS) < 0.02).tolist()
    return any(hunt.look(set(row), flip) for row, flip in zip(words, flipped, strict=True))


def feedback(generator: np.random.Generator) -> bool:
    """Whether opinions or comments seem to have turned."""
    return any(
        follow(Change(), generator.random(events) < rate).alarms(ALPHA * FEEDBACK * PARTS[signal])
        for signal, (events, rate) in SAID.items()
    )


def shapes(generator: np.random.Generator) -> bool:
    """Whether any look of four days alarms, where every shape and the mean of texts swing with the hour."""
    phase = generator.random()

    def share(which: int, place: float) -> np.ndarray:
        weights = np.array(BINS[which]) * np.exp(SWING * np.cos(2 * np.pi * (place / LEAST_BLOCKS + phase) + np.arange(len(BINS[which]))))
        return np.asarray(weights / weights.sum())

    def bags(place: float) -> Bags:
        vectors = generator.normal(size=(10, WIDTH)) * np.sqrt(BLOCK / 10)  # ten sums of normal vectors
        swing = SWING * np.sin(2 * np.pi * (place / LEAST_BLOCKS + phase)) * np.eye(WIDTH)[0]
        return Bags(sums=vectors + BLOCK / 10 * swing, events=np.full(10, BLOCK // 10))

    references = [
        np.stack([generator.multinomial(BLOCK, share(which, place)) for place in range(LEAST_BLOCKS)]) for which in range(len(BINS))
    ]
    means = [bags(place) for place in range(LEAST_BLOCKS)]
    spread = spread_within(means)
    inflations, inflation = [inflation_of_shares(reference) for reference in references], inflation_of_means(means, spread)
    for look in range(1, LOOKS + 1):
        place = look + generator.uniform(-0.5, 0.5)
        chances = [
            nearest_shares(generator.multinomial(BLOCK, share(which, place)), reference, inflation=by).p_value
            for which, (reference, by) in enumerate(zip(references, inflations, strict=True))
        ]
        chances.append(nearest_mean(bags(place), means, spread, inflation=inflation).p_value)
        if min(holm(chances)) <= spent(ALPHA * SHAPES, look):
            return True
    return False


if __name__ == "__main__":
    main()
