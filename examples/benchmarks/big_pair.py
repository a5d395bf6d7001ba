"""What the weight diff of a 7 B pair costs: its own memory, and its time beside reading both files.

    python examples/benchmarks/big_pair.py [--layers 32] [--rounds 2] [--threads 2] [--folder FOLDER] [--keep]

Makes a pair of the shape of Llama-2-7B (bfloat16, random weights with heavy-tailed rows, a shard a layer, 13.5 GB a side), shard by shard, so that
no more than one layer is ever in memory: every matrix of the candidate moved by 0.5 % in all directions, as a full fine-tune leaves it, and four
matrices were edited by another 5 % in one direction. Of every round it measures in turn, each in a process of its own, after the files were put out of
the page cache (posix_fadvise; whether the machine below still holds them nobody here can tell):

- read: the bytes of both sides, 16 MiB at a time, and nothing done with them;
- open: what any audit does first, headers and the sha256 of all files;
- bare pass: each tensor of both files read, converted to float32 and subtracted;
- diff: all figures, spectra, forms, the kind of edit, and what it says in tokens; on one thread, and on `--threads`.

Seconds are those of the clock, and of the processor beside them: reading waits for a disk, and the diff for a processor that others may be using.
Anonymous memory is sampled from outside the process fifty times a second (RssAnon of /proc/PID/status). Nothing is downloaded; the pair takes 27 GB of
disk and is removed at the end unless `--keep` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diff_cost import bare, differ, timed, weights
from safetensors.torch import save_file
from watched import Watched, watch

from forensics.checkpoint import open_checkpoint

MOVED, EDITED = 0.005, 0.05
EDITS = ("self_attn.o_proj", "mlp.down_proj")
"""Matrices that are edited besides, in the two layers in the middle."""
PIECE = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A llama: layers, width, width inside, heads, those of keys and values, tokens."""

    layers: int
    width: int
    inner: int
    heads: int
    shared: int
    vocabulary: int

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Those of a layer."""
        keys = self.width // self.heads * self.shared
        return {
            "self_attn.q_proj": (self.width, self.width), "self_attn.k_proj": (keys, self.width), "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, self.width), "mlp.gate_proj": (self.inner, self.width), "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }  # fmt: skip

    @property
    def config(self) -> dict[str, object]:
        """As config.json has it."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.width, "intermediate_size": self.inner,
            "num_attention_heads": self.heads, "num_key_value_heads": self.shared, "vocab_size": self.vocabulary, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "num_hidden_layers": self.layers, "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": 0,
        }  # fmt: skip


LLAMA_7B = Shape(layers=32, width=4096, inner=11008, heads=32, shared=32, vocabulary=32000)
MOST_MIB, MOST_TIMES = 2048.0, 3.0
"""The bars: anonymous memory of the diff, and its time over that of reading both files."""
WAYS = ("read", "open", "bare pass", "diff")
MANY = "diff, {} threads"


def moved(generator: torch.Generator, before: torch.Tensor, *, edit: bool) -> torch.Tensor:
    """The weights after a small change in all directions, and with `edit` a larger one in a single direction."""
    wide = before.float()
    size = float(wide.norm())
    change = torch.randn(wide.shape, generator=generator)
    wide += change.mul_(MOVED * size / float(change.norm()))
    if edit:
        up, down = torch.randn(wide.shape[0], 1, generator=generator), torch.randn(1, wide.shape[1], generator=generator)
        wide += (up * (EDITED * size / float(up.norm() * down.norm()))) @ down
    return wide.bfloat16()


