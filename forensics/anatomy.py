"""Where the parts of a decoder-only transformer are: found by what they are, not by a list of architectures.

Every model of transformers that we read has one list of equal blocks, each with one attention part and one part that
mixes the width (an MLP or experts). What a block adds to the residual stream is the output of those two, or of a norm
put behind them (Gemma 2, OLMo 2, GLM 4). PEFT puts its layers in the place of single matrices, so all this holds below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from forensics.errors import CannotCompare

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
WRITING_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
"""Names of norms that stand between a part and the residual stream, recognised only where both are there: Llama calls
the norm *before* its MLP `post_attention_layernorm`, and has no second one."""
HINT = "the activation checks need a decoder-only transformer whose blocks hold attention; --max-cost weights leaves them out"


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of one live model.

    `attention_writes` and `mlp_writes` are the modules whose output is added to the residual stream: the attention or
    MLP itself, or the norm behind it. `trunk` is the module that holds the blocks; called with token ids it runs
    everything but the unembedding. `final_norm` is None where the architecture has none.
    """

    trunk: nn.Module
    embedding: nn.Module
    blocks: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    attention_writes: tuple[nn.Module, ...]
    mlp_writes: tuple[nn.Module, ...]
    final_norm: nn.Module | None
    unembedding: nn.Module | None

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def writers(self) -> tuple[nn.Module, ...]:
        """Every module whose output enters the residual stream: the embedding, then block by block."""
        return (self.embedding, *(part for pair in zip(self.attention_writes, self.mlp_writes, strict=True) for part in pair))


@dataclass(frozen=True, kw_only=True)
class WritingMatrix:
    """One matrix that writes to the residual stream, `[width, inputs]`, float32, adapters included.

    `block` is the number of its block, None for the embedding.
    """

    name: str
    part: str
    block: int | None
    weight: Tensor


