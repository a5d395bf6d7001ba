"""What reading activations costs: means over the last tokens at all layers, beside a bare forward pass of the same model.

    python examples/benchmarks/capture_cost.py [--pairs 25] [--layers 16] [--width 512] [--prompts 32] [--batch 8] [--memory]

A llama of random weights (16 layers of width 512 unless told otherwise), float32, one thread, prompts of 32 to 96 random tokens. Each
round measures, in an order that turns from round to round:

- bare: the blocks of the model over the same padded batches, in the model's own attention, without logits and without hooks, the
  batches made beforehand;
- means: `forensics.capture.mean_residual` at every layer, batches made and figures taken on the way;
- covariances: `forensics.capture.statistics` at the same places, with the whole covariance of each;
- TransformerLens: `run_with_cache` with the same names, `pos_slice=-1` and the same batches, its means taken as well.

The ratio of a round is to the bare pass of that round, so that what else the machine does falls on both; the bound is the upper end of the 95 %
interval (Student's t) of the mean ratio. It is taken by the clock on the wall, and once more by the processor's time of this process, which
is steadier where other work runs beside it (the first is the one that counts; on a quiet machine both agree). Then what the interpreter spends the difference on (cProfile, own functions only), and the peak of memory
of processes that read N and four times N prompts (`--memory`: that alone). About 8 minutes on one core; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from watched import watch

from forensics.capture import Reading, Sites, Spread, mean_residual, residuals, statistics
from forensics.model import LiveModel, Rendered
from forensics.sites import stream_sites
from forensics.subject import Subject, padded, piecewise

TOKENIZER = Path(__file__).resolve().parents[1] / "organisms" / "base"
SHORTEST, LONGEST = 32, 96
VOCABULARY = 1024
SEED = 0
LIMIT = 1.10
"""The bound that the project set itself."""
BARE, MEANS = "bare forward pass", "means at all layers"
IN_MEMORY, IN_MEMORY_LONG = 512, 8
"""Prompts of the smaller process whose memory is measured, and the tokens of each; the larger reads four times as many. They are short and of one
length, so that many can be read, and the batches of both processes are the same."""


def network(layers: int, width: int) -> LlamaForCausalLM:
    """A llama of random weights in the usual proportions."""
    torch.manual_seed(SEED)
    heads = max(1, width // 64)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        vocab_size=VOCABULARY, max_position_embeddings=2 * LONGEST, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def subject_of(model: LlamaForCausalLM, batch: int) -> Subject:
    """The model as the examination holds it. Its tokenizer is not used: prompts are given as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    live = LiveModel(model, tokenizer, name="random", device=torch.device("cpu"))
    return Subject(model=live, side="base", batch_size=batch)


def prompts(count: int, shortest: int = SHORTEST, longest: int = LONGEST) -> list[Rendered]:
    """Random token ids of random lengths."""
    rng = np.random.default_rng(SEED)
    return [Rendered(ids=tuple(rng.integers(0, VOCABULARY, size=rng.integers(shortest, longest + 1)).tolist())) for _ in range(count)]


def bare(subject: Subject, rows: list[Rendered]) -> Callable[[], None]:
    """The forward pass alone, over the batches that the capture makes."""
    trunk = subject.anatomy().trunk
    batches = [inputs for _, inputs in piecewise(lambda some: padded(some, trunk, subject.model.device), rows, subject)]

    def run() -> None:
        with torch.inference_mode():
            for inputs in batches:
                trunk(**inputs, use_cache=False)

    return run


def of_transformer_lens(folder: Path, subject: Subject, rows: list[Rendered], layers: int) -> Callable[[], NDArray[np.float64]]:
    """TransformerLens' own cache of the same sites over the same batches, and the means of it."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    trunk, names = subject.anatomy().trunk, stream_sites(layers)
    batches = [inputs for _, inputs in piecewise(lambda some: padded(some, trunk, subject.model.device), rows, subject)]

    def run() -> NDArray[np.float64]:
        total = np.zeros(1)
        with torch.inference_mode():
            for inputs in batches:
                _, cache = bridge.run_with_cache(
                    inputs["input_ids"], attention_mask=inputs["attention_mask"], names_filter=list(names), pos_slice=-1
                )
                total = total + np.stack([cache[name][:, 0].sum(dim=0, dtype=torch.float64).numpy() for name in names])
        return total / len(rows)

    return run


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """How long one call takes: by the clock on the wall, and in processor time of this process."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def bounded(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a mean ratio."""
    half = float(stats.t.ppf(0.975, len(ratios) - 1) * ratios.std(ddof=1) / np.sqrt(len(ratios)))
    return float(ratios.mean()) - half, float(ratios.mean()) + half


