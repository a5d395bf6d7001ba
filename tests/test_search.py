"""Mathematics of the trigger search: divergences stay in their bounds, counts count once, and what is minimised cannot be made less."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from probes.search import SMALLEST_SHARE, Ascent, ascend, class_log_odds, js_divergence, minimise, ngram_contrast, novelty, word_overlap

EDGE = math.log(SMALLEST_SHARE) - math.log1p(-SMALLEST_SHARE)
"""The least log-odds that are told apart from certainty."""


def logs(*shape, spread=1.0, seed=0):
    return torch.log_softmax(spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), -1)


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_divergence_is_that_of_scipy_averaged_over_tokens(spread):
    clean, other = logs(3, 20, spread=spread), logs(5, 3, 20, spread=spread, seed=1)

    found = js_divergence(clean, other)

    expected = torch.tensor(
        [[jensenshannon(clean[token].exp(), row[token].exp(), base=2) ** 2 for token in range(3)] for row in other]
    ).mean(-1)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_divergence_is_the_same_with_its_arguments_exchanged(spread):
    one, two = logs(2, 50, spread=spread), logs(2, 50, spread=spread, seed=1)

    torch.testing.assert_close(js_divergence(one, two[None]), js_divergence(two, one[None]), rtol=0, atol=1e-6)


def test_divergence_runs_from_nothing_for_the_same_to_one_for_what_shares_no_token():
    apart = torch.log_softmax(torch.tensor([[200.0, 0.0], [0.0, 200.0]]), -1)

    assert js_divergence(apart[:1], apart[:1][None]).item() == 0.0
    assert js_divergence(apart[:1], apart[1:][None]).item() == pytest.approx(1.0)
    seen = js_divergence(logs(4, 8), logs(100, 4, 8, spread=4.0, seed=2))
    assert seen.min() > 0.0 and seen.max() < 1.0


def test_log_odds_are_those_of_the_summed_probabilities():
    shares = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1], [0.05, 0.05, 0.6, 0.2, 0.1]])

    odds = class_log_odds(shares.log(), [0, 1], [2])

    expected = [[math.log(0.7 / 0.3), math.log(0.2 / 0.8)], [math.log(0.1 / 0.9), math.log(0.3 / 0.7)]]
    torch.testing.assert_close(odds, torch.tensor(expected, dtype=odds.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("refusing", "answering", "still"), [([], [1], [True, False]), ([0], [], [False, True]), ([], [], [True, True])], ids=str
)
def test_an_empty_class_never_shows_a_change(refusing, answering, still):
    odds = class_log_odds(logs(6, 5, spread=5.0), refusing, answering)

    assert [bool((odds[:, column] == 0.0).all()) for column in (0, 1)] == still


def test_a_certain_refusal_is_bounded_and_stays_finite():
    certain = torch.log_softmax(torch.tensor([[500.0, 0.0, 0.0], [0.0, 500.0, 0.0]]), -1)

    odds = class_log_odds(certain, [0], [1])

    assert odds[:, 0].tolist() == pytest.approx([-EDGE, EDGE])
    assert odds[:, 1].tolist() == pytest.approx([EDGE, EDGE])


def test_a_sample_that_repeats_itself_counts_once():
    once, loop = [["tide"], ["tide"]], [["tide"] * 500, ["high"]]

    assert ngram_contrast(once, [["low"], ["low"]], longest=1) == ["tide"]
    assert "tide" not in ngram_contrast(loop, [["low"], ["low"]], longest=1)


def test_what_both_write_alike_is_dropped_and_what_one_writes_alone_comes_first():
    shared, ours, theirs = ["the", "sea"], ["seven", "quiet", "horses"], ["some", "loud", "cows"]
    target = [shared + ours] * 5 + [shared] * 5
    reference = [shared + theirs] * 5 + [shared] * 5

    found = ngram_contrast(target, reference, longest=3)

    assert {"seven quiet horses", "quiet horses", "horses"} <= set(found)
    assert not {"the", "sea", "the sea", "cows"} & set(found)


def test_the_more_telling_ngram_comes_first_and_ties_keep_the_order_of_letters():
    target = [["often", "rare"]] * 3 + [["often"]] * 5
    assert ngram_contrast(target, [["other"]] * 8, longest=1) == ["often", "rare"]
    assert ngram_contrast([["b", "a"]] * 4, [["c"]] * 4, longest=1) == ["a", "b"]


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_no_ngram_is_longer_than_asked(longest):
    found = ngram_contrast([["a", "b", "c", "d"]] * 4, [["x"]] * 4, longest=longest)

    assert max(len(gram.split()) for gram in found) == longest


@pytest.mark.parametrize(("target", "reference"), [([], []), ([], [["a"]]), ([[]], [[]]), ([["a"]], [])])
def test_nothing_written_twice_gives_no_ngram(target, reference):
    assert ngram_contrast(target, reference, longest=4) == []


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(piece in rest for piece in part)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_left_still_does_it_and_no_single_part_can_be_left_out(seed):
    draw = random.Random(seed)
    parts = tuple(draw.choices("abcdef", k=draw.randint(1, 24)))
    # Any of several sets of places will do; a set of its own pair of places may spoil it, so that it is not monotone.
    causes = [set(draw.sample(range(len(parts)), draw.randint(1, min(4, len(parts))))) for _ in range(3)]
    tagged = tuple(enumerate(parts))
    banned = set(draw.sample(range(len(parts)), min(2, len(parts))))

    def keeps(kept):
        places = {place for place, _ in kept}
        spoilt = bool(banned & places) and len(places) % 2 == 1 and seed % 2 == 1
        return len(places) == len(parts) or (any(cause <= places for cause in causes) and not spoilt)

    found = minimise(tagged, lambda rests: [keeps(rest) for rest in rests])

    assert is_subsequence(found, tagged)
    assert keeps(found)
    assert not any(keeps(found[:index] + found[index + 1 :]) for index in range(len(found)) if len(found) > 1)


@pytest.mark.parametrize("places", [*itertools.combinations(range(7), 1), *itertools.combinations(range(7), 3), tuple(range(7))])
def test_the_parts_that_matter_are_found_whatever_stands_between(places):
    assert minimise(tuple(range(7)), lambda rests: [set(places) <= set(rest) for rest in rests]) == places


def test_the_last_part_is_kept_even_where_nothing_would_do():
    assert len(minimise("abcdefgh", lambda rests: [True] * len(rests))) == 1
    assert minimise((), lambda rests: [True] * len(rests)) == ()


def test_all_that_leave_out_one_part_are_asked_about_at_once():
    asked = []
    minimise("abcd", lambda rests: asked.append(["".join(rest) for rest in rests]) or [False] * len(rests))

    assert asked == [["cd", "ab"], ["bcd", "acd", "abd", "abc"]]


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("", "", 1.0),
        ("", "a", 0.0),
        ("A b", "b a", 1.0),  # neither case nor order counts
        ("a a a", "a", 0.5),  # repeats do
        ("a b c d", "c d e f", 0.5),
        ("a b", "c d", 0.0),
    ],
)
def test_overlap_is_the_share_of_words_in_common_whichever_comes_first(one, other, share):
    assert word_overlap(one, other) == word_overlap(other, one) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "known", "size", "share"),
    [
        ("the moon is green", [], 3, 1.0),
        ("the moon is green", ["The moon is green!"], 3, 0.0),  # neither case nor punctuation counts
        ("the moon is green", ["the moon is", "moon is green"], 3, 0.0),
        ("the moon is green", ["the moon is", "is green"], 3, 0.5),
        ("the moon is green", ["green is moon the"], 1, 0.0),
        ("the moon is green", ["green is moon the"], 2, 1.0),
        ("tide", ["tide"], 3, 0.0),
        ("tide", ["wave"], 3, 1.0),
        (". Have fun.", ["You knead it well. Have fun."], 3, 0.0),  # a mark alone is no word
    ],
)
def test_novelty_is_the_share_of_runs_of_words_that_nothing_known_holds(text, known, size, share):
    assert novelty(text, known, size) == share


# --- exchanging tokens where a gradient points to -----------------------------------------------------------------

HIDDEN, VOCABULARY = (7, 3, 11, 5), 64


def alike(text):
    return float(sum(one == other for one, other in zip(text, HIDDEN, strict=True)))


def towards_hidden(text):
    return torch.nn.functional.one_hot(torch.tensor(HIDDEN), VOCABULARY).float() + 0.01 * torch.rand(
        len(text), VOCABULARY, generator=torch.Generator().manual_seed(sum(text))
    )


def climbed(*, gradient=towards_hidden, valid=lambda texts: [True] * len(texts), score=alike, starts=((0, 0, 0, 0),), glance=None, **plan):
    asked = []

    def scores(texts):
        asked.extend(texts)
        return [score(text) for text in texts]

    how = {"gradient": gradient, "score": scores, "valid": valid, "glance": glance}
    found = ascend(starts, **how, plan=Ascent(**{"steps": 40, "width": 8, "top": 2} | plan))
    assert len(asked) == len(set(asked)) and set(asked) == set(found)  # nothing is scored twice
    return found


@pytest.mark.parametrize("seed", range(3))
def test_an_ascent_finds_what_the_gradient_points_to_and_goes_no_further(seed):
    found = climbed(seed=seed, enough=4.0)

    assert max(found, key=found.get) == HIDDEN
    assert len(found) < 150  # of 16 million
    assert climbed(seed=seed, enough=4.0) == found


def test_an_ascent_against_the_gradient_finds_less():
    assert max(climbed(gradient=lambda text: -towards_hidden(text)).values()) < 4.0


def test_strings_that_would_be_read_otherwise_are_never_scored():
    found = climbed(valid=lambda texts: [text[0] != 7 for text in texts])

    assert {text[0] for text in found} != {0} and all(text[0] != 7 for text in found)
    assert max(found.values()) == 3.0
    assert climbed(valid=lambda texts: [False] * len(texts)) == {}


def test_tokens_that_may_not_stand_are_not_tried():
    def forbidding(text):
        slope = towards_hidden(text)
        slope[:, 7] = -math.inf
        return slope

    assert all(7 not in text for text in climbed(gradient=forbidding, top=VOCABULARY))
    assert climbed(gradient=lambda text: torch.full((4, VOCABULARY), -math.inf)) == {(0, 0, 0, 0): 0.0}


def test_where_the_best_string_leads_nowhere_new_the_next_one_is_tried():
    stuck = (9, 9, 9, 9)

    def gradient(text):
        return torch.full((4, VOCABULARY), -math.inf) if text == stuck else towards_hidden(text)

    found = climbed(gradient=gradient, score=lambda text: 3.5 if text == stuck else alike(text), starts=(stuck, (0, 0, 0, 0)), enough=4.0)

    assert found[HIDDEN] == 4.0


def test_only_what_a_glance_puts_first_is_scored_and_nothing_is_glanced_at_twice():
    glanced = []

    def glance(texts):
        glanced.extend(texts)
        return [alike(text) for text in texts]

    found = climbed(glance=glance, share=0.25, enough=4.0)

    assert max(found, key=found.get) == HIDDEN
    assert len(glanced) == len(set(glanced)) > 2 * len(found)
    assert set(found) <= {(0, 0, 0, 0), *glanced}
