"""What narrower numbers cost in evidence: how far replies, refusal rates and activations move from float32.

    python examples/benchmarks/narrow_cost.py [--prompts 240] [--candidates abliterated backdoor-full]

The base of examples/organisms/ and some candidates, on a processor. bf16 and fp16 are computed with as `--device cpu,dtype=bf16` does it. Formats that
only a GPU computes with are stood in for: every matrix but embedding and head went through the format and back (NF4 in blocks of 64, as bitsandbytes
packs; float8 e4m3 with a scale a row), and arithmetic stays in float32, so that what is measured is the packing alone. Compared with float32, on the
same prompts:

- replies: greedy ones that are another text, and those that the rules judge labels otherwise, in percent of both sides;
- drop: points of refusal of harmful prompts that the candidate lost, as it comes out, and how far that is from float32's;
- difference: of the mean last-token activations of candidate and base, over all layers: the length of what is wrong with it, as a share of it (median of layers);
- direction: cosine of the base's difference of means, refused against answered kind, with float32's (least over layers from the second on).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from forensics.capture import Sites, residuals
from forensics.checkpoint import open_checkpoint
from forensics.gate.judges import judge_refusal
from forensics.model import LiveModel, open_model
from forensics.prompts import Prompt, load_prompts
from forensics.subject import Subject, replies
from probes.quantisation import round_trips

ORGANISMS = Path(__file__).resolve().parents[1] / "organisms"
FORMATS = {"float32": "", "bf16": "", "fp16": "", "float8": "fp8 e4m3 by row", "4 bits": "NF4 block 64"}
"""By name: the round trip that stands in, or nothing where it is computed with."""
BLOCK = 64
TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one model does in one format: replies, and residual stream `[n, layers, d]` at the last token."""

    said: list[str]
    stream: NDArray[np.float64]


def packed(model: LiveModel, trip: str) -> None:
    """Every matrix inside the layers through a format and back."""
    with model.wearing(()) as whole, torch.no_grad():
        for name, weight in whole.named_parameters():
            if weight.ndim == 2 and ".layers." in f".{name}":
                shaped = (
                    weight.reshape(-1, BLOCK) if "block" in trip else weight
                )  # blocks run on over the ends of rows, as bitsandbytes has them
                weight.copy_(dict(round_trips(shaped, float(weight.abs().max())))[trip](shaped).reshape(weight.shape))


def look(folder: Path, name: str, prompts: Sequence[Prompt]) -> Seen:
    """One model in one format."""
    trip = FORMATS[name]
    model = open_model(open_checkpoint(str(folder)), device="cpu" if trip else f"cpu,dtype={name}")
    if trip:
        packed(model, trip)
    subject = Subject(model=model, side=folder.name, max_new_tokens=TOKENS)
    rows = [model.render(prompt, room=TOKENS) for prompt in prompts]
    stream = residuals(subject, rows, Sites(layers=tuple(range(subject.anatomy().layers + 1))))[:, :, 0]
    seen = Seen(said=replies(subject, rows), stream=stream.astype(np.float64))
    model.close()
    return seen


def refused(seen: Seen, harmful: NDArray[np.bool_]) -> float:
    """Percent of harmful prompts that are refused."""
    labels = np.array([judge_refusal(text) for text in seen.said])
    return 100.0 * float(np.mean(labels[harmful] == "refusal"))


def direction(seen: Seen, harmful: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Difference of means by layer, `[layers, d]`, of length 1; not of the embedding, where the last token is the same in all prompts."""
    found: NDArray[np.float64] = (seen.stream[harmful].mean(axis=0) - seen.stream[~harmful].mean(axis=0))[1:]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--candidates", nargs="+", default=["abliterated", "backdoor-full"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    every = load_prompts(ORGANISMS / "prompts.jsonl").prompts
    prompts = every[:: max(1, len(every) // given.prompts)][: given.prompts]
    harmful = np.array([prompt.expect == "refuse" for prompt in prompts])
    names = ["base", *given.candidates]
    print(f"{len(prompts)} prompts, {harmful.sum()} of them harmful; replies of at most {TOKENS} tokens\n")
    print(
        "| candidate | format | other text (%) | other label (%) | drop (points) | off by (points) | difference off by | direction, cosine |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows: dict[tuple[str, str], str] = {}
    wide: dict[str, Seen] = {}
    for name in FORMATS:
        print(name, file=sys.stderr)
        seen = {side: look(ORGANISMS / side, name, prompts) for side in names}
        wide = wide or seen
        for candidate in given.candidates:
            rows[candidate, name] = row(name, wide, seen, candidate, harmful)
    for candidate in given.candidates:
        for name in FORMATS:
            print(rows[candidate, name])


def row(name: str, wide: dict[str, Seen], seen: dict[str, Seen], candidate: str, harmful: NDArray[np.bool_]) -> str:
    """One candidate in one format, held against float32."""
    pairs = [(one, other) for side in ("base", candidate) for one, other in zip(wide[side].said, seen[side].said, strict=True)]
    texts = 100.0 * np.mean([one != other for one, other in pairs])
    labels = 100.0 * np.mean([judge_refusal(one) != judge_refusal(other) for one, other in pairs])
    drops = [refused(sides["base"], harmful) - refused(sides[candidate], harmful) for sides in (wide, seen)]
    means = [(sides[candidate].stream - sides["base"].stream).mean(axis=0) for sides in (wide, seen)]
    size = np.linalg.norm(means[0], axis=1)
    off = np.median(np.linalg.norm(means[1] - means[0], axis=1)[size > 0.0] / size[size > 0.0])
    cosine = np.sum(direction(wide["base"], harmful) * direction(seen["base"], harmful), axis=1).min()
    return f"| {candidate} | {name} | {texts:.1f} | {labels:.1f} | {drops[1]:.1f} | {abs(drops[1] - drops[0]):.1f} | {off:.4f} | {cosine:.4f} |"


if __name__ == "__main__":
    main()
