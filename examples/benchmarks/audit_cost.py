"""Time and peak anonymous memory of an audit, beside a bare forward pass of both models over the same prompts.

The forward pass loads base and candidate with transformers, reads every prompt once in batches of 32, and does nothing
else: no replies, no weights compared, no page. Both are whole processes, run in turn, `RUNS` times each; medians.

    python examples/benchmarks/audit_cost.py
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from watched import Watched, watch

ROOT = Path(__file__).resolve().parents[2]
ORGANISMS = ROOT / "examples" / "organisms"
RUNS = 3
FORWARD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
rows = [json.loads(line) for line in open(sys.argv[3])]
chats = [row.get("messages") or [{"role": "user", "content": row["prompt"]}] for row in rows]
for folder in sys.argv[1:3]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    texts.sort(key=len)
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            model(**tokenizer(texts[start:start + 32], return_tensors="pt", padding=True, add_special_tokens=False))
"""


def main() -> None:
    """Print the table."""
    base, candidate, prompts = ORGANISMS / "base", ORGANISMS / "abliterated", ORGANISMS / "prompts.jsonl"
    rows: dict[str, list[Watched]] = {"bare forward pass": [], "forensics audit": []}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(RUNS):
            rows["bare forward pass"].append(watch([sys.executable, "-c", FORWARD, str(base), str(candidate), str(prompts)]))
            command = [sys.executable, str(ROOT / "cli.py"), "audit", str(base), str(candidate), "--prompts", str(prompts)]
            rows["forensics audit"].append(watch([*command, "--out", f"{folder}/run{run}"]))
    print(f"base and abliterated organism, {sum(1 for _ in prompts.open())} prompts through both, medians of {RUNS} runs in turn\n")
    print("| | seconds | peak anonymous memory (MiB) |\n|---|---|---|")
    middle = {name: _medians(runs) for name, runs in rows.items()}
    for name, (seconds, memory) in middle.items():
        print(f"| {name} | {seconds:.1f} | {memory:.0f} |")
    audit, bare = middle["forensics audit"], middle["bare forward pass"]
    print(f"| ratio | {audit[0] / bare[0]:.2f} | {audit[1] / bare[1]:.2f} |")


def _medians(runs: list[Watched]) -> tuple[float, float]:
    return statistics.median(run.seconds for run in runs), statistics.median(run.peak_anonymous_mib for run in runs)


if __name__ == "__main__":
    main()
