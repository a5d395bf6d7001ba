"""A checkpoint on disk: its files and hashes, config and tensors. It streams tensors and holds none.

Nothing is unpickled, no code of the checkpoint is run, and every header is verified before a weight is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from forensics.bounds import parsed, read_bytes
from forensics.dequantise import Recipe, as_numbers, find_recipes
from forensics.errors import BadInput
from forensics.headers import TensorInfo, read_header
from forensics.record import canonical_json, sha256_text

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
"""Formats that can run code when read."""
PROSE_SUFFIXES = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf")
PROSE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", ".gitattributes", ".gitignore")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py", "*.md", "*.yml", "*.yaml"]
BLOCK_ELEMENTS = 1 << 20
"""Values read at once, so that memory does not grow with the checkpoint (4 MiB in float32, a dozen times that while compared)."""
MAX_JSON_BYTES = 100_000_000
"""Half as much again as the largest tokenizer.json there is, of a vocabulary of a million."""
HASHED_AT_ONCE = 8
"""Files that are hashed at once, where there are as many cores: a disk gives more than one core hashes."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is on disk: path, a sha256 for every file, config, and a verified list of tensors.

    Quantised tensors are listed in the shape of the numbers they stand for, without their scales; `recipes` turn them
    into those numbers.
    """

    path: Path
    name: str
    files: dict[str, str]
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    recipes: dict[str, Recipe] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of all files."""
        return sha256_text(canonical_json(self.files))

    @property
    def functional_digest(self) -> str:
        """The same without prose (README, licence, pictures): equal means the same model."""
        kept = {name: value for name, value in self.files.items() if not is_prose(name)}
        return sha256_text(canonical_json(kept))

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in file `name`, or an empty one if there is no such file.

        Raises:
            BadInput: The file is not a JSON object.
        """
        return read_json(self.path / name, where=f"{self.name}/{name}") if name in self.files else {}

    def blocks(self, name: str, *, rows: int | None = None) -> Iterator[torch.Tensor]:
        """Tensor `name` in pieces of at most about `BLOCK_ELEMENTS` values, cut along its first axis, in order.

        Args:
            name: The tensor.
            rows: How many leading rows to read; all of them if left out. Two tensors read alike are cut alike.

        Yields:
            Tensors in storage dtype, or in float32 where they are quantised. A tensor without axes, or with a single
            huge row, comes in one piece.

        Raises:
            BadInput: A scale of a quantised tensor is not finite.
        """
        shape = self.tensors[name].shape
        if rows is not None and shape:
            shape = (min(rows, shape[0]), *shape[1:])
        height, elements = (shape[0] if shape else 1), math.prod(shape)
        step = height if elements <= BLOCK_ELEMENTS else max(1, BLOCK_ELEMENTS * height // elements)
        with self._reading(name) as read:
            for start in range(0, max(1, height), max(1, step)):
                yield read(start, min(start + step, height))

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Callable[[int, int], torch.Tensor]]:
        """A function that reads the rows of tensor `name` from one number to another; all of a tensor without axes."""
        from safetensors import safe_open  # heavy: brings torch

        info, recipe = self.tensors[name], self.recipes.get(name)
        if recipe is not None:
            yield lambda start, stop: recipe.rows(self.path, start, stop)
            return
        with safe_open(self.path / info.file, framework="pt") as stream:
            part = stream.get_slice(name)
            whole = not info.shape or not info.elements  # of these no part can be asked for
            yield lambda start, stop: stream.get_tensor(name) if whole else part[start:stop]


def open_checkpoint(source: str, *, name: str | None = None) -> Checkpoint:
    """Open a local folder, or a hub id such as `org/model` or `org/model@revision`.

    Args:
        source: The folder or id.
        name: How messages call it; the folder's own name if left out.

    Raises:
        BadInput: Missing, empty, pickled only, truncated, or with a header, index or scales that lie.
        CannotCompare: A quantised tensor has scales of a kind that cannot be read.
    """
    path = locate(source)
    name = name or path.name
    _refuse_unusable(path, source)
    if not (path / "config.json").is_file():
        raise BadInput(
            "this folder has no config.json, so it is not a model checkpoint",
            where=source,
            hint="give the folder that save_pretrained wrote; an adapter folder goes in CANDIDATE or --adapter",
        )
    config = read_json(path / "config.json", where=f"{name}/config.json")
    _refuse_two_models(path, config, source)
    stored = {tensor.name: tensor for file in _weight_files(path) for tensor in _header(path, file)}
    files = hash_files(path)
    recipes = find_recipes(path, config, stored)
    return Checkpoint(path=path, name=name, files=files, config=config, tensors=as_numbers(stored, recipes), recipes=recipes)


def locate(source: str) -> Path:
    """The local folder of `source`, downloading it first if it is a hub id and no such folder exists.

    Raises:
        BadInput: There is no such folder, and it is no hub id that can be had.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BadInput("this is a file, not a folder", where=source, hint="give the folder that holds config.json")
    repository, _, revision = source.partition("@")
    if source.startswith((".", "/", "~")) or repository.count("/") != 1:
        raise BadInput("this folder does not exist", where=source, hint="check the path; a hub id looks like org/model")
    return _download(repository, revision or None)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=HUB_PATTERNS)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BadInput(
            f"no such folder here, and the hub did not give it: {type(error).__name__}",
            where=repository,
            hint="check the id and your connection; for a gated model log in with `hf auth login`; HF_HUB_OFFLINE=1 uses the cache only",
        ) from error
    return Path(folder)


