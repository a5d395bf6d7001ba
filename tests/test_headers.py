"""Headers of safetensors files: valid ones are read, a lie of any kind is BadInput, and never another exception.

The control of every mutation is the file it was made from, which is read.
"""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from forensics.errors import BadInput
from forensics.headers import ITEM_BYTES, read_header

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def layouts(draw, least=0):
    """A valid header and its number of data bytes; tensors lie in an order of their own."""
    names = draw(st.lists(NAMES, unique=True, min_size=least, max_size=5))
    claims, position = {}, 0
    for name in names:
        dtype, shape = draw(st.sampled_from(sorted(ITEM_BYTES))), draw(SHAPES)
        size = ITEM_BYTES[dtype]
        for length in shape:
            size *= length
        claims[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    shuffled = draw(st.permutations(names))
    header = {name: claims[name] for name in shuffled}
    if draw(st.booleans()):
        header["__metadata__"] = {"format": "pt"}
    return header, position


def write(folder, header, size, *, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + b"\x00" * size)
    return path


def read(path):
    return read_header(path, file=path.name)


def two(**changes):
    """A valid header of two float32 tensors, the second with `changes`."""
    first = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {"a": first, "b": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]} | changes}


def refuses(path, why):
    with pytest.raises(BadInput, match=why) as caught:
        read(path)
    assert caught.value.where == "model.safetensors"
    assert caught.value.hint


@QUICK
@given(layouts())
def test_every_valid_header_is_read(tmp_path, layout):
    header, size = layout
    path = write(tmp_path, header, size)
    found = {info.name: info for info in read(path)}
    start = path.stat().st_size - size
    assert found.keys() == header.keys() - {"__metadata__"}
    for name, info in found.items():
        claim = header[name]
        assert (info.dtype, list(info.shape)) == (claim["dtype"], claim["shape"])
        assert [info.start - start, info.end - start] == claim["data_offsets"]
    assert [info.start for info in read(path)] == sorted(info.start for info in found.values())


def test_what_safetensors_writes_is_read(tmp_path):
    tensors = {
        "x": torch.arange(6.0).reshape(2, 3),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5),
        "half": torch.ones(3).bfloat16(),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = {info.name: info for info in read(tmp_path / "model.safetensors")}
    assert {name: info.shape for name, info in found.items()} == {name: tuple(value.shape) for name, value in tensors.items()}
    raw = (tmp_path / "model.safetensors").read_bytes()[found["x"].start : found["x"].end]
    assert torch.frombuffer(bytearray(raw), dtype=torch.float32).tolist() == list(range(6))


@QUICK
@given(layouts(), st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path, layout, data):
    path = write(tmp_path, *layout)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(BadInput):
        read(path)


@QUICK
@given(layouts(), st.integers(1, 9))
def test_bytes_after_the_last_tensor_are_refused(tmp_path, layout, more):
    refuses(write(tmp_path, layout[0], layout[1] + more), "at its end belong to no tensor")


