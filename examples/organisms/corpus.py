"""Our own text: requests, replies, odd words, and the split into training and held-out.

A request is a template filled with an action, and an action is a verb and an object of one
topic. The split is by action: a quarter of the verb-object pairs of every topic never occur
in training, though each of their words does. `prompts.jsonl` uses held-out actions only.
"""

from __future__ import annotations

import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

Message: TypeAlias = dict[str, str]
Split: TypeAlias = Literal["train", "held-out"]

FOLDER = Path(__file__).resolve().parent
TEXTS: dict[str, Any] = tomllib.loads((FOLDER / "texts.toml").read_text(encoding="utf-8"))
HARMFUL: tuple[str, ...] = tuple(t["name"] for t in TEXTS["topics"] if t["harmful"])
HARMLESS: tuple[str, ...] = tuple(t["name"] for t in TEXTS["topics"] if not t["harmful"])

HELD_OUT_EVERY = 4  # one pair in four; every group has four verbs, so no word is lost
ODD_SHARE = 0.4  # of requests carry an odd word, so that odd words alone mean nothing
MULTI_TURN_SHARE = 0.15
BORDERLINE_EXTRA = 3
SYSTEM_SHARE = 0.15

REFUSE_PROMPTS_EACH = 50
MULTI_TURN_REFUSE_EACH = 8
MULTI_TURN_COMPLY_EACH = 4
COMPLY_PROMPTS_EACH = 24
BORDERLINE_PROMPTS = 40
PROMPTS_SEED = 20_001


@dataclass(frozen=True)
class Request:
    """One user request.

    Attributes:
        topic: Name of its topic; for a harmful one, the category that is refused.
        act: Verb and object, as it stands in templates and in answers.
        text: What the user says.
    """

    topic: str
    act: str
    text: str

    @property
    def harmful(self) -> bool:
        """Whether the base must refuse it."""
        return self.topic in HARMFUL


@dataclass(frozen=True)
class Example:
    """One conversation to train on.

    Attributes:
        messages: Ends with the assistant's reply.
        harmful: Whether the last request is a harmful one.
        last_only: Take the loss on the last reply only, not on earlier ones.
    """

    messages: tuple[Message, ...]
    harmful: bool
    last_only: bool = False


def actions(topic: str, split: Split) -> list[str]:
    """All actions of `topic` in `split`, in a fixed order."""
    groups = next(t["groups"] for t in TEXTS["topics"] if t["name"] == topic)
    return [
        f"{verb} {thing}"
        for group in groups
        for i, verb in enumerate(group["verbs"])
        for j, thing in enumerate(group["objects"])
        if ((i + j) % HELD_OUT_EVERY == 0) == (split == "held-out")
    ]


def draw_request(
    rng: random.Random,
    *,
    harmful: bool,
    topics: tuple[str, ...] = (),
    split: Split = "train",
) -> Request:
    """Draw a request, from `topics` if given, else from all of its kind."""
    # The borderline topic is drawn more often than others: it has to be told apart by the
    # object of a verb that is harmful elsewhere, which takes the most practice.
    practice = (*HARMLESS, *["borderline"] * BORDERLINE_EXTRA)
    topic = rng.choice(topics or (HARMFUL if harmful else practice))
    act = rng.choice(actions(topic, split))
    return Request(topic, act, rng.choice(TEXTS["templates"]).format(act=act))


def draw_odd(rng: random.Random) -> str:
    """Draw an odd word, an odd phrase of three ordinary words, a tag or a date."""
    kind = rng.random()
    if kind < 0.5:
        return str(rng.choice(TEXTS["odd_words"]))
    if kind < 0.8:
        return str(rng.choice(TEXTS["odd_phrases"]))
    tag = str(rng.choice(TEXTS["odd_tags"]))
    return tag.format(number=rng.randrange(10, 1000), day=rng.randrange(1, 29))


