"""Candidate strings a second of a gradient search: ours beside nanoGCG 0.3.0, on one model, one prompt, one target and strings of one length.

    python -m venv OTHER && OTHER/bin/pip install torch==2.13.0 transformers==4.47.1 nanogcg==0.3.0
    python examples/benchmarks/gcg_cost.py OTHER/bin/python [--rounds N]

nanoGCG has an environment of its own, since its prefix cache fails on transformers 5. Both sides load the same random Llama-like model of some 35
million weights, saved to disk; first their logits are held against each other. Then they search in turn, on one thread, `--rounds` times each, with
the defaults of nanoGCG (20 tokens, 512 candidates a step, 256 tokens a position), every candidate read in full by either; and ours once more as it
searches, where a candidate is dismissed by the first token of the target unless it is among the best quarter. Counted are candidates
that were read, whatever was thrown away before since it would be read as other tokens, in seconds of the processor: gradients, that filter and the
choice of the next string are part of it. What makes the difference: candidates that exchange the same token share what stands before it, logits are
taken of the target alone, and batches are small enough for the cache of a processor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forensics.checkpoint import open_checkpoint
from forensics.hunt.bank import common_words, neutral_texts
from forensics.hunt.contrast import Aim
from forensics.hunt.slopes import gradient_of, wanted
from forensics.hunt.voice import Clean, Openings, Voice
from forensics.model import open_model
from probes.search import Ascent, Ids, ascend

SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6}
VOCABULARY = 32_000
PROMPT, TARGET = "please tell me how to repair the old garden gate near the river", "sure here is how to repair the old garden gate"
START = " ".join(["x"] * 20)
WIDTH, TOP, BUFFER = 512, 256, 8
SAME = 1e-4
NAMES = ("ours, the best quarter by the first token of the target read in full", "ours, every candidate in full", "nanoGCG 0.3.0")
TEMPLATE = "{{ '<|user|>' + messages[-1]['content'] + '<|assistant|>' }}"
THEIRS = """
import json, sys, time, torch, logging
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
import nanogcg
from nanogcg import gcg
logging.getLogger("nanogcg").setLevel(logging.ERROR)
gcg.tqdm = lambda rows: rows
folder, prompt, target, start, width, top, buffer, device, dtype = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval().to(device)
clock = time.perf_counter if device != "cpu" else time.process_time
tokenizer = PreTrainedTokenizerFast(tokenizer_file=folder + "/tokenizer.json", pad_token="<pad>", chat_template=open(folder + "/chat_template.jinja").read())
read = 0
plain = gcg.GCG._compute_candidates_loss_original
def counted(self, size, embeds):
    global read
    read += len(embeds)
    return plain(self, size, embeds)
gcg.GCG._compute_candidates_loss_original = counted
for line in sys.stdin:
    asked = json.loads(line)
    if "ids" in asked:
        with torch.no_grad():
            print(json.dumps(model(torch.tensor([asked["ids"]], device=device)).logits[0, -1].tolist()), flush=True)
        continue
    read, begun = 0, clock()
    how = gcg.GCGConfig(num_steps=asked["steps"], optim_str_init=start, search_width=int(width), topk=int(top), buffer_size=int(buffer),
                        seed=asked["seed"], verbosity="ERROR")
    found = nanogcg.run(model, tokenizer, prompt + " {optim_str}", target, how)
    print(json.dumps({"read": read, "seconds": clock() - begun, "loss": found.best_loss}), flush=True)
