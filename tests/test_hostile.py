"""What a stranger may hand us to fill memory, read other files, reach the network, or learn a key: each is one error, or nothing comes of it."""

from __future__ import annotations

import ast
import asyncio
import gzip
import io
import json
import os
import subprocess
import sys
import time
import zipfile
import zlib

import httpx
import numpy as np
import pytest
import tiny
from cases import ROOT, command, environment, record, result, saved_run, tiny_prompts, write_rows
from fuzz_targets import as_safetensors, checkpoint, plain_tensors
from serving import completion, serving

from forensics import arrays, bounds, tokenizing
from forensics.adapters import open_adapter
from forensics.arrays import read_arrays
from forensics.boundless import refuse_boundless
from forensics.bounds import crowded, parsed, read_bytes
from forensics.causes import load_causes
from forensics.chat import flow
from forensics.checkpoint import INDEX_NAME, open_checkpoint
from forensics.errors import BadInput, CannotCompare
from forensics.gate import served
from forensics.gate.recorded import read_answers
from forensics.headers import read_header
from forensics.monitor import otlp
from forensics.monitor.events import Malformed
from forensics.monitor.formats import read_line
from forensics.monitor.wire import SMALL, holds_more
from forensics.people.queue import load_queue
from forensics.prompts import load_prompts
from forensics.record import CheckResult, Verdict, digest_results
from forensics.runfolder import SavedRun, load_items, load_record, load_run
from forensics.templates import Scene, TemplateFailed, render_scene

MANY = b"[" + b"[]," * 5_000_000 + b"[]]"
"""Fifteen megabytes that become four hundred."""


@pytest.fixture
def model(tmp_path):
    return checkpoint(tmp_path / "model")


@pytest.fixture
def run(tmp_path):
    return saved_run(tmp_path / "run", record([result("weights.change")])).folder


# --- how much is taken into memory -----------------------------------------------------------------------------------


def in_a_process(code: str, *, megabytes: int = 600) -> subprocess.CompletedProcess[str]:
    """Run `code` with so much memory beyond what its imports took."""
    limits = (
        "import resource\nfrom pathlib import Path\n"
        "held = next(int(line.split()[1]) << 10 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmData'))\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, (held + ({megabytes} << 20),) * 2)\n"
    )
    first, _, rest = code.partition("\n---\n")
    return subprocess.run(
        [sys.executable, "-c", f"{first}\n{limits}{rest}"], env=environment(), capture_output=True, text=True, check=False
    )


def test_json_that_is_nothing_but_brackets_is_refused_before_it_is_made(tmp_path):
    (tmp_path / "many.json").write_bytes(MANY)
    done = in_a_process(
        f"from forensics.checkpoint import read_json\nfrom forensics.errors import BadInput\n---\n"
        f"try:\n    read_json(Path({str(tmp_path / 'many.json')!r}), where='x')\nexcept BadInput as error:\n    print(error.what)",
        megabytes=120,
    )
    assert "more than 4000000 values" in done.stdout, done.stderr


def test_what_counts_as_crowded():
    assert not crowded(b"[1,2,3]", 6)
    assert crowded(b"[1,2,3,4,5,6,7]", 6)
    assert crowded("[1,2,3,4,5,6,7]", 6)
    assert not crowded('"' + "x" * 1000 + '"', 6)
    assert parsed('{"a": [1, 2]}') == {"a": [1, 2]}
    with pytest.raises(ValueError, match="more than 3 values"):
        parsed("[1,2,3,4,5]", most=3)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_crowded_file_of_a_checkpoint_is_refused(name, model, monkeypatch):
    open_checkpoint(str(model))  # the control
    monkeypatch.setattr(bounds, "MOST_VALUES", 10)
    monkeypatch.setattr(bounds.parsed, "__kwdefaults__", {"most": 10, "pairs": None})
    with pytest.raises(BadInput, match="more than 10 values"):
        found = open_checkpoint(str(model)) if name != "model.safetensors" else read_header(model / name, file=name)
        found.json(name)