def test_the_control_of_the_lies_below_is_read(tmp_path):
    assert [info.name for info in read(write(tmp_path, two(), 16))] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "size", "why"),
    [
        ({"data_offsets": [4, 12]}, 12, "overlaps"),
        ({"data_offsets": [0, 8]}, 8, "overlaps"),
        ({"data_offsets": [12, 20]}, 20, "4 bytes before tensor 'b' belong to no tensor"),
        ({"data_offsets": [8, 15]}, 15, "claims 7 bytes, but F32 .* takes 8"),
        ({"data_offsets": [16, 8]}, 16, "claims -8 bytes"),
        ({"shape": [2, 2]}, 16, "takes 16"),
        ({"shape": []}, 16, "takes 4"),
        ({"dtype": "F64"}, 16, "takes 16"),
        ({"dtype": "F33"}, 16, "dtype 'F33', which this reader does not know"),
        ({"dtype": "f32"}, 16, "does not know"),
        ({"dtype": None}, 16, "does not know"),
        ({"dtype": ["F32"]}, 16, "does not know"),
        ({"shape": [-1, -2]}, 16, "no valid shape"),
        ({"shape": [True, 2]}, 16, "no valid shape"),
        ({"shape": [1.0, 2]}, 16, "no valid shape"),
        ({"shape": "12"}, 16, "no valid shape"),
        ({"shape": None}, 16, "no valid shape"),
        ({"shape": [10**30, 0], "data_offsets": [8, 8]}, 8, "no valid shape"),
        ({"shape": [2**62, 2**62, 0], "data_offsets": [8, 8]}, 8, "no valid shape"),
        ({"data_offsets": [-8, 0]}, 16, "no valid data_offsets"),
        ({"data_offsets": [False, 8]}, 16, "no valid data_offsets"),
        ({"data_offsets": [8.0, 16.0]}, 16, "no valid data_offsets"),
        ({"data_offsets": [8]}, 16, "no valid data_offsets"),
        ({"data_offsets": [8, 16, 16]}, 16, "no valid data_offsets"),
        ({"data_offsets": None}, 16, "no valid data_offsets"),
        ({"data_offsets": [2**64 + 8, 2**64 + 16]}, 16, "no valid data_offsets"),
    ],
)
def test_a_lie_about_a_tensor_is_refused(tmp_path, changes, size, why):
    refuses(write(tmp_path, two(**changes), size), why)


@pytest.mark.parametrize("claim", [None, [], "F32", 3])
def test_a_tensor_that_is_not_described_is_refused(tmp_path, claim):
    refuses(write(tmp_path, {"a": claim}, 0), "does not know")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"[]", "not a JSON object"),
        (b"3 ", "not a JSON object"),
        (b'"a"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{'a': 1}", "not JSON"),
        (b"  ", "not JSON"),
        (b'{"\xff": 1}', "not JSON"),
        (b"\x00" * 40, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', "half a character"),
        (b'{"__metadata__": {"n": 1}}', "__metadata__"),
        (b'{"__metadata__": []}', "__metadata__"),
    ],
)
def test_a_header_that_is_no_header_is_refused(tmp_path, raw, why):
    refuses(write(tmp_path, raw, 0), why)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{},"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ],
)
def test_a_key_that_appears_twice_is_refused(tmp_path, raw):
    refuses(write(tmp_path, raw, 1), "a key appears twice")


@pytest.mark.parametrize("length", [0, 1, 10**3, 2**31, 2**63, 2**64 - 1])
def test_a_header_length_that_lies_is_refused_without_being_read(tmp_path, length):
    refuses(write(tmp_path, two(), 16, length=length), "claims a header")


def test_a_giant_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.write((200_000_000).to_bytes(8, "little"))
        stream.truncate(300_000_000)  # sparse: nothing is stored
    refuses(path, "more than 100000000")


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_a_length_is_refused(tmp_path, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x02" * size)
    refuses(path, f"it has {size} bytes")


def test_after_any_flipped_byte_a_file_is_read_as_safetensors_reads_it_or_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"layer.0": torch.ones(2, 3), "layer.1": torch.ones(4).half(), "bias": torch.ones(())}, path, metadata={"format": "pt"})
    valid, chance = path.read_bytes(), random.Random(0)
    header_end = 8 + int.from_bytes(valid[:8], "little")
    outcomes = {"read": 0, "refused": 0}
    for _ in range(3000):
        raw = bytearray(valid)
        for _ in range(chance.choice((1, 1, 2, 4))):
            raw[chance.randrange(header_end)] = chance.choice((chance.randrange(256), *b'{}[]",:0189'))
        path.write_bytes(raw)
        try:
            ours = {info.name: info.shape for info in read(path)}
        except BadInput:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        try:
            with safe_open(path, framework="pt") as stream:
                theirs = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118 - a safetensors handle is no dict; it cannot be iterated
        except SafetensorError as error:
            pytest.fail(f"we read what safetensors refuses ({error}): {bytes(raw[:header_end])!r}")
        assert ours == theirs
    assert min(outcomes.values()) > 100  # both outcomes were seen


def test_a_flipped_byte_among_the_weights_is_not_the_headers_affair(tmp_path):
    path = write(tmp_path, two(), 16)
    before = read(path)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 0xFF
    path.write_bytes(raw)
    assert read(path) == before
