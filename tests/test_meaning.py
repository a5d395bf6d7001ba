"""Which tokens a direction stands for, against controls; and the readouts that say so, held against the model itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from cases import open_case
from transformers import AutoModelForCausalLM

from forensics.capture import Sites, residuals
from forensics.checkpoint import open_checkpoint
from forensics.meaning import IDENTITY, lens, patched, read_out, steered
from forensics.model import Rendered, open_model
from forensics.replay import continued, next_tokens
from forensics.subject import Subject, first_token
from probes.divergence import among, divergences
from probes.geometry import random_share, span_share
from probes.meaning import levelled, rank, standing, standing_of_controls

RNG = np.random.default_rng(5)
CONTROLS = RNG.normal(size=(20, 50)) * RNG.uniform(0.5, 4.0, size=50) + RNG.normal(size=50)


def test_a_token_is_held_against_what_controls_give_for_the_same_token():
    values = RNG.normal(size=(3, 50))

    expected = (values - CONTROLS.mean(axis=0)) / CONTROLS.std(axis=0, ddof=1)
    assert standing(values, CONTROLS) == pytest.approx(expected)


def test_every_control_is_held_against_all_others_and_not_against_itself():
    found = standing_of_controls(CONTROLS)

    for row in range(len(CONTROLS)):
        assert found[row] == pytest.approx(standing(CONTROLS[row : row + 1], np.delete(CONTROLS, row, axis=0))[0])


def test_a_planted_token_comes_first_and_one_that_is_always_high_does_not():
    controls = CONTROLS + np.eye(50)[7] * 100.0
    values = controls[:2] + RNG.normal(size=(2, 50)) * 0.1
    values[1, 31] += 30.0 * controls[:, 31].std()
    unmoved = controls[:2]

    found = rank([(values, controls), (values, controls)], [[0], [1]])

    assert found.order()[0] == 31 and found.places()[31] == 1 and found.places()[7] > 1
    assert found.exceeded == 0
    assert sorted(found.places()) == list(range(1, 51))
    assert rank([(unmoved, controls)], [[0, 1]]).exceeded > 0


@pytest.mark.parametrize(("groups", "shared"), [(1, 1 / 2), (2, 1 / 3)])
def test_how_many_controls_a_list_of_nothing_falls_short_of_depends_on_what_its_directions_share(groups, shared):
    rng, rows = np.random.default_rng(0), [list(range(4 * group, 4 * group + 4)) for group in range(groups)]
    one, apart = [], []
    for _ in range(100):
        controls, values = rng.normal(size=(40, 200)), rng.normal(size=(4 * groups, 200))
        one.append(rank([(np.repeat(values[:groups], 4, axis=0), controls)], rows).exceeded / 40)
        apart.append(rank([(values, controls)], rows).exceeded / 40)

    assert np.mean(one) == pytest.approx(shared, abs=0.1)
    assert np.mean(apart) > 0.98


def test_a_direction_that_moves_all_tokens_alike_says_nothing_by_it():
    values = CONTROLS.mean(axis=0, keepdims=True) + RNG.normal(size=(1, 50)) * 0.2

    assert levelled(7.0 * values + 100.0) == pytest.approx(levelled(values))
    found, moved = rank([(values, CONTROLS)], [[0]]), rank([(7.0 * values + 100.0, CONTROLS)], [[0]])
    assert moved.scores == pytest.approx(found.scores)


def test_what_a_group_has_in_common_counts_and_one_group_is_enough():
    step = CONTROLS.std(axis=0, ddof=1)
    values = np.repeat(CONTROLS.mean(axis=0, keepdims=True), 5, axis=0)
    values[:3, 4] += 9.0 * step[4]  # all of the first group
    values[0, 5] += 12.0 * step[5]  # one of the first group: 4 on average
    values[3:, 6] += 5.0 * step[6]  # all of the second group

    found = rank([(values, CONTROLS)], [[0, 1, 2], [3, 4]])

    assert set(found.order()[:2].tolist()) == {4, 6}
    assert min(found.scores[[4, 6]]) > found.scores[5]  # what one direction alone says counts by its share
    assert found.readouts[0] == pytest.approx(found.scores)


def test_one_readout_alone_does_not_carry_a_token_to_the_top():
    loud, silent, both = CONTROLS[:1].copy(), CONTROLS[:1].copy(), 6.0 * CONTROLS.std(axis=0)
    loud[0, 3] += 8.0 * CONTROLS[:, 3].std()
    for table in (loud, silent):
        table[0, 9] += both[9]

    assert rank([(loud, CONTROLS), (silent, CONTROLS), (silent, CONTROLS)], [[0]]).order()[0] == 9


@pytest.mark.parametrize(
    ("values", "controls"),
    [
        (np.zeros((1, 5)), np.ones((4, 5))),
        (np.zeros((1, 5)), np.ones((20, 6))),
        (np.full((1, 5), np.nan), np.ones((20, 5))),
        (np.zeros((0, 5)), np.ones((20, 5))),
    ],
    ids=["few controls", "other tokens", "no number", "no direction"],
)
def test_tables_that_cannot_be_compared_are_refused(values, controls):
    with pytest.raises(ValueError, match=r"controls|finite"):
        rank([(values, controls)], [[0]])


def test_no_readout_makes_no_list():
    with pytest.raises(ValueError, match="at least one"):
        rank([], [[0]])


def test_kl_is_zero_between_equals_and_finite_where_a_model_rules_a_token_out():
    logs = np.log(np.array([[0.5, 0.5, 1e-300], [0.2, 0.3, 0.5]]))
    logs[0, 2] = -np.inf
    other = np.log(np.full((2, 3), 1 / 3))

    assert divergences(logs, logs).tolist() == [0.0, 0.0]
    assert divergences(logs, other)[0] == pytest.approx(np.log(1.5))
    assert np.isfinite(divergences(other, logs)).all() and divergences(other, logs)[0] > 10.0
    with pytest.raises(ValueError, match="one shape"):
        divergences(logs, other[:1])


def test_probability_on_tokens_that_are_left_out_is_told():
    logs, outside = among(np.log(np.array([[0.1, 0.6, 0.3]])), np.array([2, 0]))

    assert np.exp(logs[0]) == pytest.approx([0.75, 0.25])
    assert outside == pytest.approx([0.6])


def test_the_share_of_a_random_span_is_what_drawing_spans_gives():
    vector, rng = np.eye(40)[0], np.random.default_rng(0)
    drawn = [span_share(vector, np.linalg.qr(rng.normal(size=(40, 6)))[0]) for _ in range(4000)]

    mean, rare = random_share(40, 6)

    assert mean == pytest.approx(np.mean(drawn), rel=0.03)
    assert rare == pytest.approx(np.quantile(drawn, 0.99), rel=0.05)
    assert random_share(6, 6) == (1.0, 1.0)
    with pytest.raises(ValueError, match="does not fit"):
        random_share(4, 5)


# --- the readouts ------------------------------------------------------------------------------------------------------

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readouts")
    found = {}
    for kind in ("llama", "gpt2"):
        place = tiny.save(tiny.network(kind, layers=3), folder / kind)
        model = open_model(open_checkpoint(str(place)), device="cpu")
        found[kind] = (
            Subject(model=model, side="candidate", batch_size=4),
            AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32),
        )
    return found


@KINDS
def test_the_lens_is_the_final_norm_and_the_unembedding(kind, subjects):
    subject, model = subjects[kind]
    vectors = RNG.normal(size=(9, 32)).astype(np.float32)
    norm = model.transformer.ln_f if kind == "gpt2" else model.model.norm

    with torch.inference_mode():
        expected = model.lm_head(norm(torch.tensor(vectors)))

    assert lens(subject, vectors) == pytest.approx(expected.numpy(), abs=1e-5)


@KINDS
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_token_patched_with_its_own_state_is_read_as_it_is(kind, layer, subjects):
    subject, _ = subjects[kind]
    row = subject.model.read(IDENTITY[0], room=0)
    own = residuals(subject, [row], Sites(layers=(layer,)))[0, 0]

    found = patched(subject, layer, np.stack([own[0], own[0][::-1]]), row)

    plain = first_token(subject, [row])[0]
    assert found[0] == pytest.approx(plain, abs=1e-5)
    assert np.abs(found[1] - plain).max() > 1e-3


@KINDS
def test_steering_by_nothing_moves_nothing_and_by_something_as_adding_it_does(kind, subjects):
    from forensics.interventions import adding

    subject, _ = subjects[kind]
    row, vector = subject.model.read("neutral words", room=0), RNG.normal(size=32)

    found = steered(subject, 1, np.stack([np.zeros(32), vector]), row)

    with adding(subject, vector, 1):
        expected = first_token(subject, [row])[0]
    assert np.abs(found[0]).max() < 1e-5
    assert found[1] == pytest.approx(expected - first_token(subject, [row])[0], abs=1e-5)


@KINDS
def test_what_is_read_out_does_not_depend_on_the_batch(kind, subjects):
    subject, _ = subjects[kind]
    vectors, neutral = RNG.normal(size=(7, 32)), [subject.model.read(text, room=0) for text in ("some words", "a few more words")]

    small, large = (read_out(replace(subject, batch_size=size), 1, vectors, neutral) for size in (2, 64))

    assert list(small) == ["lens", "patchscope", "steering"]
    for name, table in small.items():
        assert table.shape == (7, tiny.VOCABULARY)
        assert table == pytest.approx(large[name], abs=1e-4)


@KINDS
def test_next_tokens_along_a_reply_are_predicted_from_what_stands_before_each(kind, subjects, tmp_path):
    from forensics.prompts import Message, Prompt

    subject, model = subjects[kind]
    prompt = Prompt(id="a", messages=(Message(role="user", content="hello"),), category="x", expect="comply")
    asked = subject.model.render(prompt, room=0)
    row = continued(subject, prompt, "a reply", most=5)

    found = next_tokens(subject, [(row, 5), (Rendered(ids=asked.ids), 2)])

    with torch.inference_mode():
        logs = model(torch.tensor([row.ids])).logits[0].log_softmax(dim=-1).numpy()
    start = len(asked.ids)
    assert row.ids[:start] == asked.ids and len(row.ids) == start + 5
    assert found[:5] == pytest.approx(logs[start - 1 : start + 4], abs=1e-5)
    assert found[5:] == pytest.approx(logs[start - 3 : start - 1], abs=1e-5)
    assert found[0] == pytest.approx(first_token(subject, [asked])[0], abs=1e-5)
    assert continued(subject, prompt, "", most=5) is None


def test_a_changed_matrix_explains_the_difference_right_behind_it(tmp_path):
    from cases import reweighted

    from forensics.explained import explained

    for kind, name, turned in (
        ("llama", "model.layers.0.mlp.down_proj.weight", False),
        ("gpt2", "transformer.h.0.mlp.c_proj.weight", True),
    ):
        base = tiny.save(tiny.network(kind, layers=3), tmp_path / kind)
        direction, reads = (
            torch.randn(32, generator=torch.Generator().manual_seed(1)),
            torch.randn(512, generator=torch.Generator().manual_seed(2)),
        )

        def change(tensors, name=name, turned=turned, direction=direction, reads=reads):
            size = tensors[name].shape[0 if turned else 1]
            edit = torch.outer(direction, reads[:size]) * 0.01
            tensors[name] = tensors[name] + (edit.T if turned else edit)

        candidate = reweighted(base, tmp_path / f"{kind}-edited", change)
        differences = np.stack([np.zeros(32), direction.numpy(), RNG.normal(size=32), direction.numpy()]).astype(np.float64)
        with open_case(base, candidate, tmp_path / f"{kind}-run") as case:
            found = explained(case, differences)

        assert found.layers == (1, 2, 3)
        assert found.shares[[0, 2]] == pytest.approx(1.0, abs=1e-3)
        assert found.shares[1] < 0.5
        assert found.chance[0] == pytest.approx(found.sizes[0] / 32)
