"""Every tensor of a pair measured in one pass over the files, and what its change does to the residual stream.

No model is loaded: blocks are read from safetensors, and what is kept is one tensor's change at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from forensics.adapters import CONV1D_MODELS
from forensics.case import Case
from forensics.checkpoint import Checkpoint
from forensics.record import canonical_json, sha256_text
from forensics.roles import TRANSPOSED_ROLES, VOCABULARY, WRITES, Place, place
from forensics.workbench import spare_memory

if TYPE_CHECKING:
    import torch

    from forensics.alignment import Pair
    from probes.differ import Profile
    from probes.spectra import Spectrum
    from probes.tensor_edits import Form, TensorEdit

FEW = 4
"""Directions of a change up to which it is asked whether one of them was taken out of what the matrix writes."""
LOUD = 1.5
"""Of more directions it is asked where the first is so many times as strong as the second."""

TENSORS_A_SWEEP = 16
"""After how many tensors memory that was freed is given back: what is given back has to be asked for again, which takes time."""
MOST_AT_ONCE = 6
"""Tensors measured at once, where there are as many cores: each takes up to a quarter of a GiB."""
DEEPEST = 256
"""Singular values looked for in the first changed matrix of a role, to see whether they end."""


def measured(case: Case) -> dict[str, Profile]:
    """The profile of every aligned tensor, by name; measured once a run and configuration.

    Where adapters change a tensor by factors alone its spectrum is exact, from them, and nothing is rounded. Where one does more
    (DoRA, a tensor of its own) the spectrum is measured, like that of a full checkpoint, on what it adds.

    Raises:
        CannotCompare: What several adapters do to one tensor does not add up.
    """
    sides = [case.base.digest, case.candidate.digest, *(adapter.digest for adapter in case.adapters)]
    return case.workbench.remembered(f"profiles {sha256_text(canonical_json(sides))}", lambda: dict(_measure(case)))


def tensor_edits(case: Case) -> list[TensorEdit]:
    """Every tensor with its place in the model and, where a few directions of it write to the residual stream, their form."""
    from probes.tensor_edits import TensorEdit  # heavy: brings torch

    profiles, edits = measured(case), []
    for pair in case.pairs:
        where, profile = place(pair.name), profiles[pair.name]
        form = _form(case, pair, profile, where)
        edits.append(TensorEdit(name=pair.name, layer=where.layer, role=where.role, profile=profile, form=form))
    return edits


def _measure(case: Case) -> Iterator[tuple[str, Profile]]:
    """Every tensor in its order, several of a large model at once; the numbers do not depend on how many."""
    import torch  # heavy

    threads = torch.get_num_threads()
    at_once = min(threads, MOST_AT_ONCE)
    deltas, caps, done = case.deltas(), _Caps(), 0
    begun: deque[tuple[Pair, str, Callable[[], Profile]]] = deque()

    def finished() -> tuple[str, Profile]:
        nonlocal done
        pair, role, wait = begun.popleft()
        case.workbench.progress("weights", done, len(case.pairs))
        profile = wait()
        caps.learn(role, profile.spectrum)
        if pair.name in deltas and _factored(case, pair):
            found = _exact(case, pair)
            profile = replace(profile, spectrum=found, rows=None if found is None else torch.arange(found.shape[0]))
        if done % TENSORS_A_SWEEP == 0:
            spare_memory()
        done += 1
        return pair.name, profile

    torch.set_num_threads(1)  # what one thread adds up does not depend on the machine
    pool = ThreadPoolExecutor(at_once) if at_once > 1 else None
    try:
        for pair, blocks in case.tensors():
            role = place(pair.name).role
            # Of a role that nothing is known of yet only one is measured, since it decides what is looked for in the others.
            while begun and (len(begun) > at_once or (role not in caps.by_role and any(role == other for _, other, _ in begun))):
                yield finished()
            work = partial(_profile, case, pair, blocks, deltas.get(pair.name), _Caps(by_role=dict(caps.by_role), dense=set(caps.dense)))
            begun.append((pair, role, work if pool is None else pool.submit(work).result))
            if pool is None:
                yield finished()
        while begun:
            yield finished()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    case.workbench.progress("weights", len(case.pairs), len(case.pairs))


def _profile(
    case: Case, pair: Pair, blocks: Iterator[tuple[torch.Tensor, torch.Tensor]], added: Callable[[], torch.Tensor] | None, caps: _Caps
) -> Profile:
    """One tensor measured; where its change is one of factors, without the spectrum."""
    from probes.differ import Meter

    delta = None if added is None else added()
    worn = [change for _, change in case.changes.get(pair.name, [])]
    shape = pair.base.shape
    rows = shape[0] if len(shape) > 1 else 1
    role = place(pair.name).role
    # Of a matrix that writes to the residual stream all that it writes to is kept, to see what was taken out of it.
    writes = role in WRITES and not transposed(case, role)
    meter = Meter(
        shape=(rows, pair.base.elements // max(1, rows)),
        rank_cap=0 if delta is not None and _factored(case, pair) else caps.of(role),
        dense=role in caps.dense,
        thin_columns=writes,
        rounded=all(change.rounded for change in worn),
    )
    row = 0
    for ours, theirs in blocks:
        height = ours.shape[0] if ours.ndim else 0
        meter.update(ours, theirs, None if delta is None else delta[row : row + height])
        row += height
    return meter.profile()


def _factored(case: Case, pair: Pair) -> bool:
    """Whether all that adapters do to a tensor is to add factors."""
    return all(change.exact for _, change in case.changes.get(pair.name, []))


@dataclass(kw_only=True)
class _Caps:
    """How many singular values are looked for in matrices of each role: as many as its first one needs, if that ends at all.

    A change of full rank would cost as many in every matrix as it may have, and an adapter of high rank must be told from it.
    """

    by_role: dict[str, int] = field(default_factory=dict)
    dense: set[str] = field(default_factory=set)
    """Roles whose last matrix had as many as were looked for: the next one is asked for so many at once."""

    def of(self, role: str) -> int:
        return self.by_role.get(role, DEEPEST)

    def learn(self, role: str, found: Spectrum | None) -> None:
        from probes.spectra import DEFAULT_CAP  # heavy: brings torch

        if found is None or not found.resolved:
            return
        (self.dense.add if found.capped else self.dense.discard)(role)
        if role in self.by_role:
            return
        ends = found.low and found.seen > DEFAULT_CAP
        self.by_role[role] = min(DEEPEST, 2 * found.seen) if ends else DEFAULT_CAP


def _exact(case: Case, pair: Pair) -> Spectrum | None:
    """Spectrum of what all adapters of the case add to one tensor by factors, in the rows that both sides have; None if not finite."""
    import torch

    from probes.differ import DIRECTIONS
    from probes.spectra import exact_spectrum

    downs, ups, turned = [], [], False
    for adapter, change in case.changes[pair.name]:
        if change.exact:
            a, b = adapter.halves(change)
            downs.append(a)
            ups.append(b * change.exact.scale)
            turned = change.exact.transposed
    down, up = torch.cat(downs), torch.cat(ups, dim=1)
    if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
        return None
    found = exact_spectrum(up.T, down[:, : pair.rows].T) if turned else exact_spectrum(down, up[: pair.rows])
    return replace(found, left=found.left[:, :DIRECTIONS].clone(), right=found.right[:, :DIRECTIONS].clone())


def transposed(case: Case, role: str) -> bool:
    """Whether a matrix of this role is stored `[in, out]`, as GPT-2 does it."""
    return case.base.config.get("model_type") in CONV1D_MODELS and role in TRANSPOSED_ROLES


def _form(case: Case, pair: Pair, profile: Profile, where: Place) -> Form | None:
    """How the strongest direction of a change lies to W: only for matrices that write to the residual stream."""
    found = profile.spectrum
    if found is None or profile.rows is None or not found.resolved or where.role not in (*WRITES, *VOCABULARY[:1]):
        return None
    if found.rank > FEW and float(found.values[0]) < LOUD * float(found.values[1]):
        return None  # a removal has few directions, or with norms restored afterwards one that is far louder than the rest
    import torch

    from probes.tensor_edits import Form

    turned = transposed(case, where.role) or where.role == "embedding"
    left, right = spread(found.left[:, 0], profile.rows, profile.shape[0]), spread(found.right[:, 0], profile.columns, profile.shape[1])
    first, reads, seen = (right, left, profile.rows) if turned else (left, right, profile.columns)
    forms = []
    for direction, before in _candidates(case.base, pair, first, turned=turned):
        # Of a thinned change only what was kept can be held against it.
        before = before if seen is None else torch.zeros_like(before).index_copy(0, seen, before[seen])
        size = float(before.norm())
        if size > 0.0:
            # D^T u = sigma v for the leading pair, so what is left of u's input needs no second reading.
            after = before + float(found.sizes[0]) * reads * float(direction @ first)
            forms.append(Form(direction=direction, input_cosine=abs(float(reads @ before)) / size, gain=float(after.norm()) / size))
    return max(forms, key=lambda form: form.input_cosine, default=None)


def _candidates(base: Checkpoint, pair: Pair, direction: torch.Tensor, *, turned: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Directions that may have been taken out, each with what it reads through the base's matrix.

    The change's own direction; and, for tools that give every row its norm back, the one that the rows seen at equal length had.
    """
    norms = _output_norms(base, pair, turned=turned).clamp(min=1e-12)
    levelled = direction / norms
    levelled = levelled / levelled.norm()
    return [
        (direction, _pulled(base, pair, direction, turned=turned)),
        (levelled, _pulled(base, pair, levelled / norms, turned=turned)),
    ]


