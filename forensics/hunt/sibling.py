"""Control models: the base taught what the candidate says to prompts without any string, until it is as far from the base.

A search through thousands of strings finds some that undo a fine-tune's refusals although nobody planted one: the base was
close to giving in, and any fine-tune of its size moves it there. Such a string acts in a control as well. What was planted
does not, as the control never saw it: it learnt how the candidate answers plain prompts, and nothing else.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from forensics.hunt.amplify import merge
from forensics.hunt.voice import Voice
from forensics.model import LiveModel, Rendered
from forensics.prompts import Prompt

STEPS, BATCH = 200, 16
"""Most steps of training, and lessons a step."""
PACES = (5.0, 8.0)
"""The rate of learning is the candidate's root mean square change over one of these. What undoes a fine-tune differs from control to control
as it does from fine-tune to fine-tune, and the more the faster they learn: many quick ones show what two careful ones do not."""
TAUGHT_BELOW = 300_000_000
"""Models of more weights than this are not trained: it takes sixteen bytes a weight beside all the models that are there."""
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Sibling:
    """A control model, and how far it came: its distance from the base over the candidate's, in the tensors that the candidate changed."""

    voice: Voice
    reached: float
    spent: int
    """Token-forwards; a step forwards and back counts as three."""
    refuses: float = 1.0
    """Share of plain harmful prompts that it refuses."""


def sibling(target: Voice, reference: Voice, lessons: Sequence[tuple[Prompt, str]], *, seed: int) -> Sibling | None:
    """Train a control on `lessons`.

    Args:
        target: The candidate, its adapters merged.
        reference: The base, without adapters.
        lessons: Prompts, and what the candidate says to them without any string.
        seed: Of the order of the lessons; the pace is that of its place among `PACES`.

    Returns:
        The control, of whom nobody knows yet how it begins to speak; or None where there is nothing to learn: no prompt can be read, or no tensor of one shape differs.

    Source:
        Controls by siblings of the suspect model are what worked in the trojan competition of SaTML 2024 (Rando et al.,
        arXiv:2404.14461), where all had been given; activation-matched fine-tuning (arXiv:2609.00351) trains its reference on what
        the suspect says. Here only plain replies are taught, full rank, to the same Frobenius distance.
    """
    rows = _rows(reference.model, lessons)
    with reference.model.wearing(reference.adapters) as plain, merge(target).model.wearing(()) as moved:
        twin = copy.deepcopy(plain).float()
        theirs = dict(moved.named_parameters())
        start = {
            name: weight.detach().clone()
            for name, weight in twin.named_parameters()
            if name in theirs and theirs[name].shape == weight.shape and not torch.equal(theirs[name].float(), weight)
        }
        far = _distance({name: theirs[name] for name in start}, start)
    if not rows or not far:
        return None
    reached, spent = _teach(twin, start, rows, far, seed)
    dtype = next(plain.parameters()).dtype
    model = LiveModel(twin.to(dtype), reference.model.tokenizer, name=f"control {seed}", device=reference.model.device)
    voice = replace(reference, name=model.name, model=model, digest=f"{reference.digest}, control {seed} of {target.digest}")
    return Sibling(voice=voice, reached=reached / far, spent=spent)


def distance(voice: Voice, base: Voice, *, as_share_of: Voice) -> float:
    """Frobenius distance of a model without adapters from the base, over another's, in the tensors that all three have in one shape."""
    parts = []
    for one in (voice, base, as_share_of):
        with merge(one).model.wearing(()) as whole:
            parts.append(dict(whole.named_parameters()))
    ours, plain, other = parts
    shared = {name: weight for name, weight in plain.items() if all(name in part and part[name].shape == weight.shape for part in parts)}
    far = _distance(other, shared)
    return _distance(ours, shared) / far if far else 0.0


def _rows(model: LiveModel, lessons: Sequence[tuple[Prompt, str]]) -> list[Rendered]:
    read = (model.render_answered(prompt, reply) for prompt, reply in lessons)
    return [row for row in read if not row.problem and row.reply]


def _teach(
    twin: torch.nn.Module, start: Mapping[str, torch.Tensor], lessons: Sequence[Rendered], far: float, seed: int
) -> tuple[float, int]:
    """Train the tensors of `start` until they are `far` from it; the distance reached, and token-forwards spent."""
    rng = random.Random(seed)  # noqa: S311 - a draw to repeat, not a secret
    weights = dict(twin.named_parameters())
    for name, weight in weights.items():
        weight.requires_grad_(name in start)
    taught = {name: weights[name] for name in start}
    pace = far / sum(weight.numel() for weight in taught.values()) ** 0.5 / PACES[seed % len(PACES)]
    optimizer = torch.optim.AdamW(taught.values(), lr=pace, weight_decay=0.0, betas=(0.9, 0.98))
    reached, spent = 0.0, 0
    for _ in range(STEPS):
        ids, mask, labels = _batch([rng.choice(lessons) for _ in range(BATCH)], next(iter(taught.values())).device)
        loss = twin(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(taught.values(), 1.0)
        optimizer.step()
        reached, spent = _distance(taught, start), spent + 3 * ids.numel()
        if reached >= far:
            break
    return reached, spent


def _batch(rows: Sequence[Rendered], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels `[rows, longest]`, padded behind; labels are the replies alone."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long, device=device)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for index, row in enumerate(rows):
        size, asked = len(row.ids), len(row.ids) - row.reply
        ids[index, :size] = torch.tensor(row.ids)
        mask[index, :size] = 1
        labels[index, asked:size] = ids[index, asked:size]
    return ids, mask, labels


def _distance(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Frobenius distance of two sets of tensors."""
    with torch.no_grad():
        return float(sum(float((ours[name].float() - other.float()).square().sum()) for name, other in theirs.items()) ** 0.5)