def dissect(model: Any) -> Anatomy:
    """Find the parts of a Hugging Face causal language model, also below PEFT.

    Args:
        model: What `LiveModel.wearing` gives.

    Raises:
        CannotCompare: There is no embedding, no single list of blocks, or a block without one attention part and
            something beside it.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    embedding = inner.get_input_embeddings()
    if not isinstance(embedding, nn.Module):
        raise CannotCompare("its input embedding was not found", where=type(inner).__name__, hint=HINT)
    trunk, blocks = _blocks(inner)
    parts = [_parts(block) for block in blocks]
    writes = [_writes(block, attention, mlp) for block, (attention, mlp) in zip(blocks, parts, strict=True)]
    norms = [child for child in trunk.children() if _is_norm(child)]
    return Anatomy(
        trunk=trunk,
        embedding=embedding,
        blocks=blocks,
        attention=tuple(attention for attention, _ in parts),
        mlp=tuple(mlp for _, mlp in parts),
        attention_writes=tuple(attention for attention, _ in writes),
        mlp_writes=tuple(mlp for _, mlp in writes),
        final_norm=norms[-1] if norms else None,
        unembedding=inner.get_output_embeddings(),
    )


def writing_matrices(model: Any) -> Iterator[WritingMatrix]:
    """Every matrix that writes to the residual stream, with the active adapters' deltas, one at a time.

    Which matrix of a part comes last is read off a run over one token, because names differ between architectures and
    shapes do not tell a square output matrix from a query matrix. Experts kept in one stack have no such matrix and are
    left out; the caller sees that by counting.

    Yields:
        The embedding first (its rows as columns), then block by block.
    """
    found = dissect(model)
    yield WritingMatrix(name="embedding", part="embedding", block=None, weight=_effective(found.embedding).T)
    last: dict[int, nn.Module] = {}
    owners = {id(module): part for part in (*found.attention, *found.mlp) for module in part.modules()}

    def note(module: nn.Module, _args: Any, _output: Any) -> None:
        last[id(owners[id(module)])] = module

    handles = [
        module.register_forward_hook(note) for part in (*found.attention, *found.mlp) for module in part.modules() if _is_matrix(module)
    ]
    try:
        run_one_token(found)
    finally:
        for handle in handles:
            handle.remove()
    for layer, pair in enumerate(zip(found.attention, found.mlp, strict=True)):
        for kind, part in zip(("attention", "mlp"), pair, strict=True):
            if id(part) in last:
                module = last[id(part)]
                weight = _effective(module)
                inner = getattr(_worn(module), "base_layer", _worn(module))
                # transformers' Conv1D, of GPT-2, stores [inputs, outputs].
                weight = weight if isinstance(inner, nn.Linear) else weight.T
                yield WritingMatrix(name=f"blocks.{layer}.{kind}", part=kind, block=layer, weight=weight)


def run_one_token(parts: Anatomy) -> None:
    """One forward pass over one token, for what hooks hear of it."""
    device = next(parts.embedding.parameters()).device
    # On no device is what accelerate fetches when it is needed; it moves what goes into such a module as well.
    ids = torch.zeros((1, 1), dtype=torch.long, device="cpu" if device.type == "meta" else device)
    with torch.inference_mode():
        parts.trunk(input_ids=ids, use_cache=False)


def _blocks(model: Any) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    wanted = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [
        (parent, tuple(child))
        for parent in model.modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) == wanted and all(_attention_children(block) for block in child)
    ]
    if len(lists) != 1:
        raise CannotCompare(
            f"{len(lists)} lists of {wanted} attention blocks were found where one is expected", where=type(model).__name__, hint=HINT
        )
    return lists[0]


def _attention_children(block: nn.Module) -> list[nn.Module]:
    return [child for name, child in block.named_children() if ATTENTION.search(name) and _holds_matrix(child)]


def _parts(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    attention = _attention_children(block)
    others = [child for child in block.children() if _holds_matrix(child) and all(child is not part for part in attention)]
    if len(attention) != 1 or not others:
        raise CannotCompare(f"a block has {len(attention)} attention parts and {len(others)} others", where=type(block).__name__, hint=HINT)
    # OPT has no module around its MLP; its last matrix is what writes.
    return attention[0], others[-1]


def _writes(block: nn.Module, attention: nn.Module, mlp: nn.Module) -> tuple[nn.Module, nn.Module]:
    children = dict(block.named_children())
    for behind_attention, behind_mlp in WRITING_NORMS:
        if behind_attention in children and behind_mlp in children:
            return children[behind_attention], children[behind_mlp]
    return attention, mlp


def _holds_matrix(module: nn.Module) -> bool:
    return any(weight.ndim >= 2 for weight in module.parameters())


def _is_norm(module: nn.Module) -> bool:
    weights = list(module.parameters())
    return bool(weights) and all(weight.ndim == 1 for weight in weights)


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _worn(module: Any) -> Any:
    """The module that runs: PEFT wraps one that an adapter replaces whole together with its replacements."""
    copies = getattr(module, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return module
    active = [name for name in module.active_adapters if name in copies]
    return copies[active[0]] if active and not module.disable_adapters else module.original_module


def _stored(module: Any) -> Tensor:
    """The weight as it is held, float32; fetched where accelerate keeps it elsewhere."""
    if not module.weight.is_meta:
        held: Tensor = module.weight.detach().float()
        return held
    with align_module_device(module, torch.device("cpu")):
        fetched: Tensor = module.weight.detach().float().clone()
    return fetched


def _effective(module: Any) -> Tensor:
    """The matrix that acts: the stored one and what the adapters that are active now make of it."""
    module = _worn(module)
    inner = getattr(module, "base_layer", module)
    weight = _stored(inner)
    if inner is module or module.disable_adapters:
        return weight
    held = {*getattr(module, "lora_A", {}), *getattr(module, "lora_embedding_A", {})}
    for name in module.active_adapters:
        if name in held:
            weight = weight + module.get_delta_weight(name).detach().float()
            lengths = getattr(module, "lora_magnitude_vector", {})
            if name in lengths:
                # DoRA alone on its matrix (`adapters.refuse_together`): each output gets the length that was learnt for it.
                across = 0 if lengths[name].fan_in_fan_out else 1
                weight = weight * (lengths[name].weight.detach().float().unsqueeze(across) / weight.norm(dim=across, keepdim=True))
    return weight