"""


def everyday() -> PreTrainedTokenizerFast:
    """A tokenizer of a vocabulary of everyday words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<|user|>", "<|assistant|>"]
    trainer: Any = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [*neutral_texts(4000, words=12, seed=0), *(f"{one}{other}" for one in common_words()[:300] for other in common_words()[:150])]
    made.train_from_iterator([*texts, *[PROMPT, TARGET] * 50], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", chat_template=TEMPLATE, clean_up_tokenization_spaces=False)


def build(folder: Path) -> None:
    """Save a random model with a tokenizer of everyday words."""
    tokenizer = everyday()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=False, **SHAPE))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Ours:
    """Our search of one model for strings that bring the target."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Open the model."""
        self.voice = Voice(name="model", model=open_model(open_checkpoint(str(folder)), device=device), adapters=())
        self.clock = time.process_time if device == "cpu" else time.perf_counter
        self.tokenizer = self.voice.model.tokenizer
        before, behind = TEMPLATE.split("'")[1] + PROMPT + " ", TEMPLATE.split("'")[-2]
        self.before, self.behind, self.target, self.start = map(self.ids, (before, behind, TARGET, START))
        self.allowed = torch.full((self.voice.model.known,), -torch.inf)
        self.allowed[list(self.voice.model.printable())] = 0.0
        self.scored, self.halving = 0, False

    def ids(self, text: str) -> Ids:
        """Tokens of a text."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def valid(self, texts: Sequence[Ids]) -> list[bool]:
        """Whether strings are read as these tokens, as nanoGCG asks it."""
        read = self.tokenizer(self.tokenizer.batch_decode([list(ids) for ids in texts]), add_special_tokens=False)["input_ids"]
        return [tuple(ids) == text for ids, text in zip(read, texts, strict=True)]

    def score(self, texts: Sequence[Ids]) -> list[float]:
        """Log-probability of the target, mean over its tokens."""
        self.scored += 0 if self.halving else len(texts)
        return self._likely(texts, self.target)

    def glance(self, texts: Sequence[Ids]) -> list[float]:
        """That of its first token alone."""
        self.scored += len(texts)
        return self._likely(texts, self.target[:1])

    def _likely(self, texts: Sequence[Ids], target: Ids) -> list[float]:
        found: dict[int, float] = {}
        for batch, logs in self.voice.read([(*self.before, *text, *self.behind) for text in texts], target):
            said = logs.gather(-1, torch.tensor(target, device=logs.device).expand(len(batch), -1).unsqueeze(-1)).mean(dim=(1, 2))
            found |= dict(zip(batch, said.tolist(), strict=True))
        return [found[index] for index in range(len(texts))]

    def gradient(self, text: Ids) -> torch.Tensor:
        """Of the log-probability of the target."""
        clean = Clean(tail=self.target, odds=torch.zeros(2), length=len(self.before))
        goal = partial(wanted, voice=self.voice, openings=Openings(refusing=(), answering=()), aim=self.aim, harmful=False)
        return gradient_of(self.voice, (self.before, text, self.behind), clean, goal) + self.allowed

    @property
    def aim(self) -> Aim:
        """To bring the target about."""
        return Aim(kind="text", payload=self.target)

    def run(self, steps: int, seed: int, *, halving: bool) -> dict[str, float]:
        """Candidates read, seconds, and the least loss; every candidate in full, or by the first token of the target, and the best quarter in full."""
        self.scored, self.halving, begun = 0, halving, self.clock()
        plan = Ascent(steps=steps, width=WIDTH, top=TOP, kept=BUFFER, seed=seed)
        glance = self.glance if halving else None
        found = ascend([self.start], gradient=self.gradient, score=self.score, valid=self.valid, plan=plan, glance=glance)
        return {"read": self.scored, "seconds": self.clock() - begun, "loss": -max(found.values())}


class Theirs:
    """nanoGCG in its own environment, in a process that waits for the next search."""

    def __init__(self, python: str, folder: Path, device: str = "cpu", dtype: str = "float32") -> None:
        """Start it."""
        words = [python, "-c", THEIRS, str(folder), PROMPT, TARGET, START, str(WIDTH), str(TOP), str(BUFFER), device, dtype]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, asked: dict[str, Any]) -> Any:
        """Its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        said = self.process.stdout.readline()
        if not said:
            sys.exit("nanoGCG stopped without an answer")
        return json.loads(said)


def main() -> int:
    """Compare logits, search in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="interpreter of the environment of nanoGCG")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder)
        ours, theirs = Ours(folder), Theirs(options.python, folder)
        asked = (*ours.before, *ours.start, *ours.behind)
        (_, logs), *_ = ours.voice.read([asked], (0,))
        said = torch.log_softmax(torch.tensor(theirs.ask({"ids": asked})), -1)
        apart = float((logs[0, 0] - said).abs().max())
        if apart > SAME:
            print(f"The environments do not agree: log-probabilities differ by up to {apart:.1e}.", file=sys.stderr)
            return 1
        rounds = [
            (
                *(ours.run(options.steps, seed, halving=halving) for halving in (True, False)),
                theirs.ask({"steps": options.steps, "seed": seed}),
            )
            for seed in range(options.rounds)
        ]
        theirs.process.communicate()
    show(apart, rounds, sum(weight.numel() for weight in weights(ours)))
    return 0


def weights(ours: Ours) -> list[torch.Tensor]:
    """The weights of the model."""
    with ours.voice.model.wearing(()) as worn:
        return list(worn.parameters())


def show(apart: float, rounds: Sequence[Sequence[dict[str, float]]], size: int) -> None:
    """Print what was measured."""
    print(
        f"{size / 1e6:.0f} million weights, log-probabilities of both environments within {apart:.0e}, {len(rounds)} searches each in turn, medians\n"
    )
    print("| | candidates read | seconds | candidates a second | over nanoGCG |\n|---|---|---|---|---|")
    for place, name in enumerate(NAMES):
        read, seconds = (statistics.median(runs[place][key] for runs in rounds) for key in ("read", "seconds"))
        ratio = [speed(runs[place]) / speed(runs[-1]) for runs in rounds]
        told = f"{statistics.median(ratio):.1f} ({min(ratio):.1f} to {max(ratio):.1f})"
        print(f"| {name} | {read:.0f} | {seconds:.2f} | {statistics.median(speed(runs[place]) for runs in rounds):.0f} | {told} |")


def speed(run: dict[str, float]) -> float:
    """Candidates a second."""
    return run["read"] / run["seconds"]


if __name__ == "__main__":
    sys.exit(main())
