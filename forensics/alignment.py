"""Which tensor of the base is which tensor of the candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forensics.checkpoint import Checkpoint
from forensics.errors import CannotCompare
from forensics.headers import FLOATS, TensorInfo

BUFFER_ENDINGS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Constants that older versions of transformers saved beside the weights (causal masks, rotary frequencies)."""
HEAD_ENDINGS = ("lm_head.weight", "embed_out.weight")
EMBEDDING_ENDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One tensor as it is called in a report, and the stored tensor that holds it on each side."""

    name: str
    base: TensorInfo
    candidate: TensorInfo


def align(base: Checkpoint, candidate: Checkpoint) -> tuple[Pair, ...]:
    """Match the tensors of two full checkpoints by name, sorted by name.

    A tied head that only one side writes out is matched with the other side's embedding: what a loader would use.
    Constant buffers are left out.

    Raises:
        CannotCompare: Architecture, vocabulary, names or shapes differ, or a weight is stored as quantised codes.
    """
    kinds = base.config.get("model_type"), candidate.config.get("model_type")
    if kinds[0] != kinds[1]:
        raise CannotCompare(
            f"base and candidate are different architectures ({kinds[0]} and {kinds[1]})",
            where="config.json: model_type",
            hint="check that BASE is the model CANDIDATE was fine-tuned from",
        )
    ours, theirs = _weights(base), _weights(candidate)
    for left, right, side in ((ours, theirs, candidate), (theirs, ours, base)):
        for name in sorted(left.keys() - right.keys()):
            if name.endswith(HEAD_ENDINGS) and (embedding := _tied_embedding(side)) is not None:
                right[name] = embedding
    _refuse_differences(base, candidate, ours, theirs)
    return tuple(Pair(name=name, base=ours[name], candidate=theirs[name]) for name in sorted(ours))


def refuse_strangers(base: Checkpoint, parents: Sequence[Checkpoint]) -> None:
    """Refuse parents of a merge that do not have the base's tensors.

    Raises:
        CannotCompare: A parent lacks a tensor, or has it in another shape.
    """
    for parent in parents:
        for name, info in base.tensors.items():
            other = parent.tensors.get(name)
            if not _is_buffer(info) and (other is None or other.shape != info.shape or other.dtype not in FLOATS):
                raise CannotCompare(
                    f"this parent does not have the base's {name}, or has it in another shape",
                    where=parent.name,
                    hint="parents of a merge are models of the same architecture and vocabulary as BASE",
                )


def _weights(side: Checkpoint) -> dict[str, TensorInfo]:
    """Tensors that are weights; refuses codes of a quantised release."""
    weights = {name: info for name, info in side.tensors.items() if not _is_buffer(info)}
    codes = sorted(name for name, info in weights.items() if info.dtype not in FLOATS)
    if codes:
        raise CannotCompare(
            f"{len(codes)} tensors are stored as codes, not numbers ({weights[codes[0]].dtype})",
            where=side.name,
            details=tuple(codes),
            hint="compare unquantised releases; quantised ones cannot be compared yet",
        )
    return weights


def _is_buffer(info: TensorInfo) -> bool:
    # GPT-2's `attn.bias` is a [1, 1, n, n] mask; a true bias of that name would be a vector and must be compared.
    return info.name.endswith(BUFFER_ENDINGS) and (len(info.shape) != 1 or info.name.endswith("inv_freq"))


def _tied_embedding(side: Checkpoint) -> TensorInfo | None:
    # Many configs leave the key out when it has the default of their class, so only an explicit False says "untied".
    if side.config.get("tie_word_embeddings") is False:
        return None
    return next((info for name, info in sorted(side.tensors.items()) if name.endswith(EMBEDDING_ENDINGS)), None)


def _refuse_differences(base: Checkpoint, candidate: Checkpoint, ours: dict[str, TensorInfo], theirs: dict[str, TensorInfo]) -> None:
    rows = [f"{name}  only in the base" for name in sorted(ours.keys() - theirs.keys())]
    rows += [f"{name}  only in the candidate" for name in sorted(theirs.keys() - ours.keys())]
    rows += [
        f"{name}  base {list(ours[name].shape)}  candidate {list(theirs[name].shape)}"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name].shape != theirs[name].shape
    ]
    if rows:
        raise CannotCompare(
            f"cannot compare these checkpoints: {len(rows)} of {len(ours)} tensors differ in name or shape",
            where=f"{base.name} and {candidate.name}",
            details=tuple(rows),
            hint="check that BASE is the model CANDIDATE was fine-tuned from; grown vocabularies and added layers cannot be compared yet",
        )
