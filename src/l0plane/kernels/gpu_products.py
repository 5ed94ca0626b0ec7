"""Products on the active triples of a code, on the GPU; see `gpu`."""

from __future__ import annotations

import sys
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from l0plane.code import ByLatent, Code
from l0plane.kernels import reference

#: Bytes of a row of a matrix that one warp reads at a time, 16 for each thread, and numbers of
#: several rows that it has in flight.
ROW_BYTES = 512
GATHERED = 1 << 10
#: Triples of a latent that one program adds up where there may be many: a latent that is often
#: active would keep one program long after all others are done.
PART = 1 << 9
#: Above this share of active latents a dense product is faster than a sparse one.
DENSE_SHARE = 1 / 10


def _rounded() -> bool:
    return torch.get_float32_matmul_precision() == "medium"


def operand(matrix: Tensor) -> Tensor:
    """A matrix as products take it: rounded to bfloat16 if PyTorch is told so."""
    return (matrix.bfloat16() if _rounded() else matrix).contiguous()


def centred(x: Tensor, pre_bias: Tensor) -> Tensor:
    """As `reference.centred`."""
    x, d = x.contiguous(), x.shape[1]
    out = torch.empty_like(x, dtype=torch.bfloat16 if _rounded() else x.dtype)
    columns = triton.next_power_of_2(d)
    _centred[(len(x),)](x, pre_bias, out, d, columns, num_warps=min(16, max(1, columns // 256)))
    return out


@triton.jit
def _centred(x, bias, out, d, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    v = tl.load(x + row * d + column, mask=column < d, other=0.0)
    v -= tl.load(bias + column, mask=column < d, other=0.0)
    tl.store(out + row * d + column, v, mask=column < d)


def transpose(code: Code) -> ByLatent:
    """As `reference.transpose`; the host need not wait.

    What pads a code comes last, and is no latent's: it may be more than all the rest.
    """
    indices = code.indices if code.live is None else torch.where(code.live, code.indices, code.n)
    latents, order = torch.sort(indices, stable=True)
    starts = torch.arange(code.n + 1, dtype=torch.int32, device=latents.device)
    indptr = torch.searchsorted(latents, starts, out_int32=True)
    return ByLatent(indptr, code.rows[order].int(), order.int())


def _is_dense(code: Code) -> bool:
    return len(code.indices) > DENSE_SHARE * code.shape[0] * code.n


def product(code: Code, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `reference.product`."""
    matrix = operand(matrix)
    if _is_dense(code):
        return reference.product(code, matrix.float(), bias)
    out = torch.empty(code.shape[0], matrix.shape[1], device=matrix.device)
    triples = (code.indices, code.values)
    return _sum(code.indptr[:-1], code.indptr[1:], *triples, matrix, out, bias=bias)


def transposed_product(code: Code, matrix: Tensor) -> Tensor:
    """As `reference.transposed_product`."""
    matrix = operand(matrix)
    if _is_dense(code):
        return reference.transposed_product(code, matrix.float())
    return _summed_by_latent(code, matrix)


def latent_sums(code: Code) -> Tensor:
    """As `reference.latent_sums`."""
    if code.whole:
        return reference.latent_sums(code)
    return _summed_by_latent(code, code.values.new_ones(code.shape[0], 1))[:, 0]


def _summed_by_latent(code: Code, matrix: Tensor) -> Tensor:
    indptr, rows, order = code.by_latent
    starts, ends = indptr[:-1], indptr[1:]
    triples = (rows, code.values.index_select(0, order), matrix)
    out = torch.empty(code.n, matrix.shape[1], device=matrix.device)
    if not code.n or code.shape[0] <= 8 * PART:
        return _sum(starts, ends, *triples, out)
    # What a latent has beyond its first PART triples is summed in pieces of PART. How many pieces
    # there are only the device knows; there is room for as many as there can be. Then the first
    # ones of each latent are summed, and its pieces' sums added.
    most = len(rows) // PART
    pieces = (ends - starts - 1).clamp(min=0) // PART
    behind = pieces.cumsum(0)
    piece = torch.arange(most, device=rows.device)
    owner = torch.searchsorted(behind, piece, right=True).clamp(max=code.n - 1)
    first = starts[owner] + PART * (1 + piece - (behind - pieces)[owner])
    first = torch.where(piece < behind[-1], first, indptr[-1])
    sums = torch.empty(most, matrix.shape[1], device=matrix.device)
    _sum(first, torch.minimum(first + PART, ends[owner]), *triples, sums)
    short = torch.minimum(starts + PART, ends)
    return _sum(starts, short, *triples, out, more=(sums, behind - pieces, behind))


def _sum(
    starts: Tensor,
    ends: Tensor,
    rows: Tensor,
    values: Tensor,
    matrix: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    more: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """`out[i]`: the sum of `values[e] matrix[rows[e]]` over e from `starts[i]` to `ends[i]`.

    To each is added `bias [d]`, and of `more`, which is `(sums [any, d], firsts, lasts)`, the rows
    of `sums` from `firsts[i]` to `lasts[i]`. Returns `out`, `[len(starts), d]`.
    """
    d = matrix.shape[1]
    columns = min(ROW_BYTES // matrix.element_size(), triton.next_power_of_2(d))
    _sum_gathered[(len(out), triton.cdiv(d, columns))](
        *(starts, ends, rows, values, matrix, bias, *(more or (None, None, None)), out, d),
        *(GATHERED // columns, columns),
        num_warps=1,
    )
    return out


@triton.jit
def _sum_gathered(
    starts,
    ends,
    rows,
    values,
    matrix,
    bias,
    sums,
    firsts,
    lasts,
    out,
    d,
    TRIPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    products = tl.zeros([TRIPLES, COLUMNS], tl.float32)
    end = tl.load(ends + i).to(tl.int32)
    for start in range(tl.load(starts + i).to(tl.int32), end, TRIPLES):
        e = start + tl.arange(0, TRIPLES)
        row = tl.load(rows + e, mask=e < end, other=0).to(tl.int64)
        v = tl.load(values + e, mask=e < end, other=0.0)
        inside = (e < end)[:, None] & (column < d)[None, :]
        m = tl.load(matrix + row[:, None] * d + column[None, :], mask=inside, other=0.0)
        products += v[:, None] * m.to(tl.float32)
    total = tl.sum(products, 0)
    if bias is not None:
        total += tl.load(bias + column, mask=column < d, other=0.0)
    if sums is not None:
        place = tl.load(firsts + i).to(tl.int64)
        last = tl.load(lasts + i).to(tl.int64)
        while place < last:
            total += tl.load(sums + place * d + column, mask=column < d, other=0.0)
            place += 1
    tl.store(out + i * d + column, total, mask=column < d)


def sampled_product(code: Code, left: Tensor, right: Tensor) -> Tensor:
    """As `reference.sampled_product`."""
    left, right = operand(left), operand(right)
    if _is_dense(code):
        return reference.sampled_product(code, left.float(), right.float())
    out = torch.empty(len(code.indices), device=left.device)
    return sampled(code.indptr[:-1], code.indptr[1:], code.indices, left, right, out)


#: As `reference.squared_error`, by the products of this module.
squared_error = partial(reference.squared_error, backend=sys.modules[__name__])


def sampled(
    starts: Tensor, ends: Tensor, indices: Tensor, left: Tensor, right: Tensor, out: Tensor
) -> Tensor:
    """`out[e]`: the product of `left[i]` and `right[indices[e]]`, e from `starts[i]` to `ends[i]`.

    `indices` and `out` may be of any shape. Returns `out`.
    """
    d = left.shape[1]
    columns = min(ROW_BYTES // left.element_size(), triton.next_power_of_2(d))
    _sampled_product[(len(left),)](
        *(starts, ends, indices, left, right, out, d),
        *(GATHERED // columns, columns),
        num_warps=1,
    )
    return out


@triton.jit
def _sampled_product(
    starts, ends, indices, left, right, out, d, TRIPLES: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(ends + row)
    for start in range(tl.load(starts + row), end, TRIPLES):
        e = start + tl.arange(0, TRIPLES)
        latent = tl.load(indices + e, mask=e < end, other=0).to(tl.int64)
        products = tl.zeros([TRIPLES, COLUMNS], tl.float32)
        for first in range(0, d, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            mine = tl.load(left + row * d + column, mask=column < d, other=0.0).to(tl.float32)
            inside = (e < end)[:, None] & (column < d)[None, :]
            m = tl.load(right + latent[:, None] * d + column[None, :], mask=inside, other=0.0)
            products += mine[None, :] * m.to(tl.float32)
        tl.store(out + e, tl.sum(products, 1), mask=e < end)
