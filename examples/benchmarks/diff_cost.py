"""What the differ costs: time and memory of a full diff with spectra, beside reading both files and subtracting them.

    python examples/benchmarks/diff_cost.py [--layers 28] [--ranks 4 16 full] [--rounds 3] [--folder FOLDER] [--only pairs|svd]

Makes pairs of the shape of Qwen2.5-1.5B (bfloat16, random weights with heavy-tailed rows) in which every matrix inside the
layers changed by 1 % in so many directions, and measures in turn, in processes of their own and with the page cache warm: the bare
pass (each tensor of both files read, converted to float32 and subtracted), the same in the blocks that the differ reads, and the
differ: all figures, spectra, forms, the kind of edit, and what it says in tokens. Then the differ's memory on half as many layers and half the vocabulary, and
full SVDs of eight matrices of each shape. One thread each. Nothing is downloaded; a pair takes 6 GB of disk for a while.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from watched import Watched, watch

from forensics.alignment import align
from forensics.case import CANDIDATE, Case
from forensics.checkpoint import Checkpoint, open_checkpoint
from forensics.differ import tensor_edits
from forensics.gate.replies import Decoding
from forensics.policy import load_policy
from forensics.readout import readings
from forensics.roles import WRITES, place
from forensics.runfolder import RunFolder
from forensics.workbench import Workbench
from probes.differ import Meter
from probes.edits import classify
from probes.tensor_edits import Surroundings

HIDDEN, INNER, VOCABULARY, KEYS = 1536, 8960, 151936, 256
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 12,
    "num_key_value_heads": 2, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
RELATIVE = 0.01
COMPARED = 8
"""Matrices of each shape on which the full SVD is measured."""


def weights(generator: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    """Random weights whose rows are of very different size, bfloat16."""
    scale = torch.randn(rows, 1, generator=generator).exp().clamp(0.3, 4.0)
    found: torch.Tensor = torch.randn(rows, columns, generator=generator) * scale * 0.02
    return found.bfloat16()


def edited(generator: torch.Generator, before: torch.Tensor, rank: int | None) -> torch.Tensor:
    """The weights after a change of `RELATIVE` in `rank` directions; in all of them for None."""
    rows, columns = before.shape
    if rank is None:
        change = torch.randn(rows, columns, generator=generator)
    else:
        change = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    wide = before.float()
    return (wide + change * (RELATIVE * float(wide.norm()) / float(change.norm()))).bfloat16()


def make(folder: Path, plan: Plan) -> int:
    """Write base and candidate; returns how many parameters one has."""
    generator, elements = torch.Generator().manual_seed(0), 0
    places: dict[str, str] = {}

    def write(file: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
        save_file(ours, folder / "base" / file)
        save_file(theirs, folder / "candidate" / file)
        places.update(dict.fromkeys(ours, file))

    for side in ("base", "candidate"):
        (folder / side).mkdir(parents=True)
        settings = {**CONFIG, "num_hidden_layers": plan.layers, "vocab_size": plan.vocabulary}
        (folder / side / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    for layer in range(plan.layers):
        names = {f"model.layers.{layer}.{part}.weight": shape for part, shape in SHAPES.items()}
        ours = {name: weights(generator, *shape) for name, shape in names.items()}
        theirs = {name: edited(generator, tensor, plan.rank) for name, tensor in ours.items()}
        norms = {
            f"model.layers.{layer}.{part}.weight": torch.ones(HIDDEN).bfloat16() for part in ("input_layernorm", "post_attention_layernorm")
        }
        write(f"layer-{layer:02d}.safetensors", ours | norms, theirs | norms)
        elements += sum(tensor.numel() for tensor in (ours | norms).values())
    embedding = {
        "model.embed_tokens.weight": weights(generator, plan.vocabulary, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN).bfloat16(),
    }
    write("rest.safetensors", embedding, embedding)
    for side in ("base", "candidate"):
        (folder / side / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return elements + sum(tensor.numel() for tensor in embedding.values())


def bare(folder: Path) -> None:
    """Every tensor of both files read, converted and subtracted."""
    for file in sorted((folder / "base").glob("*.safetensors")):
        with safe_open(file, framework="pt") as ours, safe_open(folder / "candidate" / file.name, framework="pt") as theirs:
            for name in ours.keys():  # noqa: SIM118 - no mapping: this is its only way to the names
                theirs.get_tensor(name).float() - ours.get_tensor(name).float()


def bare_in_blocks(base: Checkpoint, candidate: Checkpoint) -> None:
    """The same in the differ's blocks, which fit the processor's cache."""
    for name in base.tensors:
        for ours, theirs in zip(base.blocks(name), candidate.blocks(name), strict=True):
            theirs.float() - ours.float()


def differ(base: Checkpoint, candidate: Checkpoint, run: Path) -> str:
    """Everything that is measured of the pair, and the kind of edit; returns its claim."""
    with RunFolder(run, key="cost", created=datetime.now(UTC).isoformat()) as folder:
        bench = Workbench(device="cpu", decoding=Decoding(max_new_tokens=1, batch_size=1), run=folder, progress=lambda *_: None)
        layout = align(base, candidate)
        case = Case(
            base=base, candidate=candidate, adapters=(), surface=candidate, configuration=CANDIDATE, layout=layout, prompts=(), policy=load_policy(),
            seed=0, workbench=bench,
        )  # fmt: skip
        around = Surroundings(same_files=False, layers=layout.layers, base_layers=layout.base_layers)
        claim = classify(tensor_edits(case), around).claim
        readings(case)
        return claim


def child(what: str, folder: Path) -> None:
    """One measurement, in a process of its own: print its seconds, and what it found."""
    torch.set_num_threads(1)
    if what == "open":
        print(
            json.dumps(
                timed(lambda: str(open_checkpoint(str(folder / "base")).digest and open_checkpoint(str(folder / "candidate")).digest))
            )
        )
        return
    base, candidate = (open_checkpoint(str(folder / side)) for side in ("base", "candidate"))
    with tempfile.TemporaryDirectory() as run:
        jobs: dict[str, Callable[[], object]] = {
            "bare": lambda: bare(folder), "blocks": lambda: bare_in_blocks(base, candidate),
            "differ": lambda: differ(base, candidate, Path(run) / "run"),
        }  # fmt: skip
        print(json.dumps(timed(jobs[what])))


def timed(job: Callable[[], object]) -> tuple[float, str]:
    """Seconds that a job takes, and what it says."""
    start = time.perf_counter()
    said = job()
    return time.perf_counter() - start, said if isinstance(said, str) else ""


def measure(what: str, folder: Path) -> tuple[float, Watched, str]:
    """Run one measurement: seconds inside, the process watched, what it found."""
    seen = watch([sys.executable, __file__, "--child", what, "--folder", str(folder)])
    if seen.exit_code:
        sys.exit(f"{what} ended with exit code {seen.exit_code}.")
    seconds, said = json.loads(seen.output)
    return float(seconds), seen, str(said)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One pair: layers, rows of the vocabulary, directions of the change (None: all)."""

    layers: int
    vocabulary: int
    rank: int | None


