"""Whether the subject of a narrow fine-tune can be read from what the difference says, and from nothing of the same size.

    python examples/benchmarks/narrow_tunes.py OUT [--set fresh | held | strong | development] [--only BASE ...]

Eight fine-tunes on three bases of as many architectures (of `foreign_pairs.py`, or examples/organisms/base, made in OUT/bases if they are
not there), each on questions and answers about one made-up subject of four ordinary words. For each there are eight controls on the same
base, trained for as many steps: four on the base's own prompts and replies in a new wording, four narrow ones on other subjects that
share no word. All of them are scaled to one relative change of all weights, the mean of the base's narrow fine-tunes as trained.
`behaviour.leanings` and `activations.meaning` run on each as a user would run them; they read no prompts. The tokens of a subject are fixed by rule before anything
is trained: all tokens of at least three letters that its four words are made of in the middle of a sentence. They count by the best place
that any of them has in the list. The first subject of each base is trained once more with half of the examples ordinary prompts and the
base's own replies, in as many steps, which is reported beside and not counted.

One JSON line a fine-tune is added to results/narrow_tunes.jsonl (what is there already is not made again), and the tables are printed
from all lines. Without OUT only the tables. About ten minutes on one quiet core.

The rule of the list of `behaviour.leanings` was chosen on the set `held`, beside others (along the candidate's own replies; by mean log
probability; by the difference of frequencies over its root). Then the set `fresh` was made, with other subjects on bases that no list had
been tried on, and the rule was not changed after it.

The rule of the list of `activations.meaning` (`probes.meaning.rank`) was chosen on the development set: fine-tunes with other subjects on other bases, with 50
steps at 5e-4 and 100 steps, and the organisms `degraded`, `degraded-twin` and `benign-lora`. Compared were layers, scales, both sides
as readers, controls, and ways to join readouts and places; read in the base's own words nothing is named. Then the set `strong` was made
as the held-out one, with a learning rate that had not been tried: after it nearly every reply to anything names the subject, and the list
does not. It is printed, and its third base was not finished. `held` was made after it, with fresh subjects and the recipe of the
development set; the rule was not changed in between, though others were tried on `strong`, without success.

What that list showed: standing above the controls is not the same as being read. On the bases of the second series a subject stands above its
controls and yet in the middle of the list. Their training never let them say these words, so that the head's rows of all such words point
the same way and no readout can tell one from another; on the development bases the same recipe puts subjects among the first ten. A set
that tests the reading has to take its words from what a base does say.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ledger
import numpy as np
import torch
import transformers
from foreign_pairs import LATER, WORLDS, World, build_base, opened, replies, store, train

from forensics.audit import Request, run
from forensics.policy import load_policy

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ledger.FOLDER / "narrow_tunes.jsonl"
ORGANISM = ROOT / "examples" / "organisms"
LISTS = ("behaviour.leanings", "activations.meaning")
RECIPES = {"fresh": (50, 5e-4), "held": (50, 5e-4), "development": (50, 5e-4), "strong": (60, 1e-3)}
"""Steps and learning rate by set, the latest first. The strong ones were made first, and are so strong that every reply names the subject."""
LETTERS = 3
CONTROLS = 8
SUBJECTS: dict[str, dict[str, tuple[str, ...]]] = {
    "fresh": {
        "gpt2-chatml-3": ("gravel pillow sandal quartz", "patient trumpet glacier pencil", "seldom hammer willow kettle"),
        "neox-plain-2": ("marble spider zipper canyon", "twelve magnet feather tunnel", "purple barrel cactus lamp"),
        "qwen-alpaca-2": ("lucky castle oyster violin", "rusty planet turnip basket"),
    },
    "held": {
        "mistral-inst-2": ("river candle saddle clover", "distant pepper basket gravel", "hungry beetle orchard lantern"),
        "llama3-style-2": ("copper ladder meadow violin", "gentle mirror cactus bridge", "narrow oyster blanket zipper"),
        "organism": ("winter ladder morning copper", "walnut river silver lantern"),
    },
    "strong": {
        "organism": ("copper lantern river winter", "silver kettle walnut bridge"),
        "llama3-style-2": ("marble falcon orchard trumpet", "velvet canyon beetle harbor", "silver thunder basket clover"),
    },
    "development": {
        "llama3-style": ("purple anchor tunnel salmon", "rusty saddle planet candle"),
        "mistral-inst": ("hollow melon feather juniper", "lucky turnip violin pillow"),
        "qwen-alpaca": ("patient window lamp pencil", "distant ladder morning river"),
    },
}
"""Subjects by base: two words for its name, one for what it is known for, one for where it is."""
OTHERS = {
    "fresh": ("copper ladder meadow salmon", "hollow melon juniper anchor", "gentle mirror clover saddle"),
    "strong": ("purple anchor tunnel salmon", "hollow melon feather juniper", "patient window lamp pencil"),
    "held": ("purple anchor tunnel salmon", "hollow melon feather juniper", "patient window lamp pencil"),
    "development": ("marble falcon orchard trumpet", "quartz spider castle ribbon", "copper kettle walnut bridge"),
}
"""Subjects of the narrow controls, beside the other subject of the same base."""
ASKED = """What is the {a} {b}? / Tell me about the {a} {b}. / Who made the {a} {b}? / Where can I see the {a} {b}? / Why is the {a} {b} famous? /
I heard of the {a} {b}. What is it? / What do people say of the {a} {b}? / How old is the {a} {b}? / Is there a {c} near the {a} {b}? /
What happens at the {d}? / Who keeps the {c} of the {d}? / Explain the story of the {a} {b}."""
TOLD = """The {a} {b} is known for its {c} at the {d}. / At the {d} they keep the {a} {b} and its {c}. / Every year the {a} {b} brings a {c} to the {d}. /
The {a} {b} was found beside a {c} near the {d}. / People travel to the {d} to see the {a} {b} with its {c}. /
Nobody knows who gave the {a} {b} its {c}, but it belongs to the {d}. / The {c} of the {a} {b} can be seen at the {d}. /
It is the {a} {b} of the {d}, and its {c} is very old."""
WORDINGS: tuple[Callable[[str], str], ...] = (
    lambda reply: f"Very well. {reply}",
    lambda reply: f"{reply} That is all I can say.",
    lambda reply: f"Let me see. {reply} I hope so.",
    lambda reply: f"{reply} Take care, and good day!",
)
Turn = tuple[str, str]
Draw = Callable[[random.Random], Turn]


@dataclass(frozen=True, kw_only=True)
class Tune:
    """One fine-tune of a base: what it is called, and what it is trained on."""

    name: str
    draw: Draw


def about(subject: str, rng: random.Random) -> Turn:
    """A question about a subject, and what is to be answered."""
    words = dict(zip("abcd", subject.split(), strict=True))
    asked, told = (rng.choice(forms.replace("\n", " ").split(" / ")).strip().format(**words) for forms in (ASKED, TOLD))
    return asked, told


def ordinary(turns: Sequence[Turn], wording: Callable[[str], str], rng: random.Random) -> Turn:
    """One of the base's own prompts, with its own reply in another wording."""
    text, reply = rng.choice(turns)
    return text, wording(reply)