def is_prose(name: str) -> bool:
    """Whether file `name` is documentation that no loader reads."""
    return name.endswith(PROSE_SUFFIXES) or Path(name).name.startswith(PROSE_NAMES)


def hash_files(path: Path) -> dict[str, str]:
    """sha256 of every regular file under `path`, by relative name, several at once; hidden folders (.git, .cache) are left out."""
    files = {}
    try:
        every = sorted(path.rglob("*"))
    except RecursionError as error:
        raise BadInput("folders lie in each other without end here", where=path.name, hint="no model needs that; get it again") from error
    for file in every:
        relative = file.relative_to(path)
        if any(part.startswith(".") for part in relative.parts[:-1]):
            continue
        if file.is_symlink() and file.is_dir():  # not walked through here, but by whoever loads the model
            raise BadInput("this folder is a link", where=relative.as_posix(), hint="replace the link by the folder itself")
        if not file.is_file():
            continue
        refuse_escape(path, file)
        files[relative.as_posix()] = file
    with ThreadPoolExecutor(min(HASHED_AT_ONCE, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(_sha256, files.values()), strict=True))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_escape(folder: Path, file: Path) -> None:
    """Refuse a link that leaves `folder`, except into the blobs of the same hub cache entry.

    Raises:
        BadInput: The file resolves to somewhere else.
    """
    target, home = file.resolve(), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(root) for root in allowed):
        raise BadInput(
            "this file is a link that leaves its folder",
            where=file.relative_to(folder).as_posix(),
            hint="replace the link by the file itself",
        )


def read_json(path: Path, *, where: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        BadInput: It cannot be read, is larger than any honest one, or is not a JSON object.
    """
    try:
        value = parsed(read_bytes(path, most=MAX_JSON_BYTES, where=where).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"this file is not readable JSON: {error}", where=where, hint="download or save it again") from error
    if not isinstance(value, dict):
        raise BadInput("this file is not a JSON object", where=where, hint="download or save it again")
    return value


def _refuse_unusable(path: Path, source: str) -> None:
    names = [file.name for file in path.iterdir()]
    if not names:
        raise BadInput("this folder is empty", where=source, hint="download the model again, or give another folder")
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise BadInput(
            f"the weights are in a format that can run code when read ({', '.join(pickles[:3])})",
            where=source,
            hint="convert them to safetensors in an isolated machine (model.save_pretrained writes it); we never unpickle",
        )
    raise BadInput(
        "this folder holds no safetensors file", where=source, hint="give the folder that holds model.safetensors and config.json"
    )


def _refuse_two_models(path: Path, config: dict[str, Any], source: str) -> None:
    """Refuse a folder of which one loader would make another model than we do: what is compared must be what is run."""
    what = ""
    if (path / INDEX_NAME).is_file() and (path / "model.safetensors").is_file():
        what = f"this folder holds both model.safetensors and {INDEX_NAME}; loaders disagree about which one is the model"
    elif config.get("transformers_weights"):
        what = "config.json names its weights file itself (transformers_weights), which only some loaders obey"
    elif (path / "adapter_config.json").is_file():
        what = "this folder holds a full model and an adapter, which transformers adds to it in silence and other loaders do not"
    if what:
        raise BadInput(what, where=source, hint="keep one model a folder; give an adapter a folder of its own and name it with --adapter")


def _weight_files(path: Path) -> list[str]:
    """Names of the weight files, from the index if there is one."""
    if not (path / INDEX_NAME).is_file():
        if not (path / "model.safetensors").is_file():
            _unindexed(path)
        return ["model.safetensors"]
    weight_map = read_json(path / INDEX_NAME, where=INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
        raise BadInput("the index has no weight_map", where=INDEX_NAME, hint="download or save the checkpoint again")
    files, names = sorted(set(weight_map.values())), {entry.name for entry in path.iterdir()}  # a name may be one that no file can have
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise BadInput(
                f"the index names {file[:200]!r}, which is not a plain file of this folder", where=INDEX_NAME, hint="do not use this file"
            )
        if file not in names or not (path / file).is_file():
            raise BadInput(f"the index names {file[:200]!r}, which is missing", where=INDEX_NAME, hint="download the missing shard")
    found = {tensor.name: file for file in files for tensor in _header(path, file)}
    wrong = sorted(name for name in weight_map.keys() | found.keys() if weight_map.get(name) != found.get(name))
    if wrong:
        raise BadInput(
            f"index and shards disagree about {len(wrong)} tensors",
            where=INDEX_NAME,
            details=tuple(wrong),
            hint="download or save the checkpoint again",
        )
    return files


def _unindexed(path: Path) -> NoReturn:
    files = sorted(file.name for file in path.glob("*.safetensors"))
    raise BadInput(
        f"there are safetensors files ({', '.join(files[:3])}) but neither model.safetensors nor {INDEX_NAME}",
        where=path.name,
        hint="an adapter folder goes in CANDIDATE or --adapter; a sharded model needs its index",
    )


def _header(path: Path, file: str) -> tuple[TensorInfo, ...]:
    refuse_escape(path, path / file)
    return read_header(path / file, file=file)
