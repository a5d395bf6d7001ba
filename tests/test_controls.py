"""An adapter held against a bank of clean ones: the test is exact, and says when there are too few to say anything."""

from __future__ import annotations

import json
from shutil import copytree

import numpy as np
import pytest
import tiny
import torch
from cases import audit, untimed
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli import app
from forensics.record import Status
from probes.outliers import FIGURES, figures, outlying


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network(width=32), tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def bank(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    for seed in range(20):
        tiny.adapter(base, folder / f"clean-{seed:02d}", modules=["q_proj", "v_proj"], seed=seed, r=4)
    return folder


def held(base, adapter, bank, run, **options):
    record = audit(base, adapter, run, controls=(str(bank),), only=("weights.controls",), **options)
    return record.results[0]


def test_an_adapter_like_the_others_is_no_outlier_and_a_larger_one_is(base, bank, tmp_path):
    alike = tiny.adapter(base, tmp_path / "alike", modules=["q_proj", "v_proj"], seed=101, r=4)  # one seed in twenty is the furthest out
    larger = tiny.adapter(base, tmp_path / "larger", modules=["q_proj", "v_proj"], seed=78, r=4, lora_alpha=400)

    ordinary, far = held(base, alike, bank, tmp_path / "one"), held(base, larger, bank, tmp_path / "other")
    again = held(base, alike, bank, tmp_path / "again")

    assert untimed(again) == untimed(ordinary)
    assert ordinary.status is Status.NO_FINDING
    assert far.status is Status.FLAGGED
    assert far.findings[0].label == "spectral-outlier"
    assert next(row.value for row in far.evidence if row.name == "controls.p_value") == pytest.approx(1 / 21)


def test_too_few_controls_are_said_to_be_too_few(base, bank, tmp_path):
    one = tiny.adapter(base, tmp_path / "one", modules=["q_proj", "v_proj"], seed=77, r=4)
    record = audit(
        base, one, tmp_path / "run", controls=tuple(str(bank / f"clean-{seed:02d}") for seed in range(5)), only=("weights.controls",)
    )

    assert record.results[0].status is Status.INCONCLUSIVE
    assert "at least 19 are needed" in record.results[0].reason


def test_controls_that_change_other_matrices_do_not_count(base, bank, tmp_path):
    one = tiny.adapter(base, tmp_path / "one", modules=["down_proj"], seed=77, r=4)

    result = held(base, one, bank, tmp_path / "run")

    assert result.status is Status.INCONCLUSIVE
    assert "Of 20 other adapters in the bank 0 change" in result.reason


def test_a_member_of_the_bank_is_not_held_against_itself(base, bank, tmp_path):
    result = held(base, bank / "clean-03", bank, tmp_path / "run")

    assert result.status is Status.NO_FINDING
    assert next(row for row in result.evidence if row.name == "controls.alike").value == 19


def test_a_copy_of_it_in_the_bank_is_not_held_against_it(base, bank, tmp_path):
    larger = tiny.adapter(base, tmp_path / "larger", modules=["q_proj", "v_proj"], seed=78, r=4, lora_alpha=400)
    copied = copytree(larger, tmp_path / "more" / "copy")
    (copied / "README.md").write_text("Another card.", encoding="utf-8")
    record = audit(base, larger, tmp_path / "run", controls=(str(bank), str(tmp_path / "more")), only=("weights.controls",))

    assert record.results[0].status is Status.FLAGGED


def test_a_control_that_is_not_finite_is_named(base, bank, tmp_path):
    bad = tiny.adapter(base, tmp_path / "more" / "bad", modules=["q_proj", "v_proj"], seed=3, r=4)
    tensors = load_file(bad / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, bad / "adapter_model.safetensors")
    record = audit(base, bank / "clean-03", tmp_path / "run", controls=(str(bank), str(tmp_path / "more")), only=("weights.controls",))

    assert record.results[0].status is Status.INCONCLUSIVE
    assert "more/bad" in record.results[0].reason


def test_without_controls_the_check_is_not_run_and_with_them_diff_runs_it(base, bank, tmp_path):
    adapter = tiny.adapter(base, tmp_path / "adapter", modules=["q_proj", "v_proj"], seed=5, r=4)
    plain = CliRunner().invoke(app, ["diff", str(base), str(adapter), "--json", "--out", str(tmp_path / "plain")])
    against = CliRunner().invoke(
        app, ["diff", str(base), str(adapter), "--controls", str(bank), "--json", "--out", str(tmp_path / "against")]
    )

    assert (plain.exit_code, "weights.controls" in plain.stdout) == (0, False)
    assert (against.exit_code, "weights.controls" in against.stdout) == (0, True)


def test_two_adapters_are_held_against_it_one_by_one(base, bank, tmp_path):
    """Together they are no member of the bank: that is said, and is no failure to look."""
    words = ["diff", str(base), str(bank / "clean-01"), "--adapter", str(bank / "clean-02"), "--controls", str(bank), "--json"]
    more = tiny.adapter(base, tmp_path / "more", modules=["q_proj", "v_proj"], seed=55, r=4)
    done = CliRunner().invoke(app, [*words, "--controls", str(more), "--out", str(tmp_path / "run")])

    held = [one for one in json.loads(done.stdout)["results"] if one["check"] == "weights.controls"]
    assert done.exit_code == 0
    assert [one["status"] for one in held] == ["NO_FINDING", "NO_FINDING", "SKIPPED"]


def test_a_full_checkpoint_is_not_held_against_adapters(base, bank, tmp_path):
    done = CliRunner().invoke(app, ["diff", str(base), str(base), "--controls", str(bank), "--out", str(tmp_path / "run")])

    assert (done.exit_code, (tmp_path / "run").exists()) == (2, False)


@pytest.mark.parametrize("what", ["nowhere", "empty"])
def test_a_bank_without_adapters_is_refused_before_anything_is_written(what, base, bank, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ["diff", str(base), str(bank / "clean-01"), "--controls", str(tmp_path / what), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, words)

    assert done.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_thing_like_the_others_is_as_often_out_as_chance_has_it():
    generator = np.random.default_rng(0)
    found = []
    for _ in range(300):
        everyone = generator.standard_t(3, size=(20, 7))
        found.append(outlying(everyone[0], everyone[1:]).p_value)
    assert min(found) == pytest.approx(0.05)
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(found) <= 0.5) == pytest.approx(0.5, abs=0.08)


def test_figures_in_which_all_are_alike_do_not_break_it():
    everyone = np.ones((6, 3))
    assert outlying(everyone[0], everyone[1:]).p_value == 1.0
    assert outlying(np.array([1.0, 2.0, 1.0]), everyone[1:]).p_value == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="at least three"):
        outlying(everyone[0], everyone[:2])


def test_the_figures_of_an_adapter_are_those_of_its_product():
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 40, generator=generator), torch.randn(50, 3, generator=generator)
    change = (up @ down).double()
    values = torch.linalg.svdvals(change)[:3]
    shares = values**2 / (values**2).sum()

    found = dict(zip(FIGURES, figures(down, up), strict=True))

    assert found["largest singular value"] == pytest.approx(float(values[0]), rel=1e-5)
    assert found["Frobenius norm"] == pytest.approx(float(change.norm()), rel=1e-5)
    assert found["energy in the first direction"] == pytest.approx(float(shares[0]), rel=1e-5)
    assert found["spectral entropy"] == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-5)
    assert found["kurtosis"] == pytest.approx(float((change**4).mean() / (change**2).mean() ** 2), rel=1e-4)
    assert figures(torch.zeros(2, 4), torch.zeros(4, 2)).tolist() == [0.0] * 5
