"""One tensor of two models, measured: the figures are those of their definitions, in one piece or in blocks, thinned or whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probes import kept
from probes.differ import Meter
from probes.rounding import ulp


def weights(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * (0.3 * torch.randn(rows, 1, generator=generator)).exp() * 0.02).bfloat16()


def changed(before, rank, relative=0.02, seed=1):
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(before.shape[0], rank, generator=generator) @ torch.randn(rank, before.shape[1], generator=generator)
    return (before.float() + change * (relative * before.float().norm() / change.norm())).bfloat16()


def profile(before, after, *, rows=64, **options):
    meter = Meter(shape=tuple(before.shape), **options)
    for start in range(0, len(before), rows):
        meter.update(before[start : start + rows], after[start : start + rows])
    return meter.profile()


@pytest.mark.parametrize("rows", [7, 64, 400])
def test_the_figures_are_those_of_the_definitions(rows):
    before = weights(400, 448)
    after = changed(before, 8)
    after[3] = before[3]
    after[5, :100] = 0.0
    one, other = before.double().numpy(), after.double().numpy()
    change = other - one

    found = profile(before, after, rows=rows)

    assert found.change.changed == np.count_nonzero(change)
    assert found.change.relative == pytest.approx(np.linalg.norm(change) / np.linalg.norm(one), rel=1e-6)
    assert found.cosine == pytest.approx((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other), rel=1e-6)
    assert found.scaled == pytest.approx((one * other).sum() / (one * one).sum(), rel=1e-6)
    assert found.zeroed == np.count_nonzero((other == 0) & (one != 0))
    assert found.rows_changed == 399
    assert found.kurtosis == pytest.approx((change**4).mean() / (change**2).mean() ** 2, rel=1e-3)
    sizes = np.abs(change) / ulp(after.float(), torch.bfloat16).numpy()
    assert found.ulps == pytest.approx(np.median(sizes[change != 0]), rel=0.1)
    share = np.linalg.norm(change[5]) / np.linalg.norm(one[5])
    assert dict(found.moved)[5] == pytest.approx(share, rel=1e-5)
    assert len(found.moved) == 64


@pytest.mark.parametrize("store", [torch.float32, torch.float16, torch.bfloat16])
def test_the_sign_of_zero_is_no_change(store):
    before = weights(64, 64).to(store)
    before[2, 2] = 0.0
    after = before.clone()
    after[2, 2], after[9, 9] = -0.0, 1.0

    found = profile(before, after)

    assert (found.change.changed, found.rows_changed) == (1, 1)
    assert profile(before, after).zeroed == 0


@pytest.mark.parametrize("shape", [(512, 400), (400, 512)])
@pytest.mark.parametrize("by_columns", [False, True])
def test_a_thinned_change_has_its_rank_and_its_directions(shape, by_columns, monkeypatch):
    before = weights(*shape)
    after = changed(before, 6)
    whole = profile(before, after)
    monkeypatch.setattr(kept, "KEPT_ELEMENTS", shape[0] * shape[1] // 3)

    thin = profile(before, after, thin_columns=by_columns)

    assert (whole.thinned, thin.thinned) == (1, 4)
    assert thin.spectrum.rank == whole.spectrum.rank == 6
    assert (thin.columns is not None, len(thin.rows) == shape[0]) == (by_columns, by_columns)
    complete = (thin.spectrum.left, whole.spectrum.left) if by_columns else (thin.spectrum.right, whole.spectrum.right)
    assert float(torch.linalg.svdvals(complete[0][:, :1].T @ whole_basis(before, after, by_columns))[0]) > 0.97


def whole_basis(before, after, by_columns):
    """The six directions of the change on the side that thinning leaves whole."""
    u, _, vh = torch.linalg.svd(after.float() - before.float(), full_matrices=False)
    return u[:, :6] if by_columns else vh[:6].T


def test_rows_that_change_late_are_thinned_too(monkeypatch):
    """The first block is as it was, so how much there will be to keep shows only later."""
    before = weights(512, 400)
    after = changed(before, 6)
    after[:64] = before[:64]
    monkeypatch.setattr(kept, "KEPT_ELEMENTS", 100 * 400)

    found = profile(before, after)

    assert found.thinned == 8
    assert found.rows.tolist() == list(range(64, 512, 8))
    odd = before.clone()
    odd[1::2] = changed(before, 6)[1::2]
    assert profile(before, odd).spectrum.rank == 6  # though no row that changed has an even number
    assert found.spectrum.rank == 6


def test_few_rows_of_a_large_matrix_are_all_kept(monkeypatch):
    before = weights(4000, 64)
    after = before.clone()
    rows = [17, 801, 3333]
    after[rows] += 0.5
    monkeypatch.setattr(kept, "KEPT_ELEMENTS", 50 * 64)

    found = profile(before, after)

    assert (found.thinned, found.rows.tolist(), found.rows_changed) == (1, rows, 3)


def test_a_cast_is_told_though_most_blocks_did_not_change():
    before = torch.full((256, 64), 0.5).bfloat16()
    before[200, 3] = 1e-6  # float16 has no number so small and so fine
    after = before.half().bfloat16()
    assert not torch.equal(before, after)

    assert "float16" in profile(before, after).casts
    after[10, 10] = 0.25
    assert "float16" not in profile(before, after).casts


@pytest.mark.parametrize("size", [1e20, 1e38])
@pytest.mark.parametrize("store", [torch.float32, torch.bfloat16])
def test_a_weight_of_absurd_size_has_figures(size, store):
    before = weights(64, 80).to(store)
    after = before.clone()
    after[3, 5] = size

    found = profile(before, after)

    assert found.change.change_square == pytest.approx(float(after[3, 5].double()) ** 2, rel=1e-6)
    assert found.kurtosis == pytest.approx(64 * 80, rel=1e-3)  # all of it in one entry
    assert all(np.isfinite(number) for number in (found.change.relative, found.cosine, found.scaled, found.ulps, found.rescaled))
    both = profile(after, after)
    assert (both.change.changed, both.cosine) == (0, pytest.approx(1.0))


def test_a_loud_row_does_not_hide_an_adapter():
    before = weights(512, 512)
    for loud in (1, 4):
        louder = before.clone()
        louder[loud] *= 64.0
        generator = torch.Generator().manual_seed(1)
        change = torch.randn(512, 2, generator=generator) @ torch.randn(2, 512, generator=generator)
        after = (louder.float() + change * (0.05 * before.float().norm() / change.norm())).bfloat16()

        found = profile(louder, after)

        assert (found.spectrum.rank, found.spectrum.capped) == (2, False)
        assert found.spectrum.bulk == pytest.approx(1.0, abs=0.1)


def test_empty_tensors_and_vectors_in_blocks_have_figures():
    empty = torch.zeros(0, 5)
    assert profile(empty, empty).change.relative == 0.0
    vector = torch.ones(1000)
    meter = Meter(shape=(1, 1000))
    for start, stop in ((0, 700), (700, 1000)):
        meter.update(vector[start:stop], vector[start:stop] * 1.5)
    assert (meter.profile().spectrum, meter.profile().change.changed) == (None, 1000)


def test_zeros_under_a_live_adapter_have_finite_sizes():
    before = weights(64, 80)
    meter = Meter(shape=(64, 80), rounded=False)
    meter.update(before, before, -before.float())
    found = meter.profile()
    assert np.isfinite(found.ulps)
    assert found.zeroed == 64 * 80


def test_figures_of_a_cast_base_are_of_what_the_cast_leaves():
    before = torch.randn(64, 80, generator=torch.Generator().manual_seed(0))
    before[0, 0] = 1e6  # no float16
    found = profile(before, before.half())
    assert (found.change.changed, found.kurtosis, found.rescaled) == (0, 0.0, 0.0)
    assert found.scaled == pytest.approx(1.0, rel=1e-6)
