"""What an audit makes its models do, check by check: loads, tokens read, tokens written. `forensics cost` multiplies by these.

    python examples/benchmarks/audit_work.py [--candidate backdoor-full] [--prompts FILE.jsonl]

Audits an organism with its prompts, and counts at the models' embeddings: a forward pass over more than one token a row reads them (and makes one
logit at least), one over a single token a row writes it. Tokens are divided by prompts and by the length of the mean prompt, so that what is printed
holds for other prompts: a factor of 12 means that twelve times all prompts were read. What the search for triggers takes is bounded by its own budget,
and is printed as it was spent.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from forensics import audit, model
from forensics.case import Case
from forensics.checkpoint import Checkpoint, open_checkpoint
from forensics.gate.replies import Decoding
from forensics.model import LiveModel
from forensics.policy import load_policy
from forensics.prompts import load_prompts
from forensics.record import CheckResult

ORGANISMS = Path(__file__).resolve().parents[1] / "organisms"


@dataclass(kw_only=True)
class Work:
    """What was done on behalf of one check."""

    loads: int = 0
    passes: int = 0
    read: int = 0
    steps: int = 0
    written: int = 0


class Tally:
    """What was done on behalf of each check, in the order they ran."""

    def __init__(self) -> None:
        self.now = Work()
        self.checks: dict[str, Work] = {}

    def hear(self, _module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        """One forward pass begins."""
        ids = given[0]
        if ids.shape[-1] == 1:
            self.now.steps += 1
            self.now.written += ids.numel()
        else:
            self.now.passes += 1
            self.now.read += ids.numel()


def counting(tally: Tally) -> None:
    """Have every model that is opened from here on counted, on behalf of the check that runs."""
    load, guarded = model.open_model, audit.guarded

    def opened(weights: Checkpoint, **options: Any) -> LiveModel:
        found = load(weights, **options)
        tally.now.loads += 1
        with found.wearing(()) as whole:
            whole.get_input_embeddings().register_forward_pre_hook(tally.hear)
        return found

    def looking(look: Callable[[Case], CheckResult], id: str, case: Case) -> CheckResult:
        tally.now = tally.checks.setdefault(id, Work())
        return guarded(look, id, case)

    model.open_model = opened
    audit.guarded = looking


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidate", default="backdoor-full", help="which organism")
    parser.add_argument("--prompts", type=Path, default=ORGANISMS / "prompts.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tally = Tally()
    counting(tally)
    decoding = Decoding()
    with tempfile.TemporaryDirectory() as folder:
        request = audit.Request(
            base=str(ORGANISMS / "base"), candidate=str(ORGANISMS / given.candidate), prompts=(given.prompts,), policy=load_policy(),
            decoding=decoding, device="cpu", out=Path(folder) / "run",
        )  # fmt: skip
        done = audit.run(request, lambda title, at, of: print(f"{title} {at}/{of}", file=sys.stderr, end="\r"))
    prompts = load_prompts(given.prompts).prompts
    live = model.open_model(open_checkpoint(str(ORGANISMS / "base")), device="cpu")
    tokens = sum(len(live.render(prompt, room=0).ids) for prompt in prompts)
    print(
        f"{given.candidate}: {done.record.verdict.action}; {len(prompts)} prompts of {tokens / len(prompts):.1f} tokens, replies of at most"
    )
    print(f"{decoding.max_new_tokens}, {decoding.batch_size} side by side\n")
    print(
        "| check | models loaded | passes that read | tokens read | times all prompts | steps that write | tokens written | times all replies |"
    )
    print("|---|---|---|---|---|---|---|---|")
    whole = Work()
    for name, work in [*((name, work) for name, work in tally.checks.items() if work.loads or work.read or work.written), ("all", whole)]:
        replies = len(prompts) * decoding.max_new_tokens
        print(
            f"| {name} | {work.loads} | {work.passes} | {work.read} | {work.read / tokens:.1f} | {work.steps} | {work.written} | {work.written / replies:.2f} |"
        )
        for field in fields(Work):
            setattr(whole, field.name, getattr(whole, field.name) + getattr(work, field.name))


if __name__ == "__main__":
    main()
