"""What `fuzz.py` feeds bytes to: the real loading code for every kind of file that a stranger may hand us, with good files around the one that is bad.

A target is made once in a folder of its own, and then takes bytes any number of times. It returns where they were read or refused
(`BadInput`, `CannotCompare`); whatever else it raises is a fault, and so is an error without advice, or one that cannot be printed.
`tests/test_fuzz_corpus.py` runs the same targets over `tests/data/fuzz/`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forensics.adapters import open_adapter, refuse_together
from forensics.alignment import align
from forensics.audit import guarded
from forensics.case import CANDIDATE, Case
from forensics.causes import load_causes
from forensics.chat import flow
from forensics.chat.questions import new_questions
from forensics.chat.syntax import program
from forensics.checkpoint import INDEX_NAME, Checkpoint, open_checkpoint
from forensics.checks.files_surface import CHECK as SURFACE
from forensics.declared import read_declared
from forensics.errors import BadInput, CannotCompare
from forensics.gate.recorded import read_answers, read_both, with_labels
from forensics.gate.replies import Decoding
from forensics.gate.suites import all_suites, load_suites
from forensics.headers import ITEM_BYTES, read_header, read_metadata
from forensics.kept import load_arrays, load_card
from forensics.monitor.events import Event, Malformed
from forensics.monitor.formats import events_of, read_line
from forensics.monitor.otlp import TooLarge, inflated, rows_of
from forensics.monitor.signals import score
from forensics.monitor.sources import lines_of_log
from forensics.people.log import LABELS, SESSIONS, SIGNATURES, Attempt, ReviewLabel, Signature, load_lines
from forensics.people.queue import load_queue
from forensics.policy import load_policy
from forensics.prompts import load_prompts, unite
from forensics.record import AuditRecord, Status, digest_results
from forensics.runfolder import RunFolder, load_record, load_run
from forensics.templates import Scene, TemplateFailed, render_scene, writes_content_only
from forensics.workbench import Workbench
from reports.formats import FORMATS, OF_SEVERAL, OF_THE_RECORD, of_record, of_run, of_several
from reports.several import beside
from reports.words import printable

Kind = Literal["header", "json", "lines", "text", "bytes"]
"""How a mutator may understand the bytes: a header of safetensors before its data, JSON, a JSON object a line, text, or nothing but bytes."""
Feed = Callable[[bytes], None]
SEEDS = Path(__file__).resolve().parents[2] / "tests" / "data" / "fuzz"
"""A folder each target: what it is begun with, and what was a fault once."""
MOST_DATA = 1 << 16
"""Bytes of tensors that a header gets behind it."""
MOST_VALUES = 1 << 22
"""Values of a tensor that a target reads whole."""
NOW = "2027-01-15T12:00:00+00:00"
TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
TURNS = (
    {"role": "user", "content": "How do I boil an egg?"},
    {"role": "assistant", "content": "In water."},
    {"role": "user", "content": "How long?"},
)
SHAPES = {"embed_tokens": (8, 4), "layers.0.self_attn.q_proj": (4, 4), "layers.0.mlp.up_proj": (8, 4), "norm": (4,)}
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8, "tie_word_embeddings": True,
}  # fmt: skip
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that bytes are fed to: how it is made in an empty folder, and how its bytes may be understood."""

    prepare: Callable[[Path], Feed]
    kind: Kind


def tried(feed: Feed, data: bytes) -> str:
    """Whether `data` was "read" or "refused".

    Raises:
        Exception: A fault: another error than ours, or one of ours that gives no advice or cannot be printed.
    """
    try:
        feed(data)
    except (BadInput, CannotCompare) as error:
        if not (error.hint and error.where):
            raise AssertionError("an error without a place or advice") from error
        printable(str(error)).encode("utf-8")
        return "refused"
    return "read"


def as_safetensors(data: bytes) -> bytes:
    """A file of the format around a header (the first line of `data`) with the rest as its tensors, filled up to what the header claims."""
    header, _, rest = data.partition(b"\n")
    try:
        claims = json.loads(header)
        size = max((claim["data_offsets"][1] for name, claim in claims.items() if name != "__metadata__"), default=0)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        size = 0
    size = size if isinstance(size, int) and 0 <= size <= MOST_DATA else 0
    return len(header).to_bytes(8, "little") + header + rest[:size].ljust(size, b"\0")


