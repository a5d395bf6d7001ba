"""PEFT adapters on disk: which tensor of the base each one changes, and by how much. Nothing is merged.

Read as numbers are LoRA (r, alpha, rank and alpha patterns, rsLoRA), also on embeddings, DoRA, and whole tensors stored in the
place of the base's (`modules_to_save`, saved embeddings). Every other option of PEFT that would change the function is refused
by name, because a delta computed without it would be a wrong delta.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.alignment import EMBEDDING_ENDINGS, HEAD_ENDINGS, is_buffer, tied_embedding
from forensics.checkpoint import PICKLE_SUFFIXES, Checkpoint, hash_files, locate, read_json, refuse_escape
from forensics.deltas import Change, Factors, same_values, stored
from forensics.errors import BadInput, CannotCompare
from forensics.headers import FLOATS, TensorInfo, read_header
from forensics.record import canonical_json, sha256_text
from forensics.roles import MATRICES, place

if TYPE_CHECKING:
    import torch

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT writes before the name of every module."""
PART = re.compile(r"(?P<module>.+)\.(?:lora_(?P<half>[AB])\.weight|lora_embedding_(?P<table>[AB])|(?P<lengths>lora_magnitude_vector))")
UNSUPPORTED = (
    "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication", "use_qalora", "alora_invocation_tokens", "use_bdlora",
    "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
"""LoRA options whose effect is more than what `Change` holds."""
HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base alone. PiSSA, OLoRA, CorDA and LoftQ subtract from it when loaded."""
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Architectures whose blocks store their matrices transposed (transformers' Conv1D)."""
MAX_PATTERN = 1000
"""Longest rank or alpha pattern that is tried as a regular expression, which PEFT's patterns are."""
REPEAT = re.compile(r"(?<!\\)(?:\\\\)*(?:[*+{]\??|(?<!\()\?)")
LETTERS, MOST_WAYS = 80, 1_000_000
"""Of a module's name, and the ways in which all patterns together may try to match one: each repetition multiplies them by its length, each
group by its branches."""
MAX_NUMBER = 1e9
"""Ranks and alphas are smaller, and a whole number of JSON may be longer than any float."""
REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
"""A repeated group, which an honest pattern does not need and with which matching can take for ever."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter on disk, checked against the model it is put on. `changes` are sorted by target, one a tensor that it changes."""

    path: Path
    name: str
    files: dict[str, str]
    config: dict[str, Any]
    base: Checkpoint
    changes: tuple[Change, ...]

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of all its files."""
        return sha256_text(canonical_json(self.files))

    def halves(self, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[r, in]` and B `[out, r]` of one changed matrix as stored, in float32; the scale is not in them."""
        return change.halves(self.path / WEIGHTS_NAME)

    def delta(self, change: Change) -> torch.Tensor:
        """What is added to the base tensor `change.source`, in its shape, float32."""
        return change.delta(self.path / WEIGHTS_NAME, self.base)

    def whole(self, info: TensorInfo) -> torch.Tensor:
        """A tensor that stands in the place of the base's, in float32."""
        return stored(self.path / WEIGHTS_NAME, info)


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
    changes = _Reader(path=path, name=name, config=config, base=base).changes(tensors)
    return Adapter(path=path, name=name, files=hash_files(path), config=config, base=base, changes=changes)


def refuse_together(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters that change one tensor together where only sums of factors have a meaning.

    Raises:
        CannotCompare: Two change the same tensor, and one of them by DoRA or by another tensor in its place: PEFT's result depends
            on their order, or is none.
    """
    seen: dict[str, tuple[Adapter, Change]] = {}
    for adapter in adapters:
        for change in adapter.changes:
            other, before = seen.setdefault(change.target, (adapter, change))
            if other is not adapter and not (change.exact and before.exact):
                raise CannotCompare(
                    f"adapters {other.name} and {adapter.name} both change {change.target}, one of them by DoRA or by weights of its own",
                    where=adapter.name,
                    hint="only plain LoRA adds up; examine these adapters one at a time, or merge them in the order they are used in",
                )


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
        if isinstance(pattern, str) and _never_ends([pattern]):
            raise BadInput(f"`{option}` is too long a pattern or repeats too much", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN)
    for option in ("rank_pattern", "alpha_pattern"):
        if isinstance(patterns := config.get(option), dict) and _never_ends(patterns):
            raise BadInput(f"`{option}` holds too long a pattern, or repeats too much", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN)
    used = [option for option in UNSUPPORTED if config.get(option)]
    wholes = config.get("modules_to_save")
    if wholes is not None and not (isinstance(wholes, list) and all(isinstance(one, str) and one for one in wholes)):
        raise BadInput("`modules_to_save` is not a list of names", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN)
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


SAVE_AGAIN = "save the adapter again with PEFT's save_pretrained"
MERGE = "merge the adapter into a full checkpoint (merge_and_unload) and audit that"
RIGHT_BASE = "give the base that adapter_config.json names in base_model_name_or_path"


@dataclass(kw_only=True)
class _Parts:
    """What the file holds of one module that got factors."""

    a: TensorInfo | None = None
    b: TensorInfo | None = None
    magnitude: TensorInfo | None = None
    tables: set[bool] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Makes changes of the tensors in an adapter's file. All methods raise as `open_adapter`."""

    path: Path
    name: str
    config: dict[str, Any]
    base: Checkpoint

    def changes(self, tensors: Iterable[TensorInfo]) -> tuple[Change, ...]:
        parts, beside = self._sort(tensors)
        if not parts and not beside:
            raise self._bad("the adapter holds no tensor")
        alone = sorted(module for module, held in parts.items() if held.a is None or held.b is None)
        if alone:
            raise self._bad(f"module {alone[0]!r} has only one of its two factors")
        sources = self._sources(parts, beside)
        self._refuse_unlike_peft(parts, beside, sources)
        found = [
            self._factored(module, held, beside.get(f"{module}.weight"), sources[f"{module}.weight"]) for module, held in parts.items()
        ]
        for path, info in beside.items():
            module = path.rpartition(".")[0]
            target, source = sources[path]
            if (module not in parts or not path.endswith(".weight")) and self._differs(info, source):
                overwrites = not self._saved(module)
                found.append(Change(target=target, module=module, source=source, whole=info, overwrites=overwrites))
        self._refuse_tied(found)
        return tuple(sorted(found, key=lambda change: change.target))

    def _sort(self, tensors: Iterable[TensorInfo]) -> tuple[dict[str, _Parts], dict[str, TensorInfo]]:
        """What the file holds of each module that got factors; and the whole tensors, by the names that the base's have in PEFT."""
        parts: dict[str, _Parts] = {}
        rest: dict[str, TensorInfo] = {}
        for info in tensors:
            match = PART.fullmatch(info.name.removeprefix(PREFIX))
            if not info.name.startswith(PREFIX):
                raise self._unknown(info)
            if match is None:
                rest[info.name.removeprefix(PREFIX)] = info
                continue
            axes, what = (1, "list") if match["lengths"] else (2, "matrix")
            if info.dtype not in FLOATS or len(info.shape) != axes:
                raise self._bad(f"adapter tensor {info.name!r} is not a {what} of numbers")
            held = parts.setdefault(match["module"], _Parts())
            setattr(held, "magnitude" if match["lengths"] else (match["half"] or match["table"]).lower(), info)
            if not match["lengths"]:
                held.tables.add(match["table"] is not None)
        beside: dict[str, TensorInfo] = {}
        for path, info in rest.items():
            module, _, parameter = path.rpartition(".")
            bare = module.removesuffix(".base_layer")
            # PEFT puts what it wraps under `base_layer`, and passes over a name without it in silence; and the reverse.
            if self._source(f"{bare}.{parameter}") is None or (bare != module) != (bare in parts):
                raise self._unknown(info)
            if info.dtype not in FLOATS:
                raise self._bad(f"adapter tensor {info.name!r} holds no numbers that can be read")
            beside[f"{bare}.{parameter}"] = info
        return parts, beside

    def _source(self, path: str) -> tuple[str, TensorInfo] | None:
        """The tensor that PEFT calls `path` as the model below calls it, and the one that acts there without the adapter.

        Some checkpoints leave out the outermost prefix of their names. A tied head has no tensor of its own.
        """
        for name in (path, path.partition(".")[2]):
            if name in self.base.tensors:
                return name, self.base.tensors[name]
        tied = self._tied()
        return (path, tied) if tied is not None and path.endswith(HEAD_ENDINGS) else None

    def _tied(self) -> TensorInfo | None:
        """The embedding, where it is the head as well."""
        untied = self.base.config.get("tie_word_embeddings") is not True and any(name.endswith(HEAD_ENDINGS) for name in self.base.tensors)
        return None if untied else tied_embedding(self.base)

    def _sources(self, parts: dict[str, _Parts], beside: dict[str, TensorInfo]) -> dict[str, tuple[str, TensorInfo]]:
        """For each changed tensor, as PEFT calls it: as the model below calls it, and what acts there."""
        wanted = dict.fromkeys([*(f"{module}.weight" for module in parts), *beside])
        sources = {path: source for path in wanted if (source := self._source(path)) is not None}
        missing = sorted(module for module in parts if f"{module}.weight" not in sources)
        if missing:
            raise CannotCompare(
                f"this adapter is for another base: {len(missing)} of {len(parts)} modules it changes are not in the model it is put on",
                where=self.name,
                details=tuple(missing),
                hint=RIGHT_BASE,
            )
        if len({target for target, _ in sources.values()}) < len(sources):
            raise self._bad("two tensors of the adapter are for one of the base")
        for path, info in beside.items():
            shape = sources[path][1].shape
            if info.shape != shape:
                raise CannotCompare(
                    f"this adapter is for another base: {path!r} is {list(info.shape)} in it, and {list(shape)} there",
                    where=self.name,
                    hint=f"{RIGHT_BASE}; where its vocabulary was resized first, resize the base or {MERGE}",
                )
        return sources

    def _factored(self, module: str, held: _Parts, whole: TensorInfo | None, found: tuple[str, TensorInfo]) -> Change:
        target, source = found
        factors = self._factors(module, held, source)
        if held.magnitude is not None and held.magnitude.shape != (factors.b.shape[0],):
            raise self._bad(f"module {module!r} has {list(held.magnitude.shape)} lengths for {factors.b.shape[0]} outputs")
        if whole is not None and not self._differs(whole, source):
            whole = None  # PEFT stores embeddings whole beside their factors, as they were
        return Change(
            target=target, module=module, source=source, factors=factors, magnitude=held.magnitude, whole=whole, overwrites=whole is not None
        )  # fmt: skip

    def _factors(self, module: str, held: _Parts, source: TensorInfo) -> Factors:
        a, b = held.a, held.b
        assert a is not None and b is not None, "both halves are there, or `changes` has refused"
        rank = _by_pattern(self.config.get("rank_pattern"), module, self.config.get("r"), self.name)
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha"), self.name)
        if a.shape[0] != rank or b.shape[1] != rank:
            raise BadInput(
                f"module {module!r} has factors of rank {a.shape[0]} and {b.shape[1]}, but the config says {rank}",
                where=f"{self.name}/{CONFIG_NAME}",
                hint="config and weights do not belong together; " + SAVE_AGAIN,
            )
        # PEFT overrules the config's fan_in_fan_out by the kind of module it finds, so the config is not asked: where the
        # matrix is square, only the architecture tells which way round it is stored.
        shape, embedding = (b.shape[0], a.shape[1]), True in held.tables
        conv1d = self.base.config.get("model_type") in CONV1D_MODELS and not module.endswith("lm_head")
        transposed = embedding or (conv1d if shape == shape[::-1] else shape != source.shape)
        if (shape[::-1] if transposed else shape) != source.shape:
            raise CannotCompare(
                f"this adapter is for another base: module {module!r} changes a matrix of {list(shape)}, which is {list(source.shape)} there",
                where=self.name,
                hint=RIGHT_BASE,
            )
        scale = alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank
        return Factors(a=a, b=b, rank=int(rank), scale=scale, transposed=transposed, embedding=embedding)

    def _differs(self, info: TensorInfo, source: TensorInfo) -> bool:
        return not same_values(self.path / WEIGHTS_NAME, info, self.base, source)

    def _saved(self, module: str) -> bool:
        """Whether PEFT replaces this module, or one it is in, because `modules_to_save` names it (by the end of its name)."""
        names = tuple(self.config.get("modules_to_save") or ())
        if names and self.config.get("ensure_weight_tying") and self._tied() is not None:
            names += tuple(name.removesuffix(".weight") for name in HEAD_ENDINGS)
        return bool(names) and any(inside.endswith(names) for inside in _upwards(module))

    def _refuse_unlike_peft(
        self, parts: dict[str, _Parts], beside: dict[str, TensorInfo], sources: dict[str, tuple[str, TensorInfo]]
    ) -> None:
        """Refuse what PEFT would leave out or make up in silence: then what is read here is not what runs."""
        dora = bool(self.config.get("use_dora"))
        for module, held in parts.items():
            role = place(sources[f"{module}.weight"][0]).role
            table = role in ("embedding", "position") if role in (*MATRICES, "head", "embedding", "position") else True in held.tables
            if held.tables != {table}:
                raise self._bad(f"the factors of {module!r} are stored as those of {'a matrix' if table else 'an embedding'}")
            if (held.magnitude is not None) != dora:
                raise self._bad(f"module {module!r} has {'no ' if dora else ''}lengths of outputs, but the config says use_dora={dora}")
            if self._saved(module):
                raise self._bad(f"module {module!r} has factors, and is in modules_to_save as well")
        there = {sources[path][0] for path in beside}
        lacking = [
            name
            for name, info in self.base.tensors.items()
            if self._saved(name.rpartition(".")[0]) and name not in there and not is_buffer(info)
        ]
        if self._tied() is not None and not any(name.endswith(HEAD_ENDINGS) for name in (*there, *self.base.tensors)):
            lacking += [name for name in HEAD_ENDINGS if self._saved(name.rpartition(".")[0])]
        if lacking:
            raise self._bad(f"{min(lacking)!r} is not in the adapter, though modules_to_save names its module")

    def _refuse_tied(self, changes: Iterable[Change]) -> None:
        """Refuse what a model with one matrix for embedding and head makes of an adapter in two ways: worn, and merged."""
        if self._tied() is None:
            return
        ends = (*EMBEDDING_ENDINGS, *HEAD_ENDINGS)
        vocabulary = [change for change in changes if change.target.endswith(ends)]
        apart = [change for change in vocabulary if change.factors is not None or change.overwrites]
        if apart or (vocabulary and self.config.get("ensure_weight_tying") and not self._tied_anew(vocabulary)):
            raise CannotCompare(
                f"the base has one matrix for embedding and head, and this adapter changes {(apart or vocabulary)[0].target} in a way that PEFT"
                " makes two models of: one worn, another merged",
                where=self.name,
                hint="untie the base (tie_word_embeddings=False), or merge the adapter into a full checkpoint and audit that",
            )

    def _tied_anew(self, vocabulary: Iterable[Change]) -> bool:
        """Whether the adapter brings embedding and head as one matrix stored twice."""
        wholes = [stored(self.path / WEIGHTS_NAME, change.whole) for change in vocabulary if change.whole is not None]
        return len(wholes) == 2 and bool((wholes[0] == wholes[1]).all())

    def _unknown(self, info: TensorInfo) -> CannotCompare:
        return CannotCompare(
            f"adapter tensor {info.name!r} is neither a LoRA factor nor a tensor of the model it is put on, in a place where PEFT would read it",
            where=f"{self.name}/{WEIGHTS_NAME}",
            hint=MERGE,
        )

    def _bad(self, what: str) -> BadInput:
        return BadInput(what, where=f"{self.name}/{WEIGHTS_NAME}", hint=SAVE_AGAIN)


def _upwards(module: str) -> Iterator[str]:
    """A module's dotted name, and those of the modules it is in."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _never_ends(patterns: Iterable[str]) -> bool:
    """Whether trying patterns could take for ever: one repeats a group, or there are too many ways to divide a name among them."""
    ways = 0.0
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN or REPEATED_GROUP.search(pattern):
            return True
        groups = max(1, pattern.count("("))
        ways += min(LETTERS ** len(REPEAT.findall(pattern)), 2 * MOST_WAYS) * min(
            (1 + pattern.count("|") / groups) ** groups, 2.0 * MOST_WAYS
        )
    return ways > MOST_WAYS


def _by_pattern(patterns: object, module: str, default: object, name: str) -> float:
    """The rank or alpha of `module`: the first pattern that matches the end of its name, as PEFT does it."""
    value = default
    for pattern, its_value in patterns.items() if isinstance(patterns, dict) else ():
        try:
            hit = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise BadInput(f"pattern {pattern!r} is not usable: {error}", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN) from error
        if hit:
            value = its_value
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_NUMBER:
        raise BadInput(f"rank or alpha of {module!r} is {value!r}", where=f"{name}/{CONFIG_NAME}", hint=SAVE_AGAIN)
    return float(value)