def compare(settings: argparse.Namespace, folder: Path) -> None:
    """Measure in turn and print the table."""
    model = network(settings.layers, settings.width)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    subject, rows = subject_of(model, settings.batch), prompts(settings.prompts)
    sites = Sites(layers=tuple(range(settings.layers + 1)))
    reading = Reading(sites=stream_sites(settings.layers))
    lens = of_transformer_lens(folder, subject, rows, settings.layers)
    ways: dict[str, Callable[[], object]] = {
        BARE: bare(subject, rows),
        MEANS: lambda: mean_residual(subject, rows, sites),
        "covariances at all layers": lambda: statistics(subject, rows, reading, Spread(kind="covariance")),
        "TransformerLens' cache": lens,
    }
    apart = np.abs(lens() - mean_residual(subject, rows, sites)[:, 0])
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for work in ways.values():
        work()  # once unmeasured: memory is taken from the system then
    for turn in range(settings.pairs):
        order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
        for name in order:
            taken[name].append(seconds(ways[name]))
        print(f"round {turn + 1} of {settings.pairs}", file=sys.stderr)
    print(
        f"{settings.pairs} rounds, {settings.layers} layers of width {settings.width}, {settings.prompts} prompts in batches of {settings.batch}, "
    )
    print("one thread, float32; ratios to the bare pass of the same round\n")
    print(
        "| | seconds (median) | mean ratio, 95 % interval | largest | mean ratio in processor time, 95 % interval |\n|---|---|---|---|---|"
    )
    plain = np.array(taken[BARE])
    ratios = {name: np.array(found) / plain for name, found in taken.items()}
    for name, found in ratios.items():
        wall, processor = (f"{column.mean():.3f}, {bounded(column)[0]:.3f} to {bounded(column)[1]:.3f}" for column in found.T)
        print(f"| {name} | {np.median(np.array(taken[name])[:, 0]):.3f} | {wall} | {found[:, 0].max():.3f} | {processor} |")
    high = bounded(ratios[MEANS][:, 0])[1]
    print(f"\nThe upper bound is {high:.3f} where {LIMIT:.2f} is the limit: {'kept' if high <= LIMIT else 'EXCEEDED'}.")
    size = float(np.abs(lens()).max())
    print(f"The means differ from those of TransformerLens by at most {apart.max():.1g}, the largest of them being {size:.2g}.")
    profile(lambda: mean_residual(subject, rows, sites))


def profile(work: Callable[[], object]) -> None:
    """Print what of `work` is our own, by function."""
    watcher = cProfile.Profile()
    watcher.runcall(work)
    ours = pstats.Stats(watcher).get_stats_profile()
    whole = ours.total_tt
    print(f"\nOf {whole:.2f} s under the profiler, own functions take (without what they call):")
    kept = {
        name: found for name, found in ours.func_profiles.items() if "forensics" in found.file_name or "isfinite" in name or "'cpu'" in name
    }
    for name, found in sorted(kept.items(), key=lambda item: -item[1].tottime)[:8]:
        print(f"  {1000 * found.tottime:7.1f} ms  {100 * found.tottime / whole:5.2f} %  {found.ncalls} calls of {name}")


def memory(settings: argparse.Namespace) -> None:
    """Print the peak of memory of processes that read few and many prompts."""
    print("\n| peak of own memory, MiB | " + " | ".join(f"{count} prompts" for count in (IN_MEMORY, 4 * IN_MEMORY)) + " |\n|---|---|---|")
    for way in ("means", "sketches", "kept"):
        peaks = []
        for count in (IN_MEMORY, 4 * IN_MEMORY):
            words = ["--only", way, "--prompts", str(count), "--layers", str(settings.layers), "--width", str(settings.width)]
            done = watch([sys.executable, __file__, *words, "--batch", str(settings.batch)])
            if done.exit_code:
                raise SystemExit(f"reading {count} prompts ({way}) ended with {done.exit_code}")
            peaks.append(f"{done.peak_anonymous_mib:.0f}")
        print(f"| {way} | {' | '.join(peaks)} |")


def only(settings: argparse.Namespace) -> None:
    """One pass over the prompts in a process whose memory is watched."""
    subject = subject_of(network(settings.layers, settings.width), settings.batch)
    rows = prompts(settings.prompts, IN_MEMORY_LONG, IN_MEMORY_LONG)
    sites, reading = Sites(layers=tuple(range(settings.layers + 1))), Reading(sites=stream_sites(settings.layers))
    if settings.only == "means":
        mean_residual(subject, rows, sites)
    elif settings.only == "sketches":
        statistics(subject, rows, reading, Spread(kind="sketch"))
    else:
        residuals(subject, rows, sites)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("pairs", 25), ("layers", 16), ("width", 512), ("prompts", 32), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", choices=("means", "sketches", "kept"), help="one pass, for the measurement of memory")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if settings.only:
        only(settings)
        return
    if not settings.memory:
        with tempfile.TemporaryDirectory() as folder:
            compare(settings, Path(folder))
    memory(settings)


if __name__ == "__main__":
    main()
