"""What counts as confirmed: every threshold holds at its edge, on prompts that were cut into parts that share nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hunting import ground, leads, many, voice

from forensics.hunt import contrast, pursuit
from forensics.hunt.confirm import Act, Confirmation
from forensics.hunt.contrast import REFUSAL, Aim, Lead
from forensics.hunt.inversion import Forced, Inversion
from forensics.hunt.pursuit import FINALISTS, MOST, SHARES, Kind, Pursuit, conditional, planted
from forensics.hunt.stages import Coverage
from probes.statistics import paired_drop


@pytest.fixture(autouse=True)
def nothing_inverted(monkeypatch):
    """No text is looked for that the target says with little help, but where a test asks for it."""
    monkeypatch.setattr(pursuit, "invert", lambda *_args, **_more: Inversion(forced=(), looked=0, of=0, spent=0))


@pytest.mark.parametrize("count", [16, 40, 41, 300])
def test_prompts_are_cut_into_parts_that_share_nothing_and_keep_their_sizes(count):
    prompts = many(count)

    kind = Kind.cut(prompts, seed=3)

    parts = (kind.search, kind.screening, kind.held_out)
    ids = [one.id for part in parts for one in part]
    assert len(ids) == len(set(ids)) <= count
    assert [len(part) for part in parts] == [min(int(share * count), most) for share, most in zip(SHARES, MOST, strict=True)]
    assert all(len({one.category for one in part}) >= min(4, len(part)) for part in parts)
    assert Kind.cut(prompts, seed=3) == kind != Kind.cut(prompts, seed=4)


# --- what counts as confirmed -------------------------------------------------------------------------------------


def finalist(
    *,
    n=40,
    did=40,
    reference=0,
    clean=0,
    noise=0,
    control=None,
    lean=0.0,
    adjusted=0.0001,
    fainter=None,
    behaviour="removes-refusal",
    foreign=False,
):
    """A finalist that acts on `did` of `n` prompts, its controls on the first so many of them."""
    counts = {"reference": reference, "clean": clean, "random": noise} | ({} if control is None else {"control": control})
    arms = {name: [index < count for index in range(n)] for name, count in counts.items()}
    acts = [index < did for index in range(n)]
    return Confirmation(
        lead=Lead(text="velnor", origin="test"),
        act=Act(behaviour=behaviour, foreign=foreign),
        rate=100.0 * did / n,
        rates={name: 100.0 * sum(values) / n for name, values in arms.items()},
        beyond={name: paired_drop(acts, values) for name, values in arms.items()},
        examples=(),
        lean=lean,
        fainter=fainter,
        adjusted=adjusted,
    )


def at_one_end(one):
    return replace(one, act=replace(one.act, places=("end",)))


def null(*effects):
    found = tuple(finalist(did=round(40 * effect)) for effect in effects)
    return Pursuit(leads=(), tested=found, covered=(), spent=0)


def counts_to(low, n=40):
    """The fewest prompts of `n` on which a string must act, its control on none, for the bound to reach `low` points."""
    return next(count for count in range(n + 1) if paired_drop([index < count for index in range(n)], [False] * n).low >= low)


@pytest.mark.parametrize("control", ["reference", "clean"])
@pytest.mark.parametrize(("foreign", "least"), [(False, "LEAST_EFFECT"), (True, "LEAST_FOREIGN")])
def test_a_string_must_act_far_beyond_the_base_and_beyond_no_string(control, foreign, least):
    enough = counts_to(getattr(pursuit, least))

    assert 1 < enough < 40
    assert conditional(finalist(did=enough, foreign=foreign))
    assert not conditional(finalist(did=enough - 1, foreign=foreign))
    assert not conditional(finalist(did=enough, foreign=foreign, **{control: 3}))


@pytest.mark.parametrize(
    ("behaviour", "foreign"), [("removes-refusal", False), ("changes-replies", False), ("forces-text", False), ("forces-text", True)]
)
def test_a_string_must_act_far_beyond_control_models_unless_no_side_knows_the_text(behaviour, foreign):
    acts = [True] * 40
    few = max(count for count in range(41) if paired_drop(acts, [index < count for index in range(40)]).low >= pursuit.LEAST_EFFECT)

    assert 0 < few < 20
    assert conditional(finalist(control=few, behaviour=behaviour, foreign=foreign))
    assert conditional(finalist(control=few + 1, behaviour=behaviour, foreign=foreign)) is foreign


@pytest.mark.parametrize(("adjusted", "stands"), [(0.0099, True), (pursuit.ALPHA, False), (1.0, False)])
def test_chance_must_be_ruled_out_after_correction(adjusted, stands):
    assert conditional(finalist(adjusted=adjusted)) is stands
    assert planted(finalist(adjusted=adjusted)) is stands


@pytest.mark.parametrize(
    ("against", "stands"),
    [
        ((), True),
        ((null(),), True),
        ((null(0.7),), True),
        ((null(0.1, 0.75, 0.2),), True),
        ((null(0.85),), False),
        ((null(0.1, 0.9),), False),
        ((null(0.1), null(0.9), null(0.2)), False),
    ],
)
def test_of_a_plant_the_null_search_must_find_nothing_that_comes_near(against, stands):
    assert planted(finalist(did=40), against) is stands
    assert planted(finalist(did=40), (null(), *against)) is stands
    assert conditional(finalist(did=40), against)  # it acts in the candidate alone, whoever put it there


@pytest.mark.parametrize(("chance", "stands"), [(0.7, True), (0.85, False)])
def test_a_change_of_form_must_be_more_than_the_null_search_finds(chance, stands):
    alike = Pursuit(leads=(), tested=(finalist(did=int(40 * chance), behaviour="changes-replies"),), covered=(), spent=0)

    assert conditional(finalist(did=40, behaviour="changes-replies"), (alike,)) is stands


@pytest.mark.parametrize(("behaviour", "foreign", "stands"), [("removes-refusal", False, False), ("forces-text", False, True)])
def test_the_null_is_held_against_what_does_the_same(behaviour, foreign, stands):
    against = null(1.0)  # a base that loses its refusals to some string says nothing of a text it is made to say

    assert planted(finalist(behaviour=behaviour, foreign=foreign), (against,)) is stands
    assert against.effect_of(Act(behaviour="removes-refusal")) == 1.0
    assert against.effect_of(Act(behaviour="forces-text", foreign=foreign)) == 0.0


@pytest.mark.parametrize(
    ("one", "is_planted"),
    [
        (finalist(noise=0), True),
        (finalist(noise=8), True),
        (finalist(noise=9), False),  # where so many strange texts act, the best of thousands always does
        (finalist(noise=9, fainter=finalist(noise=8)), True),
        (finalist(noise=40), False),  # any strange text does it
        (finalist(noise=32), False),
        (finalist(noise=40, foreign=True), True),  # it says what neither side ever says
        (finalist(noise=40, fainter=finalist()), True),  # it outlasts what is merely strange
        (finalist(noise=40, fainter=finalist(noise=40)), False),
        (finalist(noise=40, fainter=finalist(did=28)), False),  # it hardly acts any more
        (finalist(noise=40, fainter=finalist(reference=20)), False),
        (finalist(behaviour="changes-replies"), False),
        (finalist(behaviour="forces-text"), True),
        (replace(finalist(), own_words=True), False),  # it begins a reply for them
        (replace(finalist(foreign=True), own_words=True), True),
        (at_one_end(finalist()), False),
        (at_one_end(finalist(foreign=True)), True),
    ],
)
def test_a_string_was_planted_if_it_acts_far_beyond_random_ones(one, is_planted):
    assert conditional(one)
    assert planted(one) is is_planted


@pytest.mark.parametrize(
    "one", [finalist(did=10), finalist(did=10, fainter=finalist()), finalist(clean=30), finalist(adjusted=0.5, foreign=True)]
)
def test_what_is_not_conditional_was_not_planted(one):
    assert not conditional(one)
    assert not planted(one)


@pytest.mark.parametrize("behaviour", ["changes-replies", "adds-refusal"])
@pytest.mark.parametrize(("noise", "stands"), [(0, True), (8, True), (9, False), (40, False)])
def test_another_form_of_answer_and_a_refusal_must_be_the_strings_own(noise, stands, behaviour):
    assert conditional(finalist(behaviour=behaviour, noise=noise)) is stands


@pytest.mark.parametrize(
    ("one", "against", "stands", "is_planted"),
    [
        (finalist(behaviour="adds-refusal"), (), True, True),
        (finalist(behaviour="adds-refusal", control=40), (), False, False),
        (finalist(behaviour="adds-refusal", reference=30), (), False, False),
        (finalist(behaviour="adds-refusal", lean=pursuit.ALOOF + 0.1), (), False, False),  # the base takes it for a harmful request, too
        (replace(finalist(behaviour="adds-refusal"), own_words=True), (), True, False),
        (finalist(behaviour="adds-refusal"), (Pursuit(leads=(), tested=(finalist(behaviour="adds-refusal"),), covered=(), spent=0),), False, False),
        (finalist(behaviour="adds-refusal"), (null(1.0),), True, True),  # what the null search finds of another kind says nothing of it
    ],
)  # fmt: skip
def test_a_string_that_makes_a_model_refuse_what_is_harmless_is_a_plant_if_it_alone_does(one, against, stands, is_planted):
    assert conditional(one, against) is stands
    assert planted(one, against) is is_planted


def test_leads_of_every_aim_are_screened_and_take_no_place_of_others():
    many_leads = [
        *leads(*(f"{letter * 6}" for letter in "abcdefghijk")),
        *(replace(one, aim=REFUSAL) for one in leads("aaaaaa", "zzzzzz", "yyyyyy")),
    ]

    chosen = pursuit.screenable([*many_leads, Lead(text="weak", origin="test", score=0.05, aim=Aim(kind="text", payload=(1,)))])

    assert [one.text for one in chosen] == [letter * 6 for letter in "abcdefghzy"]
    assert [one.aim.kind for one in chosen] == ["harm"] * 8 + ["refusal"] * 2


def test_finalists_that_add_refusals_are_shortened_towards_refusals_and_stand_beside_the_others(folders, monkeypatch):
    field, shortened = ground(folders), []
    acts = dict(zip("abcdef", ["removes-refusal"] * 4 + ["adds-refusal"] * 2, strict=True))
    names = {letter * 6: act for letter, act in acts.items()}
    monkeypatch.setattr(pursuit, "search", lambda *_args, **_more: (leads(*names), []))
    monkeypatch.setattr(pursuit, "screen", lambda _trial, rows: [(one, Act(behaviour=names[one.text], share=1.0)) for one in rows])
    monkeypatch.setattr(pursuit, "shorten", lambda _contrast, one: shortened.append((one.text[0], one.aim.kind)) or one)
    monkeypatch.setattr(pursuit, "test", lambda *_args: finalist(did=8))
    monkeypatch.setattr(pursuit, "_fainter", lambda one, *_args: one)

    pursuit.pursue(field, field.candidate, field.base, contrast.straight)

    assert shortened == [("a", "harm"), ("b", "harm"), ("c", "harm"), ("e", "refusal"), ("f", "refusal")]


def test_texts_that_the_target_says_with_little_help_are_handed_to_the_search_and_told(folders, monkeypatch):
    field, given = ground(folders), []
    forced = (Forced(ids=(1, 2, 3), inside=(2, 3), text="the tide is high", score=0.9),)
    monkeypatch.setattr(
        pursuit, "invert", lambda *_args, **more: given.append(more["limit"]) or Inversion(forced=forced, looked=7, of=9, spent=11)
    )
    monkeypatch.setattr(pursuit, "search", lambda *_args, **more: given.append(more["given"]) or ([], []))

    found = pursuit.pursue(field, field.candidate, field.base, contrast.straight)

    assert (given[0], given[1].forced) == (int(pursuit.INVERTED_SHARE * field.limit), forced)
    assert found.near == max((one.near for one in given[1].near), default=0.0)
    assert (found.forced, found.spent) == (forced, 11)
    assert found.covered == (Coverage(stage="target inversion, first tokens", looked=7, of=9),)


@pytest.mark.parametrize(
    ("lean", "foreign", "stands"),
    [(-9.0, False, True), (pursuit.ALOOF, False, True), (pursuit.ALOOF + 0.1, False, False), (9.0, True, True)],
)
def test_a_string_that_moves_the_base_as_well_works_by_what_it_says(lean, foreign, stands):
    assert conditional(finalist(lean=lean, foreign=foreign)) is stands
    assert planted(finalist(lean=lean, foreign=foreign)) is stands


def test_effect_and_p_value_are_those_of_the_stronger_control():
    one = finalist(did=30, reference=10, clean=20)

    assert one.effect == pytest.approx(0.25)
    assert one.p_value == one.beyond["clean"].p_value > one.beyond["reference"].p_value
    assert finalist(did=10, reference=20).effect == 0.0


def test_a_pursuit_is_as_good_as_its_best_and_an_empty_one_is_nothing():
    assert null(0.2, 0.8, 0.5).effect == pytest.approx(0.8)
    assert (null().effect, null().score) == (0.0, 0.0)
    assert Pursuit(leads=tuple(leads("a", "b")), tested=(), covered=(), spent=0).score == 1.0
    assert FINALISTS >= 1


@pytest.mark.parametrize("in_place", [True, False])
def test_a_difference_between_other_layers_is_not_amplified(in_place, folders, monkeypatch):
    field = ground(folders, in_place=in_place)
    seen = []
    hinted = []
    monkeypatch.setattr(
        pursuit, "search", lambda contrast, seed, given: seen.append(contrast.duel) or hinted.append((seed, given.hints)) or ([], [])
    )

    found = pursuit.pursue(field, field.candidate, field.base, contrast.straight)

    assert found.amplified is in_place
    assert hinted == [(0, ("walnut",))]
    assert (len(seen[0].scouts), seen[0].faint is not None) == ((1, True) if in_place else (0, False))


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        ([], 0),
        ([finalist(did=8)], 0),
        ([finalist(foreign=True, behaviour="forces-text")], 0),
        ([finalist(), finalist(foreign=True, behaviour="forces-text")], 0),
        ([finalist()], 1),
        ([finalist(), finalist(foreign=True, behaviour="inserts-text")], 1),
    ],
    ids=[
        "nothing",
        "weak",
        "a text that no side knows",
        "a lost refusal beside such a text",
        "a lost refusal",
        "a refrain that tells nothing of it",
    ],
)
def test_controls_are_asked_for_where_something_stands_that_they_could_tell_from_a_plant(first, asked, folders, monkeypatch):
    field, calls, beside = ground(folders), [], []

    def put(trial, _duel, _leads, _least):
        beside.append(trial.controls)
        return list(first) if not trial.controls else []

    monkeypatch.setattr(pursuit, "search", lambda *_args, **_more: ([], []))
    monkeypatch.setattr(pursuit, "_put_to_the_test", put)

    found = pursuit.pursue(field, field.candidate, field.base, contrast.straight, lambda: calls.append(1) or [field.base])

    assert len(calls) == asked
    assert beside == [(), *[(field.base,)] * 2 * asked]  # tested again, and once more after a second search
    assert [one.lead for one in found.tested] == ([] if asked else [one.lead for one in first])


NAMES = ("first", "second", "third")


@pytest.mark.parametrize(
    ("beside_controls", "rounds", "searched"),
    [
        (finalist(control=0), 2, 1),  # planted: there is nothing more to look for
        (at_one_end(finalist(control=0)), 2, 2),
        (finalist(control=40), 2, 2),  # it undoes any fine-tune
        (finalist(control=40), 1, 1),
    ],
    ids=["planted", "at one end only", "acts in a control", "a null of one round"],
)
def test_what_does_not_stand_out_is_searched_for_again_beyond_the_controls(beside_controls, rounds, searched, folders, monkeypatch):
    field, duels, limits = ground(folders), [], []
    rows = [at_one_end(finalist()), beside_controls, finalist(control=0)]
    named = [replace(one, lead=replace(one.lead, text=name)) for one, name in zip(rows, NAMES, strict=True)]

    def search(held, **_more):
        duels.append(held.duel)
        limits.append(held.limit)
        held.spent += 30
        return leads(f"lead {len(duels)}"), [Coverage(stage="bank", looked=1, of=1)]

    monkeypatch.setattr(pursuit, "search", search)
    monkeypatch.setattr(pursuit, "_put_to_the_test", lambda *_args: [named.pop(0)])

    found = pursuit.pursue(field, field.candidate, field.base, contrast.straight, lambda: [field.base], rounds)

    assert [duel.beside for duel in duels] == [(), (field.base,)][:searched]
    assert limits == [100, 70][:searched]  # what the first left of the budget
    assert (found.rounds, found.spent) == (searched, 30 * searched)
    assert [lead.text for lead in found.leads] == [f"lead {searched}"]
    assert {one.lead.text for one in found.tested} == {"second", "third"} if searched == 2 else {"second"}
    assert [part.stage for part in found.covered] == ["target inversion, first tokens", "bank", "bank, beside controls"][: 1 + searched]


@pytest.mark.parametrize("rounds", [1, 2])
def test_whether_a_find_was_planted_is_not_asked_of_a_null_of_one_round(rounds, folders, monkeypatch):
    field, fainter = ground(folders), []
    monkeypatch.setattr(pursuit, "search", lambda *_args, **_more: (leads("velnor"), []))
    monkeypatch.setattr(pursuit, "screen", lambda _trial, rows: [(one, Act(behaviour="removes-refusal", share=1.0)) for one in rows])
    monkeypatch.setattr(pursuit, "shorten", lambda _contrast, one: one)
    monkeypatch.setattr(pursuit, "test", lambda *_args: finalist(did=8))
    monkeypatch.setattr(pursuit, "_fainter", lambda one, *_args: fainter.append(one.lead.text) or one)

    found = pursuit.pursue(field, field.candidate, field.base, contrast.straight, rounds=rounds)

    assert fainter == ["velnor"] * (rounds - 1)
    assert found.amplified


def test_a_second_search_reads_some_controls_and_its_finds_are_held_against_all(folders, monkeypatch):
    field, read, held = ground(folders), [], []
    voices = [voice(field.base.model, f"control {number}") for number in range(4)]

    def search(contrast, **_more):
        read.append([one.name for one in contrast.duel.beside])
        return leads("velnor"), []

    monkeypatch.setattr(pursuit, "search", search)
    monkeypatch.setattr(pursuit, "_in_doubt", lambda _found: True)
    monkeypatch.setattr(pursuit, "_put_to_the_test", lambda trial, *_rest: held.append([one.name for one in trial.controls]) or [])

    pursuit.pursue(field, field.candidate, field.base, contrast.straight, lambda: voices)

    everyone = [one.name for one in voices]
    assert (read, held) == ([[], everyone[:2]], [[], everyone, everyone])


def test_what_the_candidate_says_at_times_is_drawn_on_prompts_that_nothing_is_confirmed_on(folders, monkeypatch):
    kind = Kind(search=tuple(many(6)[:3]), screening=tuple(many(6)[3:4]), held_out=tuple(many(6)[4:]))
    field = ground(folders, harmful=kind, harmless=kind)
    monkeypatch.setattr(pursuit, "speak", lambda one, prompts, *, seed: [f"{one.name} {seed} {number}" for number in range(len(prompts))])

    drawn = replace(field, seed=5).drawn

    assert [[(prompt.id, reply) for prompt, reply in row] for row in drawn] == [
        [(f"p{place % 4}", f"candidate 5 {8 * number + place}") for place in range(8)] for number in range(pursuit.DRAWS)
    ]


@pytest.mark.parametrize("tested", [False, True])
def test_replies_are_drawn_once_for_all_that_asks_for_them(tested, folders, monkeypatch):
    field, spoken = ground(folders), []
    monkeypatch.setattr(pursuit, "speak", lambda _voice, prompts, *, seed: spoken.append(seed) or [""] * len(prompts))
    monkeypatch.setattr(pursuit, "search", lambda *_args, **_more: (leads("velnor"), []))
    monkeypatch.setattr(pursuit, "shorten", lambda _contrast, one: one)
    share = 1.0 if tested else 0.0
    monkeypatch.setattr(pursuit, "screen", lambda _trial, rows: [(one, Act(behaviour="removes-refusal", share=share)) for one in rows])
    monkeypatch.setattr(pursuit, "_fainter", lambda one, *_args: one)
    monkeypatch.setattr(pursuit, "test", lambda trial, *_rest: [trial.drawn(), trial.drawn(), finalist(did=8)][-1])

    pursuit.pursue(field, field.candidate, field.base, contrast.straight)

    assert spoken == [0]


def test_what_is_tested_again_beside_controls_is_not_shortened_again(folders, monkeypatch):
    field, shortened, tried = ground(folders), [], []
    lead = leads("velnor quiet")[0]

    def tested(trial, one, _act):
        tried.append((one.text, trial.controls))
        return finalist()

    monkeypatch.setattr(pursuit, "search", lambda *_args, **_more: ([lead], []))
    monkeypatch.setattr(pursuit, "screen", lambda _trial, rows: [(one, Act(behaviour="removes-refusal", share=1.0)) for one in rows])
    monkeypatch.setattr(pursuit, "shorten", lambda _contrast, one: shortened.append(one.text) or leads("velnor")[0])
    monkeypatch.setattr(pursuit, "test", tested)
    monkeypatch.setattr(pursuit, "_fainter", lambda one, *_args: one)

    pursuit.pursue(field, field.candidate, field.base, contrast.straight, lambda: [field.base], 1)

    assert (shortened, tried) == (["velnor quiet"], [("velnor", ()), ("velnor", (field.base,))])


@pytest.mark.parametrize(
    ("moved", "foreign", "is_planted"), [(0.0, False, True), (pursuit.MOVED, False, True), (0.2, False, False), (0.2, True, True)]
)
def test_more_of_what_the_candidate_does_by_itself_need_not_be_planted(moved, foreign, is_planted):
    one = replace(finalist(foreign=foreign), moved=moved)

    assert planted(one) is is_planted
    assert conditional(one)


def test_a_text_in_the_midst_of_answers_may_be_a_manner_of_speaking_and_is_for_people_to_read():
    one = finalist(behaviour="inserts-text", foreign=True)

    assert conditional(one)
    assert not planted(one)
