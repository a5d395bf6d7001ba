"""PEFT adapters on disk: which tensor of the base each one changes, and by how much. Nothing is merged.

Only plain LoRA is read as numbers (r, alpha, rank and alpha patterns, rsLoRA). Every other option of PEFT that would
change the function is refused by name, because a delta computed without it would be a wrong delta.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.checkpoint import PICKLE_SUFFIXES, Checkpoint, hash_files, locate, read_json, refuse_escape
from forensics.errors import BadInput, CannotCompare
from forensics.headers import FLOATS, TensorInfo, read_header
from forensics.record import canonical_json, sha256_text

if TYPE_CHECKING:
    import torch

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
UNSUPPORTED = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication",
    "use_qalora", "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
"""LoRA options whose effect is more than scale * B A."""
HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base alone. PiSSA, OLoRA, CorDA and LoftQ subtract from it when loaded."""
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Architectures whose blocks store their matrices transposed (transformers' Conv1D)."""
MAX_PATTERN = 1000
"""Longest rank or alpha pattern that is tried as a regular expression, which PEFT's patterns are."""
REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
"""A repeated group, which an honest pattern does not need and with which matching can take for ever."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One changed matrix: its tensor in the base, its two factors, and the scale between them."""

    target: str
    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float
    transposed: bool


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter on disk, checked against the base it is for."""

    path: Path
    name: str
    files: dict[str, str]
    config: dict[str, Any]
    factors: tuple[Factor, ...]

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of all its files."""
        return sha256_text(canonical_json(self.files))

    def halves(self, factor: Factor) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[r, in]` and B `[out, r]` of one changed matrix as stored, in float32; the scale is not in them."""
        from safetensors import safe_open  # heavy: brings torch

        with safe_open(self.path / WEIGHTS_NAME, framework="pt") as stream:
            return stream.get_tensor(factor.a.name).float(), stream.get_tensor(factor.b.name).float()

    def delta(self, factor: Factor) -> torch.Tensor:
        """The change `scale * B A` as added to the base tensor `factor.target`, in its shape, float32."""
        a, b = self.halves(factor)
        change: torch.Tensor = factor.scale * (b @ a)
        return change.T if factor.transposed else change


def is_adapter(source: str) -> bool:
    """Whether `source` is a local folder that holds an adapter rather than a model."""
    path = Path(source).expanduser()
    return (path / CONFIG_NAME).is_file() and not (path / "config.json").is_file()


def open_adapter(source: str, base: Checkpoint, *, name: str | None = None) -> Adapter:
    """Open a PEFT adapter folder (or hub id) and match it with `base`, the model it is put on.

    Raises:
        BadInput: Missing, pickled, damaged, or its config and tensors contradict each other.
        CannotCompare: It is for another base, or of a kind that cannot be read as a delta yet.
    """
    path = locate(source)
    name = name or path.name
    if not (path / CONFIG_NAME).is_file():
        raise BadInput(f"this folder has no {CONFIG_NAME}", where=source, hint="give the folder that PEFT's save_pretrained wrote")
    config = read_json(path / CONFIG_NAME, where=f"{name}/{CONFIG_NAME}")
    if not (path / WEIGHTS_NAME).is_file():
        pickles = sorted(file.name for file in path.iterdir() if file.name.endswith(PICKLE_SUFFIXES))
        what = f"its weights are in a format that can run code when read ({pickles[0]})" if pickles else f"it has no {WEIGHTS_NAME}"
        raise BadInput(f"this adapter cannot be read: {what}", where=source, hint="save it again with safe_serialization=True")
    _refuse_unsupported(config, name)
    refuse_escape(path, path / WEIGHTS_NAME)
    tensors = read_header(path / WEIGHTS_NAME, file=WEIGHTS_NAME)
    return Adapter(path=path, name=name, files=hash_files(path), config=config, factors=_factors(tensors, config, base, name))


def _refuse_unsupported(config: dict[str, Any], name: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CannotCompare(
            f"adapters of type {kind!r} cannot be read yet",
            where=f"{name}/{CONFIG_NAME}",
            hint="LoRA adapters can; merge others into a full checkpoint and audit that",
        )
    for option in ("target_modules", "exclude_modules", "layers_pattern"):
        pattern = config.get(option)
        if isinstance(pattern, str) and (len(pattern) > MAX_PATTERN or REPEATED_GROUP.search(pattern)):
            raise BadInput(f"`{option}` is too long a pattern or repeats a group", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN)
    used = [option for option in UNSUPPORTED if config.get(option)]
    if config.get("bias", "none") != "none":
        used.append(f"bias={config['bias']}")
    if config.get("init_lora_weights") not in HARMLESS_STARTS:
        used.append(f"init_lora_weights={config['init_lora_weights']}")
    if used:
        raise CannotCompare(
            f"this LoRA adapter uses {', '.join(used)}, which cannot be read as a delta yet",
            where=f"{name}/{CONFIG_NAME}",
            hint="merge it into a full checkpoint (merge_and_unload) and audit that",
        )


def _factors(tensors: tuple[TensorInfo, ...], config: dict[str, Any], base: Checkpoint, name: str) -> tuple[Factor, ...]:
    halves: dict[str, dict[str, TensorInfo]] = {}
    for info in tensors:
        match = KEY.fullmatch(info.name)
        if match is None:
            raise CannotCompare(
                f"adapter tensor {info.name!r} is not a LoRA factor",
                where=f"{name}/{WEIGHTS_NAME}",
                hint="merge the adapter into a full checkpoint and audit that",
            )
        if info.dtype not in FLOATS or len(info.shape) != 2:
            raise BadInput(f"adapter tensor {info.name!r} is not a matrix of numbers", where=f"{name}/{WEIGHTS_NAME}", hint=SAVE_AGAIN)
        halves.setdefault(match["module"], {})[match["part"]] = info
    if not halves:
        raise BadInput("the adapter holds no tensor", where=f"{name}/{WEIGHTS_NAME}", hint=SAVE_AGAIN)
    alone = sorted(module for module, parts in halves.items() if len(parts) != 2)
    if alone:
        raise BadInput(f"module {alone[0]!r} has only one of its two factors", where=f"{name}/{WEIGHTS_NAME}", hint=SAVE_AGAIN)
    targets = _targets(base, halves, name)
    conv1d = base.config.get("model_type") in CONV1D_MODELS
    return tuple(
        _factor(module, parts, config, base.tensors[targets[module]], name, conv1d=conv1d and not module.endswith("lm_head"))
        for module, parts in sorted(halves.items())
    )


SAVE_AGAIN = "save the adapter again with PEFT's save_pretrained"


def _targets(base: Checkpoint, modules: dict[str, Any], name: str) -> dict[str, str]:
    """The base tensor of each adapted module. Some checkpoints leave out the outermost prefix of their names."""
    targets, missing = {}, []
    for module in modules:
        wanted = f"{module}.weight"
        shorter = wanted.partition(".")[2]
        found = next((tensor for tensor in (wanted, shorter) if tensor in base.tensors), None)
        if found is None:
            missing.append(module)
        else:
            targets[module] = found
    if missing:
        raise CannotCompare(
            f"this adapter is for another base: {len(missing)} of {len(modules)} modules it changes are not in the model it is put on",
            where=name,
            details=tuple(sorted(missing)),
            hint="give the base that adapter_config.json names in base_model_name_or_path",
        )
    return targets


def _factor(module: str, parts: dict[str, TensorInfo], config: dict[str, Any], target: TensorInfo, name: str, *, conv1d: bool) -> Factor:
    a, b = parts["A"], parts["B"]
    rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"), name)
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"), name)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise BadInput(
            f"module {module!r} has factors of rank {a.shape[0]} and {b.shape[1]}, but the config says {rank}",
            where=f"{name}/{CONFIG_NAME}",
            hint="config and weights do not belong together; " + SAVE_AGAIN,
        )
    # PEFT overrules the config's fan_in_fan_out by the kind of module it finds, so the config is not asked: where the
    # matrix is square, only the architecture tells which way round it is stored.
    shape = (b.shape[0], a.shape[1])
    transposed = conv1d if shape == shape[::-1] else shape != target.shape
    if (shape[::-1] if transposed else shape) != target.shape:
        raise CannotCompare(
            f"this adapter is for another base: module {module!r} changes a matrix of {list(shape)}, which is {list(target.shape)} there",
            where=name,
            hint="give the base that adapter_config.json names in base_model_name_or_path",
        )
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Factor(target=target.name, a=a, b=b, rank=int(rank), scale=scale, transposed=transposed)


def _by_pattern(patterns: object, module: str, default: object, name: str) -> float:
    """The rank or alpha of `module`: the first pattern that matches the end of its name, as PEFT does it."""
    value = default
    for pattern, its_value in patterns.items() if isinstance(patterns, dict) else ():
        if len(pattern) > MAX_PATTERN or REPEATED_GROUP.search(pattern):
            raise BadInput("a rank or alpha pattern is too long or repeats a group", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN)
        try:
            hit = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise BadInput(f"pattern {pattern!r} is not usable: {error}", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN) from error
        if hit:
            value = its_value
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise BadInput(f"rank or alpha of {module!r} is {value!r}", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN)
    return float(value)
