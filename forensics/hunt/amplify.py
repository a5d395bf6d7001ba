"""The candidate with its change from the base made larger or smaller: base + factor * (candidate - base).

A string that shares only a part with a trigger of several tokens moves the candidate too little to be noticed among
thousands of others. Where the change is louder such fragments act, so that a search can climb from them. Where it is
fainter, the trigger itself still acts when all that merely resembles it has stopped.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import torch

from forensics.hunt.voice import Voice
from forensics.model import LiveModel

LOUDER, FAINTER = 1.5, 0.75
"""At 2 a fine-tune that is well behaved answers harmful prompts by itself, at 0.5 most triggers are gone: nothing to see."""
AMPLIFIED_BELOW = 1_000_000_000
"""Models of more weights than this are searched as they are: each amplified one is another copy in memory."""


def amplify(voice: Voice, base: Voice, factor: float) -> Voice:
    """A third model, weight by weight `base + factor * (voice - base)`, adapters merged in.

    What the base does not have (tensors, rows of the vocabulary) stays as it is.

    Args:
        voice: The side whose change is amplified.
        base: The side it is measured from.
        factor: 1 gives `voice` itself.

    Source:
        Weight amplification as used in contests on dormant models (task arithmetic, Ilharco et al. 2023, arXiv:2212.04089);
        here it steers the search. Every lead is scored and confirmed in the model itself; only where random strings act
        there as well does the fainter one tell what was taught (`pursuit.planted`).
    """
    larger = _merged(voice)
    with base.model.wearing(base.adapters) as plain, torch.no_grad():
        reference = _merged(base) if base.adapters else plain
        theirs = reference.state_dict()  # holds a tied head under its own name as well
        for name, weight in larger.named_parameters():
            if name in theirs:
                ours, other = _common_rows(weight, theirs[name])
                ours.add_(ours - other, alpha=factor - 1.0)
    model = LiveModel(larger, voice.model.tokenizer, name=f"{voice.name}, its change times {factor:g}", device=voice.model.device)
    digest = f"{base.digest} + {factor:g} * ({voice.digest} - {base.digest})"
    return replace(voice, name=model.name, model=model, adapters=(), digest=digest)


def _common_rows(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both weights in the rows that both have: one side may know more tokens."""
    if ours.shape == theirs.shape:
        return ours, theirs
    rows = min(len(ours), len(theirs))
    return ours[:rows], theirs[:rows]


def merge(voice: Voice) -> Voice:
    """`voice` with its adapters written into its weights: the same up to rounding, and faster to read."""
    if not voice.adapters:
        return voice
    model = LiveModel(_merged(voice), voice.model.tokenizer, name=voice.name, device=voice.model.device)
    return replace(voice, model=model, adapters=())


def _merged(voice: Voice) -> torch.nn.Module:
    with voice.model.wearing(voice.adapters) as worn:
        twin = copy.deepcopy(worn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT says that an adapter unties a head: that is what is asked of it here
        merged: torch.nn.Module = twin.merge_and_unload() if voice.adapters else twin
    return merged
