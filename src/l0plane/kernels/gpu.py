"""Sparse code operations compiled for the GPU with Triton; float32.

The encoder product is cuBLAS's, over tiles of rows; one program then selects from a row with the
row in its registers. All other work is on the active triples, by row or by latent, each sum in
one program and in a fixed order: no atomics, so that the same step gives the same bits.

The host waits for the device in one place: a selection reads how many triples there are, since the
arrays that hold them have that length.

The encoder product is float32 (TF32 off) unless the caller asks PyTorch for less. With
`torch.set_float32_matmul_precision("medium")` its inputs are rounded to bfloat16 and its sums stay
float32; parameters, gradients and optimiser are float32 in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from l0plane.code import ByLatent, Code
from l0plane.files import UserError
from l0plane.kernels import reference
from l0plane.kernels.reference import (
    BETAS,
    EPS,
    AdamState,
)
from l0plane.kernels.reference import (
    places as places,
)
from l0plane.kernels.reference import (
    top_k_mask as top_k_mask,
)

#: Floats in a tile of pre-activations (1 GiB): enough rows for an efficient product.
TILE_FLOATS = 1 << 28
#: Pre-activations that one program holds at a time: 16 registers of each of its threads.
SEGMENT = 1 << 13
WARPS = 16
#: Floats of a matrix that one program of a product has in flight, and columns of it.
GATHERED = 1 << 12
COLUMNS = 128
#: Places of triples are int32.
MOST_TRIPLES = 2**31 - 1
#: Above this share of active latents a dense product is faster than a sparse one.
DENSE_SHARE = 1 / 10


def select_above(
    x: Tensor, encoder: Tensor, bias: Tensor | None, threshold: Tensor | float
) -> Code:
    """As `reference.select_above`.

    Raises:
        UserError: too many are active to be counted in int32.
    """
    n = len(encoder)
    cut = torch.as_tensor(threshold, dtype=torch.float32, device=x.device).expand(n).contiguous()
    total = 0
    indptr = torch.zeros(len(x) + 1, dtype=torch.int32, device=x.device)
    indices, values = [], []
    start = 0
    for a in _preactivations(x, encoder, bias):
        counts = torch.empty(len(a), dtype=torch.int32, device=x.device)
        _count_above[(len(a),)](a, cut, counts, n, SEGMENT, num_warps=WARPS)
        ends = indptr[start + 1 : start + 1 + len(a)]
        torch.cumsum(counts, 0, dtype=torch.int32, out=ends)
        found = int(ends[-1])
        total += found
        if total > MOST_TRIPLES:
            raise UserError(
                f"more than {MOST_TRIPLES} active latents in a batch of {len(x)} activations with "
                f"{n} latents; lower training.batch_tokens, or give each GPU a part of the batch"
            )
        indices.append(torch.empty(found, dtype=torch.int32, device=x.device))
        values.append(torch.empty(found, device=x.device))
        _keep_above[(len(a),)](
            a, cut, ends, counts, indices[-1], values[-1], n, SEGMENT, num_warps=WARPS
        )
        ends += indptr[start]
        start += len(a)
    return Code(indptr, torch.cat(indices), torch.cat(values), n)


def select_top_k(x: Tensor, encoder: Tensor, bias: Tensor | None, k: int) -> Code:
    """As `reference.select_top_k`."""
    n = len(encoder)
    k = min(k, n)
    tiles = [_largest(a, None, k) for a in _preactivations(x, encoder, bias)]
    indices, values, counts = (torch.cat(pieces) for pieces in zip(*tiles, strict=True))
    indptr = torch.zeros(len(x) + 1, dtype=torch.int32, device=x.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=indptr[1:])
    if int(indptr[-1]) < indices.numel():
        full = torch.arange(k, device=x.device) < counts[:, None]
        indices, values = indices[full], values[full]
    return Code(indptr, indices.reshape(-1), values.reshape(-1), n)


def _preactivations(x: Tensor, encoder: Tensor, bias: Tensor | None) -> Iterator[Tensor]:
    """Tile after tile of `reference.preactivations`, float32 `[rows, n]`."""
    rounded = torch.get_float32_matmul_precision() == "medium"
    if rounded:
        x, encoder = x.bfloat16(), encoder.bfloat16()
    for rows in x.split(max(1, TILE_FLOATS // len(encoder))):
        options: dict[str, Any] = {"out_dtype": torch.float32} if rounded else {}
        a = torch.mm(rows, encoder.T, **options)
        yield a if bias is None else a.add_(bias)


def _largest(a: Tensor, latents: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `k` largest positive values of each row of `a [rows, width]`, in order of place.

    Returns:
        Their latents, int32, and values, both `[rows, k]`, and how many there are, int32 `[rows]`.
        A latent is the place in the row, or what `latents`, int32 `[rows, width]`, has there.
    """
    rows, width = a.shape
    block = min(triton.next_power_of_2(width), max(SEGMENT, triton.next_power_of_2(2 * k)))
    segments = triton.cdiv(width, block)
    indices = torch.empty(rows, segments * k, dtype=torch.int32, device=a.device)
    values = torch.zeros(rows, segments * k, device=a.device)
    counts = torch.empty(rows, segments, dtype=torch.int32, device=a.device)
    _top_k[(rows, segments)](
        *(a, latents, indices, values, counts, width, k),
        block,
        num_warps=min(WARPS, max(1, block // 256)),
    )
    # The largest of a row are among the largest of its segments, which stand in the order of place.
    return (indices, values, counts[:, 0]) if segments == 1 else _largest(values, indices, k)


@triton.jit
def _count_above(a, cut, counts, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        latent = start + tl.arange(0, BLOCK)
        inside = latent < n
        v = tl.load(a + row * n + latent, mask=inside, other=0.0)
        above = inside & (v > tl.load(cut + latent, mask=inside, other=0.0))
        count += above.to(tl.int32)
    tl.store(counts + row, tl.sum(count))


@triton.jit
def _keep_above(a, cut, ends, counts, indices, values, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(ends + row) - tl.load(counts + row)
    for start in range(0, n, BLOCK):
        latent = start + tl.arange(0, BLOCK)
        inside = latent < n
        v = tl.load(a + row * n + latent, mask=inside, other=0.0)
        above = inside & (v > tl.load(cut + latent, mask=inside, other=0.0))
        rank = tl.cumsum(above.to(tl.int32), 0)
        tl.store(indices + place + rank - 1, latent, mask=above)
        tl.store(values + place + rank - 1, v, mask=above)
        place += tl.sum(above.to(tl.int32))


@triton.jit
def _top_k(a, latents, indices, values, counts, width, k, BLOCK: tl.constexpr):
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    segments = tl.num_programs(1)
    place = segment * BLOCK + tl.arange(0, BLOCK)
    inside = place < width
    v = tl.load(a + row * width + place, mask=inside, other=0.0)
    # Positive floats are in the order of their bits; all other values, NaN too, become zero.
    bits = tl.where(v > 0, v.to(tl.int32, bitcast=True), 0)
    # Bisection: at least k values have `low` or more (or all that are positive), fewer `high`.
    low = 1
    high = tl.max(bits) + 1
    found = tl.sum((bits >= low).to(tl.int32))
    while (found > k) & (high - low > 1):
        middle = low + (high - low) // 2
        count = tl.sum((bits >= middle).to(tl.int32))
        enough = count >= k
        found = tl.where(enough, count, found)
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    above = bits > low
    last = bits == low
    room = k - tl.sum(above.to(tl.int32))
    kept = above | (last & (tl.cumsum(last.to(tl.int32), 0) <= room))
    rank = tl.cumsum(kept.to(tl.int32), 0)
    latent = place
    if latents is not None:
        latent = tl.load(latents + row * width + place, mask=kept, other=0)
    out = (row * segments + segment) * k + rank - 1
    tl.store(indices + out, latent, mask=kept)
    tl.store(values + out, v, mask=kept)
    tl.store(counts + row * segments + segment, tl.sum(kept.to(tl.int32)))


def transpose(code: Code) -> ByLatent:
    """As `reference.transpose`; the host need not wait."""
    latents, order = torch.sort(code.indices, stable=True)
    starts = torch.arange(code.n + 1, dtype=torch.int32, device=latents.device)
    indptr = torch.searchsorted(latents, starts, out_int32=True)
    return ByLatent(indptr, code.rows[order].int(), order.int())


def _is_dense(code: Code) -> bool:
    return len(code.indices) > DENSE_SHARE * code.shape[0] * code.n


def product(code: Code, matrix: Tensor) -> Tensor:
    """As `reference.product`."""
    if _is_dense(code):
        return reference.product(code, matrix)
    return _gathered_sums(code.indptr, code.indices, code.values, matrix)


def transposed_product(code: Code, matrix: Tensor) -> Tensor:
    """As `reference.transposed_product`."""
    if _is_dense(code):
        return reference.transposed_product(code, matrix)
    return _summed_by_latent(code, matrix)


def latent_sums(code: Code) -> Tensor:
    """As `reference.latent_sums`."""
    return _summed_by_latent(code, code.values.new_ones(code.shape[0], 1))[:, 0]


def _summed_by_latent(code: Code, matrix: Tensor) -> Tensor:
    indptr, rows, order = code.by_latent
    return _gathered_sums(indptr, rows, code.values.index_select(0, order), matrix)


def _gathered_sums(indptr: Tensor, rows: Tensor, values: Tensor, matrix: Tensor) -> Tensor:
    """`out[i]`: the sum of `values[e] matrix[rows[e]]` over e from `indptr[i]` to `indptr[i + 1]`.

    `[len(indptr) - 1, d]`, for a `matrix` of width d.
    """
    d = matrix.shape[1]
    out = torch.empty(len(indptr) - 1, d, device=matrix.device)
    columns = min(COLUMNS, triton.next_power_of_2(d))
    _sum_gathered[(len(out), triton.cdiv(d, columns))](
        *(indptr, rows, values, matrix.contiguous(), out, d),
        *(GATHERED // columns, columns),
    )
    return out


@triton.jit
def _sum_gathered(
    indptr, rows, values, matrix, out, d, TRIPLES: tl.constexpr, COLUMNS: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    end = tl.load(indptr + i + 1)
    for start in range(tl.load(indptr + i), end, TRIPLES):
        e = start + tl.arange(0, TRIPLES)
        row = tl.load(rows + e, mask=e < end, other=0).to(tl.int64)
        v = tl.load(values + e, mask=e < end, other=0.0)
        inside = (e < end)[:, None] & (column < d)[None, :]
        m = tl.load(matrix + row[:, None] * d + column[None, :], mask=inside, other=0.0)
        total += tl.sum(v[:, None] * m, 0)
    tl.store(out + i * d + column, total, mask=column < d)


def sampled_product(code: Code, left: Tensor, right: Tensor) -> Tensor:
    """As `reference.sampled_product`."""
    if _is_dense(code):
        return reference.sampled_product(code, left, right)
    d = left.shape[1]
    out = torch.empty(len(code.indices), device=left.device)
    columns = min(COLUMNS, triton.next_power_of_2(d))
    _sampled_product[(code.shape[0],)](
        *(code.indptr, code.indices, left.contiguous(), right.contiguous(), out, d),
        *(GATHERED // columns, columns),
    )
    return out


@triton.jit
def _sampled_product(
    indptr, indices, left, right, out, d, TRIPLES: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(indptr + row + 1)
    for start in range(tl.load(indptr + row), end, TRIPLES):
        e = start + tl.arange(0, TRIPLES)
        latent = tl.load(indices + e, mask=e < end, other=0).to(tl.int64)
        total = tl.zeros([TRIPLES], tl.float32)
        for first in range(0, d, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            mine = tl.load(left + row * d + column, mask=column < d, other=0.0)
            inside = (e < end)[:, None] & (column < d)[None, :]
            m = tl.load(right + latent[:, None] * d + column[None, :], mask=inside, other=0.0)
            total += tl.sum(mine[None, :] * m, 1)
        tl.store(out + e, total, mask=e < end)


def adam(
    parameter: Tensor,
    gradient: Tensor,
    state: AdamState,
    learning_rate: float,
    gradient_scale: float,
    ema_decay: float,
    unit_rows: bool,
) -> None:
    """As `reference.adam`, in one pass over memory."""
    width = parameter.shape[-1] if unit_rows else 1024
    block = triton.next_power_of_2(width)
    _adam[(triton.cdiv(parameter.numel(), width),)](
        *(parameter, gradient.contiguous(), state.mean, state.square, state.ema),
        learning_rate / (1 - BETAS[0] ** state.step),
        (1 - BETAS[1] ** state.step) ** -0.5,
        *(gradient_scale, ema_decay, parameter.numel(), width),
        *(*BETAS, EPS, unit_rows, block),
        num_warps=min(WARPS, max(1, block // 256)),
    )


@triton.jit
def _adam(
    parameter,
    gradient,
    mean,
    square,
    ema,
    rate,
    root,
    scale,
    ema_decay,
    size,
    width,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * width + column
    inside = (column < width) & (place < size)
    w = tl.load(parameter + place, mask=inside, other=0.0)
    g = tl.load(gradient + place, mask=inside, other=0.0)
    if UNIT_ROWS:
        g -= tl.sum(g * w) * w
    g *= scale
    m = BETA1 * tl.load(mean + place, mask=inside, other=0.0) + (1 - BETA1) * g
    v = BETA2 * tl.load(square + place, mask=inside, other=0.0) + (1 - BETA2) * g * g
    w -= rate * m / (tl.sqrt(v) * root + EPS)
    if UNIT_ROWS:
        w /= tl.sqrt(tl.sum(w * w))
    e = tl.load(ema + place, mask=inside, other=0.0)
    tl.store(mean + place, m, mask=inside)
    tl.store(square + place, v, mask=inside)
    tl.store(parameter + place, w, mask=inside)
    tl.store(ema + place, ema_decay * e + (1 - ema_decay) * w, mask=inside)
