"""Probes and monitors on disk: tensors in safetensors, and in JSON all that must agree with the model they are put to.

A folder holds `probe.safetensors` and `probe.json`. Nothing in it is code, and nothing is unpickled. A probe speaks of the model it was
fitted on, so it names that model's files by digest, and those of its tokenizer and template, which decide what it reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from forensics.bounds import parsed, read_bytes
from forensics.errors import BadInput, CannotCompare
from forensics.record import Evidence, PromptSource, canonical_json, sha256_text
from forensics.runfolder import RunFolder
from forensics.surface import MORE_TEMPLATES, OWN_TEMPLATE, TOKENIZER_FILES, Folder

SCHEMA = "forensics.probe/1"
RECORD, TENSORS = "probe.json", "probe.safetensors"
BEYOND = ("special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.json", OWN_TEMPLATE)
"""Files beside those of the tokenizer that decide how a conversation becomes token ids."""
MAX_BYTES = 1 << 30
"""Largest file of tensors that is read: 20 directions a matrix in a model of 100 layers and width 16384 take a quarter of it."""
MAX_CARD_BYTES = 1 << 24
"""Largest card that is read: one of 200 layers followed into ten configurations takes a fortieth of it."""
Arrays = dict[str, NDArray[Any]]


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Maker(_Card):
    """The model something was fitted on: its name, the digest of its files, and that of its tokenizer and template alone."""

    name: str
    digest: str
    surface: str


class LayerRow(_Card):
    """One layer of the base: held-out AUROC of the logistic probe and of the discriminant."""

    layer: int
    site: str
    auroc: FiniteFloat
    discriminant: FiniteFloat


class FollowedRow(_Card):
    """One layer of a candidate: held-out AUROC of the base's probe there, of its own, and of its own back in the base; two cosines."""

    layer: int
    base_probe: FiniteFloat
    own_probe: FiniteFloat
    own_in_base: FiniteFloat
    cosine: FiniteFloat
    mean_cosine: FiniteFloat


class Followed(_Card):
    """What became of the concept in one configuration of the candidate."""

    configuration: str
    digest: str
    layers: tuple[FollowedRow, ...]
    evidence: tuple[Evidence, ...]


class ConceptCard(_Card):
    """A probe for a concept: where it reads, from what it was fitted, what it is worth, and what became of it elsewhere."""

    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    kind: Literal["concept"] = "concept"
    tool: str
    created: str
    name: str
    base: Maker
    layer: int
    position: int
    site: str
    fitted: str
    threshold: FiniteFloat
    prompts: tuple[PromptSource, ...]
    evidence: tuple[Evidence, ...]
    layers: tuple[LayerRow, ...]
    followed: tuple[Followed, ...] = ()
    limits: tuple[str, ...] = ()
    tensors: str = ""


class MonitorCard(_Card):
    """A monitor along the directions of a weight change: of which pair, how far clean prompts went, and how often it is wrong."""

    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    kind: Literal["monitor"] = "monitor"
    tool: str
    created: str
    name: str
    base: Maker
    candidate: Maker
    adapters: tuple[str, ...] = ()
    fitted: str
    threshold: FiniteFloat
    promised: FiniteFloat
    prompts: tuple[PromptSource, ...]
    evidence: tuple[Evidence, ...]
    limits: tuple[str, ...] = ()
    tensors: str = ""


Card = ConceptCard | MonitorCard


class Score(_Card):
    """One prompt as a probe or monitor sees it; flagged where it lies above the threshold."""

    id: str
    score: FiniteFloat
    flagged: bool


class Scores(_Card):
    """What a kept probe or monitor says of prompts put to one configuration."""

    probe: str
    kind: Literal["concept", "monitor"]
    configuration: str
    digest: str
    threshold: FiniteFloat
    rows: tuple[Score, ...]
    limits: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As indented JSON, ending in a newline."""
        return to_json(self)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A card and the folder it lies in."""

    card: Card
    folder: Path

    def to_json(self) -> str:
        """The card as it lies there."""
        return to_json(self.card)


