"""Which tokens a direction of the residual stream stands for: held against every row of a vocabulary matrix, block by block.

Source: reading weights in the basis of the embeddings, as in Dar et al. 2023 (arXiv:2209.02535) and Millidge and Black 2022 for singular
vectors. Standing a token's cosine against those of the whole vocabulary, so that what a direction has to do with no token shows
nothing, is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


def finite(rows: Tensor) -> Tensor:
    """The rows `[n, d]`, with zeros for what is no number and for rows longer than a float can hold; a copy is made only where there is such.

    One of those would move the centre so far that nothing is left of the other rows.
    """
    if bool(torch.isfinite(rows.norm(dim=1).sum())):
        return rows
    numbers = torch.nan_to_num(rows, 0.0, 0.0, 0.0)
    return numbers.masked_fill(~torch.isfinite(numbers.norm(dim=1, keepdim=True)), 0.0)


@dataclass(kw_only=True)
class Readout:
    """Cosines of `directions` `[d, k]` with the rows of a matrix `[tokens, d]`; feed it blocks of rows, then ask for the `peaks`.

    `centre` `[d]` is taken off every row: what all tokens share tells none of them apart.
    """

    directions: Tensor
    centre: Tensor
    most: int
    tokens: int = 0
    _sum: Tensor | float = 0.0
    _squares: Tensor | float = 0.0
    _ends: dict[bool, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def update(self, rows: Tensor) -> None:
        """Add rows `[n, d]`, any float dtype; what lies in the centre lies along nothing, and so does what overflows behind it."""
        tiny = torch.finfo(torch.float32).tiny
        rows = finite(rows.float()) - self.centre
        units = self.directions / self.directions.norm(dim=0).clamp(min=tiny)
        cosines = (rows @ units).div_(rows.norm(dim=1, keepdim=True).clamp(min=tiny))
        cosines = torch.nan_to_num(cosines, 0.0, 0.0, 0.0)  # one that is no number would leave no token a place
        self._sum = self._sum + cosines.sum(dim=0).double()
        self._squares = self._squares + cosines.square().sum(dim=0).double()
        for largest in (True, False):  # a direction has no sign, and the mean is not known yet: both ends are kept
            values, index = cosines.topk(min(self.most, len(rows)), dim=0, largest=largest)
            index += self.tokens
            if largest in self._ends:
                # One table that is renewed: many small ones would lie scattered over the heap and keep it from shrinking.
                values, index = (torch.cat(parts) for parts in zip(self._ends[largest], (values, index), strict=True))
                values, order = values.topk(min(self.most, len(values)), dim=0, largest=largest)
                index = index.gather(0, order)
            self._ends[largest] = values, index
        self.tokens += len(rows)

    @property
    def chance(self) -> float:
        """Standard deviations that the furthest of as many tokens in as many directions reaches, on either side, if cosines are Gaussian."""
        return math.sqrt(2.0 * math.log(2.0 * max(2, self.tokens * self.directions.shape[1])))

    def peaks(self) -> tuple[Tensor, Tensor]:
        """Of each direction the tokens that stand furthest out: standard deviations `[m, k]`, furthest first, and rows `[m, k]`."""
        values, index = (torch.cat(parts) for parts in zip(*self._ends.values(), strict=True))
        mean = torch.as_tensor(self._sum) / self.tokens
        spread = (torch.as_tensor(self._squares) / self.tokens - mean**2).clamp(min=0.0).sqrt()
        far = ((values.double() - mean) / spread.clamp(min=1e-12)).abs()
        # Of a small vocabulary a token can be among the largest and the smallest: the second place is crossed out.
        order = torch.argsort(far, dim=0, descending=True, stable=True)
        far, index = far.gather(0, order), index.gather(0, order)
        for column in range(index.shape[1]):
            seen: set[int] = set()
            for row, token in enumerate(index[:, column].tolist()):
                far[row, column] = 0.0 if token in seen else far[row, column]
                seen.add(token)
        order = torch.argsort(far, dim=0, descending=True, stable=True)[: self.most]
        return far.gather(0, order), index.gather(0, order)
