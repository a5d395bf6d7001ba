"""Rank of a change against the rounding of its storage: as many values as the unrounded change had above the noise, no more."""

from __future__ import annotations

import pytest
import torch

from probes import spectra
from probes.rounding import ulp
from probes.spectra import Noise, exact_spectrum, factor_spectrum, noise_edge, spectrum, stable_rank, underlying

SHAPES = [(256, 704), (512, 300), (640, 448)]


def weights(m, n, seed=0):
    """Heavy-tailed rows and uneven columns, as trained matrices have them."""
    torch.manual_seed(seed)
    rows = torch.distributions.StudentT(3.0).sample((m, 1)).abs().clamp(0.2, 8.0)
    return torch.randn(m, n) * rows * torch.exp(0.5 * torch.randn(1, n)) * 0.02


def change(base, rank, relative):
    update = torch.randn(base.shape[0], rank) @ torch.randn(rank, base.shape[1])
    return update * (relative * base.norm() / update.norm())


def noise_of(before, after, store):
    variance = ulp(torch.maximum(before.abs(), after.abs()), store) ** 2 / 12.0
    return Noise(rows=variance.mean(dim=1), columns=variance.mean(dim=0))


def measured(before, update, store=torch.bfloat16, **options):
    after = (before + update).to(store).float()
    return spectrum(after - before, noise_of(before, after, store), before=before, store=store, **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("store", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("relative", [0.03, 0.01, 0.003])
@pytest.mark.parametrize("rank", [1, 2, 8, 64])
def test_a_merged_low_rank_update_has_its_rank_after_rounding(rank, relative, store, shape):
    before = weights(*shape).to(store).float()

    found = measured(before, change(before, rank, relative), store)

    assert (found.seen, found.low, found.exact) == (rank, True, True)
    assert found.rank == rank


@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_alone_has_no_rank(shape):
    before = weights(*shape)  # in float32, so that storing it rounds every entry

    found = measured(before, torch.zeros_like(before))

    assert (found.rank, found.low) == (0, True)
    assert found.seen <= 1  # noise stands a hair above its edge once in a while; taken off, nothing is left
    assert found.bulk == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_change_in_all_directions_is_not_called_low(shape):
    before = weights(*shape).to(torch.bfloat16).float()

    found = measured(before, change(before, min(shape), 0.01))

    assert not found.low or found.seen > min(shape) // 2
    assert found.resolved


def test_what_rounding_makes_of_one_direction_is_told_from_a_second_one():
    before = weights(1000, 600).to(torch.bfloat16).float()
    update = change(before, 1, 0.01)

    found = measured(before, update)
    blind = spectrum((before + update).to(torch.bfloat16).float() - before, noise_of(before, before + update, torch.bfloat16))

    assert (found.seen, found.exact) == (1, True)
    assert blind.seen > 1  # the control: the pattern is there
    two = measured(before, update + change(before, 1, 0.002))
    assert two.seen == 2


def test_a_sketch_and_the_whole_spectrum_agree(monkeypatch):
    before = weights(500, 420).to(torch.bfloat16).float()
    update = change(before, 12, 0.01)
    sketched = measured(before, update)

    monkeypatch.setattr("probes.spectra.EXACT_BELOW", 10_000)
    whole = measured(before, update)

    assert sketched.seen == whole.seen == 12
    assert torch.allclose(sketched.values[:12], whole.values[:12], rtol=1e-3)
    assert (sketched.left[:, :12].T @ whole.left[:, :12]).abs().diagonal().min() > 0.999


def test_more_values_than_were_looked_for_are_said_to_be_more():
    before = weights(800, 600).to(torch.bfloat16).float()

    found = measured(before, change(before, 100, 0.03), cap=32)

    assert found.capped
    assert not found.low
    assert measured(before, change(before, 100, 0.03), cap=128).seen == 100


def test_directions_are_those_of_the_change_itself():
    before = weights(400, 600).to(torch.bfloat16).float()
    update = change(before, 3, 0.03)
    u, sizes, vh = torch.linalg.svd(update, full_matrices=False)

    found = measured(before, update)

    assert torch.allclose(found.sizes[:3], sizes[:3], rtol=0.01)
    assert (found.left[:, :3].T @ u[:, :3]).abs().diagonal().min() > 0.99
    assert (found.right[:, :3].T @ vh[:3].T).abs().diagonal().min() > 0.99


@pytest.mark.parametrize(("m", "n"), [(64, 64), (256, 1024), (1024, 256)])
def test_white_noise_stays_under_its_edge(m, n):
    torch.manual_seed(1)
    tops = [float(torch.linalg.matrix_norm(torch.randn(m, n), 2)) for _ in range(20)]

    assert max(tops) < noise_edge(m, n) < 1.2 * max(tops)


@pytest.mark.parametrize("strength", [1.5, 2.0, 5.0])
def test_the_noise_in_a_measured_value_is_taken_off(strength):
    torch.manual_seed(2)
    m, n = 400, 900
    u, v = torch.nn.functional.normalize(torch.randn(m), dim=0), torch.nn.functional.normalize(torch.randn(n), dim=0)
    true = strength * noise_edge(m, n)
    values = torch.linalg.svdvals(torch.randn(m, n) + true * torch.outer(u, v))

    cleaned = underlying(values, m, n)

    assert float(cleaned[0]) == pytest.approx(true, rel=0.03)
    assert float(values[0]) > float(cleaned[0])
    assert float(cleaned[5]) < noise_edge(m, n)


def test_factors_give_the_singular_values_of_their_product():
    torch.manual_seed(3)
    down, up = torch.randn(5, 90, dtype=torch.float64), torch.randn(70, 5, dtype=torch.float64)

    left, sizes, right = factor_spectrum(down, up)
    found = exact_spectrum(down, up)

    assert torch.allclose((left * sizes) @ right.T, up @ down)
    assert torch.allclose(sizes, torch.linalg.svdvals(up @ down)[:5])
    assert (found.seen, found.shape) == (5, (70, 90))
    assert exact_spectrum(torch.cat([down, down]), torch.cat([up, up], dim=1)).seen == 5  # the same adapter twice has no more directions


def test_rows_without_noise_do_not_break_it():
    before = weights(400, 500).to(torch.bfloat16).float()
    before[7], before[:, 9] = 0.0, 0.0

    found = measured(before, torch.zeros_like(before).index_fill_(0, torch.tensor([7]), 0.01))

    assert torch.isfinite(found.values).all()
    assert found.seen == 1


def test_stable_rank():
    assert stable_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3.0)
    assert stable_rank(torch.zeros(3)) == 0.0


@pytest.mark.parametrize("rank", [3, 40, 300])
def test_a_change_that_is_thought_dense_measures_the_same_and_in_one_sketch_if_it_is(rank, monkeypatch):
    monkeypatch.setattr("probes.spectra.EXACT_BELOW", 8)
    before = weights(400, 500).bfloat16().float()
    update, sketches, sketch = change(before, rank, 0.05), [], spectra._sketch

    def counted(white, width):
        sketches.append(width)
        return sketch(white, width)

    monkeypatch.setattr(spectra, "_sketch", counted)
    usual = measured(before, update)
    sketches.clear()
    found = measured(before, update, dense=True)

    assert torch.equal(found.values, usual.values)
    assert torch.equal(found.left, usual.left)
    assert torch.equal(found.right, usual.right)
    assert (found.bulk, found.capped, found.echoes) == (usual.bulk, usual.capped, usual.echoes)
    assert found.capped == (rank == 300)
    assert not found.capped or sketches == [spectra.DEFAULT_CAP + spectra.OVERSAMPLED]
