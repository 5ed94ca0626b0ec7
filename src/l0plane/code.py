"""The sparse code of a batch: its active (row, latent, value) triples, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    live: Tensor | None = None
    """bool `[nnz]`: which triples there are, where others of value 0 pad all rows to one length.

    What pads a row is of latent 0, or, in a code with `whole` rows, of the latent at its place.
    """
    whole: bool = False
    """Whether each row has all latents, in order."""
    _by_latent: list[ByLatent] = field(default_factory=list, repr=False, compare=False)
    """Empty until somebody asks; codes that differ in values only share the list."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, n)`."""
        return self.indptr.shape[0] - 1, self.n

    @property
    def padded(self) -> bool:
        """Whether some triples may be there for the length of their row alone."""
        return self.live is not None

    @property
    def l0(self) -> Tensor:
        """int64 `[rows]`: how many triples each row has, those that pad it among them."""
        return self.indptr.diff().long()

    @property
    def rows(self) -> Tensor:
        """int64 `[nnz]`: the row of each triple."""
        rows = torch.arange(self.shape[0], device=self.indptr.device)
        return rows.repeat_interleave(self.l0, output_size=len(self.indices))

    @property
    def by_latent(self) -> ByLatent:
        """The transposed structure, computed once for all codes of the same active set."""
        if not self._by_latent:
            from l0plane import kernels

            self._by_latent.append(kernels.transpose(self))
        return self._by_latent[0]

    @staticmethod
    def stacked(codes: Sequence[Code]) -> Code:
        """The rows of several codes of the same latents, one under the other."""
        if len(codes) == 1:
            return codes[0]
        ends = [torch.zeros_like(codes[0].indptr[:1])]
        for code in codes:
            ends.append(code.indptr[1:] + ends[-1][-1:])
        indices, values = (
            torch.cat([getattr(code, name) for code in codes]) for name in ("indices", "values")
        )
        return Code(torch.cat(ends), indices, values, codes[0].n)

    def with_values(self, values: Tensor) -> Code:
        """The same active set with other values `[nnz]`; shares the transposed structure.

        What pads a row keeps the value 0, and has no gradient.
        """
        if self.live is not None:
            values = torch.where(self.live, values, 0.0)
        return replace(self, values=values)

    def keep(self, mask: Tensor) -> Code:
        """Only the triples where `mask`, bool `[nnz]`, is true."""
        from l0plane import kernels

        indptr, places = kernels.places(self, mask)
        indices, values = (t.index_select(0, places) for t in (self.indices, self.values))
        return Code(indptr, indices, values, self.n)

    def only(self, mask: Tensor) -> Code:
        """As `keep`, of a padded code, which stays as long: other triples pad it."""
        assert self.live is not None
        return replace(self, live=self.live & mask).with_values(self.values)

    def parted(self, mask: Tensor) -> tuple[Code, Code]:
        """The same triples, those where `mask`, bool `[nnz]`, is true first in their row.

        Returns:
            That code, and one in which row `2 r` has those of `mask` in row r, and row `2 r + 1`
            its others: two codes of the same triples in the same order.
        """
        from l0plane import kernels

        halves = kernels.parted(self, mask)
        live = halves.values != 0 if self.padded else None
        halves = replace(halves, live=live)
        starts, rows, order = halves.by_latent
        by_latent = [ByLatent(starts, rows >> 1, order)]
        indptr = halves.indptr[::2].contiguous()
        joined = Code(indptr, halves.indices, halves.values, self.n, live, _by_latent=by_latent)
        return joined, halves

    def to_dense(self) -> Tensor:
        """The code as a matrix `[rows, n]`."""
        if self.whole:
            return self.values.view(self.shape)
        places = self.rows * self.n + self.indices
        dense = self.values.new_zeros(self.shape[0] * self.n)
        return dense.scatter_add(0, places, self.values).view(self.shape)