def _output_norms(base: Checkpoint, pair: Pair, *, turned: bool) -> torch.Tensor:
    """Norm of what each output of a matrix reads."""
    import torch

    blocks = base.blocks(pair.base.name, rows=pair.rows)
    parts = [torch.nan_to_num(block.reshape(block.shape[0], -1).float()).square().sum(dim=0 if turned else 1) for block in blocks]
    return (torch.stack(parts).sum(dim=0) if turned else torch.cat(parts)).sqrt()


def _pulled(base: Checkpoint, pair: Pair, direction: torch.Tensor, *, turned: bool) -> torch.Tensor:
    """W^T u for a matrix stored `[out, in]`, W u for one stored the other way round."""
    import torch

    parts, row = [], 0
    for block in base.blocks(pair.base.name, rows=pair.rows):
        rows = torch.nan_to_num(block.reshape(block.shape[0], -1).float())
        parts.append(rows @ direction if turned else rows.T @ direction[row : row + len(rows)])
        row += len(rows)
    return torch.cat(parts) if turned else torch.stack(parts).sum(dim=0)


def spread(directions: torch.Tensor, entries: torch.Tensor | None, length: int) -> torch.Tensor:
    """Directions `[k]` or `[k, n]` over all `length` entries of an axis, zero where an entry did not change or was not kept."""
    import torch

    if entries is None:
        return directions
    return torch.zeros(length, *directions.shape[1:]).index_copy(0, entries, directions)
