"""What a PEFT adapter does to one tensor of the model below it: by factors, by new lengths of its outputs, or by another tensor in its place.

Source: LoRA (Hu et al. 2021, arXiv:2106.09685); DoRA (Liu et al. 2024, arXiv:2402.09353), whose norms PEFT takes over each output.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forensics.checkpoint import Checkpoint
from forensics.headers import TensorInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A `[r, in]` and B `[out, r]` as stored, and the scale between them.

    `transposed`: the tensor they change is stored `[in, out]`, as GPT-2's matrices and all embeddings are. `embedding`: they
    are for a table with a row a token, which PEFT keeps under other names.
    """

    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float
    transposed: bool
    embedding: bool = False


@dataclass(frozen=True, kw_only=True)
class Change:
    """One tensor that an adapter changes.

    `target` is the tensor as the model below calls it, `module` the module it belongs to as PEFT calls it. `source` is the
    tensor that would act without the adapter: another one than `target` only where a head that was tied gets weights of its own.
    `whole` is stored in its place, and stands there before `factors` are added; `magnitude` `[out]` is the length that DoRA
    then gives each output. `overwrites`: PEFT would load `whole` over the base's own weights rather than beside them.
    """

    target: str
    module: str
    source: TensorInfo
    factors: Factors | None = None
    magnitude: TensorInfo | None = None
    whole: TensorInfo | None = None
    overwrites: bool = False

    @property
    def exact(self) -> Factors | None:
        """The factors, where the whole change is their product; None where it is more than that."""
        return self.factors if self.whole is None and self.magnitude is None else None

    @property
    def rounded(self) -> bool:
        """Whether what stands in the tensor's place went through its storage format: rounding is then a part of the change."""
        return self.whole is not None and self.factors is None and self.whole.dtype == self.source.dtype

    def halves(self, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[r, in]` and B `[out, r]` as stored in `file`, in float32; the scale is not in them."""
        assert self.factors is not None, "only a change with factors has halves"
        return stored(file, self.factors.a), stored(file, self.factors.b)

    def delta(self, file: Path, base: Checkpoint) -> torch.Tensor:
        """What the adapter in `file` adds to `source` of `base`, in its shape, float32.

        DoRA makes `m * (W + s B A) / ||W + s B A||` of W, the norm over each output; where an output has none the result is not
        finite, as PEFT's is.
        """
        import torch  # heavy

        product: torch.Tensor | None = None
        if self.factors is not None:
            a, b = self.halves(file)
            product = self.factors.scale * (b @ a)
            product = product.T if self.factors.transposed else product
            if self.exact:
                return product
        before = base_tensor(base, self.source)
        start = before if self.whole is None else stored(file, self.whole)
        change: torch.Tensor = start - before
        if product is None:
            return change
        if self.magnitude is None or self.factors is None:
            return change + product
        across = 0 if self.factors.transposed else 1
        lengths = torch.linalg.vector_norm(start + product, dim=across, keepdim=True, dtype=torch.float64)
        gain = stored(file, self.magnitude).double().unsqueeze(across) / lengths
        # W is taken off before it is multiplied: the difference of two large products would lose what is small about the change.
        change += (gain - 1.0).float() * start + gain.float() * product
        return change


def stored(file: Path, info: TensorInfo) -> torch.Tensor:
    """One tensor of a safetensors file in float32."""
    from safetensors import safe_open  # heavy: brings torch

    with safe_open(file, framework="pt") as stream:
        found: torch.Tensor = stream.get_tensor(info.name).float()
    return found


def base_tensor(base: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """One tensor of a checkpoint in float32."""
    import torch  # heavy

    blocks = [block.float() for block in base.blocks(info.name)]
    return torch.cat(blocks) if info.shape else blocks[0]


def same_values(file: Path, info: TensorInfo, base: Checkpoint, source: TensorInfo) -> bool:
    """Whether a stored tensor holds the values of the base's, of the same shape, whatever format either is in."""
    import torch  # heavy
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        part, row = stream.get_slice(info.name), 0
        if not info.elements:
            return True
        if not info.shape:
            return bool(torch.equal(stream.get_tensor(info.name).double(), next(iter(base.blocks(source.name))).double()))
        for block in base.blocks(source.name):
            ours, theirs = block.double(), part[row : row + len(block)].double()
            if not bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all()):
                return False
            row += len(block)
    return True