def plain_tensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A header with tensors in float32, as `as_safetensors` takes it."""
    claims, place = {}, 0
    for name, shape in shapes.items():
        end = place + math.prod(shape) * ITEM_BYTES["F32"]
        claims[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    return json.dumps(claims).encode()


def checkpoint(folder: Path, **config: Any) -> Path:
    """A checkpoint that is as small as one can be, with a tokenizer and a template."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(
        as_safetensors(plain_tensors({f"model.{name}.weight": shape for name, shape in SHAPES.items()}))
    )
    (folder / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()), encoding="utf-8")
    return folder


def tokenizer() -> dict[str, Any]:
    """A tokenizer.json of eight tokens."""
    vocabulary = {"<unk>": 0, "</s>": 1, "how": 2, "do": 3, "i": 4, "boil": 5, "an": 6, "egg": 7}
    special = [
        {"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for id, token in ((0, "<unk>"), (1, "</s>"))
    ]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip


def tokenizer_config() -> dict[str, Any]:
    """Its tokenizer_config.json."""
    return {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}


def _headers(folder: Path) -> Feed:
    file = folder / "model.safetensors"

    def feed(data: bytes) -> None:
        file.write_bytes(as_safetensors(data) if data.startswith(b"{") else data)
        read_header(file, file=file.name)
        read_metadata(file, file=file.name)

    return feed


def _weights(config: Mapping[str, Any]) -> Callable[[Path], Feed]:
    """The weights of a whole checkpoint, read to their end and laid beside a base."""

    def prepare(folder: Path) -> Feed:
        base, other = open_checkpoint(str(checkpoint(folder / "base"))), checkpoint(folder / "other", **config)

        def feed(data: bytes) -> None:
            (other / "model.safetensors").write_bytes(as_safetensors(data) if data.startswith(b"{") else data)
            _read_whole(found := open_checkpoint(str(other)))
            align(base, found)

        return feed

    return prepare


def _read_whole(found: Checkpoint) -> None:
    for name, info in found.tensors.items():
        if info.elements <= MOST_VALUES:
            for _ in found.blocks(name):
                pass


def _index(folder: Path) -> Feed:
    base = checkpoint(folder / "base")
    (base / "model.safetensors").unlink()
    for number, name in enumerate(SHAPES):
        file = base / f"model-{number:05d}-of-00004.safetensors"
        file.write_bytes(as_safetensors(plain_tensors({f"model.{name}.weight": SHAPES[name]})))

    def feed(data: bytes) -> None:
        (base / INDEX_NAME).write_bytes(data)
        _read_whole(open_checkpoint(str(base)))

    return feed


def _surface(*names: str) -> Callable[[Path], Feed]:
    """A candidate of which one file is the stranger's, through the check that compares all files and the reader of what it declares.

    Where there are several names the first byte says which.
    """

    def prepare(folder: Path) -> Feed:
        base, other = open_checkpoint(str(checkpoint(folder / "base"))), checkpoint(folder / "other")
        with RunFolder(folder / "run", key="fuzz", created=NOW) as run:
            bench = Workbench(device="cpu", decoding=Decoding(), run=run, progress=lambda *_: None)
        policy, kept = load_policy(), {file: file.read_bytes() for file in other.iterdir()}

        def feed(data: bytes) -> None:
            name, content = (names[0], data) if len(names) == 1 else (names[data[0] % len(names)] if data else names[0], data[1:])
            for file in other.iterdir():
                if file not in kept:
                    file.unlink()
            for file, before in kept.items():
                if file.name in names:
                    file.write_bytes(before)
            (other / name).write_bytes(content)
            candidate = open_checkpoint(str(other))
            layout = align(base, candidate)
            read_declared(candidate, known=base.files, base_config=base.config)
            case = Case(
                base=base, candidate=candidate, adapters=(), surface=candidate, configuration=CANDIDATE, layout=layout, prompts=(),
                policy=policy, seed=0, workbench=bench,
            )  # fmt: skip
            result = guarded(SURFACE.run, SURFACE.id, case)
            if result.status is Status.ERROR:
                raise AssertionError(result.traceback)

        return feed

    return prepare


def _adapter(name: str) -> Callable[[Path], Feed]:
    def prepare(folder: Path) -> Feed:
        base, other = open_checkpoint(str(checkpoint(folder / "base"))), folder / "adapter"
        other.mkdir()
        stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        (other / "adapter_config.json").write_text(json.dumps(ADAPTER), encoding="utf-8")
        (other / "adapter_model.safetensors").write_bytes(
            as_safetensors(plain_tensors({f"{stem}A.weight": (2, 4), f"{stem}B.weight": (4, 2)}))
        )

        def feed(data: bytes) -> None:
            (other / name).write_bytes(as_safetensors(data) if name.endswith(".safetensors") and data.startswith(b"{") else data)
            found = open_adapter(str(other), base)
            refuse_together((found, found))
            for change in found.changes:
                found.delta(change)

        return feed

    return prepare


def _template(_folder: Path) -> Feed:
    base = flow.read(TEMPLATE)

    def feed(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for variables in ({}, {"enable_thinking": False}):
            scene = Scene(
                turns=TURNS, variables=variables, tools=({"type": "function", "function": {"name": "boil"}},), now="2027-01-15T12:00:00"
            )
            try:
                render_scene(text, scene, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}, listen=bool(variables))
            except TemplateFailed:
                break
        writes_content_only(text)
        try:
            program(text)
            new_questions(base, flow.read(text))
        except (TemplateFailed, RecursionError, ValueError):  # what chat.compare takes for "too entangled to be followed"
            return

    return feed


def _prompts(folder: Path) -> Feed:
    file = folder / "prompts.jsonl"

    def feed(data: bytes) -> None:
        file.write_bytes(data)
        unite((load_prompts(file, plain=True), load_prompts(file)))

    return feed


def _benchmarks(folder: Path) -> Feed:
    """The first byte says which benchmark it is taken for."""
    kinds = [(suite.name, spec.match.replace("*", "x")) for suite in all_suites().values() for spec in suite.files]

    def feed(data: bytes) -> None:
        name, match = kinds[data[0] % len(kinds)] if data else kinds[0]
        file = folder / Path(match).name
        file.write_bytes(data[1:])
        load_suites([name], file)

    return feed


def _recorded(folder: Path) -> Feed:
    """The first byte says how the file is named, and whether it holds labels."""
    suffixes = (".jsonl", ".json", ".csv", ".eval")
    mine = folder / "ours.jsonl"
    mine.write_text(
        json.dumps({"id": "1", "prompt": "Question 1?", "category": "fraud", "expect": "refuse", "reply": "No."}) + "\n", encoding="utf-8"
    )
    both = read_both(mine, mine)

    def feed(data: bytes) -> None:
        kind = data[0] if data else 0
        file = folder / f"given{suffixes[kind % len(suffixes)]}"
        file.write_bytes(data[1:])
        if kind & 0x80:
            with_labels(both, (file,))
        else:
            read_answers(file, "base")

    return feed


def _log(folder: Path) -> Feed:
    file = folder / "server.json"

    def feed(data: bytes) -> None:
        for document in (False, True):
            file.write_bytes(data)
            with file.open("rb") as stream:
                for line in lines_of_log(stream, document=document):
                    _score(read_line(line.content or b""))

    return feed


def _score(told: list[Event | Malformed | None]) -> None:
    for one in told:
        if isinstance(one, Event):
            score(one, {"fraud": "refuse"})


def _otlp(_folder: Path) -> Feed:
    """The first byte says what the post is: protobuf or JSON, spans or records, packed or not."""

    def feed(data: bytes) -> None:
        form = data[0] if data else 0
        try:
            body = inflated([data[1:]]) if form & 4 else data[1:]
            for row in rows_of(body, "logs" if form & 2 else "traces", protobuf=bool(form & 1)):
                if row is not None:
                    _score(events_of(row))
        except (TooLarge, Malformed):
            return
        inflated([gzip.compress(body, 1)])

    return feed


def _record(folder: Path) -> Feed:
    """A record whose digest is right, as whoever made it up would have it, in every format there is."""
    run = folder / "run"
    run.mkdir()

    def feed(data: bytes) -> None:
        (run / "audit.json").write_bytes(_resealed(data))
        record = load_record(str(run))
        saved = load_run(str(run))
        for wanted in FORMATS:
            (of_record(record, wanted) if wanted in OF_THE_RECORD else of_run(saved, wanted)).encode("utf-8", "replace")
        for wanted in OF_SEVERAL:
            of_several(beside([("one", record), ("other", record)]), wanted)

    return feed


def _resealed(data: bytes) -> bytes:
    """The record with the digest that its results have; as it is where it is none."""
    try:
        whole = json.loads(data)
        record = AuditRecord.model_validate(whole | {"results_digest": ""})
        return json.dumps(whole | {"results_digest": digest_results(record.results, record.verdict), "contents": None}).encode()
    except (ValueError, TypeError, RecursionError):
        return data


RUN_FILES = ("journal.jsonl", "items.jsonl", "prompts.jsonl", "causes.json", "people/signatures.jsonl", "people/redteam.jsonl",
             "people/labels.jsonl", "people/review.jsonl", "people/signatures.jsonl.end")  # fmt: skip
"""What lies in a run beside its record; the first byte says which of them is the stranger's."""


def _with_record(run: Path) -> Path:
    """The folder of a run with a record that is one of the seeds."""
    run.mkdir(parents=True)
    (run / "audit.json").write_bytes(_resealed((SEEDS / "record" / "seed-0").read_bytes()))
    return run


def _run(folder: Path) -> Feed:
    run = _with_record(folder / "run")
    (run / "people").mkdir()
    digest = load_record(str(run)).results_digest

    def feed(data: bytes) -> None:
        for name in RUN_FILES:
            (run / name).unlink(missing_ok=True)
        chosen = run / RUN_FILES[data[0] % len(RUN_FILES) if data else 0]
        chosen.write_bytes(data[1:])
        if chosen.name == "journal.jsonl":
            with RunFolder.reopen(run):
                return
        saved = load_run(str(run))
        of_run(saved, "html")
        of_run(saved, "csv")
        load_causes(run, results_digest=digest)
        load_queue(run)
        load_lines(run, SIGNATURES, Signature, results_digest=digest)
        load_lines(run, SESSIONS, Attempt, results_digest=digest)
        load_lines(run, LABELS, ReviewLabel, results_digest=digest)

    return feed


def _arrays(folder: Path) -> Feed:
    run = _with_record(folder / "run")
    (run / "arrays").mkdir()
    saved = load_run(str(run))

    def feed(data: bytes) -> None:
        for check in ("weights.change", "activations.drift"):
            (run / "arrays" / f"{check}.npz").write_bytes(data)
        saved.arrays("weights.change")
        of_run(saved, "html")

    return feed


def _policy(folder: Path) -> Feed:
    file = folder / "policy.toml"

    def feed(data: bytes) -> None:
        file.write_bytes(data)
        load_policy(file)
        load_policy(file, ("public",))

    return feed


def _probe(folder: Path) -> Feed:
    """The card of a probe; behind a line of its own the header of its tensors, whose digest the card is given."""

    def feed(data: bytes) -> None:
        card, _, tensors = data.partition(b"\n\n")
        raw = as_safetensors(tensors or b"{}")
        (folder / "probe.safetensors").write_bytes(raw)
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            card = json.dumps(json.loads(card) | {"tensors": hashlib.sha256(raw).hexdigest()}).encode()
        (folder / "probe.json").write_bytes(card)
        load_arrays(folder, load_card(folder))

    return feed


TARGETS: dict[str, Target] = {
    "headers": Target(prepare=_headers, kind="header"),
    "weights": Target(prepare=_weights({}), kind="header"),
    "float8": Target(prepare=_weights({"quantization_config": {"quant_method": "fp8"}}), kind="header"),
    "packed": Target(
        prepare=_weights({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}),
        kind="header",
    ),
    "index": Target(prepare=_index, kind="json"),
    "config": Target(prepare=_surface("config.json"), kind="json"),
    "adapter-config": Target(prepare=_adapter("adapter_config.json"), kind="json"),
    "adapter-weights": Target(prepare=_adapter("adapter_model.safetensors"), kind="header"),
    "tokenizer": Target(prepare=_surface("tokenizer.json"), kind="json"),
    "tokenizer-config": Target(prepare=_surface("tokenizer_config.json"), kind="json"),
    "declared": Target(
        prepare=_surface("README.md", "mergekit_config.yml", "generation_config.json", "special_tokens_map.json"), kind="text"
    ),
    "template": Target(prepare=_template, kind="text"),
    "prompts": Target(prepare=_prompts, kind="lines"),
    "benchmarks": Target(prepare=_benchmarks, kind="text"),
    "recorded": Target(prepare=_recorded, kind="lines"),
    "log": Target(prepare=_log, kind="lines"),
    "otlp": Target(prepare=_otlp, kind="bytes"),
    "record": Target(prepare=_record, kind="json"),
    "run": Target(prepare=_run, kind="lines"),
    "arrays": Target(prepare=_arrays, kind="bytes"),
    "policy": Target(prepare=_policy, kind="text"),
    "probe": Target(prepare=_probe, kind="json"),
}
"""By name: what a user may be handed."""


def corpus(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files to be fed, each with the name of its target: those of the folder of that name."""
    for name in TARGETS:
        for file in sorted((folder / name).iterdir()) if (folder / name).is_dir() else ():
            yield name, file