def test_lists_of_prompts_records_and_recordings_are_counted_too(run, tmp_path, monkeypatch):
    prompts = tiny_prompts(tmp_path / "prompts.jsonl")
    monkeypatch.setattr(bounds.parsed, "__kwdefaults__", {"most": 2, "pairs": None})
    with pytest.raises(BadInput, match="more than 2 values"):
        load_prompts(prompts)
    monkeypatch.setattr("forensics.record.MOST_VALUES", 3)
    with pytest.raises(BadInput, match="more than 3 values"):
        load_record(str(run))
    monkeypatch.setattr("forensics.gate.importers.shapes.MOST_VALUES", 3)
    (tmp_path / "log.json").write_text('{"eval": {}, "status": "success", "version": 2, "samples": [1, 2]}')
    with pytest.raises(BadInput):
        read_answers(tmp_path / "log.json", "base")


def test_a_file_larger_than_any_honest_one_is_refused_unread(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(bounds.MOST_BYTES + 1)  # a hole, which takes no space
    start = time.monotonic()
    for read in (load_prompts, read_bytes):
        with pytest.raises(BadInput, match="larger than 268,435,456 bytes") as caught:
            read(file)
        assert caught.value.hint
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("header", [b"[[],[],[]]", b'{"a": {}, "a": {}}', b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000])
def test_a_header_that_is_made_to_harm_is_refused(header, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BadInput, match="cannot be trusted"):
        read_header(tmp_path / "x.safetensors", file="x")


@pytest.mark.parametrize("shape", [[1 << 40, 1 << 40], [1 << 62], [1 << 62, 0], [0, 1 << 62]])
def test_shapes_that_no_memory_holds_are_refused_or_hold_nothing(shape, model):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    try:
        found = open_checkpoint(str(model))
    except BadInput:
        return
    assert sum(block.numel() for block in found.blocks("a")) == 0


def npz(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def array(shape: tuple[int, ...], content: bytes, dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


@pytest.mark.parametrize(
    ("raw", "control"),
    [
        (npz(("a.npy", array((1 << 40,), b"\0" * 8))), "a header that claims terabytes"),
        (npz(("a.npy", array((4,), b"\0" * 8))), "a header that claims more than there is"),
        (npz(("a.npy", array((1,), b"\0" * 8))), "one that claims less"),
        (npz(("a.npy", array((2,), b"\0" * 16, "|O"))), "objects"),
        (npz(("a.npy", array((2,), b"\0" * 8)), method=zipfile.ZIP_LZMA), "a way of packing that asks for gigabytes"),
        (npz(("a.npy", b"\x93NUMPY\x09\0" + b"\0" * 50)), "a version that is none"),
        (b"PK\x03\x04", "no archive"),
    ],
)
def test_arrays_that_were_made_to_harm_are_one_error(raw, control, run):
    (run / "arrays").mkdir(exist_ok=True)
    (run / "arrays" / "weights.change.npz").write_bytes(raw)
    with pytest.raises(BadInput, match="arrays of this run are damaged"):
        load_run(str(run)).arrays("weights.change")
    assert control


def test_arrays_are_not_unpacked_beyond_a_limit(run, monkeypatch):
    bomb = npz(("a.npy", array((1 << 22,), b"\0" * (1 << 24))))
    assert len(bomb) < 1 << 16
    (run / "arrays").mkdir(exist_ok=True)
    file = run / "arrays" / "weights.change.npz"
    file.write_bytes(bomb)
    assert load_run(str(run)).arrays("weights.change")["a"].shape == (1 << 22,)
    monkeypatch.setattr(read_arrays, "__kwdefaults__", {"most": 1 << 20})
    with pytest.raises(BadInput, match="damaged"):
        load_run(str(run)).arrays("weights.change")
    assert arrays.MOST_BYTES < 1 << 30


def test_honest_arrays_come_back_as_numpy_reads_them(tmp_path):
    held = {
        "a/b": np.arange(6.0).reshape(2, 3),
        "c": np.asfortranarray(np.ones((2, 3), dtype=np.float16)),
        "names": np.array(["x", "ü"]),
        "0": np.array(3),
        "none": np.zeros((0, 4)),
    }
    np.savez_compressed(tmp_path / "x.npz", **held)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as theirs:
        ours = read_arrays(tmp_path / "x.npz")
        assert list(ours) == theirs.files
        for name in theirs.files:
            assert np.array_equal(ours[name], theirs[name])
            assert ours[name].dtype == theirs[name].dtype


def test_a_member_of_an_archive_packed_in_a_way_that_asks_for_gigabytes_is_refused(tmp_path):
    (tmp_path / "log.eval").write_bytes(npz(("header.json", b"{}"), ("samples/1.json", b"{}"), method=zipfile.ZIP_LZMA))
    with pytest.raises(BadInput, match="packed in a way that is not read"):
        read_answers(tmp_path / "log.eval", "base")


def ld(field: int, body: bytes) -> bytes:
    """A field of protobuf behind its length."""
    length, out = len(body), bytes([field << 3 | 2])
    while length > 127:
        length, out = length >> 7, out + bytes([length & 127 | 128])
    return out + bytes([length]) + body


EMPTY = 1_500_000
POSTS = {
    "resources": ld(1, b"") * EMPTY,
    "scopes": ld(1, ld(2, b"") * EMPTY),
    "spans": ld(1, ld(2, ld(2, b"") * EMPTY)),
    "attributes": ld(1, ld(2, ld(2, ld(9, b"") * EMPTY))),
    "values": ld(1, ld(2, ld(2, ld(9, ld(2, ld(5, ld(1, b"") * EMPTY)))))),
}


@pytest.mark.parametrize("name", POSTS)
def test_a_post_of_empty_messages_is_refused_before_they_are_made(name):
    start = time.monotonic()
    with pytest.raises(otlp.TooLarge):
        list(otlp.rows_of(POSTS[name], "traces", protobuf=True))
    assert time.monotonic() - start < 10


def test_counting_a_post_ends_whatever_it_holds():
    kind = otlp.ExportTraceServiceRequest.DESCRIPTOR
    small = ld(1, ld(2, ld(2, b"") * 10))
    assert not holds_more(small, kind, 1)  # too small to harm
    padded = small + ld(15, b"\0" * SMALL)
    assert holds_more(padded, kind, 11)
    assert not holds_more(padded, kind, 12)
    for damaged in (
        padded + b"\x0a",
        padded + b"\x0a\xff",
        padded + b"\xff" * 20,
        padded + b"\x09",
        padded + b"\x0a\x7f",
        padded + b"\x0b\x0c",
    ):
        assert not holds_more(damaged, kind, 100)


def test_a_list_of_a_million_rows_is_set_aside_whole():
    told = read_line(b"[" + b"{}," * 200_000 + b"{}]")
    assert [type(one) for one in told] == [Malformed]
    assert [type(one) for one in read_line(MANY)] == [Malformed]


def test_a_bomb_that_is_posted_is_not_inflated():
    bomb = zlib.compressobj(9, wbits=31)
    packed = b"".join([bomb.compress(b"\0" * (1 << 20)) for _ in range(64)]) + bomb.flush()
    assert len(packed) < 1 << 17
    with pytest.raises(otlp.TooLarge):
        otlp.inflated([packed])


LAUGHS = "".join(f"{{% macro m{n}() %}}{{{{ m{n - 1}() }}}}{{{{ m{n - 1}() }}}}{{% endmacro %}}" for n in range(1, 40))
LAUGHING = {
    "macros": "{% macro m0() %}ha{% endmacro %}" + LAUGHS + "{{ m39() }}",
    "texts": "{% set a = 'ha' %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
    "loops": "{% for a in range(9999) %}" * 9 + "ha" + "{% endfor %}" * 9,
    "formats": "{{ '%9999999s' | format('x') * 9999 }}",
    "lists": "{% set a = [1] %}" + "{% set a = a + a %}" * 60 + "{{ a | length }}",
}


@pytest.mark.parametrize("name", LAUGHING)
def test_a_template_that_grows_without_end_is_stopped_and_can_be_read(name):
    start = time.monotonic()
    with pytest.raises(TemplateFailed):
        render_scene(LAUGHING[name], Scene(turns=({"role": "user", "content": "x"},)), special_tokens={})
    try:
        flow.read(LAUGHING[name])
    except (TemplateFailed, RecursionError, ValueError) as error:
        assert str(error)
    assert time.monotonic() - start < 25


@pytest.mark.parametrize("file", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json", "vocab.json"])
def test_a_token_with_an_id_beyond_any_vocabulary_is_not_loaded(file, model):
    whole = json.loads((model / "tokenizer.json").read_text())
    assert tokenizing.load(open_checkpoint(str(model))) is not None  # the control
    huge = 4_294_967_290
    whole["model"]["vocab"]["zz"] = huge
    content = {
        "tokenizer.json": whole, "added_tokens.json": {"zz": huge}, "vocab.json": {"zz": huge},
        "tokenizer_config.json": {"added_tokens_decoder": {str(huge): {"content": "zz"}}},
    }  # fmt: skip
    (model / file).write_text(json.dumps(content[file]))
    found = open_checkpoint(str(model))
    assert tokenizing.load(found) is None
    with pytest.raises(CannotCompare, match="ids that no vocabulary has"):
        refuse_boundless(found, found)


@pytest.mark.parametrize(("key", "value"), [("num_labels", 1 << 40), ("num_hidden_layers", 1 << 40)])
def test_a_config_that_asks_for_lists_without_end_is_not_loaded(key, value, model):
    whole = json.loads((model / "config.json").read_text())
    refuse_boundless(open_checkpoint(str(model)), open_checkpoint(str(model)))  # the control
    (model / "config.json").write_text(json.dumps(whole | {key: value}))
    with pytest.raises(CannotCompare, match="more layers or labels"):
        refuse_boundless(open_checkpoint(str(model)), open_checkpoint(str(model)))


PATTERNS = {
    "a repeated group": "(a+)+b", "many stars": ".*" * 30 + "#", "many options": "a?" * 40 + "#", "many groups": "(.|.)" * 40 + "#",
    "counted": "a{1,9}" * 12 + "#", "long": "a" * 5000,
}  # fmt: skip
HONEST = (
    r".*\.(0|1|2|3|4|5|6|7)\.self_attn\.(q|k|v|o)_proj",
    r"^model\.layers\.\d+\..*q_proj$",
    "q_proj",
    r"layers\.(?:1|2)\.mlp",
    r".*?\.q_proj",
)


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_that_could_be_tried_for_ever_is_refused(name, option, tmp_path):
    base = open_checkpoint(str(checkpoint(tmp_path / "base")))
    whole = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    (adapter / "adapter_model.safetensors").write_bytes(
        as_safetensors(plain_tensors({f"{stem}A.weight": (2, 4), f"{stem}B.weight": (4, 2)}))
    )
    for pattern in HONEST:
        given = {pattern: 2} if option.endswith("_pattern") else pattern
        (adapter / "adapter_config.json").write_text(json.dumps(whole | {option: given}))
        assert open_adapter(str(adapter), base).changes
    given = {PATTERNS[name]: 2} if option.endswith("_pattern") else PATTERNS[name]
    (adapter / "adapter_config.json").write_text(json.dumps(whole | {option: given}))
    with pytest.raises(BadInput, match=r"repeats too much"):
        open_adapter(str(adapter), base)


def test_folders_in_each_other_without_end_are_one_error(model):
    nest = "import os, sys; os.chdir(sys.argv[1]); [(os.mkdir('a'), os.chdir('a')) for _ in range(1500)]"
    subprocess.run([sys.executable, "-c", nest, str(model)], check=True)
    try:
        with pytest.raises(BadInput, match="without end"):
            open_checkpoint(str(model))
    finally:
        subprocess.run(["rm", "-rf", str(model)], check=True)  # what removes temporary folders recurses as well


# --- other files, and files that never end -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/etc/hostname", "a\0.safetensors", "x" * 5000 + ".safetensors", "\ud800.safetensors", "..", ""]
)
def test_an_index_reaches_no_other_file(name, model):
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / INDEX_NAME).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(BadInput, match="the index names") as caught:
        open_checkpoint(str(model))
    assert len(str(caught.value)) < 1000


READERS = {
    "audit.json": lambda run: load_record(str(run)),
    "items.jsonl": load_items,
    "prompts.jsonl": lambda run: load_run(str(run)),
    "people/review.jsonl": load_queue,
    "causes.json": lambda run: load_causes(run, results_digest=""),
    "arrays/weights.change.npz": lambda run: SavedRun(folder=run, record=record([result("weights.change")]), items=(), prompts={}).arrays(
        "weights.change"
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_the_folder_of_a_run_does_not_keep_us(name, run):
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(BadInput):
        READERS[name](run)


def test_a_pipe_in_a_checkpoint_is_no_file_of_it(model):
    os.mkfifo(model / "tokenizer_config.json.pipe")
    (model / "tokenizer_config.json").unlink()
    os.mkfifo(model / "tokenizer_config.json")
    found = open_checkpoint(str(model))
    assert found.json("tokenizer_config.json") == {}


# --- nothing of a stranger is run --------------------------------------------------------------------------------------


def test_no_module_can_unpickle_or_evaluate():
    wrong = []
    files = [*ROOT.glob("cli*.py"), *(file for room in ("forensics", "probes", "reports") for file in (ROOT / room).rglob("*.py"))]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
                wrong += [
                    f"{file.name}: {name}" for name in names if name.partition(".")[0] in ("pickle", "marshal", "shelve", "dill", "joblib")
                ]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                safe = any(key.arg == "allow_pickle" and getattr(key.value, "value", True) is False for key in node.keywords)
                if called in ("eval", "exec", "torch.load", "yaml.load", "np.fromregex") or (
                    called in ("np.load", "np.savez", "np.savez_compressed", "np.save") and not safe
                ):
                    wrong.append(f"{file.name}: {called}")
    assert len(files) > 200
    assert wrong == []


def test_what_a_config_or_tokenizer_says_reaches_no_terminal_raw(model, tmp_path):
    colour = "\x1b[31mred"
    other = checkpoint(tmp_path / "other", rope_parameters={"rope_type": colour}, rope_scaling={"rope_type": colour}, model_type="llama")
    told = json.loads((other / "tokenizer_config.json").read_text()) | {"tokenizer_class": colour, "chat_template": colour}
    (other / "tokenizer_config.json").write_text(json.dumps(told))
    words = command("audit", model, other, "--only", "files.surface", "--out", tmp_path / "run")
    done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (tmp_path / "run" / "audit.json").exists(), done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "red" in (tmp_path / "run" / "audit.json").read_text()  # it was read


# --- the network, and keys -----------------------------------------------------------------------------------------------

GUARD = """
import os, socket
def refused(self, address, *more):
    with open(os.environ["GUARD"], "a") as told:
        told.write(f"{address!r}\\n")
    raise OSError("the network was asked for")
socket.socket.connect = socket.socket.connect_ex = refused
socket.getaddrinfo = lambda *given, **more: refused(None, given[:2])
"""


@pytest.mark.slow
def test_an_audit_of_local_folders_asks_no_network(tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base")
    candidate = tiny.nudge(base, tmp_path / "candidate")
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    around = environment(GUARD=str(tmp_path / "asked"), PYTHONPATH=f"{tmp_path / 'guard'}:{ROOT}", HOME=str(tmp_path))
    del around["HF_HUB_OFFLINE"]  # nobody says that it has to stay offline
    control = subprocess.run(
        [sys.executable, "-c", "import urllib.request; urllib.request.urlopen('http://192.0.2.1')"],
        env=around,
        capture_output=True,
        check=False,
    )
    assert control.returncode
    assert (tmp_path / "asked").read_text().startswith("('192.0.2.1', 80)")
    (tmp_path / "asked").unlink()

    words = [
        "audit",
        str(base),
        str(candidate),
        "--prompts",
        str(tiny_prompts(tmp_path / "p.jsonl")),
        "--max-cost",
        "generation",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    done = subprocess.run(command(*words), env=around, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (tmp_path / "run" / "audit.json").exists(), done.stderr
    assert not (tmp_path / "asked").exists()


KEY = "sk-hush-hush/0123"


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["none", "echo", "error", "bad request", "not json"])
def test_a_key_stands_nowhere_after_a_gate_whatever_the_server_repeats(trouble, tmp_path):
    """The server may repeat the key in a reply, in an error, in JSON's own spelling, or in what is no answer at all."""

    def answer(body):
        said = body["headers"].get("Authorization", "")
        assert said == f"Bearer {KEY}"
        if trouble == "echo":
            return 200, b'{"choices": [{"message": {"role": "assistant", "content": "You sent ' + KEY.replace(
                "/", "\\/"
            ).encode() + b'"}}]}'
        if trouble == "error":
            return 401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}
        if trouble == "bad request" and body["model"] == "candidate" and "1" in body["messages"][-1]["content"]:
            return 400, {"error": {"message": f"this prompt is not for {KEY}"}}
        if trouble == "not json" and body["model"] == "base":
            return 403, f"<html>{KEY}</html>".encode()
        return completion("I'm sorry, but I can't help with that.")

    prompts = write_rows(
        tmp_path / "p.jsonl", [{"prompt": f"Question {n}?", "category": "x", "expect": "refuse" if n % 2 else "comply"} for n in range(12)]
    )
    with serving(answer) as (url, asked):
        words = command("gate", "base", "candidate", "--endpoint", url, "--prompts", prompts, "--out", tmp_path / "run")
        done = subprocess.run(words, env=environment(FORENSICS_API_KEY=KEY), cwd=tmp_path, capture_output=True, text=True, check=False)

    assert asked
    assert "Traceback" not in done.stderr
    finished = (tmp_path / "run" / "audit.json").exists()
    assert finished is (trouble not in ("error", "not json")), done.stderr
    assert (tmp_path / "run" / "report.html").exists() is finished
    told = [done.stdout.encode(), done.stderr.encode(), *(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())]
    assert not [text for text in told if KEY.encode() in text or KEY.replace("/", "\\/").encode() in text]
    if trouble == "echo":
        assert "You sent (key)" in (tmp_path / "run" / "items.jsonl").read_text()


def test_an_answer_larger_than_any_is_not_taken_in(tmp_path, monkeypatch):
    monkeypatch.setattr(served, "MOST_ANSWER", 1 << 20)
    bomb = gzip.compress(b"{" + b" " * (8 << 20) + b"}")
    endpoint = served.Endpoint(urls=("http://x/v1",), models=("a", "b"), max_new_tokens=1, at_once=1)

    async def ask() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=bomb, headers={"content-encoding": "gzip"}))
        async with httpx.AsyncClient(transport=transport) as client:
            await served._post(client, endpoint.urls[0], {}, "")

    with pytest.raises(httpx.DecodingError, match="more than 1 MiB"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole | {"created": "yesterday"},
        lambda whole: whole | {"valid_until": "2027-01-15T12:00:00"},
        lambda whole: whole | {"settings": {"bands": "5 ten 30"}},
        lambda whole: whole | {"settings": {"bands": "nan"}},
        lambda whole: whole | {"verdict": whole["verdict"] | {"exit_code": 0 if whole["verdict"]["exit_code"] else 20}},
        lambda whole: whole | {"verdict": whole["verdict"] | {"by_configuration": {"candidate": "BLOCK"}}},
    ],
)
def test_a_record_that_contradicts_itself_is_refused_though_its_digest_is_right(change, run):
    whole = json.loads((run / "audit.json").read_text())
    changed = change(whole) | {"contents": None}
    verdict = Verdict.model_validate(changed["verdict"])
    results = tuple(CheckResult.model_validate(row) for row in changed["results"])
    (run / "audit.json").write_text(json.dumps(changed | {"results_digest": digest_results(results, verdict)}))
    with pytest.raises(BadInput, match="record"):
        load_record(str(run))