def row(plan: Plan, pair: Path, rounds: int) -> tuple[str, str]:
    """Make the pair and measure it: a row of the table, and what the differ called it."""
    elements = make(pair, plan)
    order = ("bare", "blocks", "differ")
    for what in order:
        measure(what, pair)  # the page cache is warm from here on
    runs = [[measure(what, pair) for what in order] for _ in range(rounds)]
    plain, blocks, ours = (statistics.median(one[column][0] for one in runs) for column in range(3))
    memory = max(one[2][1].peak_anonymous_mib for one in runs)
    name = f"{elements / 1e9:.2f} B parameters, {'all directions' if plan.rank is None else f'rank {plan.rank}'}"
    return (
        f"| {name} | {plain:.2f} | {blocks:.2f} | {ours:.2f} | {ours / plain:.2f} | {ours / blocks:.2f} | {memory:.0f} |",
        f"{name}: {runs[0][2][2]}",
    )


def svd_rows(folder: Path) -> Iterator[str]:
    """Full SVDs of eight matrices of each shape, beside all that the differ does for the same matrices."""
    torch.set_num_threads(1)
    base, candidate = (open_checkpoint(str(folder / side)) for side in ("base", "candidate"))
    layers = sum(name.endswith("q_proj.weight") for name in base.tensors)
    for shape in dict.fromkeys(SHAPES.values()):
        parts = [part for part, own in SHAPES.items() if own == shape]
        names = [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in parts]
        full = ours = 0.0
        for name in names[:COMPARED]:
            blocks = list(zip(base.blocks(name), candidate.blocks(name), strict=True))
            change = torch.cat([after.float() - before.float() for before, after in blocks])
            full += timed(partial(torch.linalg.svd, change, full_matrices=False))[0]
            ours += timed(partial(profile, name, shape, blocks))[0]
        n = min(COMPARED, len(names))
        yield f"| {n} of {shape[0]} x {shape[1]} | {full:.1f} | {ours:.2f} | {full / ours:.0f} | {full / n * len(names):.0f} |"


def profile(name: str, shape: tuple[int, int], blocks: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """What the differ does for one matrix."""
    meter = Meter(shape=shape, thin_columns=place(name).role in WRITES)
    for before, after in blocks:
        meter.update(before, after)
    meter.profile()


def main() -> None:
    """Make the pairs, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--ranks", nargs="+", default=["4", "16", "full"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=("pairs", "svd"), help="One of the two parts alone.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    if options.only != "svd":
        _print_pairs(options)
    if options.only != "pairs":
        _print_svds(options)


def _print_pairs(options: argparse.Namespace) -> None:
    """The table of pairs, of full and of half size."""
    ranks = [None if rank == "full" else int(rank) for rank in options.ranks]
    whole = [Plan(layers=options.layers, vocabulary=VOCABULARY, rank=rank) for rank in ranks]
    halves = [Plan(layers=options.layers // 2, vocabulary=VOCABULARY // 2, rank=rank) for rank in ranks]
    print(
        "| pair | bare pass (s) | bare in blocks (s) | differ (s) | ratio to bare | ratio to bare in blocks | peak anonymous memory (MiB) |"
    )
    print("|---|---|---|---|---|---|---|")
    said: list[str] = []
    for plan in (*whole, *halves):
        with tempfile.TemporaryDirectory(dir=options.folder) as root:
            line, claim = row(plan, Path(root) / "pair", options.rounds)
            print(line, flush=True)
            said.append(claim)
            if plan is whole[0]:
                said.append(
                    f"Beside that, opening both sides (headers, sha256 of all files): {measure('open', Path(root) / 'pair')[0]:.1f} s"
                )
    print("\n" + "\n".join(said) + "\n", flush=True)


def _print_svds(options: argparse.Namespace) -> None:
    """The table of full SVDs."""
    print(
        f"| shape | full SVD of the change (s) | differ, everything (s) | ratio | all of {options.layers} layers: full SVD, extrapolated (s) |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        make(Path(root) / "pair", Plan(layers=options.layers, vocabulary=1024, rank=16))
        for line in svd_rows(Path(root) / "pair"):
            print(line, flush=True)


if __name__ == "__main__":
    main()