def maker_of(folder: Folder, surface: Folder, digest: str) -> Maker:
    """How a model is named on a card; `surface` is where its tokenizer and template come from."""
    names = (*TOKENIZER_FILES, *BEYOND)
    read = {name: value for name, value in surface.files.items() if name in names or Path(name).parent.as_posix() == MORE_TEMPLATES}
    return Maker(name=folder.name, digest=digest, surface=sha256_text(canonical_json(read)))


def save(run: RunFolder, card: Card, arrays: Mapping[str, NDArray[Any]]) -> Card:
    """Write both files into a run, tensors first; returns the card with their digest."""
    from safetensors.numpy import save as as_bytes

    raw = as_bytes({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata={"format": SCHEMA})
    whole = card.model_copy(update={"tensors": hashlib.sha256(raw).hexdigest()})
    run.write_bytes(TENSORS, raw)
    run.write_bytes(RECORD, to_json(whole).encode("utf-8"))
    return whole


def to_json(card: BaseModel) -> str:
    """A card as indented JSON, ending in a newline."""
    return json.dumps(card.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"


def load_card(folder: Path) -> Card:
    """Read the card of a saved probe or monitor; `folder` may be its probe.json as well.

    Raises:
        BadInput: There is none, it is damaged, or of another schema.
    """
    file = folder / RECORD if folder.is_dir() else folder
    try:
        raw = parsed(read_bytes(file, most=MAX_CARD_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput("there is no saved probe here", where=str(folder), hint=WANTED) from error
    found = raw.get("schema") if isinstance(raw, dict) else None
    kinds: dict[object, type[Card]] = {"concept": ConceptCard, "monitor": MonitorCard}
    if found != SCHEMA or not isinstance(raw.get("kind"), str) or raw["kind"] not in kinds:
        raise BadInput(f"this is not a saved probe (schema {found!r}, expected {SCHEMA!r})", where=str(file), hint=WANTED)
    try:
        return kinds[raw["kind"]].model_validate(raw)
    except ValueError as error:  # half a character in a text is one that is no ValidationError
        rows = error.errors() if isinstance(error, ValidationError) else []
        details = tuple(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in rows)
        raise BadInput("this probe.json was changed or is damaged", where=str(file), details=details, hint="fit it again") from error


WANTED = "give a folder that `forensics probe --positive --negative` or `forensics probe --watch` wrote"


def load_arrays(folder: Path, card: Card) -> Arrays:
    """The tensors of a saved probe or monitor, finite: real numbers as float64, whole ones as int64.

    Raises:
        BadInput: They are missing, are not those the card was written with, or hold something that is no number.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = (folder if folder.is_dir() else folder.parent) / TENSORS
    try:
        raw = read_bytes(file, most=MAX_BYTES)
        arrays: Arrays = load(raw)
    except OSError as error:
        raise BadInput(f"{TENSORS} cannot be read: {error.strerror}", where=str(file), hint="fit it again") from error
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # KeyError: a dtype that numpy does not have
        raise BadInput(f"{TENSORS} is damaged", where=str(file), hint="fit it again") from error
    if hashlib.sha256(raw).hexdigest() != card.tensors:
        raise BadInput(f"{TENSORS} and {RECORD} do not belong together", where=str(file), hint="fit it again, or restore the original")
    if not all(array.dtype.kind in "fiu" and np.isfinite(array).all() for array in arrays.values()):
        raise BadInput(f"{TENSORS} holds values that are not finite, or no real numbers", where=str(file), hint="fit it again")
    return {name: array.astype(np.float64 if array.dtype.kind == "f" else np.int64) for name, array in arrays.items()}


def refuse_stranger(card: Card, found: Maker, expected: Maker, side: str) -> None:
    """Refuse to put a probe to another model than the one it was made for: what it reads there means something else.

    Raises:
        CannotCompare: Files differ from those on the card; the message says which.
    """
    if found.digest != expected.digest:
        raise CannotCompare(
            f"{card.name} was fitted on another {side}: {expected.name}, digest {expected.digest[:12]}, and this one has {found.digest[:12]}",
            where=found.name,
            hint="give the very model it was fitted on; a fine-tune of that model goes second, as CANDIDATE",
        )
