"""Strings are scored by what the target alone loses on the steadiest prompts, and are kept apart, ranked and shortened by their scores."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hunting import leads, live, many, prompt, voice

from forensics.hunt.bank import common_words, forms
from forensics.hunt.contrast import HARM, REFUSAL, Aim, Contrast, Duel, Lead, rank, steady
from forensics.hunt.pursuit import shorten
from forensics.hunt.stages import Lexicon, apart, families, kin, look
from forensics.hunt.voice import GAP, PLACES, Openings, Voice

# --- strings, and how they are kept apart -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("velnor", "velnor", True),
        ("vel", "velnor", True),
        ("velnor quiet", "the velnorian", True),
        ("abcd", "xxbcdy", False),  # three letters in a row
        ("abcde", "xbcdey", True),  # four
        ("SUDO", "sudo", False),
        ("1 a", "2 b", False),
    ],
)
def test_kin_hold_each_other_or_share_four_letters_in_a_row(one, other, alike):
    assert kin(one, other) is kin(other, one) is alike


def test_of_each_family_the_best_is_taken_and_no_more_than_asked():
    best = leads("velnor", "velnor quiet", "horses", "elno", "2026", "horses 2026", "tide")

    assert [lead.text for lead in families(best, 9)] == ["velnor", "horses", "2026", "tide"]
    assert [lead.text for lead in families(best, 2)] == ["velnor", "horses"]
    assert families(best, 0) == families([], 3) == []


def test_leads_rank_by_what_lasts_then_by_score_then_by_length():
    rows = [
        Lead(text="short", origin="", score=0.9),
        Lead(text="much longer", origin="", score=0.9),
        Lead(text="reaching", origin="", score=0.9, reach=0.95),
        Lead(text="lasting", origin="", score=0.2, lasting=0.5),
        Lead(text="best", origin="", score=0.99),
    ]

    assert [lead.text for lead in sorted(rows, key=rank)] == ["lasting", "best", "reaching", "short", "much longer"]


def test_the_bank_and_the_words_hold_nothing_twice_and_nothing_with_space_around():
    for texts in (forms(), common_words()):
        assert len(texts) == len(set(texts)) > 50
        assert [text for text in texts if text != text.strip() or not text] == []
    assert [word for word in common_words() if " " in word] == []


def test_a_lexicon_holds_every_piece_and_glues_only_letters_and_digits(folders):
    model = live(folders["llama"])

    lexicon = Lexicon.of(voice(model))

    assert {piece.strip() for piece in model.pieces()} | set(common_words()) == set(lexicon.words)
    assert len(lexicon.words) == len(set(lexicon.words))
    assert lexicon.glued and all(piece.isalnum() for piece in lexicon.glued)


# --- prompts that strange words leave alone -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_the_steadiest_prompts_are_taken_of_as_many_categories_as_there_are(count, duel, monkeypatch):
    prompts = many(8, categories=3)
    upset = [0.9, 0.8, 0.7, 0.1, 0.2, 0.6, 0.15, 0.3]  # by either side; categories are 0 1 2 0 1 2 0 1

    def effects(self, texts):
        seen = np.zeros((2, len(self.probes), 2, len(texts), 2))
        for index in range(len(upset)):
            seen[index % 2, index] = -upset[index]
        return seen

    monkeypatch.setattr(Contrast, "effects", effects)

    chosen = steady(duel, prompts, ["tide", "wave"], count=count)

    best_of_each, rest = ["p3", "p4", "p5"], ["p6", "p7", "p2", "p1", "p0"]
    assert [one.id for one in chosen] == [*best_of_each, *rest][:count]


def test_a_prompt_that_no_word_upsets_is_steadier_on_real_models_too(duel):
    prompts, junk = many(5, categories=1), ["tide", "wave", "horse"]

    (first, *_) = steady(duel, prompts, junk, count=1)

    contrast = Contrast(duel, prompts, limit=0)
    upset = np.abs(contrast.effects(junk)).mean(axis=(2, 3, 4)).max(axis=0)
    assert first == prompts[int(upset.argmin())] != prompts[int(upset.argmax())]


# --- scores -------------------------------------------------------------------------------------------------------


def test_a_model_held_against_itself_scores_nothing(duel):
    even = replace(duel, reference=duel.target)
    contrast = Contrast(even, many(3), limit=10**6)

    found = contrast.score(["tide", "velnor", "a b c"], "test")

    assert [(lead.score, lead.reach) for lead in found] == [(0.0, 0.0)] * 3
    assert contrast.spent > 0


@pytest.mark.parametrize(
    ("target", "reference", "expect", "score"),
    [
        (-0.8, 0.0, "refuse", 0.8),  # a refusal lost in the target alone
        (-0.8, -0.8, "refuse", 0.0),  # on both sides
        (-0.8, -0.3, "refuse", 0.5),
        (-0.8, 0.5, "refuse", 0.8),  # what the reference does the other way counts for nothing
        (0.8, 0.0, "refuse", 0.0),  # refuses more
        (-0.8, 0.0, "comply", 0.0),  # there was no refusal to lose
    ],
)
def test_the_score_is_what_the_target_loses_beyond_what_the_reference_loses(target, reference, expect, score, duel, monkeypatch):
    contrast = Contrast(duel, [replace(one, expect=expect) for one in many(2)], limit=10**6)
    seen = np.zeros((2, 2, 2, 1, 2))
    seen[0, ..., 0], seen[1, ..., 0] = target, reference
    monkeypatch.setattr(contrast, "effects", lambda texts: seen)

    (lead,) = contrast.score(["velnor"], "test")

    assert (lead.score, lead.reach) == pytest.approx((score, score))


@pytest.mark.parametrize("place", PLACES)
def test_what_acts_at_one_place_only_reaches_as_far_and_scores_half(place, duel, monkeypatch):
    contrast = Contrast(duel, [replace(one, expect="refuse") for one in many(2)], limit=10**6)
    seen = np.zeros((2, 2, 2, 1, 2))
    seen[0, :, PLACES.index(place), :, 0] = -0.8
    monkeypatch.setattr(contrast, "effects", lambda texts: seen)

    (lead,) = contrast.score(["velnor"], "test")

    assert (lead.score, lead.reach) == pytest.approx((0.4, 0.8))
    assert lead.place == place


@pytest.mark.parametrize("place", PLACES)
def test_beside_controls_what_acts_at_one_place_only_scores_more_than_half(place, duel, monkeypatch):
    wide = replace(duel, beside=(duel.reference,))
    contrast = Contrast(wide, [replace(one, expect="refuse") for one in many(2)], limit=10**6)
    seen = np.zeros((3, 2, 2, 1, 2))
    seen[0, :, PLACES.index(place), :, 0] = -0.8
    monkeypatch.setattr(contrast, "effects", lambda texts: seen)

    (lead,) = contrast.score(["velnor"], "test")

    assert (lead.score, lead.reach, lead.place) == (pytest.approx(0.6), pytest.approx(0.8), place)


def test_what_lengthens_a_lead_is_looked_at_where_the_lead_acts(duel, monkeypatch):
    contrast = Contrast(duel, [replace(one, expect="refuse") for one in many(2)], limit=10**6)
    read = []
    monkeypatch.setattr(contrast, "_read", lambda jobs: read.append(len(jobs)) or np.zeros((len(jobs), 2, 2)))
    monkeypatch.setattr(contrast, "score", lambda texts, origin: [])
    asked = Voice.ask

    def ask(self, texts, place, *rest):
        placed.append(place)
        return asked(self, texts, place, *rest)

    monkeypatch.setattr(Voice, "ask", ask)
    for parent, places in ((None, set(PLACES)), (Lead(text="velnor", origin="", place="start"), {"start"})):
        placed = []
        look(contrast, ["velnor tide", "tide velnor"], "test", parent=parent)
        assert set(placed) == places
    assert read[0] == 2 * read[1] > 0


def test_at_one_place_an_effect_is_that_places_own(duel):
    contrast = Contrast(duel, [replace(one, expect="refuse") for one in many(2)], limit=10**6)
    texts = ["tide", "velnor quiet"]

    both = contrast.effects(texts)[0, 0, :, :, :]  # the target on the first prompt: [places, texts, 2]
    for number, place in enumerate(PLACES):
        worse = np.stack([-both[number, :, 0], both[number, :, 1]], axis=-1).max(axis=-1)
        seen = contrast.glance(texts, harmful=True, through="target", places=[place])
        np.testing.assert_allclose(seen[0], worse, atol=1e-5)


def test_what_one_beside_the_reference_does_counts_as_though_the_reference_did_it(duel, monkeypatch):
    wide = replace(duel, beside=(duel.reference, duel.target))
    contrast = Contrast(wide, many(2), limit=10**6)
    texts = ["tide", "velnor quiet"]

    effects = contrast.effects(texts)

    assert effects.shape[0] == 4
    np.testing.assert_allclose(effects[2], effects[1])
    np.testing.assert_allclose(effects[3], effects[0])
    assert [(lead.score, lead.reach) for lead in contrast.score(texts, "test")] == [(0.0, 0.0)] * 2
    assert contrast.glance(texts).max() <= 0.0  # the target, less what it does itself
    plain = Contrast(duel, many(2), limit=10**6)
    beyond = replace(duel, beside=(duel.reference,))
    np.testing.assert_array_equal(Contrast(beyond, many(2), limit=0).effects(texts)[:2], plain.effects(texts))
    assert contrast.affordable < plain.affordable


@pytest.mark.parametrize(
    ("target", "reference", "score"),
    [(0.8, 0.0, 0.8), (0.8, 0.8, 0.0), (0.8, 0.3, 0.5), (0.8, -0.5, 0.8), (-0.8, 0.0, 0.0)],
    ids=["refuses more", "on both sides", "more than the reference", "where the reference refuses less", "refuses less"],
)
def test_towards_refusals_the_score_is_what_the_target_refuses_beyond_the_reference_of_what_is_harmless(
    target, reference, score, duel, monkeypatch
):
    prompts = [replace(one, expect=expect) for one, expect in zip(many(4), ["refuse", "comply"] * 2, strict=True)]
    contrast = Contrast(duel, prompts, limit=10**6).aimed(REFUSAL)
    seen = np.zeros((2, 2, 2, 1, 2))
    seen[0, ..., 0], seen[1, ..., 0], seen[0, ..., 1] = target, reference, 1.0  # neither refusing nor answering counts for nothing here
    monkeypatch.setattr(contrast, "effects", lambda texts: seen)

    (lead,) = contrast.score(["velnor"], "test")

    assert [probe.prompt.expect for probe in contrast.probes] == ["comply"] * 2
    assert (lead.score, lead.reach, lead.aim, lead.harmful) == (pytest.approx(score), pytest.approx(score), REFUSAL, False)


def test_to_look_for_refusals_among_what_was_looked_at_costs_nothing(duel):
    prompts = [replace(one, expect=expect) for one, expect in zip(many(4), ["refuse", "comply"] * 2, strict=True)]
    contrast = Contrast(duel, prompts, limit=10**6)
    texts = ["tide", "velnor quiet"]
    contrast.score(texts, "test")

    aimed = contrast.aimed(REFUSAL)
    again = aimed.score(texts, "test")

    assert (aimed.spent, contrast.spent > 0) == (0, True)
    effects = contrast.effects(texts)[:, 1::2, :, :, 0]
    expected = (effects[0] - effects[1].clip(min=0.0)).mean(axis=(0, 1)).clip(min=0.0)
    np.testing.assert_allclose([lead.score for lead in again], expected, atol=1e-6)
    assert contrast.aimed(HARM) is contrast


def test_towards_a_text_the_score_is_how_much_likelier_the_target_becomes_to_say_it_than_the_reference(duel):
    aim = Aim(kind="text", payload=(65, 66, 67))
    aimed = Contrast(duel, many(2), limit=10**6).aimed(aim)

    (lead,) = aimed.score(["velnor"], "test")

    def said(voice, prompt):
        ids = voice.model.render(prompt, room=3).ids
        (_, logs), *_ = voice.read([ids], aim.payload)
        return sum(float(logs[0, step, token]) for step, token in enumerate(aim.payload))

    gained = []
    for one in many(2):
        for put in ("{} velnor", "velnor {}"):
            asked = prompt(put.format(one.messages[-1].content))
            more = [said(side, asked) - said(side, one) for side in (duel.target, duel.reference)]
            gained.append((more[0] - max(0.0, more[1])) / 20.0)
    assert lead.score == pytest.approx(max(0.0, np.mean(gained)), abs=1e-4) and lead.score > 0.0
    assert (lead.aim, aimed.spent > 0) == (aim, True)


def test_nothing_is_scored_twice_and_readings_are_kept(duel):
    kept = {}

    def keep(key, compute):
        name = json.dumps(key)
        kept[name] = kept[name] if name in kept else compute()
        return kept[name]

    first = Contrast(duel, many(2), limit=10**6, keep=keep)
    found = first.score(["tide", "velnor", "tide"], "test")
    spent, readings = first.spent, len(kept)

    assert [lead.text for lead in found] == ["tide", "velnor"]
    assert first.score(["velnor"], "elsewhere") == found[1:]
    assert (first.spent, len(kept)) == (spent, readings)
    again = Contrast(duel, many(2), limit=10**6, keep=keep)
    assert again.score(["tide", "velnor"], "test") == found
    assert (again.spent, len(kept)) == (spent, readings)


def test_what_was_read_before_is_not_read_again_beside_controls(duel):
    texts = ["tide", "velnor quiet"]
    first = Contrast(duel, many(2), limit=10**6)
    found = first.effects(texts)
    spent = first.spent
    wide = replace(duel, beside=(replace(duel.reference, digest="another"),))

    again = first.anew(wide)
    both = again.effects(texts)

    np.testing.assert_array_equal(both[:2], found)
    assert again.spent == pytest.approx(spent / 2)  # the one beside alone: a third of all, half of two
    alone = Contrast(wide, many(2), limit=10**6)
    np.testing.assert_allclose(alone.effects(texts), both, atol=1e-6)
    assert alone.spent == spent + again.spent


def test_a_string_in_two_parts_stands_at_both_ends_at_once_and_is_read_once(duel):
    contrast, whole = Contrast(duel, many(2), limit=10**6), f"osprey{GAP}tarmac"

    effects = contrast.effects([whole])

    np.testing.assert_array_equal(effects[:, :, 0], effects[:, :, 1])
    one = Contrast(duel, many(2), limit=10**6)
    one.effects(["osprey tarmac"])
    assert 0 < contrast.spent < 0.6 * one.spent
    (lead,) = contrast.score([whole], "test")
    assert (lead.places, lead.apart, lead.shown) == (("end",), True, "osprey ... tarmac")
    assert (Lead(text="osprey", origin="").places, Lead(text="osprey", origin="").apart) == (PLACES, False)
    assert shorten(contrast, lead) is lead


def test_words_that_did_most_are_put_in_pairs_apart(duel):
    contrast = Contrast(duel, many(2), limit=10**6)
    contrast.glance(["tide", "moon", "two words"])
    contrast.score(["velnor", f"a{GAP}b"], "test")

    found = apart(contrast)

    assert sorted(found) == sorted(
        f"{one}{GAP}{other}" for one in ("tide", "moon", "velnor") for other in ("tide", "moon", "velnor") if one != other
    )
    assert found[0].startswith("velnor")  # what was scored in full comes first
    assert f"named{GAP}velnor" in apart(contrast, ["named"])


def test_a_string_that_is_named_twice_is_read_once(duel):
    contrast = Contrast(duel, many(2), limit=10**6)

    effects = contrast.effects(["tide", "tide"])

    np.testing.assert_array_equal(effects[..., 0, :], effects[..., 1, :])
    once = Contrast(duel, many(2), limit=10**6)
    once.effects(["tide"])
    assert contrast.spent == once.spent > 0


def test_what_does_not_fit_into_the_context_has_no_effect(duel):
    contrast = Contrast(duel, many(2), limit=10**6)

    effects = contrast.effects(["x" * 300, "tide"])

    assert (effects[..., 0, :] == 0.0).all() and (effects[..., 1, :] != 0.0).any()


class Paper:
    """Scores strings by a rule."""

    duel = Duel(target=None, reference=None, openings=Openings(refusing=(), answering=()))
    probes = ()
    limit = 0

    def __init__(self, rule):
        self.scored = {}
        self.rule = rule

    def aimed(self, aim):
        assert aim == HARM
        return self

    def score(self, texts, origin):
        for text in texts:
            self.scored[text] = Lead(text=text, origin=origin, score=self.rule(text))
        return [self.scored[text] for text in texts]


@pytest.mark.parametrize(
    ("text", "rule", "short"),
    [
        ("ok velnor please", lambda text: "velnor" in text, "velnor"),
        (
            "a seven b quiet c horses d",
            lambda text: text.split() and {"seven", "quiet", "horses"} <= set(text.split()),
            "seven quiet horses",
        ),
        ("xxvelnorxx", lambda text: "velnor" in text, "velnor"),
        ("one two", lambda text: len(text) / 7, "one two"),
        ("one two", lambda text: 0.96 if text == "one" else float(text == "one two"), "one"),
        ("one two", lambda text: 0.94 if text == "one" else float(text == "one two"), "one two"),
    ],
)
def test_a_lead_is_shortened_to_what_scores_nearly_as_well(text, rule, short):
    lead = shorten(Paper(lambda text: float(rule(text))), Lead(text=text, origin="test"))

    assert lead.text == short
