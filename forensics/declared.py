"""What a model says of how it was made: front matter of its card, recipes and configs left in its folder. Read, never believed.

Only fields with a fixed meaning are read. The text of a card is not: whoever reads prose can be talked into anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forensics.checkpoint import read_json
from forensics.errors import BadInput
from forensics.headers import read_metadata
from forensics.surface import Folder

Kind = Literal["finetune", "lora", "merge", "quantised", "abliterated", "uncensored"]
CARD = "README.md"
MERGE_RECIPES = ("mergekit_config.yml", "mergekit_config.yaml", "mergekit-config.yml", "mergekit-config.yaml")
ADAPTER_CONFIG = "adapter_config.json"
ABLITERATION_RECIPE = "reproduce/reproduce.json"
RELATIONS: dict[str, Kind] = {"finetune": "finetune", "adapter": "lora", "merge": "merge", "quantized": "quantised"}
"""Values of `base_model_relation`, and of the hub's own tags `base_model:RELATION:NAME`."""
TAGS: dict[str, Kind] = {
    **dict.fromkeys(("merge", "mergekit", "frankenmerge", "lazymergekit"), "merge"),
    **dict.fromkeys(("lora", "qlora", "peft", "adapter"), "lora"),
    **dict.fromkeys(("heretic", "abliterated", "abliteration", "orthogonalized"), "abliterated"),
    **dict.fromkeys(("uncensored", "decensored", "unaligned"), "uncensored"),
    **dict.fromkeys(("finetune", "finetuned", "fine-tuned", "dpo", "sft", "trl", "orpo", "kto", "grpo", "ppo", "rlhf"), "finetune"),
    **dict.fromkeys(("gptq", "awq", "gguf", "exl2", "bitsandbytes", "4-bit", "8-bit", "fp8", "int8", "int4", "quantized"), "quantised"),
}
METHODS = (
    "linear", "slerp", "nuslerp", "multislerp", "ties", "dare_ties", "dare_linear", "task_arithmetic", "breadcrumbs", "breadcrumbs_ties",
    "della", "della_linear", "model_stock", "karcher", "passthrough", "sce", "arcee_fusion", "nearswap",
)  # fmt: skip
"""Ways to merge that mergekit knows; as a tag, such a name declares a merge too."""
PARAMETERS = ("weight", "t", "density")
MAX_YAML_CHARACTERS = 64_000
MAX_EVENTS = 20_000
MAX_DEPTH = 30
MAX_ALIASES = 50
MAX_ALIASES_MERGED = 8
"""With `<<`, aliases multiply what they stand for."""
MOST = 200
"""How many entries of a list are read."""
LONGEST = 120
"""How much of a name or tag is kept."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One thing a folder says of how the model was made.

    `place` is the file and field; `words` what stands there. `rank` is that of a LoRA, 0 if it is not said. `method`,
    `models` and `parameters` are those of a merge. `more` says that an adapter is more than factors: it trained whole modules besides, or lengths (DoRA).
    """

    kind: Kind
    place: str
    words: str = ""
    rank: int = 0
    more: bool = False
    method: str = ""
    models: tuple[str, ...] = ()
    parameters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Declared:
    """Everything a folder says: statements, the bases it names (last part of the name only), where was looked, what was unreadable."""

    statements: tuple[Statement, ...] = ()
    bases: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def __add__(self, other: Declared) -> Declared:
        return Declared(
            statements=(*self.statements, *other.statements),
            bases=tuple(dict.fromkeys((*self.bases, *other.bases))),
            places=(*self.places, *other.places),
            unread=(*self.unread, *other.unread),
        )


def read_declared(folder: Folder, *, known: Mapping[str, str], base_config: Mapping[str, Any]) -> Declared:
    """What `folder` says of itself, in every place where a model can.

    Args:
        folder: A checkpoint or an adapter.
        known: sha256 by name of the base's files: one that was copied unchanged speaks of the base.
        base_config: config.json of the base, for the same reason.
    """
    own = [name for name, digest in sorted(folder.files.items()) if known.get(name) != digest]
    found = Declared()
    for name in own:
        readers = {CARD: _card, ABLITERATION_RECIPE: _abliteration, **dict.fromkeys(MERGE_RECIPES, _merge)}
        read = _adapter if Path(name).name == ADAPTER_CONFIG else readers.get(name)
        if name == "config.json":
            found += _config(folder, base_config)
        elif name.endswith(".safetensors"):
            found += _metadata(folder, name)
        elif read is not None:
            try:
                found += read(folder, name)
            except (BadInput, _Unreadable, OSError) as error:
                found += Declared(places=(name,), unread=(f"{name}: {error.what if isinstance(error, BadInput) else error}",))
    return found


