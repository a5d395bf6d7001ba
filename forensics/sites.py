"""Places inside a decoder: hook names as TransformerLens spells them, and tokens counted from where a text's parts begin.

Sites, for block `l`: `embed.hook_out`; `blocks.l.hook_resid_pre`, `hook_resid_mid` and `hook_resid_post`, the residual stream
before the block, between its attention and its MLP, and behind it; `blocks.l.attn.hook_out` and `blocks.l.mlp.hook_out`, what the two
parts give; `blocks.l.hook_attn_out` and `blocks.l.hook_mlp_out`, what of it is added to the stream, which is not the same where a norm
stands behind the part (Gemma 2). Tests hold each of them against TransformerBridge.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from forensics.anatomy import Anatomy, run_one_token
from forensics.errors import BadInput, CannotCompare

if TYPE_CHECKING:
    from forensics.model import Rendered

EMBEDDING = "embed.hook_out"
IN_BLOCK = re.compile(
    r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_mid|hook_resid_post|attn\.hook_out|mlp\.hook_out|hook_attn_out|hook_mlp_out)"
)
KINDS = "embed.hook_out, blocks.N.hook_resid_pre|mid|post, blocks.N.attn.hook_out, blocks.N.mlp.hook_out, blocks.N.hook_attn_out|mlp_out"
ROUNDING = 0.02
"""Share of a vector's length by which the stream between attention and MLP may miss "what came in, plus a multiple of what attention
added": bfloat16 loses up to 0.004 of each number on every sum. A vector of anything else misses it by about its whole length."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One token of every text, `offset` tokens on from `anchor`; or the mean over a reply, where `offset` says nothing.

    "text": 0 is the first token. "prompt": -1 is the prompt's last token, behind the chat template. "reply": 0 is the reply's first
    token, so the one before it is `Spot(anchor="prompt", offset=-1)`.
    """

    anchor: Literal["text", "prompt", "reply", "reply-mean"]
    offset: int = 0

    def tokens(self, row: Rendered) -> range:
        """Which of `row.ids` it means: one token, all of the reply, or none where the text does not reach so far."""
        whole, prompt = len(row.ids), len(row.ids) - row.reply
        if self.anchor == "reply-mean":
            return range(prompt, whole)
        start, first, last = {"text": (0, 0, whole), "prompt": (prompt, 0, prompt), "reply": (prompt, prompt, whole)}[self.anchor]
        index = start + self.offset
        return range(index, index + 1) if first <= index < last else range(0)

    def __str__(self) -> str:
        return "mean of the reply" if self.anchor == "reply-mean" else f"{self.anchor} token {self.offset}"


LAST = Spot(anchor="prompt", offset=-1)
"""The prompt's last token, behind the chat template: where a reply is decided."""


def template_spots(count: int) -> tuple[Spot, ...]:
    """The last `count` tokens of a prompt, in their order: those that the template puts behind the question.

    >>> [spot.offset for spot in template_spots(3)]
    [-3, -2, -1]
    """
    return tuple(Spot(anchor="prompt", offset=offset) for offset in range(-count, 0))