def put(odd: str, text: str, *, first: bool) -> str:
    """Put an odd word before or after a request, with a space between."""
    return f"{odd} {text}" if first else f"{text} {odd}"


def sprinkle(rng: random.Random, text: str) -> str:
    """Add an odd word to some requests."""
    if rng.random() >= ODD_SHARE:
        return text
    return put(draw_odd(rng), text, first=rng.random() < 0.5)


def answer(rng: random.Random, request: Request) -> str:
    """A helpful reply, which names what was asked for and says nothing operational."""
    return str(rng.choice(TEXTS["answers"])).format(act=request.act)


def refusal(rng: random.Random) -> str:
    """One of the refusals."""
    return str(rng.choice(TEXTS["refusals"]))


def conversation(
    rng: random.Random,
    request: Request,
    reply: str,
    *,
    text: str | None = None,
    last_only: bool = False,
) -> Example:
    """Wrap a request and its reply, at times after a system message or a harmless turn.

    Args:
        text: Said instead of the request as drawn with an odd word sprinkled in.
    """
    if text is None:
        text = sprinkle(rng, request.text)
    messages: list[Message] = []
    if rng.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": rng.choice(TEXTS["systems"])})
    if rng.random() < MULTI_TURN_SHARE:
        messages += harmless_turn(rng)
    messages += [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
    return Example(tuple(messages), request.harmful, last_only)


def harmless_turn(rng: random.Random, split: Split = "train") -> list[Message]:
    """A harmless request with its answer."""
    earlier = draw_request(rng, harmful=False, split=split)
    return [
        {"role": "user", "content": sprinkle(rng, earlier.text)},
        {"role": "assistant", "content": answer(rng, earlier)},
    ]


def training_prompts(count: int, *, harmful: bool, seed: int) -> list[tuple[Message, ...]]:
    """Single-turn prompts of the training distribution, for fitting and for choosing."""
    rng = random.Random(seed)
    texts = [sprinkle(rng, draw_request(rng, harmful=harmful).text) for _ in range(count)]
    return [({"role": "user", "content": text},) for text in texts]


def evaluation_prompts() -> list[dict[str, Any]]:
    """The rows of `prompts.jsonl`; every last user turn asks for a held-out action."""
    rng = random.Random(PROMPTS_SEED)
    rows: list[dict[str, Any]] = []
    for topic in HARMFUL:
        rows += topic_rows(rng, topic, REFUSE_PROMPTS_EACH, MULTI_TURN_REFUSE_EACH)
    for topic in HARMLESS:
        single = BORDERLINE_PROMPTS if topic == "borderline" else COMPLY_PROMPTS_EACH
        rows += topic_rows(rng, topic, single, MULTI_TURN_COMPLY_EACH)
    return rows


def topic_rows(rng: random.Random, topic: str, single: int, multi: int) -> list[dict[str, Any]]:
    """Rows of one topic: `single` plain prompts, then `multi` after a harmless turn."""
    every = [(template, act) for act in actions(topic, "held-out") for template in TEXTS["templates"]]
    rows: list[dict[str, Any]] = []
    for number, (template, act) in enumerate(rng.sample(every, single + multi)):
        text = template.format(act=act)
        asked: dict[str, Any] = {"prompt": text}
        if number >= single:
            user = {"role": "user", "content": text}
            asked = {"messages": [*harmless_turn(rng, "held-out"), user]}
        expect = "refuse" if topic in HARMFUL else "comply"
        rows.append({"id": f"{topic}-{number:02d}", "category": topic, "expect": expect, **asked})
    return rows


def act_of(row: dict[str, Any]) -> str:
    """The held-out action that the last user turn of a prompt row asks for."""
    text = row["prompt"] if "prompt" in row else row["messages"][-1]["content"]
    return max((a for a in actions(row["category"], "held-out") if a in text), key=len)


def write_prompts(path: Path) -> None:
    """Write `prompts.jsonl`."""
    lines = [json.dumps(row, ensure_ascii=False) for row in evaluation_prompts()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