class _Unreadable(Exception):
    """A file of settings that is too large, too deep, or no YAML."""


def safe_yaml(text: str) -> Any:
    """The content of a YAML text by `yaml.safe_load`, after its events were counted: aliases can make a short text endless.

    Raises:
        _Unreadable: It is no YAML, or larger, deeper or more entangled than any honest one.
    """
    import yaml

    if len(text) > MAX_YAML_CHARACTERS:
        raise _Unreadable(f"it has {len(text)} characters")
    depth = aliases = 0
    merges = False
    try:
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            merges = merges or (isinstance(event, yaml.ScalarEvent) and event.value == "<<")
            if number > MAX_EVENTS or depth > MAX_DEPTH or aliases > (MAX_ALIASES_MERGED if merges else MAX_ALIASES):
                raise _Unreadable("it is larger, deeper or more entangled than any honest one")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError, LookupError) as error:
        raise _Unreadable(f"it is no YAML ({type(error).__name__})") from error


def _card(folder: Folder, name: str) -> Declared:
    """The front matter of the model card, between its first two lines of dashes."""
    with (folder.path / name).open("rb") as stream:
        text = stream.read(MAX_YAML_CHARACTERS).decode("utf-8-sig", errors="replace")
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return Declared(places=(name,))
    end = next((index for index, line in enumerate(lines[1:], start=1) if line.strip() == "---"), None)
    if end is None:
        raise _Unreadable("its front matter does not end")
    front = safe_yaml("\n".join(lines[1:end]))
    if not isinstance(front, dict):
        return Declared(places=(name,))
    bases = _texts(front.get("base_model"))
    statements = [*_of_relation(front.get("base_model_relation"), f"{name}: base_model_relation")]
    if not statements and len(bases) > 1:
        statements.append(
            Statement(kind="merge", place=f"{name}: base_model", words=f"{len(bases)} bases", models=tuple(map(_last, bases)))
        )
    for tag in _texts(front.get("tags")):
        statements += _of_tag(tag, f"{name}: tags")
    if "peft" in [one.lower() for one in _texts(front.get("library_name"))]:
        statements.append(Statement(kind="lora", place=f"{name}: library_name", words="peft"))
    return Declared(statements=tuple(statements), bases=tuple(map(_last, bases)), places=(name,))


def _of_relation(value: object, place: str) -> Iterator[Statement]:
    for text in _texts(value):
        if text.lower() in RELATIONS:
            yield Statement(kind=RELATIONS[text.lower()], place=place, words=text)


def _of_tag(tag: str, place: str) -> Iterator[Statement]:
    word = tag.lower()
    first, _, rest = word.partition(":")
    if first == "base_model" and ":" in rest:
        yield from _of_relation(rest.partition(":")[0], place)
    elif word in METHODS and word != "linear":
        yield Statement(kind="merge", place=place, words=tag, method=word)
    elif word in TAGS:
        yield Statement(kind=TAGS[word], place=place, words=tag)


def _merge(folder: Folder, name: str) -> Declared:
    """A recipe of mergekit: its method, its models, and the numbers it merged them by."""
    file = folder.path / name
    if file.stat().st_size > MAX_YAML_CHARACTERS:
        raise _Unreadable(f"it has {file.stat().st_size} bytes")
    recipe = safe_yaml(file.read_text(encoding="utf-8", errors="replace"))
    if not isinstance(recipe, dict):
        raise _Unreadable("it is no table")
    method = (_texts(recipe.get("merge_method")) or [""])[0].lower()
    sources = [source for slice_ in _tables(recipe.get("slices")) for source in _tables(slice_.get("sources"))]
    rows = [*_tables(recipe.get("models")), *sources]
    models = tuple(dict.fromkeys(_last(model) for row in rows for model in _model_names(row.get("model"))))
    tables = [row.get("parameters") for row in (recipe, *rows)]
    numbers = [(key, value) for table in tables if isinstance(table, dict) for key in PARAMETERS for value in _numbers(table.get(key))]
    statement = Statement(
        kind="merge", place=name, words=method or "merge", method=method, models=models, parameters=tuple(dict.fromkeys(numbers))[:MOST]
    )
    return Declared(statements=(statement,), bases=tuple(map(_last, _model_names(recipe.get("base_model")))), places=(name,))


def _model_names(value: object) -> list[str]:
    """Names of a model in a recipe: a text, or a table with the path in it."""
    inner = value.get("model", value) if isinstance(value, dict) else value
    return _texts(inner.get("path") if isinstance(inner, dict) else inner)


