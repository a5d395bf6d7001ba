"""Base and candidate, aligned: the only thing a check receives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from forensics.adapters import Adapter, refuse_together
from forensics.alignment import Layout, Pair
from forensics.arrays import read_arrays
from forensics.checkpoint import Checkpoint
from forensics.deltas import Change
from forensics.gate.replies import Side, Speaker
from forensics.policy import Policy
from forensics.prompts import Expect, Prompt
from forensics.record import CheckResult, Item
from forensics.workbench import Workbench

if TYPE_CHECKING:
    import torch

    from forensics.capture import Reading, Sites, Spread
    from forensics.model import LiveModel, Rendered
    from forensics.subject import Subject
    from probes.moments import Mean

Cost = Literal["files", "weights", "activations", "generation", "search"]
Tier = Literal["triage", "standard", "deep"]
CONTROLS = 4
"""Control models that a search for triggers trains unless the user wants others: strings are tested in all of them, and one is searched in."""
COSTS: tuple[Cost, ...] = ("files", "weights", "activations", "generation", "search")
"""What a check spends, cheapest first: the values of `--max-cost` and the order checks run in."""

CANDIDATE = "candidate"
"""The configuration of a full checkpoint without adapters."""
BASE = "base"
"""The configuration written beside the base's replies, which all configurations share."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Base and one configuration of the candidate, with everything a check may use.

    `candidate` holds the weights below the adapters: the base itself where the candidate is an adapter. `surface` is
    where the candidate's tokenizer and template come from. `earlier` are the results of cheaper checks on the same
    configuration; a dearer check is steered through them.
    """

    base: Checkpoint
    candidate: Checkpoint
    adapters: tuple[Adapter, ...]
    surface: Checkpoint | Adapter
    configuration: str
    layout: Layout
    prompts: tuple[Prompt, ...]
    policy: Policy
    seed: int
    workbench: Workbench
    earlier: tuple[CheckResult, ...] = ()
    parents: tuple[Checkpoint, ...] = ()
    """Models that the candidate may have been merged of, with the base's tensors."""
    controls: tuple[Adapter, ...] = ()
    """Adapters for the same base that are known to be clean."""
    train_controls: int = CONTROLS
    """Control models that a search for triggers trains itself, once it needs them."""
    tier: Tier = "standard"
    """How much a search for triggers may spend: a quarter, or four times, of what it spends by default."""
    budget: int | None = None
    """Token-forwards that it may spend in either direction, whatever its tier."""
    apart: tuple[Prompt, ...] = ()
    """Prompts that are asked apart from the comparison: `behaviour.refusal` alone reads them."""

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The tensors that both sides have, sorted by name; a tied head among them where an adapter gives it weights of its own."""
        known, pairs = {pair.name for pair in self.layout.pairs}, list(self.layout.pairs)
        for name, worn in self.changes.items():
            source = worn[0][1].source.name
            acting = next((pair for pair in self.layout.pairs if pair.candidate.name == source), None)
            if name not in known and acting is not None:
                pairs.append(replace(acting, name=name))
        return tuple(sorted(pairs, key=lambda pair: pair.name))

    @property
    def identical(self) -> bool:
        """Whether the candidate consists of the base's very bytes (prose aside) and nothing is put on it."""
        same_surface = self.surface is self.base or self.surface is self.candidate
        return not self.adapters and same_surface and self.base.functional_digest == self.candidate.functional_digest

    def tensors(self) -> Iterator[tuple[Pair, Iterator[tuple[torch.Tensor, torch.Tensor]]]]:
        """Every aligned tensor, with its blocks on both sides in storage dtype; adapters are not part of them.

        Of a matrix with a row a token, the rows that both sides have; of a quantised tensor, its numbers.
        """
        for pair in self.pairs:
            ours = self.base.blocks(pair.base.name, rows=pair.rows)
            theirs = self.candidate.blocks(pair.candidate.name, rows=pair.rows)
            yield pair, zip(ours, theirs, strict=True)

    @cached_property
    def changes(self) -> dict[str, list[tuple[Adapter, Change]]]:
        """For each tensor that adapters change, by the name of its pair: which of them, and how.

        Raises:
            CannotCompare: Their changes of one tensor do not add up.
        """
        refuse_together(self.adapters)
        changes: dict[str, list[tuple[Adapter, Change]]] = {}
        for adapter in self.adapters:
            for change in adapter.changes:
                changes.setdefault(change.target, []).append((adapter, change))
        return changes

    def deltas(self) -> dict[str, Callable[[], torch.Tensor]]:
        """For each tensor that adapters change, by the name of its pair: a function that computes their summed delta, float32.

        Raises:
            CannotCompare: Their changes of one tensor do not add up.
        """
        return {name: partial(_sum, [partial(adapter.delta, change) for adapter, change in worn]) for name, worn in self.changes.items()}

    def completions(self, side: Side, prompts: Sequence[Prompt] | None = None) -> dict[str, Item]:
        """The replies of one side to `prompts`, by default those of the comparison, by prompt id."""
        asked = self.prompts if prompts is None else prompts
        base = Speaker(side="base", configuration=BASE)
        if side == "base":
            return self.workbench.replies(self.base, self.base, base, asked)
        speaker = Speaker(side="candidate", configuration=self.configuration, adapters=self.adapters)
        if self.identical:
            return self.workbench.copy_replies(self.completions("base", asked), speaker)
        return self.workbench.replies(self.candidate, self.surface, speaker, asked)

    def draws(self, side: Side) -> list[dict[str, Item]]:
        """The drawn replies of one side to all prompts, by prompt id, a table for each repeat that was asked for."""
        base = Speaker(side="base", configuration=BASE)
        if side == "base":
            return self.workbench.draws(self.base, self.base, base, self.prompts)
        speaker = Speaker(side="candidate", configuration=self.configuration, adapters=self.adapters)
        if self.identical:
            return [self.workbench.copy_replies(items, speaker) for items in self.draws("base")]
        return self.workbench.draws(self.candidate, self.surface, speaker, self.prompts)

    def model(self, side: Side) -> LiveModel:
        """The live model of one side; the other side's is dropped. Adapters are put on where it is used."""
        if side == "base":
            return self.workbench.model(self.base, self.base)
        return self.workbench.model(self.candidate, self.surface)

    def both(self) -> tuple[LiveModel, LiveModel]:
        """Two live models side by side, base first; the second is one of its own even where the candidate is an adapter."""
        return self.workbench.pair((self.base, self.base), (self.candidate, self.surface))

    def subject(self, side: Side) -> Subject:
        """The live model of one side as the capture and steering functions take it: adapters named, batch size set."""
        from forensics.subject import Subject  # heavy: brings torch

        adapters = self.adapters if side == "candidate" else ()
        how = self.workbench.decoding
        return Subject(model=self.model(side), side=side, adapters=adapters, batch_size=how.batch_size, max_new_tokens=how.max_new_tokens)

    def activations(self, side: Side, rendered: Sequence[Rendered], sites: Sites, *, mean: bool = False) -> NDArray[np.floating]:
        """Residual stream of one side, kept in the run so that a resumed audit reads it back.

        Args:
            side: Whose.
            rendered: Prompts as this side's token ids (`LiveModel.render`), none with a problem.
            sites: Where to read.
            mean: Give the mean over prompts instead.

        Returns:
            `[n, layers, positions, d]` float32 in the order of `rendered`; or the mean, `[layers, positions, d]`, float64.

        Raises:
            CannotCompare: A value is not finite, or the model is built in a way we do not know.
        """
        from forensics.capture import mean_residual, residuals  # heavy: brings torch

        subject = self.subject(side)
        key = self._read_by(subject, side, rendered) | {"sites": [sites.layers, sites.positions], "mean": mean}
        read = mean_residual if mean else residuals
        return self.workbench.cached(key, lambda: read(subject, rendered, sites))

    def activations_at(self, side: Side, rendered: Sequence[Rendered], reading: Reading) -> NDArray[np.floating]:
        """Activations of one side at named sites and tokens, `[n, sites, spots, d]` float32, kept in the run as `activations` are.

        Raises:
            BadInput: There is no such site.
            CannotCompare: As `activations`; or a text does not reach as far as a spot.
        """
        from forensics.capture import activations  # heavy: brings torch

        subject = self.subject(side)
        key = self._read_by(subject, side, rendered) | {"reading": _spelled(reading)}
        return self.workbench.cached(key, lambda: activations(subject, rendered, reading))

    def statistics(self, side: Side, rendered: Sequence[Rendered], reading: Reading, spread: Spread) -> list[list[Mean]]:
        """Count, mean and `spread` of one side's activations, for every site a list by spot; kept in the run, without the activations.

        Raises:
            BadInput: There is no such site.
            CannotCompare: As `activations`.
        """
        from forensics.capture import statistics  # heavy: brings torch

        subject = self.subject(side)
        key = self._read_by(subject, side, rendered) | {"reading": _spelled(reading), "spread": [spread.kind, spread.directions]}

        def compute() -> dict[str, NDArray[np.generic]]:
            found = statistics(subject, rendered, reading, spread)
            return {f"{i}/{j}/{name}": array for i, j, seen in _grid(found) for name, array in seen.arrays().items()}

        held = self.workbench.cached_arrays(key, compute)
        empty = [[spread.empty(held["0/0/mean"].shape[0]) for _ in reading.spots] for _ in reading.sites]
        for i, j, seen in _grid(empty):
            seen.restore({name: held[f"{i}/{j}/{name}"] for name in seen.arrays()})
        return empty

    def _read_by(self, subject: Subject, side: Side, rendered: Sequence[Rendered]) -> dict[str, Any]:
        """What decides the activations of `rendered` at any site: by it they are found again."""
        weights = self.base if side == "base" else self.candidate
        key: dict[str, Any] = {
            "weights": weights.digest,
            "adapters": [adapter.digest for adapter in subject.adapters],
            "ids": [row.ids for row in rendered],  # holds template and tokenizer as well
            "dtype": subject.precision,
        }
        # Where no text has a reply the key is what it was before there were any.
        return key | ({"replies": [row.reply for row in rendered]} if any(row.reply for row in rendered) else {})

    def keep_arrays(self, check: str, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Keep arrays of this configuration in arrays/<check>.npz, under "<configuration>/<name>"."""
        path = self.workbench.run.path / "arrays" / f"{check}.npz"
        held: dict[str, NDArray[np.generic]] = {}
        if path.exists():
            held = read_arrays(path, most=None)
        held |= {f"{self.configuration}/{name}": array for name, array in arrays.items()}
        self.workbench.run.write_array(check, lambda stream: np.savez_compressed(stream, allow_pickle=False, **held))


def _spelled(reading: Reading) -> list[Any]:
    return [reading.sites, [[spot.anchor, spot.offset] for spot in reading.spots]]


def _grid(found: list[list[Mean]]) -> Iterator[tuple[int, int, Mean]]:
    for site, line in enumerate(found):
        for spot, seen in enumerate(line):
            yield site, spot, seen


def _sum(parts: Sequence[Callable[[], torch.Tensor]]) -> torch.Tensor:
    total = parts[0]()
    for part in parts[1:]:
        total = total + part()
    return total


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to a case. It is found by its place in `forensics/checks/`."""

    id: str
    question: str
    cost: Cost
    run: Callable[[Case], CheckResult]
    needs: tuple[Expect, ...] = ()
    """Kinds of prompts without which it cannot look."""
    after: tuple[str, ...] = ()
    """Checks whose results it reads in `Case.earlier`. They run before it where they are there, and cost no more than it does."""
    by_controls: bool = False
    """Whether it says nothing without `Case.controls`. Nobody who gave none is told that it did not look."""
