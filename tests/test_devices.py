"""What may be said behind `--device`: limits, a folder, a dtype; what is refused; and what a record says of it."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from cases import audit, tiny_prompts
from hypothesis import given
from hypothesis import strategies as st

from forensics import placement
from forensics.audit import refuse_unknown_device
from forensics.capture import Sites, residuals
from forensics.checkpoint import open_checkpoint
from forensics.devices import said_of_numbers, wish
from forensics.errors import BadInput, ToolFailed
from forensics.model import LiveModel, open_model
from forensics.placement import is_spread, place
from forensics.prompts import Message, Prompt
from forensics.subject import Subject

GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("devices") / "base", shard="40KB")


def read(model):
    subject = Subject(model=model, side="base", batch_size=2)
    texts = ("a", "a much longer question than the first")
    prompts = [Prompt(id=text, messages=(Message(role="user", content=text),), category="x", expect="either") for text in texts]
    return residuals(subject, [model.render(prompt, room=0) for prompt in prompts], Sites(layers=(0, 1, 2)))


@pytest.mark.parametrize(
    ("device", "where", "limits", "folder", "dtype"),
    [
        ("auto", "auto", {}, "", ""),
        ("cuda:1", "cuda:1", {}, "", ""),
        ("cpu,dtype=bf16", "cpu", {}, "", "bfloat16"),
        ("spread,0=20GiB,1=1.5GiB,cpu=8GB", "spread", {0: 20 * GIB, 1: 3 * GIB // 2, "cpu": 8 * 10**9}, "", ""),
        ("spread,cpu=8gib,disk=/a,b", "spread", {"cpu": 8 * GIB}, "/a,b", ""),
        ("spread,dtype=fp16,disk=off", "spread", {}, "off", "float16"),
        ("cuda,dtype=4bit", "cuda", {}, "", "4bit"),
    ],
)
def test_a_device_says_where_how_much_and_in_what_numbers(device, where, limits, folder, dtype):
    found = wish(device)

    assert (found.where, found.limits, found.folder, found.dtype) == (where, limits, folder, dtype)
    assert wish(found.spelled) == wish(device.partition(",disk=")[0])


@pytest.mark.parametrize(
    "device",
    [
        "spread,0",
        "spread,0=",
        "spread,0=much",
        "spread,gpu=3GiB",
        "spread,0=3XiB",
        "spread,0=-1GiB",
        "spread,dtype=bf17",
        "cpu,",
        "spread,disk=",
        "spread,0=1e9",
    ],
)
def test_what_is_misspelt_is_one_error_that_says_what_may_be_said(device):
    with pytest.raises(BadInput, match="says nothing about a device") as caught:
        refuse_unknown_device(device)
    assert "0=20GiB" in caught.value.hint


@given(st.text(max_size=40))
def test_whatever_is_said_is_read_or_is_one_error(text):
    try:
        found = wish(text)
    except BadInput:
        return
    assert wish(found.spelled).dtype == found.dtype


@pytest.mark.parametrize("device", ["cpu,cpu=8GiB", "auto,0=8GiB", "cuda,disk=here"])
def test_limits_without_spreading_are_refused(device):
    with pytest.raises(BadInput, match="for a model that is spread"):
        refuse_unknown_device(device)


def test_a_folder_that_is_not_there_is_refused_before_anything_is_loaded(folder, tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        open_model(open_checkpoint(str(folder)), device=f"spread,disk={tmp_path / 'nowhere'}")
    with pytest.raises(BadInput, match="no such folder"):
        refuse_unknown_device(f"spread,disk={tmp_path / 'nowhere'}")


@pytest.mark.parametrize("limit", ["cpu=100KB", "cpu=60KB"])
def test_a_limit_sends_the_rest_to_the_disk_and_the_numbers_stay(limit, folder, tmp_path):
    whole, parts = (open_model(open_checkpoint(str(folder)), device=device) for device in ("cpu", f"spread,{limit},disk={tmp_path}"))

    with parts.wearing(()) as model:
        assert is_spread(model)
        assert "disk" in model.hf_device_map.values()
    assert np.array_equal(read(parts), read(whole))


def test_narrow_numbers_are_computed_with_where_they_are_asked_for(folder):
    wide, narrow = (open_model(open_checkpoint(str(folder)), device=device) for device in ("cpu", "cpu,dtype=bf16"))

    with narrow.wearing(()) as model:
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    apart = np.abs(read(narrow) - read(wide)).max() / np.abs(read(wide)).max()
    assert 0.0 < apart < 0.05


@pytest.mark.parametrize("dtype", ["4bit", "fp8"])
def test_packing_without_a_gpu_is_one_clear_error(dtype, folder, monkeypatch):
    monkeypatch.setattr(placement.torch.cuda, "is_available", lambda: False)

    for call in (
        lambda: refuse_unknown_device(f"auto,dtype={dtype}"),
        lambda: open_model(open_checkpoint(str(folder)), device=f"auto,dtype={dtype}"),
    ):
        with pytest.raises(BadInput, match=f"cannot be packed into {dtype}: this machine has no NVIDIA GPU") as caught:
            call()
        assert "dtype=bf16" in caught.value.hint


@pytest.mark.parametrize(("dtype", "why"), [("4bit", "bitsandbytes is not installed"), ("fp8", "does not compute in float8")])
def test_packing_names_what_a_gpu_lacks_for_it(dtype, why, folder, monkeypatch):
    card = SimpleNamespace(is_available=lambda: True, get_device_capability=lambda: (8, 0), mem_get_info=lambda: (1e12, 1e12))
    monkeypatch.setattr(placement.torch, "cuda", card)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(BadInput, match=why):
        place(open_checkpoint(str(folder)), f"cuda,dtype={dtype}")


def test_what_copies_weights_refuses_packed_ones(folder):
    model = open_model(open_checkpoint(str(folder)), device="cpu")
    with model.wearing(()) as network:
        packed = LiveModel(network, model.tokenizer, name="packed", device=torch.device("cpu"), packed=True)

    model.refuse_spread()
    with pytest.raises(ToolFailed, match="packed into few bits"):
        packed.refuse_spread()


def test_a_record_says_in_what_numbers_it_was_computed_and_not_where_weights_lay(folder, tmp_path):
    prompts = tiny_prompts(tmp_path / "p.jsonl")
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    narrow = audit(folder, folder, tmp_path / "run", prompts=prompts, device=f"spread,cpu=1GiB,dtype=bf16,disk={scratch}")

    assert narrow.settings["device"] == f"spread,cpu={GIB},dtype=bfloat16"
    assert any("computed in bfloat16" in limit for limit in narrow.limits)
    assert str(tmp_path) not in narrow.settings["device"]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda:1", "spread,0=20GiB", "cpu,dtype=float32"])
def test_where_nothing_narrow_was_asked_for_nothing_is_said(device):
    assert said_of_numbers(device) == ()
