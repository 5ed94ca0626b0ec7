"""The sparse code of a batch: its active (row, latent, value) triples, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class ByLatent(NamedTuple):
    """The same triples ordered by latent: the transposed structure (CSC) of a code."""

    indptr: Tensor
    """int32 `[n + 1]`: where each latent's triples start."""
    rows: Tensor
    """int32 `[nnz]`: the row of each triple."""
    order: Tensor
    """int32 `[nnz]`: its position in the code's own order."""


@dataclass(frozen=True)
class Code:
    """The active latents of each row (CSR). Latents within a row are in no promised order."""

    indptr: Tensor
    """int32 `[rows + 1]`: where each row's triples start."""
    indices: Tensor
    """int32 `[nnz]`: the latent of each triple."""
    values: Tensor
    """float `[nnz]`: its value."""
    n: int
    """How many latents there are."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, n)`."""
        return len(self.indptr) - 1, self.n

    @property
    def l0(self) -> Tensor:
        """int64 `[rows]`: how many latents are active in each row."""
        return self.indptr.diff().long()

    @property
    def rows(self) -> Tensor:
        """int64 `[nnz]`: the row of each triple."""
        rows = torch.arange(self.shape[0], device=self.indptr.device)
        return rows.repeat_interleave(self.l0, output_size=len(self.indices))

    @cached_property
    def by_latent(self) -> ByLatent:
        """The transposed structure, computed once for all products that need it."""
        from l0plane import kernels

        return kernels.transpose(self)

    def with_values(self, values: Tensor) -> Code:
        """The same active set with other values `[nnz]`; shares the transposed structure."""
        code = replace(self, values=values)
        if "by_latent" in self.__dict__:
            code.__dict__["by_latent"] = self.by_latent
        return code

    def keep(self, mask: Tensor) -> Code:
        """Only the triples where `mask`, bool `[nnz]`, is true."""
        kept = torch.zeros(len(mask) + 1, dtype=torch.int32, device=mask.device)
        torch.cumsum(mask, 0, dtype=torch.int32, out=kept[1:])
        return Code(kept[self.indptr.long()], self.indices[mask], self.values[mask], self.n)

    def top_k_mask(self, k: int) -> Tensor:
        """bool `[nnz]`: which triples are among the `k` largest of their row; exactly `k`."""
        widest = int(self.l0.max()) if len(self.indptr) > 1 else 0
        if widest <= k:
            return torch.ones_like(self.indices, dtype=torch.bool)
        filled = torch.arange(widest, device=self.indptr.device) < self.l0[:, None]
        padded = self.values.new_full(filled.shape, -torch.inf)
        padded[filled] = self.values.detach()
        chosen = torch.zeros_like(filled).scatter_(1, padded.topk(k, dim=1).indices, True)
        return chosen[filled]

    def to_dense(self) -> Tensor:
        """The code as a matrix `[rows, n]`."""
        dense = self.values.new_zeros(self.shape)
        return dense.index_put((self.rows, self.indices.long()), self.values)
