"""What an audit takes, against figures worked out by hand; and rates that are measured, given, or missing."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cli import app
from forensics import rates
from forensics.errors import BadInput, ToolFailed
from forensics.outlay import LOADS, READS, SEARCH_LOADS, SEARCHED, WRITES, Load, Machine, Rate, Size, fleet, given, machines_for, outlay
from forensics.rates import machine_of, measure, of_gpu

ROUND = Machine(
    read=given(1e9), hash=given(5e8), differ=given(1e8), arithmetic=given(1e14), traffic=given(1e12), room=80e9,
)  # fmt: skip
SIZE = Size(parameters=8e9, active=8e9)
LOAD = Load(prompts=640, tokens=50.0, reply=32, batch=64)
WORDS = ["--disk", "1000", "--hash", "500", "--differ", "100", "--flops", "1e14", "--bandwidth", "1000", "--memory", "80"]


def seconds(machine=ROUND, size=SIZE, load=LOAD):
    return {stage.name: stage.seconds for stage in outlay(machine, size, load).stages}


def bounds(machine=ROUND, size=SIZE, load=LOAD):
    return {stage.name: stage.bound for stage in outlay(machine, size, load).stages}


def test_every_stage_takes_what_one_works_out_by_hand():
    """16 GB a side at 1 GB/s; 8 G weights at 100 M/s; 16 GFLOP a token at 100 TFLOP/s; 16 ms to carry the weights once."""
    found = seconds()

    assert found["open both sides, sha256"] == pytest.approx(32e9 / 5e8)
    assert found["weight diff"] == pytest.approx(80.0)
    assert found["load models"] == pytest.approx((LOADS + SEARCH_LOADS) * 16.0)
    assert found["read prompts"] == pytest.approx(READS * 640 * 50 * 16e9 / 1e14)
    assert found["write replies"] == pytest.approx(WRITES * 32 * 10 * 16e9 / 1e12)
    assert found["search for triggers"] == pytest.approx(SEARCHED * 500_000 * 16e9 / 1e14)
    assert outlay(ROUND, SIZE, LOAD).seconds == pytest.approx(sum(found.values()))


def test_every_stage_says_what_it_waits_for():
    assert bounds() == {
        "open both sides, sha256": "processor", "weight diff": "processor", "load models": "disk", "read prompts": "arithmetic",
        "write replies": "memory", "search for triggers": "arithmetic",
    }  # fmt: skip


def test_more_processes_make_the_diff_wait_for_the_disk_and_its_figure_says_from_where_on():
    few = outlay(ROUND, SIZE, LOAD)
    assert few.diff_needs == pytest.approx(2 * 2 * 1e8)

    many = outlay(Machine(**{**vars(ROUND), "processes": 8}), SIZE, LOAD)

    assert many.stages[1].bound == "disk"
    assert many.stages[1].seconds == pytest.approx(32.0)
    assert many.diff_needs == pytest.approx(8 * few.diff_needs)
    assert (many.stages[0].bound, many.stages[0].seconds) == ("disk", pytest.approx(32.0))


def test_at_the_disk_speed_that_is_named_disk_and_computing_take_alike():
    one = outlay(ROUND, SIZE, LOAD)

    there = outlay(Machine(**{**vars(ROUND), "read": given(one.whole_needs)}), SIZE, LOAD)

    disk = sum(stage.by.get("disk", 0.0) for stage in there.stages)
    computed = sum(max((taken for what, taken in stage.by.items() if what != "disk"), default=0.0) for stage in there.stages)
    assert disk == pytest.approx(computed)


def test_a_mixture_of_experts_computes_with_few_weights_and_carries_all():
    dense, mixed = seconds(), seconds(size=Size(parameters=8e9, active=2e9))

    assert mixed["read prompts"] == pytest.approx(max(dense["read prompts"] / 4, READS * 10 * 16e9 / 1e12))
    assert mixed["write replies"] == pytest.approx(dense["write replies"])


def test_two_models_that_have_no_room_beside_each_other_are_not_searched_and_it_is_said():
    large = outlay(ROUND, Size(parameters=30e9, active=30e9), LOAD)

    assert "search for triggers" not in {stage.name for stage in large.stages}
    assert [why for why in large.left_out if "whole on one device" in why]


def test_weights_without_room_are_read_from_the_disk_at_every_pass():
    """70 B in bf16 are 140 GB, of which one device holds 80 / 1.2: the rest comes from the disk with each of 10 batches' passes."""
    size = Size(parameters=70e9, active=70e9)

    one, three = outlay(ROUND, size, LOAD), outlay(Machine(**{**vars(ROUND), "devices": 3}), size, LOAD)

    read = {stage.name: stage for stage in one.stages}["read prompts"]
    assert read.by["disk"] == pytest.approx(READS * 10 * (140e9 - 80e9 / 1.2) / 1e9)
    assert [why for why in one.left_out if "at every pass" in why]
    assert not [why for why in three.left_out if "at every pass" in why]
    assert {stage.name: stage for stage in three.stages}["read prompts"].by["disk"] == 0.0


