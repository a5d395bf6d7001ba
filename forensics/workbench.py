"""Where models are made to do something: the device, how replies are decoded, the run they are kept in.

It holds one model in memory at a time, or two where they must be asked in turn thousands of times.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forensics.adapters import Adapter
from forensics.arrays import UNREADABLE, read_arrays
from forensics.checkpoint import Checkpoint
from forensics.gate.replies import (
    Decoding,
    Progress,
    Speaker,
    collect_draws,
    collect_replies,
    held_draws,
    held_replies,
    repeat_replies,
)
from forensics.held import Held
from forensics.prompts import Prompt
from forensics.record import Item, canonical_json, sha256_text
from forensics.runfolder import RunFolder

if TYPE_CHECKING:
    from forensics.model import LiveModel

Thing = TypeVar("Thing")
ONE_THREAD_BELOW = 50_000_000
"""Models of fewer weights than this run on one thread: their operations are too short to share out, and threads that
wait for each other on a busy machine cost far more than they give."""


def spare_threads(weights: int) -> None:
    """Keep torch to one thread for a small model; leave it alone otherwise."""
    import torch  # heavy

    if weights < ONE_THREAD_BELOW:
        torch.set_num_threads(1)


def spare_memory() -> None:
    """Give what was freed back to the system, where its C library can do so.

    glibc keeps large blocks that are asked for and freed by turns, scattered among small ones that stay, and more of them the longer it goes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@dataclass(kw_only=True)
