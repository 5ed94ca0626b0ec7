"""One training on several processes, each with a device of its own, as `torchrun` starts them.

The ranks share the work in one of two ways. Either each has all latents and takes its share of the
rows of every batch; or each has n / R of the latents, with their optimiser state, and takes every
batch whole. The result is that of one process but for the order of sums. What is added up, and
where, is here; methods and the training loop say which of their sums run over rows or latents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from l0plane import kernels
from l0plane.checkpoint import Checkpoint, Resumable
from l0plane.code import Code
from l0plane.device import available_device
from l0plane.files import UserError
from l0plane.processes import end_with_parent, launched

#: What every rank has whole even where latents are shared; all other parameters are `[n, ...]`.
REPLICATED = "pre_bias"
#: A rank that waits longer for another gives up; one that died is noticed at once.
PATIENCE = timedelta(hours=1)

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class Ranks:
    """The processes of one training; by default one alone, for which each method does nothing.

    All ranks call the same methods in the same order.
    """

    rank: int = 0
    """Which of them this is."""
    size: int = 1
    """How many there are."""
    shard_latents: bool = False
    """Whether they share latents; else rows."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # a constant

    # --- one's share

    def rows(self, x: Tensor) -> Tensor:
        """This rank's rows of `x [rows, d]`; ranks have them in order."""
        return x if self.shard_latents else x.tensor_split(self.size)[self.rank]

    def latents(self, tensor: Tensor) -> Tensor:
        """This rank's latents of `tensor [n, ...]`; ranks have them in order."""
        return tensor.tensor_split(self.size)[self.rank].clone() if self.shard_latents else tensor

    def whole(self, tensor: Tensor) -> Tensor:
        """`tensor [n, ...]` of all latents on rank 0, on the CPU if they are shared.

        On other ranks their own, `[n / R, ...]`.
        """
        if not self.shard_latents:
            return tensor
        own = tensor.detach().to(self.device).contiguous()
        if self.rank:
            dist.send(own, 0)
            return tensor
        pieces, piece = [own.cpu()], torch.empty_like(own)
        for rank in range(1, self.size):
            dist.recv(piece, rank)
            pieces.append(piece.cpu().clone())
        return torch.cat(pieces)

    def random_latents(self, n: int, d: int, generator: torch.Generator) -> Tensor:
        """This rank's latents of normal random numbers `[n, d]`, as one process draws them.

        Raises:
            UserError: n is not a multiple of the number of ranks that share latents.
        """
        if not self.shard_latents:
            return torch.randn(n, d, generator=generator)
        if n % self.size:
            raise UserError(f"{n} latents cannot be shared evenly by {self.size} processes")
        for _ in range(self.rank + 1):  # no more than its own in memory
            own = torch.randn(n // self.size, d, generator=generator)
        return own

    # --- sums: of a number on the device, `[]`, the host need not wait for

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, in place the sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def over_rows(self, number: Number) -> Number:
        """The sum of a number that depends on the rows that a rank has."""
        return number if self.shard_latents else self._total(number)

    def over_latents(self, number: Number) -> Number:
        """The sum of a number that depends on the latents that a rank has."""
        return self._total(number) if self.shard_latents else number

    def over_all(self, number: Number) -> Number:
        """The sum of a number that depends on both."""
        return self._total(number)

    def _total(self, number: Number) -> Number:
        if self.size == 1:
            return number
        if isinstance(number, Tensor):
            return self.sum(number.to(torch.float64, copy=True))
        return self.sum(torch.tensor(number, dtype=torch.float64, device=self.device)).item()

    def sum_gradients(self, gradients: dict[str, Tensor]) -> None:
        """Sum in place the gradients of the parameters that every rank has."""
        for name, gradient in gradients.items():
            if not self.shard_latents or name == REPLICATED:
                self.sum(gradient)

    def shortest(self, silent: Tensor) -> None:
        """In place, for how many tokens `[n]` each latent has been silent on the rows of all."""
        if self.size > 1 and not self.shard_latents:
            dist.all_reduce(silent, dist.ReduceOp.MIN)

    def gather(self, values: Tensor) -> tuple[Tensor, slice]:
        """`values [any]` of all ranks in order, `[sum]`, and where this rank's own are."""
        if self.size == 1:
            return values, slice(None)
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        counts[self.rank] = len(values)
        lengths = self.sum(counts).tolist()
        padded = values.new_zeros(max(lengths))
        padded[: len(values)] = values
        pieces = self._stacked(padded)
        start = sum(lengths[: self.rank])
        whole = torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])
        return whole, slice(start, start + len(values))

    def _stacked(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape from each rank, `[R, ...]`."""
        out = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather(list(out), tensor.contiguous())
        return out

    # --- the operations on codes that concern the latents of all ranks

    def encode_top_k(
        self,
        x: Tensor,
        pre_bias: Tensor,
        encoder: Tensor,
        k: int,
        bias: Tensor | None = None,
        padded: bool = False,
    ) -> Code:
        """As `kernels.encode_top_k`, the `k` largest of all latents; the code has this rank's."""
        mask = self._agreed if self.shard_latents else None
        return kernels.encode_top_k(x, pre_bias, encoder, k, bias, mask, padded)

    def top_k_mask(self, code: Code, k: int) -> Tensor:
        """As `kernels.top_k_mask`, the `k` largest of all latents."""
        mask = kernels.top_k_mask(code, k)
        if self.shard_latents:
            mask[mask.clone()] = self._agreed(code.keep(mask), k)
        return mask

    def _agreed(self, code: Code, k: int) -> Tensor:
        """Which triples of a code with at most `k` in a row are among the `k` largest of all."""
        rows = code.rows
        place = torch.arange(len(rows), device=rows.device) - code.indptr[rows]
        # Each rank's in the order of its latents, so that of equal values the lower one goes first.
        latents = torch.full((code.shape[0], k), code.n, dtype=torch.int32, device=rows.device)
        latents[rows, place] = code.indices
        order = latents.argsort(1)
        own = code.values.new_zeros(latents.shape)
        own[rows, place] = code.values.detach()
        values = self._stacked(own.gather(1, order)).transpose(0, 1)
        least = values.flatten(1).topk(k).values[:, -1:]
        # Of those equal to the k-th largest, as many are kept as there is room beside the larger.
        equal = values == least[:, None]
        room = k - (values > least[:, None]).sum((1, 2)) - equal[:, : self.rank].sum((1, 2))
        first = equal[:, self.rank].cumsum(1) <= room[:, None]
        kept = (values[:, self.rank] > least) | (equal[:, self.rank] & first)
        return torch.empty_like(kept).scatter_(1, order, kept)[rows, place]

    def squared_error(
        self,
        x: Tensor,
        code: Code,
        decoder: Tensor,
        pre_bias: Tensor | None = None,
        nested: Sequence[float] = (),
    ) -> tuple[Tensor, Tensor]:
        """As `kernels.squared_error`, of what the latents of all ranks decode."""
        whole = self.sum if self.shard_latents else None
        if whole and self.rank and pre_bias is not None:
            pre_bias = pre_bias.detach()  # its gradients are added up: rank 0's is that of all
        return kernels.squared_error(x, code, decoder, pre_bias, nested, whole)


ALONE = Ranks()


class SharedCheckpoint(Checkpoint):
    """A checkpoint of a training on several ranks, as one process would write it.

    So a training goes on with any number of processes, whichever way they share. Rank 0 says when,
    and writes; all read.
    """

    def __init__(self, directory: Any, minutes: float, ranks: Ranks):
        super().__init__(directory, minutes)
        self.ranks = ranks

    def restore(self, parts: Sequence[Resumable], subject: dict[str, Any]) -> None:
        """As in one process.

        Raises:
            UserError: not all ranks could read the same.
        """
        super().restore(parts, subject)
        if self.ranks.over_all(self.saves) != self.ranks.size * self.saves:
            raise UserError(f"{self.directory}: not all processes read the same; delete it")

    def is_due(self) -> bool:
        """Whether rank 0 finds that it is."""
        return self.ranks.over_all(self.ranks.rank == 0 and super().is_due()) > 0

    def save(self, parts: Iterable[Resumable]) -> None:
        """Write the state of `parts`."""
        left = iter(parts)
        if self.ranks.rank == 0:
            super().save(left)
        for part in left:  # on rank 0 those after a full disk: all ranks have to gather
            part.state()


@contextmanager
def joined(shard_latents: bool) -> Iterator[Ranks]:
    """The ranks of which this process is one; itself alone if nothing has launched it."""
    if not launched():
        yield ALONE
        return
    end_with_parent()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    size = dist.get_world_size()
    yield Ranks(dist.get_rank(), size, shard_latents and size > 1, available_device())
    dist.destroy_process_group()  # not after an error: it would wait for the others
