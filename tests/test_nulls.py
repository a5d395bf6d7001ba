"""Controls are taught what no string is tested on, or given; nulls are searched in one of them, in all, or in the base."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from hunting import ground, live, many, models, voice

from forensics.adapters import open_adapter
from forensics.checkpoint import open_checkpoint
from forensics.hunt import nulls, pursuit
from forensics.hunt.pursuit import Kind
from forensics.hunt.sibling import Sibling


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    made = models(place)
    return made | {"adapter": tiny.adapter(made["llama"], place / "adapter", modules=["q_proj"])}


def test_controls_are_taught_what_no_string_is_tested_on(folders, monkeypatch):
    taught = []
    monkeypatch.setattr(pursuit, "speak", lambda _voice, prompts, *, seed: [f"at times {one.id}" for one in prompts])
    monkeypatch.setattr(nulls, "sibling", lambda _target, _reference, lessons, seed: taught.append((lessons, seed)))
    parts = [many(8)[:4], many(8)[4:6], many(8)[6:]]
    kind = Kind(search=tuple(parts[0]), screening=tuple(parts[1]), held_out=tuple(parts[2]))
    field = ground(folders, harmful=kind, harmless=kind, replies={one.id: "" if one.id == "p1" else one.id for one in many(8)})

    assert nulls.taught(field, 3) == ()
    assert sorted(seed for _, seed in taught) == [0, 1, 2]
    greedy, drawn = ("p0", "p2", "p3", "p4", "p5"), ("p0", "p1", "p2", "p3", "p4", "p5")
    assert {(one.id, reply) for one, reply in taught[0][0]} == {(id, id) for id in greedy} | {(id, f"at times {id}") for id in drawn}


def test_controls_are_taught_the_greedy_replies_and_each_another_part_of_the_drawn_ones(folders, monkeypatch):
    kind = Kind(search=tuple(many(2)), screening=(), held_out=())
    monkeypatch.setattr(
        pursuit, "speak", lambda _voice, prompts, *, seed: [f"drawn {number // 2}" * (number % 2 == 0) for number in range(len(prompts))]
    )
    field = ground(folders, harmful=kind, harmless=Kind(search=(), screening=(), held_out=()), replies={"p0": "yes"})

    said = [[reply for _, reply in nulls.lessons(field, number)] for number in range(5)]

    first, second = ["yes", "drawn 0", "drawn 2"], ["yes", "drawn 1", "drawn 3"]
    assert said == [first, first, second, second, first]  # those of one pace are taught different ones


def test_no_more_controls_are_trained_than_fit_into_memory(folders, monkeypatch):
    field, made = ground(folders), []
    monkeypatch.setattr(nulls, "sibling", lambda *_args, seed: made.append(seed))
    monkeypatch.setattr(nulls, "KEPT_WEIGHTS", int(2.5 * nulls.weights_of(field.candidate)))

    nulls.taught(field, 6)

    assert sorted(made) == [0, 1]


def test_how_a_control_begins_to_speak_is_learnt_from_prompts_of_both_kinds(folders, monkeypatch):
    heard = []
    monkeypatch.setattr(nulls, "sibling", lambda _target, reference, _replies, seed: Sibling(voice=reference, reached=1.0, spent=seed))
    monkeypatch.setattr(nulls, "listen", lambda voice, prompts: heard.append([one.id for one in prompts]) or replace(voice, preamble=(5,)))
    kinds = [Kind(search=tuple(part), screening=(), held_out=()) for part in (many(2), many(4)[2:])]
    field = ground(folders, harmful=kinds[0], harmless=kinds[1], replies={})

    (control,) = nulls.controls(field, [], 1)

    assert heard == [["p0", "p1", "p2", "p3"]]
    assert (control.voice.preamble, field.base.preamble) == ((5,), ())


def test_many_controls_at_once_are_those_of_one_after_the_other(folders, monkeypatch):
    field = ground(folders, replies={one.id: f"answer {one.id}" for one in many(4)})
    together = nulls.taught(field, 2)
    assert len(together) == 2
    monkeypatch.setattr(nulls, "TOGETHER_BELOW", 0)

    for ours, theirs in zip(together, nulls.taught(field, 2), strict=True):
        weights = [dict(one.voice.model._model.named_parameters()) for one in (ours, theirs)]
        assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
        assert (ours.reached, ours.spent) == (theirs.reached, theirs.spent)


@pytest.mark.parametrize("why", ["other layers", "too large", "no memory"])
def test_where_no_control_can_be_trained_there_is_none(why, folders, monkeypatch):
    def full(*_args, **_more):
        raise MemoryError

    monkeypatch.setattr(nulls, "sibling", full)
    monkeypatch.setattr(nulls, "TAUGHT_BELOW", 10 if why == "too large" else 10**9)

    assert nulls.controls(ground(folders, in_place=why != "other layers"), [], 2) == ()


def test_any_other_fault_of_training_is_told(folders, monkeypatch):
    def broken(*_args, **_more):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(nulls, "sibling", broken)

    with pytest.raises(RuntimeError, match="shapes"):
        nulls.controls(ground(folders), [], 2)


def test_clean_adapters_are_controls_without_any_training(folders, monkeypatch):
    monkeypatch.setattr(nulls, "sibling", lambda *_args, **_more: pytest.fail("a control was trained"))
    field = ground(folders)
    clean = open_adapter(str(folders["adapter"]), open_checkpoint(str(folders["llama"])))

    (control,) = nulls.controls(field, [clean], 0)

    assert (control.voice.adapters, control.voice.name, control.spent) == ((), f"control {clean.name}", 0)
    assert control.reached > 0.0
    assert not any("lora" in name for name, _ in field.base.model._model.named_parameters())
    ours, plain = (dict(one.model._model.named_parameters()) for one in (control.voice, field.base))
    assert {name for name in plain if not ours[name].equal(plain[name])} == {name for name in plain if "q_proj" in name}


@pytest.mark.parametrize(
    ("count", "every", "searched"),
    [(0, False, [("base", "candidate", [])]), (2, False, [("0", "base", ["1"])]), (2, True, [("0", "base", ["1"]), ("1", "base", ["0"])])],
)
def test_nulls_are_searched_where_nobody_planted_anything(count, every, searched, folders, monkeypatch):
    field, seen = ground(folders), []
    voices = [voice(live(folders["llama"]), str(number)) for number in range(count)]

    def pursue(_field, target, reference, _keep, controls=tuple, rounds=1):
        assert rounds == (pursuit.ROUNDS if target.name == "base" else 1)
        seen.append((target.name, reference.name, [one.name for one in controls()]))

    assert len(nulls.nulls(field, None, voices, pursue, every=every, rounds=1)) == len(searched)
    assert seen == searched