def _adapter(folder: Folder, name: str) -> Declared:
    """The config of an adapter: of the folder itself, or left in a folder inside a model that it was merged into."""
    config = read_json(folder.path / name, where=name)
    bases = tuple(map(_last, _texts(config.get("base_model_name_or_path"))))
    kind = (_texts(config.get("peft_type")) or ["adapter"])[0]
    if kind.upper() != "LORA":
        return Declared(statements=(Statement(kind="finetune", place=name, words=kind),), bases=bases, places=(name,))
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    rank = max((one for one in ranks if isinstance(one, int) and not isinstance(one, bool) and 0 < one < 1 << 20), default=0)
    targets = ", ".join(sorted(_texts(config.get("target_modules")))[:8])
    more = any(config.get(option) for option in ("modules_to_save", "use_dora")) or config.get("bias", "none") not in ("none", None)
    return Declared(statements=(Statement(kind="lora", place=name, words=targets, rank=rank, more=more),), bases=bases, places=(name,))


def _abliteration(folder: Folder, name: str) -> Declared:
    """The recipe that heretic leaves, from which its abliteration can be repeated."""
    recipe = read_json(folder.path / name, where=name)
    settings = recipe.get("settings")
    named = [recipe.get("model"), recipe.get("base_model"), settings.get("model") if isinstance(settings, dict) else None]
    bases = tuple(dict.fromkeys(_last(text) for value in named for text in _texts(value)))
    return Declared(statements=(Statement(kind="abliterated", place=name, words="heretic"),), bases=bases, places=(name,))


def _config(folder: Folder, base_config: Mapping[str, Any]) -> Declared:
    """What config.json says beyond the network: how it is quantised, and what it was loaded from."""
    try:
        config = read_json(folder.path / "config.json", where="config.json")
    except BadInput as error:
        return Declared(places=("config.json",), unread=(f"config.json: {error.what}",))
    own = {key: value for key, value in config.items() if base_config.get(key) != value}
    quantised = own.get("quantization_config")
    statements: tuple[Statement, ...] = ()
    if isinstance(quantised, dict):
        words = (_texts(quantised.get("quant_method")) or ["unnamed"])[0]
        statements = (Statement(kind="quantised", place="config.json: quantization_config", words=words),)
    return Declared(statements=statements, bases=tuple(map(_last, _texts(own.get("_name_or_path")))), places=("config.json",))


def _metadata(folder: Folder, name: str) -> Declared:
    """What stands beside the tensors of one file."""
    try:
        said = read_metadata(folder.path / name, file=name)
    except BadInput as error:
        return Declared(places=(name,), unread=(f"{name}: {error.what}",))
    place = f"{name}: __metadata__"
    statements = [*_of_relation(said.get("base_model_relation"), place)]
    method = said.get("merge_method", "").lower()
    if method:
        statements.append(Statement(kind="merge", place=place, words=method[:LONGEST], method=method[:LONGEST]))
    rank = said.get("lora_rank", said.get("ss_network_dim", ""))
    if rank.isdecimal() and len(rank) < 7:
        statements.append(Statement(kind="lora", place=place, words="rank", rank=int(rank)))
    words = said.get("quantization_method", said.get("quant_method", ""))
    if words:
        statements.append(Statement(kind="quantised", place=place, words=words[:LONGEST]))
    named = [said.get("base_model", ""), said.get("base_model_name_or_path", ""), said.get("ss_base_model_version", "")]
    return Declared(statements=tuple(statements), bases=tuple(_last(text) for text in named if text), places=(place,))


def _texts(value: object) -> list[str]:
    """A text, or a list of them, none of them long."""
    rows = value[:MOST] if isinstance(value, list) else [value]
    return [one.strip()[:LONGEST] for one in rows if isinstance(one, str) and one.strip()]


def _tables(value: object) -> list[dict[str, Any]]:
    return [one for one in value[:MOST] if isinstance(one, dict)] if isinstance(value, list) else []


def _numbers(value: object) -> Iterator[float]:
    """A number, or those of a gradient or a list of filters."""
    for one in value[:MOST] if isinstance(value, list) else [value]:
        inner = one.get("value") if isinstance(one, dict) else one
        for number in inner[:MOST] if isinstance(inner, list) else [inner]:
            if isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e6:
                yield float(number)


def _last(name: str) -> str:
    r"""The last part of a name, without the folders somebody kept it in.

    >>> _last("org/model"), _last("/home/me/models/model/"), _last("D:\\models\\model"), _last("org/model@main")
    ('model', 'model', 'model', 'model')
    """
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].partition("@")[0]