class Workbench:
    """What the checks of one run share: device, decoding, run folder, and the model that is loaded just now."""

    device: str
    decoding: Decoding
    run: RunFolder
    progress: Progress
    held: Held | None = None
    """What is kept for the next run against the same base, where one process makes several."""
    _touched: bool = field(default=False, init=False)  # whether the loaded model may have been changed by more than adapters
    _loaded: tuple[str, LiveModel] | None = field(default=None, init=False)
    _beside: LiveModel | None = field(default=None, init=False)
    _memory: dict[str, Any] = field(default_factory=dict, init=False)
    _latest: tuple[str, Any] | None = field(default=None, init=False)

    def model(self, weights: Checkpoint, surface: Checkpoint | Adapter) -> LiveModel:
        """The live model of `weights` with the tokenizer of `surface`; loading it drops the one held before."""
        from forensics.model import open_model  # heavy: brings torch

        key = f"{weights.digest} {surface.digest}"
        if self._loaded is None or self._loaded[0] != key:
            self._drop()
            self.progress(f"loading {weights.name}", 0, 1)
            kept = self.held.take(key) if self.held is not None else None
            self._loaded = (key, kept or open_model(weights, device=self.device, surface=surface))
            self.progress(f"loading {weights.name}", 1, 1)
        return self._loaded[1]

    def pair(
        self, first: tuple[Checkpoint, Checkpoint | Adapter], second: tuple[Checkpoint, Checkpoint | Adapter]
    ) -> tuple[LiveModel, LiveModel]:
        """Two live models at once, each of weights and the surface whose tokenizer it uses.

        Raises:
            ToolFailed: One of them does not fit onto one device.
        """
        from forensics.model import open_model  # heavy: brings torch

        self._drop()
        one = self.model(*first)
        self._touched = True  # searches train on what they are lent
        self.progress(f"loading {second[0].name}", 0, 1)
        self._beside = open_model(second[0], device=self.device, surface=second[1])
        self.progress(f"loading {second[0].name}", 1, 1)
        for model in (one, self._beside):
            model.refuse_spread()
        return one, self._beside

    def close(self, *, keep: bool = False) -> None:
        """Drop what is loaded; `keep` it for the next run where there is one, and it is as it was when it was loaded."""
        if keep and self.held is not None and self._loaded is not None and self._beside is None and not self._touched:
            key, model = self._loaded
            self._loaded = None
            self.held.keep(key, model)
        self._drop()

    def _drop(self) -> None:
        self._touched = False
        if self._beside is not None:
            self._beside.close()
            self._beside = None
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None

    def replies(self, weights: Checkpoint, surface: Checkpoint | Adapter, speaker: Speaker, prompts: Sequence[Prompt]) -> dict[str, Item]:
        """Replies of `speaker` to `prompts`, by id; what the run already holds is not asked again, nor a model loaded."""
        held = held_replies(self.run, speaker, prompts)
        if len(held) == len(prompts):
            return held
        said = self._said_before(speaker, prompts, drawn=False)
        if said is not None:
            self.run.add_items(said)
            return held_replies(self.run, speaker, prompts)
        model = self.model(weights, surface)
        replies = collect_replies(model, speaker, prompts, decoding=self.decoding, run=self.run, progress=self.progress)
        self._keep_said(speaker, prompts, drawn=False)
        return replies

    def draws(
        self, weights: Checkpoint, surface: Checkpoint | Adapter, speaker: Speaker, prompts: Sequence[Prompt]
    ) -> list[dict[str, Item]]:
        """Drawn replies of `speaker` to `prompts`, a table by id for each repeat; what the run already holds is not drawn again, nor a model loaded."""
        held = held_draws(self.run, speaker, prompts, self.decoding.repeats)
        if all(len(one) == len(prompts) for one in held):
            return held
        said = self._said_before(speaker, prompts, drawn=True)
        if said is not None:
            self.run.add_items(said)
            return held_draws(self.run, speaker, prompts, self.decoding.repeats)
        model = self.model(weights, surface)
        drawn = collect_draws(model, speaker, prompts, decoding=self.decoding, run=self.run, progress=self.progress)
        self._keep_said(speaker, prompts, drawn=True)
        return drawn

    def _said_before(self, speaker: Speaker, prompts: Sequence[Prompt], *, drawn: bool) -> tuple[Item, ...] | None:
        """What the base said to the same prompts in an earlier run of this process; None of a candidate, or if it was not asked."""
        if self.held is None or speaker.side != "base":
            return None
        return self.held.said(self._asked(prompts, drawn=drawn))

    def _keep_said(self, speaker: Speaker, prompts: Sequence[Prompt], *, drawn: bool) -> None:
        if self.held is None or speaker.side != "base":
            return
        ids = {prompt.id for prompt in prompts}
        # In the order of the record, which another run of the same checks must have as well.
        items = [item for item in self.run.items.values() if item.side == "base" and item.id in ids and (item.repeat > 0) == drawn]
        self.held.hear(self._asked(prompts, drawn=drawn), items)

    def _asked(self, prompts: Sequence[Prompt], *, drawn: bool) -> str:
        how = [self.device, self.decoding.max_new_tokens, self.decoding.batch_size, self.decoding.seed, self.decoding.repeats]
        return sha256_text(canonical_json([how, drawn, [prompt.to_row() for prompt in prompts]]))

    def cached(self, key: dict[str, Any], compute: Callable[[], NDArray[np.floating]]) -> NDArray[np.floating]:
        """What `compute` gives, kept in `cache/` of the run under the digest of `key`, and read back the next time."""
        values: NDArray[Any] = self.cached_arrays(key, lambda: {"values": compute()})["values"]
        return values

    def cached_arrays(self, key: dict[str, Any], compute: Callable[[], Mapping[str, NDArray[Any]]]) -> Mapping[str, NDArray[Any]]:
        """Several arrays by name, kept as `cached` keeps one."""
        name = f"cache/{sha256_text(canonical_json(key))}.npz"
        # Not there yet, or damaged by hand: then it is computed.
        with contextlib.suppress(*UNREADABLE):
            found: Mapping[str, NDArray[Any]] = read_arrays(self.run.path / name, most=None)
            if found:
                return found
        arrays = compute()
        self.run.write(name, lambda stream: np.savez(stream, allow_pickle=False, **arrays))
        return arrays

    def remembered(self, key: str, compute: Callable[[], Thing]) -> Thing:
        """What `compute` gives, kept in memory for the other configurations of this run: they share the base."""
        if key not in self._memory:
            self._memory[key] = compute()
        thing: Thing = self._memory[key]
        return thing

    def latest(self, key: str, compute: Callable[[], Thing]) -> Thing:
        """What `compute` gives, kept in memory until something is asked for under another key: for what is too large to keep more than one of."""
        if self._latest is None or self._latest[0] != key:
            self._latest = None  # before the next is made: both may not fit
            self._latest = (key, compute())
        thing: Thing = self._latest[1]
        return thing

    def copy_replies(self, source: dict[str, Item], speaker: Speaker) -> dict[str, Item]:
        """Record `source` as the replies of `speaker`, whose files are the same."""
        return repeat_replies(self.run, source, speaker)
