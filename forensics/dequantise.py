"""Quantised codes as the numbers they stand for, row by row: float8 with scales, bitsandbytes in 8 and in 4 bits.

A tensor counts as quantised only where config.json and the tensors beside it agree about how: scales that a loader
would leave out, or a table that it would not use, would make what is compared another model than what is run.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from forensics.errors import BadInput, CannotCompare
from forensics.headers import FLOATS, ITEM_BYTES, TensorInfo

if TYPE_CHECKING:
    import torch

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("_scale", "_scale_inv")
"""What follows the name of a float8 tensor in that of its scale. Both are factors: DeepSeek's `weight_scale_inv` is the
inverse of what its quantiser multiplied by."""
FLOAT8_METHODS = ("", "fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")
"""Values of `quant_method` (none if empty) under which a float8 tensor stands for number times scale."""
UNNAMED = "unnamed"
"""Stands for the method of a quantization_config that does not say which."""
OF_ACTIVATIONS = ("input_scale", "input_scale_ub", "activation_scale", "output_scale")
"""Scales of what flows through a float8 layer: they belong to the codes, and change no weight."""
BLOCK = (128, 128)
"""Rows and columns that share a scale where config.json does not say (`weight_block_size`)."""
INT8_UNIT = 1.0 / 127.0
"""bitsandbytes keeps the largest value of a row (`SCB`), which the code 127 stands for."""
STATE = ".quant_state.bitsandbytes__"
STATE_FIELDS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Values under one scale that the kernels of bitsandbytes know."""
MAX_STATE_BYTES = 1 << 16
MAX_AXES = 8
MAX_OFFSET = 1e30
TABLE_TOLERANCE = 1e-4
TABLES = {
    # Quantiles of a normal distribution with 0 and both ends exact: Dettmers et al. 2023, arXiv:2305.14314, appendix E.
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    # Sign, two bits of exponent, one of mantissa, in bitsandbytes' own order of codes; divided by the largest.
    "fp4": tuple(sign * value / 12.0 for sign in (1, -1) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)),
}  # fmt: skip
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
MEND = "save the quantised model again, or give the unquantised release"
READABLE = "give the unquantised release; of quantised ones, float8 with its scales and bitsandbytes in 8 and 4 bits can be read"


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Codes that are multiplied by scales: one for the tensor, for each row, or for each block of rows and columns.

    `grid` is the shape of the scales with as many axes as the codes, `steps` how many codes along each axis share one.
    """

    codes: TensorInfo
    scale: TensorInfo | None
    grid: tuple[int, ...]
    steps: tuple[int, ...]
    unit: float = 1.0
    beside: tuple[TensorInfo, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers."""
        return self.codes.shape

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        """Every stored tensor it is made of, codes first."""
        return (self.codes, *((self.scale,) if self.scale else ()), *self.beside)

    def rows(self, folder: Path, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` (exclusive) of the numbers, float32; all of them for a tensor without axes.

        Raises:
            BadInput: A scale is not finite, or the file became shorter.
        """
        import torch  # heavy

        shape = self.shape or (1,)
        width = math.prod(shape[1:])
        values = stored_values(folder, self.codes, start * width, stop * width).float().reshape(stop - start, *shape[1:])
        if self.scale is None or not values.numel():
            return values.reshape(values.shape if self.shape else ())
        first, last = start // self.steps[0], -(-stop // self.steps[0])
        part = math.prod(self.grid[1:])
        scale = stored_values(folder, self.scale, first * part, last * part).float().reshape(last - first, *self.grid[1:])
        _refuse_not_finite(scale, self.scale)
        for axis, (length, step, parts) in enumerate(zip(shape, self.steps, self.grid, strict=True)):
            if parts > 1:
                places = torch.arange(start, stop) if axis == 0 else torch.arange(length)
                scale = scale.index_select(axis, places // step - (first if axis == 0 else 0))
        return (values * (scale * self.unit)).reshape(values.shape if self.shape else ())


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Scales that are quantised themselves: 8-bit codes into a table, times a scale of their own, plus an offset."""

    absmax: TensorInfo
    table: TensorInfo
    block_size: int
    offset: float


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Codes of 4 bits, two a byte with the first one in the high half, into a table, times one scale a block.

    Blocks run through the flattened tensor and do not end with its rows.
    """

    codes: TensorInfo
    shape: tuple[int, ...]
    table: tuple[float, ...]
    block_size: int
    absmax: TensorInfo
    nested: Nested | None
    beside: tuple[TensorInfo, ...] = ()

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        """Every stored tensor it is made of, codes first."""
        return (self.codes, *self.beside)

    def rows(self, folder: Path, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` (exclusive) of the numbers, float32.

        Raises:
            BadInput: A scale is not finite, or the file became shorter.
        """
        import torch  # heavy

        width = math.prod(self.shape[1:])
        first, last = start * width, stop * width
        if first == last:
            return torch.empty((stop - start, *self.shape[1:]))
        packed = stored_values(folder, replace(self.codes, dtype="U8"), first // 2, (last + 1) // 2)
        codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten()[first % 2 :][: last - first]
        low, high = first // self.block_size, -(-last // self.block_size)
        scale = self._scales(folder, low, high)
        values = torch.tensor(self.table)[codes.long()] * scale[torch.arange(first, last) // self.block_size - low]
        return values.reshape(stop - start, *self.shape[1:])

    def _scales(self, folder: Path, first: int, last: int) -> torch.Tensor:
        held = stored_values(folder, self.absmax, first, last)
        if self.nested is None:
            scales = held.float()
            _refuse_not_finite(scales, self.absmax)
            return scales
        import torch  # heavy

        size, low = self.nested.block_size, first // self.nested.block_size
        own = stored_values(folder, self.nested.absmax, low, -(-last // size)).float()
        table = stored_values(folder, self.nested.table, 0, self.nested.table.elements).float()
        for values, info in ((own, self.nested.absmax), (table, self.nested.table)):
            _refuse_not_finite(values, info)
        scale: torch.Tensor = table[held.long()] * own[torch.arange(first, last) // size - low] + self.nested.offset
        return scale


Recipe = Scaled | Packed


def stored_values(folder: Path, info: TensorInfo, first: int, last: int) -> torch.Tensor:
    """Values `first` to `last` (exclusive) of a stored tensor as if it had one axis, in storage dtype.

    Raises:
        BadInput: The file became shorter since its header was read.
    """
    import torch  # heavy

    dtype = getattr(torch, TORCH_NAMES[info.dtype])
    raw = bytearray(_read(folder, info, first * ITEM_BYTES[info.dtype], last * ITEM_BYTES[info.dtype]))
    return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def find_recipes(folder: Path, config: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> dict[str, Recipe]:
    """How the codes of each quantised weight become numbers, by the weight's name; codes we cannot read are left out.

    Args:
        folder: The checkpoint.
        config: Its config.json, of which `quantization_config` is read.
        stored: Its tensors as their headers have them.

    Raises:
        BadInput: A scale or table is missing, has a shape or a content that does not fit, or would not be used by a loader.
    """
    said = _said(config)
    method = _method(said)
    found: dict[str, Recipe] = {}
    if method == "bitsandbytes":
        for name in stored:
            if STATE in name:
                recipe = _packed(folder, name, stored)
                if found.setdefault(recipe.codes.name, recipe) is not recipe:
                    raise _bad(f"{recipe.codes.name!r} has two quant_states", recipe.codes)
        for name, info in stored.items():
            if info.dtype == "I8" and name.endswith(".weight") and name not in found:
                found[name] = _eight_bits(folder, info, stored)
            if info.dtype == "U8" and name.endswith(".weight") and name not in found:
                raise _bad(f"{name!r} is packed in 4 bits and its quant_state is missing", info)
    if method in FLOAT8_METHODS:
        found |= _float8(stored, said)
    return found


def as_numbers(stored: Mapping[str, TensorInfo], recipes: Mapping[str, Recipe]) -> dict[str, TensorInfo]:
    """The tensors that are weights, in the shape of their numbers: scales and tables of quantised ones are left out."""
    parts = {info.name for recipe in recipes.values() for info in recipe.stored[1:]}
    shapes = {name: recipe.shape for name, recipe in recipes.items()}
    return {name: replace(info, shape=shapes.get(name, info.shape)) for name, info in stored.items() if name not in parts}


def refuse_codes(weights: Iterable[TensorInfo], recipes: Mapping[str, Recipe], config: Mapping[str, Any], where: str) -> None:
    """Refuse weights that are stored as codes nobody here can read.

    Raises:
        CannotCompare: GPTQ, AWQ, MXFP4, packed integers, or anything else that is not numbers.
    """
    codes = sorted((info.name, info.dtype) for info in weights if info.dtype not in FLOATS and info.name not in recipes)
    if codes:
        method = _method(_said(config))
        method = _guess(name for name, _ in codes) if method in ("", UNNAMED) else method
        how = f", quantised by {method}" if method else ""
        raise CannotCompare(
            f"{len(codes)} tensors are stored as codes, not numbers ({codes[0][1]}{how})",
            where=where,
            details=tuple(name for name, _ in codes),
            hint=READABLE,
        )


def _said(config: Mapping[str, Any]) -> Mapping[str, Any]:
    said = config.get("quantization_config") or config.get("compression_config") or {}
    if not isinstance(said, dict):
        raise BadInput("the quantization_config is not an object", where="config.json", hint="download or save it again")
    return said


def _method(said: Mapping[str, Any]) -> str:
    if said.get("quant_method") is None and (said.get("load_in_8bit") or said.get("load_in_4bit")):
        return "bitsandbytes"  # as its first versions wrote it
    return str(said.get("quant_method") or (UNNAMED if said else ""))[:40]


def _guess(names: Iterable[str]) -> str:
    """Who packs tensors under such names, where the config does not tell."""
    ends = {".qweight": "gptq or awq", "_blocks": "mxfp4", ".weight_packed": "compressed-tensors"}
    return next((method for name in names for end, method in ends.items() if name.endswith(end)), "")


def _float8(stored: Mapping[str, TensorInfo], said: Mapping[str, Any]) -> dict[str, Recipe]:
    block = _block_size(said)
    found: dict[str, Recipe] = {}
    for name, info in stored.items():
        # A scale may be float8 itself (NVFP4); codes with a zero point or a second scale are of no kind we know.
        strange = any(f"{name}{end}" in stored for end in ("_zero_point", "_scale_2"))
        if info.dtype not in FLOAT8 or name.endswith(SCALES) or strange:
            continue
        scales = [stored[name + end] for end in SCALES if name + end in stored]
        if len(scales) > 1:
            raise _bad(f"{name!r} has two scales, and loaders would differ about which to use", info)
        if scales and not said:
            raise _bad(f"{name!r} has a scale, but config.json has no quantization_config: loaders would leave the scale out", info)
        module = name.removesuffix(".weight")
        beside = tuple(stored[f"{module}.{end}"] for end in OF_ACTIVATIONS if f"{module}.{end}" in stored)
        found[name] = _scaled(info, scales[0], block, beside) if scales else Scaled(codes=info, scale=None, grid=(), steps=())
    alone = sorted(name for name, recipe in found.items() if isinstance(recipe, Scaled) and recipe.scale is None)
    if alone and (said or len(alone) < len(found)):
        raise _bad(f"{alone[0]!r} is stored in float8 and its scale is missing", stored[alone[0]])
    return found


def _block_size(said: Mapping[str, Any]) -> tuple[int, int]:
    size = said.get("weight_block_size")
    if size is None:
        return BLOCK
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise BadInput("weight_block_size is not two numbers above 0", where="config.json: quantization_config", hint=MEND)
    return size[0], size[1]


def _scaled(codes: TensorInfo, scale: TensorInfo, block: tuple[int, int], beside: tuple[TensorInfo, ...] = ()) -> Scaled:
    if scale.dtype not in FLOATS:
        raise CannotCompare(f"the scale {scale.name!r} is stored as {scale.dtype}, which is not read yet", where=scale.file, hint=READABLE)
    shape = codes.shape or (1,)
    grid = (1,) * len(shape) if scale.elements == 1 else scale.shape
    if len(grid) == 1:
        grid = (*grid, *(1 for _ in shape[1:]))  # one a row
    sizes = (1,) * (len(shape) - 2) + block if len(shape) > 1 else (1,)
    steps = []
    for length, parts, size in zip(shape, grid, sizes, strict=False):
        fitting = [step for step, count in ((max(1, length), 1), (size, -(-length // size)), (1, length)) if count == parts]
        steps += fitting[:1]
    # As many scales as codes are no scales: the codes could say one thing and the numbers any other.
    if len(grid) != len(shape) or len(steps) != len(shape) or scale.elements == math.prod(shape) > 1:
        raise _bad(f"the scale {scale.name!r} has shape {list(scale.shape)}, which does not fit codes of shape {list(codes.shape)}", scale)
    return Scaled(codes=codes, scale=scale, grid=grid, steps=tuple(steps), beside=beside)


def _eight_bits(folder: Path, codes: TensorInfo, stored: Mapping[str, TensorInfo]) -> Scaled:
    module = codes.name.removesuffix(".weight")
    scale, layout = stored.get(f"{module}.SCB"), stored.get(f"{module}.weight_format")
    if scale is None:
        raise _bad(f"{codes.name!r} is stored in 8 bits and its scales {module + '.SCB'!r} are missing", codes)
    if scale.dtype not in FLOATS or len(codes.shape) != 2 or scale.elements != codes.shape[0]:
        raise _bad(
            f"the scales {scale.name!r} ({scale.dtype}) have shape {list(scale.shape)}, which does not fit codes of shape {list(codes.shape)}",
            scale,
        )
    if layout is not None and (layout.end - layout.start > 8 or any(_read(folder, layout, 0, layout.end - layout.start))):
        raise CannotCompare(
            f"{codes.name!r} is not stored row by row but as one graphics card wanted it", where=codes.file, hint=f"{MEND} (weight_format)"
        )
    grid, beside = (codes.shape[0], 1), (layout,) if layout else ()
    return Scaled(codes=codes, scale=scale, grid=grid, steps=(1, max(1, codes.shape[1])), unit=INT8_UNIT, beside=beside)


def _packed(folder: Path, state_name: str, stored: Mapping[str, TensorInfo]) -> Packed:
    name, _, kind = state_name.partition(STATE)
    parts = {field: stored.get(f"{name}.{field}") for field in STATE_FIELDS}
    codes, absmax, quant_map, said = stored.get(name), parts["absmax"], parts["quant_map"], stored[state_name]
    if kind not in TABLES:
        raise CannotCompare(f"{name!r} is packed by {kind[:40]!r}, which is not read yet", where=said.file, hint=READABLE)
    if codes is None or absmax is None or quant_map is None:
        raise _bad(f"{name!r} has a quant_state, but its codes, absmax or quant_map are missing", said)
    state = _state(folder, said)
    shape, size = state.get("shape"), state.get("blocksize")
    if not isinstance(shape, list) or not 0 < len(shape) <= MAX_AXES or not all(_is_length(n) for n in shape):
        raise _bad(f"{state_name!r} has no valid shape", said)
    elements = math.prod(shape)
    if (elements + 1) // 2 != codes.end - codes.start or codes.dtype not in ("U8", *FLOATS) or state.get("quant_type") != kind:
        raise _bad(f"{name!r} ({codes.dtype}, {codes.end - codes.start} bytes) does not hold {list(shape)} of {kind}", codes)
    _refuse_other_table(folder, quant_map, kind)
    nested = _nested(state, parts, absmax)
    if not _is_block(size) or absmax.dtype not in (("U8",) if nested else FLOATS) or absmax.elements != -(-elements // size):
        raise _bad(f"{absmax.name!r} ({absmax.dtype} {list(absmax.shape)}) does not fit {elements} values in blocks of {size!r}", absmax)
    beside = (said, *(part for part in parts.values() if part is not None))
    return Packed(
        codes=codes, shape=tuple(shape), table=TABLES[kind], block_size=size, absmax=absmax, nested=nested, beside=beside,
    )  # fmt: skip


def _nested(state: Mapping[str, Any], parts: Mapping[str, TensorInfo | None], absmax: TensorInfo) -> Nested | None:
    own, table = parts["nested_absmax"], parts["nested_quant_map"]
    if own is None and table is None:
        return None
    size, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if (
        (own is None or own.dtype not in FLOATS)
        or (table is None or table.dtype not in FLOATS or table.elements != 256)
        or (not _is_block(size) or own.elements != -(-absmax.elements // size))
        or (not isinstance(offset, int | float) or isinstance(offset, bool) or not abs(offset) < MAX_OFFSET)
    ):
        raise _bad(f"the scales of the scales {absmax.name!r} do not fit {absmax.elements} of them in blocks of {size!r}", absmax)
    return Nested(absmax=own, table=table, block_size=size, offset=float(offset))


def _state(folder: Path, info: TensorInfo) -> Mapping[str, Any]:
    if info.dtype != "U8" or info.elements > MAX_STATE_BYTES:
        raise _bad(f"{info.name!r} is not a short text", info)
    try:
        state = json.loads(_read(folder, info, 0, info.elements).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad(f"{info.name!r} is not JSON: {error}", info) from error
    if not isinstance(state, dict):
        raise _bad(f"{info.name!r} is not a JSON object", info)
    return state


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40


def _is_block(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value in BLOCK_SIZES


def _refuse_other_table(folder: Path, info: TensorInfo, kind: str) -> None:
    """The kernels of bitsandbytes have their tables built in; a checkpoint with another one would be run as another model."""
    fits = info.dtype == "F32" and info.elements == 16
    values = struct.unpack("<16f", _read(folder, info, 0, 64)) if fits else ()
    if not fits or not all(abs(one - other) <= TABLE_TOLERANCE for one, other in zip(values, TABLES[kind], strict=True)):
        raise _bad(f"{info.name!r} is not the table of {kind}, which loaders use whatever stands there", info)


def _read(folder: Path, info: TensorInfo, first: int, last: int) -> bytes:
    with (folder / info.file).open("rb") as stream:
        stream.seek(info.start + first)
        raw = stream.read(last - first)
    if len(raw) != last - first:
        raise BadInput(f"tensor {info.name!r} became shorter while it was read", where=info.file, hint="download or save the file again")
    return raw


def _refuse_not_finite(values: torch.Tensor, info: TensorInfo) -> None:
    import torch  # heavy

    if not torch.isfinite(values).all():
        raise _bad(f"{info.name!r} holds scales that are not finite numbers", info)


def _bad(what: str, info: TensorInfo) -> BadInput:
    return BadInput(what, where=info.file, hint=MEND)
