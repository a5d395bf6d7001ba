"""The header of a safetensors file, read as if its author were hostile.

A header that lies about sizes, overlaps tensors or leaves holes is refused before a single weight is read. The
checks follow the format's own rules (safetensors 0.8) and add the ones that matter to a reader who must say why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forensics.bounds import parsed
from forensics.errors import BadInput

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself; a larger header is a memory bomb."""

MAX_COUNT = 1 << 63
"""Sizes and offsets above what a tensor library can hold; Python alone would count on."""

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
"""Storage dtypes whose values can be compared as numbers; the rest are quantised codes or counters."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies and what its header claims, verified against the size of the file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_header(path: Path, *, file: str) -> tuple[TensorInfo, ...]:
    """Tensors of one safetensors file, in file order; `start` and `end` are absolute byte offsets.

    Args:
        path: The file.
        file: Its name inside the checkpoint, for messages and for `TensorInfo.file`.

    Raises:
        BadInput: The file is truncated, or its header is not what the format allows (the message says how).
    """
    header, data_start, size = _table(path, file)
    header.pop("__metadata__", None)
    tensors = [_tensor(name, claim, file=file, data_start=data_start) for name, claim in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _refuse_gaps(tensors, data_start=data_start, size=size, file=file)
    _refuse_what_the_library_refuses(path, file)
    return tuple(tensors)


def _refuse_what_the_library_refuses(path: Path, file: str) -> None:
    """Refuse a header that we read and the library does not (a NaN where nobody looks is one): the model could not be loaded."""
    from safetensors import SafetensorError, safe_open  # not at import: most pages need no header

    try:
        with safe_open(path, framework="np"):
            return
    except (SafetensorError, OSError, MemoryError, ValueError) as error:
        raise _damaged(file, f"the safetensors library refuses it ({str(error)[:200]})") from error


def read_metadata(path: Path, *, file: str) -> dict[str, str]:
    """What whoever wrote the file put beside the tensors: names and texts, which nothing verifies.

    Args:
        path: The file.
        file: Its name inside the checkpoint, for messages.

    Raises:
        BadInput: As `read_header`, as far as the header itself goes.
    """
    metadata: dict[str, str] = _table(path, file)[0].get("__metadata__") or {}
    return metadata


def _table(path: Path, file: str) -> tuple[dict[str, Any], int, int]:
    """The header as a table, where the data begins, and how many bytes the file has."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little") if size >= 8 else -1
        if length < 2 or length > size - 8:
            raise _damaged(file, f"it has {size} bytes and claims a header of {length}" if size >= 8 else f"it has {size} bytes")
        if length > MAX_HEADER_BYTES:
            raise _damaged(file, f"it claims a header of {length} bytes, more than {MAX_HEADER_BYTES}")
        raw = stream.read(length)
    try:
        header = parsed(raw.decode("utf-8"), pairs=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    if any("\ud800" <= letter <= "\udfff" for name in header for letter in name):
        raise _damaged(file, "the name of a tensor holds half a character (a lone surrogate)")
    metadata = header.get("__metadata__")
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise _damaged(file, "its __metadata__ is not a table of texts")
    return header, 8 + length, size


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python keeps the last of two equal keys, another reader the first: two tools would see two models.
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("a key appears twice")
    return seen


def _tensor(name: str, claim: object, *, file: str, data_start: int) -> TensorInfo:
    fields = claim if isinstance(claim, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _damaged(file, f"tensor {name!r} has dtype {dtype!r}, which this reader does not know")
    if not isinstance(shape, list) or not all(_is_count(length) for length in shape) or math.prod(n or 1 for n in shape) >= MAX_COUNT:
        raise _damaged(file, f"tensor {name!r} has no valid shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise _damaged(file, f"tensor {name!r} has no valid data_offsets")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise _damaged(file, f"tensor {name!r} claims {offsets[1] - offsets[0]} bytes, but {dtype} {list(shape)} takes {expected}")
    return TensorInfo(name=name, file=file, dtype=dtype, shape=tuple(shape), start=data_start + offsets[0], end=data_start + offsets[1])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def _refuse_gaps(tensors: list[TensorInfo], *, data_start: int, size: int, file: str) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.start < position:
            raise _damaged(file, f"tensor {tensor.name!r} overlaps the one before it")
        if tensor.start > position:
            raise _damaged(file, f"{tensor.start - position} bytes before tensor {tensor.name!r} belong to no tensor")
        position = tensor.end
    if position > size:
        raise _damaged(file, f"it is truncated: {size} bytes where its header needs {position}")
    if position < size:
        raise _damaged(file, f"{size - position} bytes at its end belong to no tensor")


def _damaged(file: str, why: str) -> BadInput:
    return BadInput(
        f"this safetensors file cannot be trusted: {why}",
        where=file,
        hint="download or save the file again; a file that fails this twice was not written by safetensors",
    )
