"""What storing in a short format does: neighbour distances, casts that show nothing, and a floor that is the measured one."""

from __future__ import annotations

import pytest
import torch

from probes.blocks import TensorChange
from probes.rounding import SMALLEST_EXPONENT, ulp

SHORT = {torch.float16: 10, torch.bfloat16: 7}


def change(base, candidate, delta=None):
    whole = TensorChange()
    whole.update(base, candidate, delta)
    return whole


def gaussian(*shape, seed=0, scale=0.02):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_ulp_is_the_distance_to_the_next_number(dtype):
    powers = torch.tensor([2.0**exponent for exponent in (-126, -125, -60, -1, 0, 1, 10, 100)], dtype=dtype)
    numbers = torch.cat([powers, 1.3 * powers, 1.99 * powers, torch.tensor([0.0, 1e-40, 1e-45], dtype=dtype)])
    if dtype is torch.float64:
        numbers = torch.cat([numbers, torch.tensor([1e300, 1e-200, 1e-310, 5e-324], dtype=dtype)])
    above = torch.nextafter(numbers, torch.full_like(numbers, torch.inf)) - numbers
    assert torch.equal(ulp(numbers, dtype), above)
    assert torch.equal(ulp(-numbers, dtype), above)


@pytest.mark.parametrize("dtype", SHORT)
def test_an_ulp_of_a_short_format_is_the_distance_to_the_next_bit_pattern(dtype):
    """Every finite positive number of the format: zero, subnormals, powers of two and all between."""
    patterns = torch.arange(0x7F80 if dtype is torch.bfloat16 else 0x7C00, dtype=torch.int32).to(torch.int16)
    numbers = patterns.view(dtype)[:-1].double()
    above = patterns.view(dtype)[1:].double() - numbers
    assert torch.equal(ulp(numbers, dtype), above)
    assert torch.equal(ulp(numbers.float(), dtype).double(), above)
    assert torch.equal(ulp(-numbers.float(), dtype).double(), above)


def test_an_ulp_of_zero_is_the_smallest_number():
    for dtype, bits in {torch.float32: 23, **SHORT}.items():
        assert ulp(torch.zeros(1), dtype).item() == 2.0 ** (SMALLEST_EXPONENT[dtype] - bits)


def test_zeros_do_not_lift_the_floor():
    """A half-empty matrix has the floor of its other half."""
    filled = gaussian(64, 64).bfloat16()
    padded = torch.cat([filled, torch.zeros(64, 64, dtype=torch.bfloat16)])
    assert change(padded, padded).floor == pytest.approx(change(filled, filled).floor, rel=1e-6)


@pytest.mark.parametrize("dtype", SHORT)
def test_a_mere_cast_shows_no_change(dtype):
    base = gaussian(128, 64)
    seen = change(base, base.to(dtype))
    assert (seen.changed, seen.relative, seen.not_finite) == (0, 0.0, 0)
    assert seen.elements == base.numel()
    assert seen.floor > 1e-4  # it did look


@pytest.mark.parametrize("dtype", SHORT)
def test_one_ulp_more_is_a_change_even_in_the_first_entry(dtype):
    base = gaussian(128, 64)
    candidate = base.to(dtype)
    candidate[0, 0] += ulp(candidate[0, 0].float(), dtype).to(dtype)
    assert change(base, candidate).changed == 1


def test_a_wider_copy_shows_no_change():
    base = gaussian(128, 64).bfloat16()
    assert change(base, base.float()).changed == 0


def test_a_trip_through_another_format_stays_near_the_floor():
    base = gaussian(256, 256).bfloat16()
    there_and_back = base.half().bfloat16()
    seen = change(base, there_and_back)
    assert seen.relative < seen.floor
    half = gaussian(256, 256).half()
    trip = change(half, half.bfloat16().half())
    assert 0 < trip.relative < 10 * trip.floor  # three bits are lost
    assert change(base, base.float().bfloat16()).changed == 0


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_the_predicted_floor_is_what_rounding_does_to_gaussian_weights(dtype, scale):
    exact = gaussian(512, 512, scale=scale)
    rounded = exact.to(dtype)
    measured = float((rounded.double() - exact.double()).norm() / exact.double().norm())
    assert change(rounded, rounded).floor == pytest.approx(measured, rel=0.05)


def test_the_figures_are_those_of_the_definition():
    base, candidate = gaussian(50, 40), gaussian(50, 40, seed=1)
    seen = change(base, candidate)
    difference = candidate.double() - base.double()
    assert seen.relative == pytest.approx(float(difference.norm() / base.double().norm()), rel=1e-6)
    assert (seen.changed, seen.elements) == (2000, 2000)


def test_what_an_adapter_adds_is_not_rounded_away():
    base = (1.0 + gaussian(64, 64).abs()).bfloat16()
    tiny = 1e-6 * torch.ones(64, 64)
    seen = change(base, base, tiny)
    assert seen.changed == base.numel()
    assert seen.change_square == pytest.approx(base.numel() * 1e-12, rel=1e-5)
    assert torch.equal((base.float() + tiny).bfloat16(), base)  # merged, it would be gone


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_newly_not_finite_is_counted_and_spoils_nothing_else(bad):
    base = gaussian(8, 8)
    candidate = base.clone()
    candidate[0, 0] = bad
    seen = change(base, candidate)
    assert (seen.not_finite, seen.changed, seen.change_square) == (1, 1, 0.0)
    assert seen.base_square == pytest.approx(float(base.double().square().sum()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_the_base_has_already_is_the_bases_affair(bad):
    base = gaussian(8, 8)
    base[0, 0] = bad
    seen = change(base, base.clone())
    assert (seen.not_finite, seen.changed) == (0, 0)
    assert seen.relative == 0.0
    assert 0.0 < seen.floor < 1.0


def test_a_number_the_candidate_mended_has_changed():
    base = gaussian(8, 8)
    candidate = base.clone()
    base[0, 0] = float("nan")
    seen = change(base, candidate)
    assert (seen.not_finite, seen.changed) == (0, 1)


def test_a_cast_that_overflows_is_newly_not_finite():
    base = torch.tensor([1.0, 1e6])
    seen = change(base, base.half())
    assert seen.not_finite == 1


def test_a_delta_that_is_not_finite_is_counted():
    base = gaussian(4, 4)
    delta = torch.zeros(4, 4)
    delta[0, 0] = float("nan")
    assert change(base, base, delta).not_finite == 1


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (5, 4, 3)])
def test_any_shape_is_taken(shape):
    base = torch.full(shape, 2.0)
    seen = change(base, base + 1.0)
    assert seen.elements == base.numel() == seen.changed
    assert seen.relative == pytest.approx(0.5 if base.numel() else 0.0)


def test_an_all_zero_tensor_is_unchanged_or_wholly_changed():
    zero = torch.zeros(4, 4)
    assert change(zero, zero).relative == 0.0
    assert change(zero, zero + 1e-3).relative == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, *SHORT])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_block_by_block_is_the_same_as_whole(dtype, rows):
    base, candidate = gaussian(64, 33), gaussian(64, 33, seed=1).to(dtype)
    candidate[5, 5], delta = float("nan"), gaussian(64, 33, seed=2)
    whole, blocks = change(base, candidate, delta), TensorChange()
    for start in range(0, 64, rows):
        part = slice(start, start + rows)
        blocks.update(base[part], candidate[part], delta[part])
    for field in ("elements", "changed", "not_finite"):
        assert getattr(blocks, field) == getattr(whole, field)
    for figure in ("relative", "floor"):
        assert getattr(blocks, figure) == pytest.approx(getattr(whole, figure), rel=1e-9)
