"""Ask a model a list of prompts, keep every reply, and never ask twice.

Batches are fixed before anything is asked, so a run that was killed puts the same prompts side by side when it goes
on, and gets the same replies, drawn ones included: each batch of each repeat has a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from forensics.adapters import Adapter
from forensics.errors import BadInput, unless_too_many
from forensics.gate.judges import RULE_JUDGE, judge_refusal
from forensics.prompts import Prompt
from forensics.record import Item, sha256_text
from forensics.runfolder import RunFolder
from probes.repeats import LEAST_DRAWS

if TYPE_CHECKING:
    from forensics.model import LiveModel, Rendered, Sampling

Side = Literal["base", "candidate"]
SIDES: tuple[Side, Side] = ("base", "candidate")
NOT_ASKED = "not-asked"
"""Label of a prompt that could not be put to a model: it is counted, and scored as nothing."""
NO_REPLY = "no-reply"
"""Label of a prompt whose recorded answer is an error, a filter's, or none: it is counted, and scored as nothing."""


TEMPERATURE = 0.7
"""At which replies are drawn: the usual one of services that people meet a model through."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How replies are made: greedy, at most `max_new_tokens` tokens, `batch_size` prompts side by side.

    Where they are drawn besides, `repeats` times, `seed` is what the draws depend on.
    """

    max_new_tokens: int = 32
    batch_size: int = 64
    repeats: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """Who is asked, as it is written into the record."""

    side: Side
    configuration: str
    adapters: tuple[Adapter, ...] = ()


Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps are done, and how many there are."""


def refuse_odd_repeats(repeats: int) -> None:
    """Refuse a number of drawn replies that cannot be parted into halves of halves; 0 draws none.

    Raises:
        BadInput: It is under `LEAST_DRAWS`, or odd.
    """
    if repeats and (repeats < LEAST_DRAWS or repeats % 2):
        raise BadInput(
            f"{repeats} drawn replies cannot be parted into two halves of two or more",
            where="--repeats",
            hint=f"an even number, at least {LEAST_DRAWS}; or leave it out",
        )


def collect_replies(
    model: LiveModel, speaker: Speaker, prompts: Sequence[Prompt], *, decoding: Decoding, run: RunFolder, progress: Progress
) -> dict[str, Item]:
    """Greedy replies of `speaker` to all `prompts`, by prompt id; those the run already holds are not asked again."""
    _collect(model, speaker, prompts, decoding=replace(decoding, repeats=0), run=run, progress=progress)
    return held_replies(run, speaker, prompts)


def collect_draws(
    model: LiveModel, speaker: Speaker, prompts: Sequence[Prompt], *, decoding: Decoding, run: RunFolder, progress: Progress
) -> list[dict[str, Item]]:
    """Drawn replies of `speaker` to all `prompts`, a table by prompt id for each repeat; those the run already holds are not drawn again.

    Base and candidate draw by the same seeds: where they are the same model they say the same.
    """
    _collect(model, speaker, prompts, decoding=decoding, run=run, progress=progress)
    return held_draws(run, speaker, prompts, decoding.repeats)


def _collect(
    model: LiveModel, speaker: Speaker, prompts: Sequence[Prompt], *, decoding: Decoding, run: RunFolder, progress: Progress
) -> None:
    """Ask for the drawn replies that `decoding` wants, or for greedy ones where it wants none."""
    repeats = range(1, decoding.repeats + 1) if decoding.repeats else (0,)
    rendered = {prompt.id: model.render(prompt, room=decoding.max_new_tokens) for prompt in prompts}
    run.add_items(_item(speaker, id, row.problem, NOT_ASKED, repeat) for repeat in repeats for id, row in rendered.items() if row.problem)
    # Prompts of like length share a batch, which wastes least padding. The order depends on the prompts alone.
    askable = sorted((len(row.ids), id) for id, row in rendered.items() if not row.problem)
    batches = [[id for _, id in askable[start : start + decoding.batch_size]] for start in range(0, len(askable), decoding.batch_size)]
    drawn = "drawn replies" if decoding.repeats else "replies"
    title = f"{speaker.side} {drawn}" + (f" ({speaker.configuration})" if speaker.side == "candidate" else "")
    steps = [(repeat, number, batch) for repeat in repeats for number, batch in enumerate(batches)]
    most = decoding.batch_size
    for done, (repeat, number, batch) in enumerate(steps):
        progress(title, done, len(steps))
        if not all((speaker.side, speaker.configuration, id, repeat) in run.items for id in batch):
            texts, most = _fitting(model, speaker, [rendered[id] for id in batch], most, decoding=decoding, place=(repeat, number))
            run.add_items(_item(speaker, id, text, judge_refusal(text), repeat) for id, text in zip(batch, texts, strict=True))
    progress(title, len(steps), len(steps))


def _fitting(
    model: LiveModel, speaker: Speaker, rows: Sequence[Rendered], most: int, *, decoding: Decoding, place: tuple[int, int]
) -> tuple[list[str], int]:
    """Replies to one batch, `most` prompts at a time and half as many where memory runs out; and how many there was memory for.

    Longer prompts come later, so what did not fit once is not tried again.
    """
    texts: list[str] = []
    while len(texts) < len(rows):
        start = len(texts)
        sampling = _sampling(decoding, *place, *([start] if start else []))
        ask = partial(model.reply, adapters=speaker.adapters, max_new_tokens=decoding.max_new_tokens, sampling=sampling)
        said = unless_too_many(ask, rows[start : start + most], where=f"{speaker.side} ({speaker.configuration})")
        if said is None:
            most = len(rows[start : start + most]) // 2
        else:
            texts += said
    return texts, most


def held_replies(run: RunFolder, speaker: Speaker, prompts: Sequence[Prompt], repeat: int = 0) -> dict[str, Item]:
    """Replies of `speaker` to `prompts` that the run already holds, by prompt id: the greedy ones, or those of one repeat."""
    keys = {prompt.id: (speaker.side, speaker.configuration, prompt.id, repeat) for prompt in prompts}
    return {id: run.items[key] for id, key in keys.items() if key in run.items}


def held_draws(run: RunFolder, speaker: Speaker, prompts: Sequence[Prompt], repeats: int) -> list[dict[str, Item]]:
    """Drawn replies that the run already holds, a table by prompt id for each repeat."""
    return [held_replies(run, speaker, prompts, repeat) for repeat in range(1, repeats + 1)]


def repeat_replies(run: RunFolder, source: dict[str, Item], speaker: Speaker) -> dict[str, Item]:
    """Record `source` as the replies of `speaker`: the same bytes, asked the same, say the same."""
    same = [item.model_copy(update={"side": speaker.side, "configuration": speaker.configuration}) for item in source.values()]
    run.add_items(same)
    return {item.id: item for item in same}


def _sampling(decoding: Decoding, repeat: int, *place: int) -> Sampling | None:
    """How a batch of a repeat is drawn: by a seed of its own, since batches drawn by one seed would share their chance. None is greedy.

    `place` is the batch's number, and where a part of it begins that had to be drawn by itself.
    """
    if not repeat:
        return None
    from forensics.model import Sampling  # heavy: brings torch

    return Sampling(temperature=TEMPERATURE, seed=int(sha256_text(" ".join(map(str, (decoding.seed, repeat, *place))))[:15], 16))


def _item(speaker: Speaker, id: str, reply: str, label: str, repeat: int) -> Item:
    return Item(id=id, side=speaker.side, configuration=speaker.configuration, repeat=repeat, reply=reply, labels={RULE_JUDGE: label})