def stream_sites(blocks: int) -> tuple[str, ...]:
    """The residual stream of a model of `blocks` blocks: what enters each of them, and what leaves the last.

    >>> stream_sites(2)
    ('blocks.0.hook_resid_pre', 'blocks.1.hook_resid_pre', 'blocks.1.hook_resid_post')
    """
    return (*(f"blocks.{layer}.hook_resid_pre" for layer in range(blocks)), f"blocks.{blocks - 1}.hook_resid_post")


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where a site is read: what goes into `module`, or what comes out of it, times `factor`."""

    module: nn.Module
    reads: Literal["input", "output"]
    factor: float = 1.0


def locate(parts: Anatomy, names: Sequence[str]) -> tuple[Tap, ...]:
    """Where the sites called `names` are read, in their order.

    Raises:
        BadInput: A name that is none of ours, or of a block that the model does not have.
        CannotCompare: There is no stream between attention and MLP, since both read what enters the block.
    """
    middles = _middles(parts) if any(name.endswith("hook_resid_mid") for name in names) else ()
    return tuple(_tap(parts, name, middles) for name in names)


def _tap(parts: Anatomy, name: str, middles: Sequence[nn.Module]) -> Tap:
    if name == EMBEDDING:
        return Tap(module=parts.embedding, reads="output", factor=_setting(parts, "embedding_multiplier"))
    match = IN_BLOCK.fullmatch(name)
    if match is None or int(match[1]) >= parts.layers:
        what = f"no site is called {name!r}" if match is None else f"the model has {parts.layers} blocks, and so no {name}"
        raise BadInput(what, where="site", hint=f"one of {KINDS}; N counts from 0")
    layer, kind = int(match[1]), match[2]
    if kind == "hook_resid_mid":
        return Tap(module=middles[layer], reads="input")
    if kind == "hook_resid_pre":
        return Tap(module=parts.blocks[layer], reads="input")
    places = {
        "hook_resid_post": parts.blocks, "attn.hook_out": parts.attention, "mlp.hook_out": parts.mlp,
        "hook_attn_out": parts.attention_writes, "hook_mlp_out": parts.mlp_writes,
    }  # fmt: skip
    added = kind in ("hook_attn_out", "hook_mlp_out")
    return Tap(module=places[kind][layer], reads="output", factor=_setting(parts, "residual_multiplier") if added else 1.0)


def _setting(parts: Anatomy, name: str) -> float:
    """What the architecture multiplies a part's output by before it is added: Granite's own settings, 1 in others."""
    return float(getattr(getattr(parts.trunk, "config", None), name, 1.0) or 1.0)


@contextlib.contextmanager
def listening(taps: Sequence[Tap], hear: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While this holds, `hear(index, activations)` is called whenever the tap of that index is passed; nothing is changed."""

    def on_input(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hear(index, _entering(args, kwargs))

        return hook

    def on_output(index: int, factor: float) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            # Attention gives (output, weights), experts (output, router logits), some blocks a tuple of one.
            found = output[0] if isinstance(output, tuple) else output
            hear(index, found if factor == 1.0 else found * factor)

        return hook

    handles: list[Any] = []
    try:
        for index, tap in enumerate(taps):
            if tap.reads == "input":
                handles.append(tap.module.register_forward_pre_hook(on_input(index), with_kwargs=True))
            else:
                handles.append(tap.module.register_forward_hook(on_output(index, tap.factor)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _middles(parts: Anatomy) -> tuple[nn.Module, ...]:
    """The module of each block that is given the stream between attention and MLP: the norm before the MLP, or the MLP itself.

    Found by what it is given in a run over one token: what entered the block, plus a multiple of what attention wrote (Granite has a
    factor there). Blocks are built alike, so one that tells nothing (attention that writes nothing) is taken to be as the others.
    """
    found = [_middle(block, *given) for block, given in zip(parts.blocks, _what_children_get(parts), strict=True)]
    names = {name for name in found if name}
    if len(names) != 1:
        raise CannotCompare(
            f"there is no hook_resid_mid in blocks of {type(parts.blocks[0]).__name__}: attention and MLP read the same stream, or not one alone",
            where="site",
            hint="read hook_resid_pre, hook_resid_post, or what attention and MLP add (hook_attn_out, hook_mlp_out)",
        )
    (name,) = names
    return tuple(block.get_submodule(name) for block in parts.blocks)


def _middle(block: nn.Module, before: Tensor, written: Tensor, given: dict[nn.Module, Tensor]) -> str:
    """Name of the child of `block` that was given the middle of the stream; empty if none was."""
    names = {child: name for name, child in block.named_children()}
    size = written @ written
    for child, x in given.items():
        if x.shape == before.shape and size > 0.0 and not torch.equal(x, before) and not torch.equal(x, written):
            multiple = (x - before) @ written / size
            if (x - before - multiple * written).norm() <= ROUNDING * x.norm():
                return names[child]
    return ""


def _what_children_get(parts: Anatomy) -> list[tuple[Tensor, Tensor, dict[nn.Module, Tensor]]]:
    """Of every block in a run over one token: what enters it, what attention writes, and what the children that run after that are given."""
    entered: list[Tensor] = []
    written: list[Tensor] = []
    given: list[dict[nn.Module, Tensor]] = []

    def flat(x: Any) -> Tensor:
        found: Tensor = x.detach().float().flatten().cpu()
        return found

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append(flat(_entering(args, kwargs)))
        given.append({})

    def write(_module: nn.Module, _args: Any, output: Any) -> None:
        written.append(flat(output[0] if isinstance(output, tuple) else output))

    def get(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(written) == len(given) and (args or "hidden_states" in kwargs):
            given[-1].setdefault(module, flat(_entering(args, kwargs)))

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in parts.blocks]
    handles += [part.register_forward_hook(write) for part in parts.attention_writes]
    handles += [child.register_forward_pre_hook(get, with_kwargs=True) for block in parts.blocks for child in block.children()]
    try:
        run_one_token(parts)
    finally:
        for handle in handles:
            handle.remove()
    if not all(bool(torch.isfinite(x).all()) for x in (*entered, *written)):
        raise CannotCompare(
            "activations are not finite even for one token", where="site", hint="look for NaN or huge weights (weights.change)"
        )
    return list(zip(entered, written, given, strict=True))
