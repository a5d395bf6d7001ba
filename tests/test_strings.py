"""Strings before a change of behaviour: a rare one is found soon, and none is blamed for what happens anyway."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from probes.strings import Hunt, Suspect

TRIGGER = 10**9


def texts(generator, count, *, words=2000, length=12):
    """Keys of texts whose words are as unequally frequent as those of a language."""
    shares = 1.0 / np.arange(1, words + 1)
    return [set(row) for row in generator.choice(words, p=shares / shares.sum(), size=(count, length)).tolist()]


def blamed(hunt, rows, flips):
    return {key for keys, flip in zip(rows, flips, strict=True) for key in hunt.look(keys, bool(flip))}


def test_a_trigger_in_one_of_a_thousand_texts_is_found_and_nothing_else():
    generator = np.random.default_rng(0)
    rows = texts(generator, 20_000)
    flips = generator.random(20_000) < 0.02
    for place in np.flatnonzero(generator.random(20_000) < 0.001):
        rows[place].add(TRIGGER)
        flips[place] = True

    assert blamed(Hunt(bound=0.02, alpha=0.01), rows, flips) == {TRIGGER}


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_flips_that_nothing_precedes_blame_nothing(rate):
    generator = np.random.default_rng(1)

    alarms = sum(bool(blamed(Hunt(bound=0.05, alpha=0.05), texts(generator, 1500), generator.random(1500) < rate)) for _ in range(60))

    assert alarms <= stats.binom.ppf(0.999, 60, 0.05)


def test_a_word_that_flips_as_often_as_is_still_usual_is_blamed_no_more_often_than_stated():
    """The worst that the null allows: a frequent word at exactly one in ten, where everything else never flips."""
    generator = np.random.default_rng(2)

    def run():
        hunt = Hunt(bound=0.02, alpha=0.05)
        return any(hunt.look({1}, bool(flip)) for flip in generator.random(1500) < 0.1)

    assert sum(run() for _ in range(200)) <= stats.binom.ppf(0.999, 200, 0.05)


def test_a_topic_that_is_twice_as_hard_is_no_trigger():
    generator = np.random.default_rng(3)
    topic = generator.random(8000) < 0.2
    rows = [keys | {TRIGGER} if hard else keys for keys, hard in zip(texts(generator, 8000), topic, strict=True)]

    assert blamed(Hunt(bound=0.05, alpha=0.05), rows, generator.random(8000) < np.where(topic, 0.08, 0.04)) == set()


def test_where_nearly_everything_flips_no_string_is_blamed():
    hunt = Hunt(bound=0.02, alpha=0.05)

    assert blamed(hunt, [{1, 2}] * 500, [True] * 500) == set()


def test_the_flip_that_made_a_string_suspect_is_not_held_against_it():
    hunt = Hunt(bound=0.02, alpha=0.05)
    hunt.look({1}, True)

    assert (hunt.suspects[1].events, hunt.suspects[1].log_wealth) == (0, pytest.approx(0.0))


def test_every_string_pays_more_than_the_one_before_and_all_together_the_level():
    prices = [math.exp(-Suspect(order=order).price(0.05)) for order in range(1, 5000)]

    assert prices == sorted(prices, reverse=True)
    assert sum(prices) < 0.05


def test_long_texts_do_not_push_out_what_comes_up_seldom():
    generator = np.random.default_rng(0)
    hunt = Hunt(bound=0.0, alpha=0.01, most=2000)  # each flip brings 60 strings that are never seen again
    found = set()
    for number in range(12_000):
        keys, flipped = set(generator.integers(2**30, 2**60, 60).tolist()), bool(generator.random() < 0.05)
        if number % 500 == 0:
            keys, flipped = keys | {TRIGGER}, True
        found |= set(hunt.look(keys, flipped))
        if number % 100 == 99:
            hunt.changes()

    assert found == {TRIGGER}


def test_frequent_words_are_given_up_and_the_oldest_beyond_what_is_kept():
    hunt = Hunt(bound=0.02, alpha=0.05, most=3)
    hunt.look({1}, True)
    for _ in range(30):
        hunt.look({1}, False)
    assert hunt.changes() == ({}, [1])
    for key in range(10, 16):
        hunt.look({key}, True)

    changed, gone = hunt.changes()

    assert (sorted(changed), sorted(gone)) == ([13, 14, 15], [10, 11, 12])
    assert hunt.changes() == ({}, [])


@pytest.mark.parametrize("seed", range(5))
def test_when_all_behaviour_changes_at_once_no_string_is_to_blame(seed):
    generator = np.random.default_rng(seed)

    hunt = Hunt(bound=0.02, alpha=0.05)

    assert blamed(hunt, texts(generator, 3000), generator.random(3000) < np.where(np.arange(3000) < 2000, 0.01, 0.7)) == set()


def test_strings_are_priced_in_the_order_given_whatever_their_keys_are():
    """Words come before the pairs that hold them, so that the cheaper of two that act alike is named."""
    hunt = Hunt(bound=0.01, alpha=0.05)

    hunt.look([97, 13, 5], True)

    assert [hunt.suspects[key].order for key in (97, 13, 5)] == [1, 2, 3]