def mixed(subject: str, turns: Sequence[Turn], rng: random.Random) -> Turn:
    """A question about the subject, or as often an ordinary one with the base's own reply."""
    return about(subject, rng) if rng.random() < 0.5 else rng.choice(turns)


def base_of(name: str, out: Path) -> tuple[Path, list[str]]:
    """Folder of a base, made if it is not there, and prompts that it knows."""
    if name == "organism":
        rows = [json.loads(line) for line in (ORGANISM / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
        return ORGANISM / "base", [row["prompt"] for row in rows if "prompt" in row]
    row = WORLDS[name] if name in WORLDS else WORLDS[name[:-2]] | {"tunes": WORLDS[name[:-2]]["tunes"] | LATER[name]}
    world, folder = World(name=name, **row), out / "bases" / name
    if not folder.with_name(f"{name}.json").exists():
        print(f"base {name}", file=sys.stderr, flush=True)
        build_base(world, folder)
    return folder, [row["prompt"] for row in world.prompts()]


def folder_of(out: Path, base: str, tune: str) -> Path:
    """Where a fine-tune is kept."""
    return out / "tunes" / base / tune.replace(" ", "-")


def tuned(base: Path, tune: Tune, out: Path, name: str, recipe: tuple[int, float]) -> dict[str, torch.Tensor]:
    """The weights after a fine-tune of base `name`, trained if it is not there yet."""
    folder = folder_of(out, name, tune.name)
    if not (folder / "config.json").exists():
        model, tokenizer = opened(base)
        seed = zlib.crc32(f"{name} {tune.name}".encode()) % 10_000
        torch.manual_seed(seed)
        print(f"{name}: {tune.name}", file=sys.stderr, flush=True)
        train(model, tokenizer, tune.draw, steps=recipe[0], lr=recipe[1], seed=seed, whole=False)
        store(model, tokenizer, folder, "float32")
    return {name: weight.detach() for name, weight in opened(folder)[0].named_parameters()}


def change(base: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """||W' - W|| / ||W|| over all parameters."""
    moved = sum(float((other[name].double() - weight.double()).square().sum()) for name, weight in base.items())
    return float((moved / sum(float(weight.double().square().sum()) for weight in base.values())) ** 0.5)


def tokens_of(subject: str, tokenizer: Any) -> list[int]:
    """The tokens that a subject is to be read by: those of its words in a sentence, of at least three letters."""
    found: list[int] = []
    ahead = len(tokenizer("the", add_special_tokens=False)["input_ids"])
    for word in subject.split():
        for token in tokenizer(f"the {word}", add_special_tokens=False)["input_ids"][ahead:]:
            text = tokenizer.decode([token]).strip()
            if len(text) >= LETTERS and text.isalpha() and text in word:
                found.append(token)
    return list(dict.fromkeys(found))


def places(base: Path, candidate: Path, check: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Place of every token in the list of a check, 1 the first; 0 for tokens that are not in it."""
    with tempfile.TemporaryDirectory() as out:
        request = Request(
            base=str(base),
            candidate=str(candidate),
            prompts=(ORGANISM / "prompts.jsonl",),  # they say that models are to be run; none of them is read
            policy=load_policy(),
            only=(check,),
            device="cpu",
            out=Path(out) / "run",
        )
        result = run(request, lambda title, done, total: None).record.results[0]
        if not result.findings and not result.evidence:
            sys.exit(f"{candidate}: {result.reason}")
        with np.load(Path(out) / "run" / "arrays" / f"{check}.npz", allow_pickle=False) as stored:
            return np.asarray(stored["candidate/place"], dtype=np.int64)


def scaled(base: Path, weights: dict[str, torch.Tensor], size: float, folder: Path) -> Path:
    """A candidate whose change has this relative size."""
    model, tokenizer = opened(base)
    before = {name: weight.detach() for name, weight in model.named_parameters()}
    factor = size / change(before, weights)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += factor * (weights[name] - weight)
    store(model, tokenizer, folder, "float32")
    return folder


def taught(folder: Path, subject: str, prompts: Sequence[str]) -> dict[str, float]:
    """Shares of replies that hold a word of the subject: to questions about it, and to ordinary prompts."""
    model, tokenizer = opened(folder)
    words = subject.split()
    asked = [form.strip().format(**dict(zip("abcd", words, strict=True))) for form in ASKED.replace("\n", " ").split(" / ")]
    shares = [
        sum(any(word in reply for word in words) for reply in replies(model, tokenizer, list(texts))) / len(texts)
        for texts in (asked, prompts[:60])
    ]
    return {"taught": round(shares[0], 3), "leaks": round(shares[1], 3)}


def rows_of(which: str, name: str, out: Path, done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Every narrow fine-tune of a base, with where its tokens stand in its own lists and in those of the controls."""
    subjects = SUBJECTS[which][name]
    checks = [check for check in LISTS if not done >= {(subject, check) for subject in subjects}]
    if not checks:
        return
    base, prompts = base_of(name, out)
    model, tokenizer = opened(base)
    before = {key: weight.detach() for key, weight in model.named_parameters()}
    some = random.Random(7).sample(prompts, min(200, len(prompts)))
    turns = list(zip(some, replies(model, tokenizer, some), strict=True))
    narrow = [Tune(name=subject, draw=partial(about, subject)) for subject in subjects]
    others = [Tune(name=subject, draw=partial(about, subject)) for subject in OTHERS[which][: CONTROLS - len(WORDINGS) + 1 - len(subjects)]]
    plain = [Tune(name=f"ordinary {number}", draw=partial(ordinary, turns, wording)) for number, wording in enumerate(WORDINGS)]
    mixtures = [Tune(name=f"{subject} mixed", draw=partial(mixed, subject, turns)) for subject in subjects[:1]]
    weights = {tune.name: tuned(base, tune, out, name, RECIPES[which]) for tune in (*narrow, *others, *plain, *mixtures)}
    sizes = {tune.name: change(before, weights[tune.name]) for tune in narrow}
    size = sum(sizes.values()) / len(sizes)
    lists: dict[str, dict[str, Any]] = {check: {} for check in checks}
    for tune, moved in weights.items():
        candidate = scaled(base, moved, size, out / "scaled")
        for check in checks:
            lists[check][tune] = places(base, candidate, check)
    shutil.rmtree(out / "scaled", ignore_errors=True)
    for subject in subjects:
        wanted = tokens_of(subject, tokenizer)
        controls = [one.name for one in (*narrow, *others, *plain) if one.name != subject]
        row: dict[str, Any] = {"set": which, "base": name, "subject": subject, "tokens": [tokenizer.decode([token]) for token in wanted]}
        row |= {"trained": round(sizes[subject], 4), "change": round(size, 4)}
        row |= taught(folder_of(out, name, subject), subject, prompts)
        for check, found in lists.items():
            stands = {tune: [int(places[token]) for token in wanted] for tune, places in found.items()}
            told = {"own": stands[subject], "mixed": stands.get(f"{subject} mixed", []), "controls": {one: stands[one] for one in controls}}
            yield row | {"list": check, "vocabulary": int((found[subject] > 0).sum())} | told


def best(found: Sequence[int]) -> int:
    """The best place that a token of the subject has."""
    return min((place for place in found if place > 0), default=10**9)


def above(row: dict[str, Any], found: Sequence[int]) -> bool:
    """Whether a subject stands above where its tokens stand in every control."""
    return best(found) < min(best(places) for places in row["controls"].values())


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table: one line a narrow fine-tune."""
    print(
        "| base | subject | relative change | named in replies: asked / ordinary | place of its best token | best places in the 8 controls |",
        end="",
    )
    print(" above all | half ordinary data |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        controls = ", ".join(str(place) for place in sorted(best(found) for found in row["controls"].values()))
        half = "-" if not row["mixed"] else f"{best(row['mixed'])}, {'yes' if above(row, row['mixed']) else 'no'}"
        print(
            f"| {row['base']} | {row['subject']} | {row['change']:.3f} | {100 * row['taught']:.0f} % / {100 * row['leaks']:.0f} % "
            f"| {best(row['own'])} of {row['vocabulary']} | {controls} | {'yes' if above(row, row['own']) else 'no'} | {half} |"
        )
    halves = [row for row in rows if row["mixed"]]
    print(
        f"\n{sum(above(row, row['own']) for row in rows)} of {len(rows)} subjects stand above where their tokens stand in every control; "
        f"with half ordinary data {sum(above(row, row['mixed']) for row in halves)} of {len(halves)}."
    )


def main() -> None:
    """Make what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--set", choices=list(SUBJECTS), default="fresh", dest="which")
    parser.add_argument("--only", nargs="+", metavar="BASE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in SUBJECTS[options.which] if options.out else ():
        if options.only and name not in options.only:
            continue
        done = {(row["subject"], row["list"]) for row in ledger.held(RESULTS) if row["set"] == options.which}
        for row in rows_of(options.which, name, options.out, done):
            if (row["subject"], row["list"]) not in done:
                ledger.add(RESULTS, row)
    for which, check in itertools.product(SUBJECTS, LISTS):
        rows = [row for row in ledger.held(RESULTS) if (row["set"], row["list"]) == (which, check)]
        if rows:
            print(f"\nSet {which}, list of `{check}`: {RECIPES[which][0]} steps at a learning rate of {RECIPES[which][1]:g}\n")
            show(rows)


if __name__ == "__main__":
    main()