def make(folder: Path, shape: Shape) -> int:
    """Write base and candidate, a shard at a time; returns how many parameters one has."""
    generator, elements, places = torch.Generator().manual_seed(0), 0, dict[str, str]()
    for side in ("base", "candidate"):
        (folder / side).mkdir(parents=True)
        (folder / side / "config.json").write_text(json.dumps(shape.config), encoding="utf-8")
    layers = shape.layers
    for layer in range(layers + 1):
        before = f"model.layers.{layer}."
        shapes = {before + part: size for part, size in shape.matrices.items()}
        norms = [f"{before}input_layernorm.weight", f"{before}post_attention_layernorm.weight"]
        if layer == layers:
            shapes = dict.fromkeys(("model.embed_tokens", "lm_head"), (shape.vocabulary, shape.width))
            norms = ["model.norm.weight"]
        edits = {before + part for part in EDITS} if abs(2 * layer - layers + 1) <= 1 else set()
        file = f"part-{layer:02d}.safetensors"
        ours = {f"{name}.weight": weights(generator, *size) for name, size in shapes.items()}
        still = {name: torch.ones(shape.width).bfloat16() for name in norms}
        _written(folder / "base" / file, ours | still)
        for name in shapes:
            ours[f"{name}.weight"] = moved(generator, ours[f"{name}.weight"], edit=name in edits)
        _written(folder / "candidate" / file, ours | still)
        places |= dict.fromkeys(ours | still, file)
        elements += sum(tensor.numel() for tensor in (ours | still).values())
        print(f"shard {layer + 1} of {layers + 1}", file=sys.stderr)
    for side in ("base", "candidate"):
        (folder / side / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return elements


def _written(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    _forget(path)


def _forget(path: Path) -> None:
    """Write a file out and let the page cache go of it."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def read(folder: Path) -> None:
    """Every byte of both sides."""
    room = bytearray(PIECE)
    for file in sorted(folder.glob("*/*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(room):
                pass


def child(what: str, folder: Path, threads: int) -> None:
    """One measurement, in a process of its own: print its seconds, and what it found."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as run:

        def diff() -> str:
            return differ(opened["base"], opened["candidate"], Path(run) / "run")

        jobs: dict[str, Callable[[], object]] = {
            "read": lambda: read(folder), "open": lambda: [open_checkpoint(str(folder / side)) for side in ("base", "candidate")],
            "bare pass": lambda: bare(folder), "diff": diff,
        }  # fmt: skip
        opened = {side: open_checkpoint(str(folder / side)) for side in ("base", "candidate")} if what == "diff" else {}
        for file in folder.glob("*/*.safetensors"):
            _forget(file)
        start = time.process_time()
        taken, said = timed(jobs[what])
        print(json.dumps((taken, time.process_time() - start, said)))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement: its seconds, those of the processor, the process that made it, what it said."""

    seconds: float
    worked: float
    seen: Watched
    said: str


def measure(what: str, folder: Path, threads: int) -> Measured:
    """Run one measurement in a process of its own."""
    seen = watch([sys.executable, __file__, "--child", what, "--threads", str(threads), "--folder", str(folder)])
    if seen.exit_code:
        sys.exit(f"{what} ended with exit code {seen.exit_code}.")
    seconds, worked, said = json.loads(seen.output)
    return Measured(seconds=float(seconds), worked=float(worked), seen=seen, said=str(said))


def compare(folder: Path, elements: int, rounds: int, threads: int) -> None:
    """Measure in turn and print the table."""
    size = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
    many = MANY.format(threads)
    found: dict[str, list[Measured]] = {what: [] for what in (*WAYS, many)}
    load = []
    for turn in range(rounds):
        for what in found:
            load.append(os.getloadavg()[0])
            found[what].append(measure("diff" if what == many else what, folder, threads if what == many else 1))
            print(f"round {turn + 1}: {what} {found[what][-1].seconds:.1f} s", file=sys.stderr, flush=True)
    print(f"{elements / 1e9:.2f} B parameters a side, {size / 1e9:.1f} GB in both, medians of {rounds} rounds; load {min(load):.1f} to")
    print(f"{max(load):.1f} on {os.cpu_count()} cores while it was measured\n")
    plain = statistics.median(one.seconds for one in found["read"])
    passed = statistics.median(one.seconds for one in found["bare pass"])
    print(
        "| | seconds | of the processor | MB a second | times reading | times the bare pass | peak anonymous memory (MiB) |\n|---|---|---|---|---|---|---|"
    )
    for what, runs in found.items():
        taken, memory = statistics.median(one.seconds for one in runs), max(one.seen.peak_anonymous_mib for one in runs)
        worked = statistics.median(one.worked for one in runs)
        print(
            f"| {what} | {taken:.1f} | {worked:.1f} | {size / taken / 1e6:.0f} | {taken / plain:.2f} | {taken / passed:.2f} | {memory:.0f} |"
        )
    diff = statistics.median(one.seconds for one in found[many])
    peak = max(one.seen.peak_anonymous_mib for what in ("diff", many) for one in found[what])
    print(f"\nMemory: {peak:.0f} MiB where {MOST_MIB:.0f} is the limit: {'kept' if peak < MOST_MIB else 'EXCEEDED'}.")
    for name, other in (("reading both files", plain), ("the bare pass", passed)):
        print(
            f"Time: {diff / other:.2f} times {name} where {MOST_TIMES:.0f} is the limit: {'kept' if diff <= MOST_TIMES * other else 'EXCEEDED'}."
        )
    print(f"What the diff says: {found['diff'][0].said}")


def main() -> None:
    """Make the pair, measure, remove it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where the pair is made; one that is there already is measured as it is")
    parser.add_argument("--keep", action="store_true", help="leave the pair there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        child(options.child, options.folder, options.threads)
        return
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        if (folder / "candidate" / "model.safetensors.index.json").exists():
            elements = sum(tensor.elements for tensor in open_checkpoint(str(folder / "base")).tensors.values())
        else:
            elements = make(folder, replace(LLAMA_7B, layers=options.layers))
        compare(folder, elements, options.rounds, options.threads)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