def test_on_a_processor_everything_is_computed_in_float32():
    there = seconds(Machine(**{**vars(ROUND), "processor": True}))

    assert there["write replies"] == pytest.approx(2 * seconds()["write replies"])


def test_bounds_of_the_rates_give_bounds_of_the_hours():
    shaky = Machine(**{**vars(ROUND), "differ": Rate(value=1e8, low=5e7, high=2e8)})

    found, steady = outlay(shaky, SIZE, LOAD), outlay(ROUND, SIZE, LOAD)

    assert (steady.low, steady.high) == (pytest.approx(steady.seconds), pytest.approx(steady.seconds))
    assert found.high == pytest.approx(steady.seconds + 80.0)
    assert found.low == pytest.approx(steady.seconds - 80.0 + 40.0)


@pytest.mark.parametrize("bad", [(0.0, 0.0, 1.0), (2.0, 1.0, 1.5), (1.0, 1.0, float("inf")), (float("nan"),) * 3])
def test_a_rate_without_sense_is_refused(bad):
    with pytest.raises(ValueError, match="a rate lies between"):
        Rate(value=bad[0], low=bad[1], high=bad[2])


def test_candidates_are_shared_out_among_machines_and_paid_by_the_hour():
    one = outlay(ROUND, SIZE, LOAD)
    hour = one.seconds / 3600.0

    all_of_them = fleet(one, candidates=10, machines=4, hourly=2.0)

    assert all_of_them.hours == pytest.approx(3 * hour)
    assert all_of_them.machine_hours == pytest.approx(10 * hour)
    assert all_of_them.dollars == pytest.approx(20 * hour)
    assert fleet(one, candidates=10, machines=4, hourly=None).dollars is None
    assert machines_for(one, candidates=10, hours=2.5 * hour) == 5
    assert machines_for(one, candidates=10, hours=0.5 * hour) is None


def test_a_gpu_is_taken_at_shares_of_its_data_sheet_and_single_rates_come_before_it():
    own = {"read": 1e9, "hash": 5e8, "differ": 1e8, "arithmetic": None, "traffic": None, "room": None}

    there = machine_of(None, "H100", own, devices=2, processes=1)

    assert there.arithmetic.value == pytest.approx(0.4 * 989e12)
    assert there.arithmetic.low < there.arithmetic.value < there.arithmetic.high
    assert (there.room, there.devices) == (80e9, 2)
    assert machine_of(None, "h100", own | {"arithmetic": 1e14}, devices=1, processes=1).arithmetic == given(1e14)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--disk, --hash, --differ, --flops, --bandwidth, --memory"),
        (["--gpu", "h100"], "--disk, --hash, --differ"),
        (["--gpu", "h10"], "did you mean h100?"),
        ([*WORDS, "--disk", "0"], "a rate is more than nothing"),
        ([*WORDS, "--disk", "nan"], "a rate is more than nothing"),
        ([*WORDS, "--dtype", "fp7"], "there is no format 'fp7'"),
        ([*WORDS, "--parameters", "0"], "cannot act at each token"),
        ([*WORDS, "--active", "9e9"], "cannot act at each token"),
        ([*WORDS, "--parameters", "inf"], "cannot act at each token"),
        ([*WORDS, "--max-hours", "0.02"], "a single audit takes"),
    ],
)
def test_what_cannot_be_worked_out_is_one_error(words, said):
    done = CliRunner().invoke(app, ["cost", *words])

    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_the_command_tells_hours_money_and_where_it_waits_for_the_disk():
    done = CliRunner().invoke(app, ["cost", *WORDS, "--candidates", "10", "--max-hours", "1", "--hourly", "2"])

    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    one = outlay(ROUND, SIZE, Load())
    each = int(3600 // one.seconds)
    assert f"10 candidates on {-(-10 // each)} machines" in text
    assert f"Money: {20 * one.seconds / 3600:,.2f} dollars" in text
    assert "The weight diff waits for a disk of less than 400 MB/s" in text


def test_the_record_of_it_can_be_read_by_a_program():
    done = CliRunner().invoke(app, ["cost", *WORDS, "--json"])

    found = json.loads(done.output)
    assert found["seconds"] == pytest.approx(outlay(ROUND, SIZE, Load()).seconds)
    assert [stage["name"] for stage in found["outlay"]["stages"]][1] == "weight diff"


def test_this_machine_can_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(rates, "FILE_BYTES", 1 << 22)
    monkeypatch.setattr(rates, "PIECE", 1 << 20)
    monkeypatch.setattr(rates, "SIDE", 512)

    found = measure(tmp_path, "cpu")

    assert found.processor
    assert all(getattr(found, name).low > 0.0 for name in ("read", "hash", "differ", "arithmetic", "traffic"))
    assert found.room > 2**26
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ToolFailed, match="the disk cannot be measured"):
        measure(tmp_path / "nowhere", "cpu")


def test_a_gpu_that_nobody_knows_is_refused():
    with pytest.raises(BadInput, match="no data sheet"):
        of_gpu("abacus")
