"""Sparse code operations compiled for the CPU with numba; float32.

The dense pre-activations exist for one tile of rows at a time, in memory that is kept: the
encoder product writes a tile that fits in cache, and `selection` reads it from there. All other
work is on the active triples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from torch import Tensor

from l0plane.code import ByLatent, Code
from l0plane.kernels import reference
from l0plane.kernels.arrays import FAST, array, dots, sampled, tiles
from l0plane.kernels.reference import BETAS, EPS, AdamState, Rates
from l0plane.kernels.reference import centred as centred
from l0plane.kernels.selection import (
    select_above as select_above,
)
from l0plane.kernels.selection import (
    select_top_k as select_top_k,
)
from l0plane.kernels.selection import (
    top_k_mask as top_k_mask,
)

#: Above this share of active latents a dense product is faster than a sparse one: more than that
#: where the decoder fits in cache, about that where it does not.
DENSE_SHARE = 1 / 8
#: What a walk along latents reads at random stays in the second-level cache in blocks of this many
#: bytes (256 KiB); worth it where a latent has so many triples in each.
BLOCK_BYTES, BLOCK_TRIPLES = 1 << 18, 32


def places(code: Code, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.places`."""
    starts, kept = _places(array(code.indptr), array(mask))
    return torch.from_numpy(starts), torch.from_numpy(kept)


@njit(parallel=True, cache=True)
def _places(indptr, mask):
    rows = len(indptr) - 1
    starts = np.zeros(rows + 1, np.int32)
    for r in prange(rows):
        count = np.int32(0)
        for e in range(indptr[r], indptr[r + 1]):
            count += np.int32(mask[e])
        starts[r + 1] = count
    for r in range(rows):
        starts[r + 1] += starts[r]
    kept = np.empty(starts[rows], np.int32)
    for r in prange(rows):
        e, place = indptr[r], starts[r]
        while place < starts[r + 1]:  # stores as in `_largest`, none beyond the row's last
            kept[place] = e
            place += np.int32(mask[e])
            e += np.int32(1)
    return starts, kept


def parted(code: Code, mask: Tensor) -> Code:
    """As `reference.parted`."""
    triples = (array(code.indptr), array(code.indices), array(code.values))
    indptr, indices, values = map(torch.from_numpy, _parted(*triples, array(mask)))
    return Code(indptr, indices, values, code.n)


@njit(parallel=True, cache=True)
def _parted(indptr, indices, values, mask):
    rows = len(indptr) - 1
    starts = np.empty(2 * rows + 1, np.int32)
    starts[2 * rows] = indptr[rows]
    new_indices, new_values = np.empty_like(indices), np.empty_like(values)
    for r in prange(rows):
        own = slice(indptr[r], indptr[r + 1])
        kept, index, value = mask[own], indices[own], values[own]
        new_index, new_value = new_indices[own], new_values[own]
        first, other = np.uint32(0), np.uint32(0)
        for e in range(len(kept)):
            other += np.uint32(kept[e])
        starts[2 * r], starts[2 * r + 1] = own.start, own.start + other
        for e in range(len(kept)):
            among = np.uint32(kept[e])
            place = other + (first - other) * among  # no branch, which no one can predict
            new_index[place], new_value[place] = index[e], value[e]
            first += among
            other += np.uint32(1) - among
    return starts, new_indices, new_values


def transpose(code: Code) -> ByLatent:
    """As `reference.transpose`."""
    arrays = _transpose(array(code.indptr), array(code.indices), code.n, get_num_threads())
    return ByLatent(*map(torch.from_numpy, arrays))


@njit(parallel=True, cache=True)
def _transpose(indptr, indices, n, parts):
    """Each of some parts of the rows counts its triples and places them, beside the others."""
    total = len(indptr) - 1
    place = np.zeros((parts, n), np.int32)
    for t in prange(parts):
        for e in range(indptr[total * t // parts], indptr[total * (t + 1) // parts]):
            place[t, indices[e]] += 1
    starts = np.zeros(n + 1, np.int32)
    for i in range(n):
        before = starts[i]
        for t in range(parts):
            count = place[t, i]
            place[t, i] = before
            before += count
        starts[i + 1] = before
    rows = np.empty(len(indices), np.int32)
    order = np.empty(len(indices), np.int32)
    for t in prange(parts):
        mine = place[t]
        for r in range(total * t // parts, total * (t + 1) // parts):
            for e in range(indptr[r], indptr[r + 1]):
                i = indices[e]
                rows[mine[i]] = r
                order[mine[i]] = e
                mine[i] += 1
    return starts, rows, order


# --- products: sparse ones, and above DENSE_SHARE dense ones through a tile


def _is_dense(code: Code) -> bool:
    return len(code.indices) > DENSE_SHARE * code.shape[0] * code.n


def _dense_tiles(code: Code) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows and the dense code `[rows in the range, n]` of each."""
    indptr, indices, values = array(code.indptr), array(code.indices), array(code.values)
    for part, tile in tiles(*code.shape):
        _scatter(indptr[part.start : part.stop + 1], indices, values, array(tile))
        yield part, tile


@njit(parallel=True, cache=True)
def _scatter(indptr, indices, values, out):
    for r in prange(len(out)):
        row = out[r]
        row[:] = 0
        for e in range(indptr[r], indptr[r + 1]):
            row[indices[e]] = values[e]


@njit(parallel=True, cache=True)
def _pick(indptr, indices, dense, out):
    for r in prange(len(dense)):
        row = dense[r]
        for e in range(indptr[r], indptr[r + 1]):
            out[e] = row[indices[e]]


def product(code: Code, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `reference.product`."""
    out = torch.empty(code.shape[0], matrix.shape[1])
    if _is_dense(code):
        for part, dense in _dense_tiles(code):
            torch.mm(dense, matrix.detach(), out=out[part])
    else:
        _product(
            array(code.indptr),
            array(code.indices),
            array(code.values),
            array(matrix),
            array(out),
        )
    return out if bias is None else out.add_(bias.detach())


@njit(parallel=True, cache=True, fastmath=FAST)
def _product(indptr, indices, values, matrix, out):
    for r in prange(len(indptr) - 1):
        _decoded(indptr[r], indptr[r + 1], indices, values, matrix, out[r])


@njit(cache=True, fastmath=FAST)
def _decoded(start, end, indices, values, matrix, target):
    """Write to `target [d]` the sum of the matrix' rows from triple `start` to `end`."""
    target[:] = 0
    # Four at a time: a quarter of the loads and stores of the target (1.4 times faster).
    four = start + (end - start) // 4 * 4
    for e in range(start, four, 4):
        v0, v1, v2, v3 = values[e], values[e + 1], values[e + 2], values[e + 3]
        s0, s1 = matrix[indices[e]], matrix[indices[e + 1]]
        s2, s3 = matrix[indices[e + 2]], matrix[indices[e + 3]]
        for c in range(len(target)):
            target[c] += v0 * s0[c] + v1 * s1[c] + v2 * s2[c] + v3 * s3[c]
    for e in range(four, end):
        v, s = values[e], matrix[indices[e]]
        for c in range(len(target)):
            target[c] += v * s[c]


def transposed_product(code: Code, matrix: Tensor) -> Tensor:
    """As `reference.transposed_product`."""
    if _is_dense(code):
        out = torch.zeros(code.n, matrix.shape[1])
        for part, dense in _dense_tiles(code):
            out.addmm_(dense.T, matrix[part])
        return out
    by_latent = code.by_latent
    out = torch.empty(code.n, matrix.shape[1])
    # No latent at all may be asked for, as of the dead ones that one rank of several has.
    blocks = len(code.indices) // (BLOCK_TRIPLES * max(1, code.n))
    blocks = max(1, min(blocks, matrix.nbytes // BLOCK_BYTES))
    _transposed_product(
        array(by_latent.indptr),
        array(by_latent.rows),
        array(by_latent.order),
        array(code.values),
        array(matrix),
        array(out),
        blocks,
        get_num_threads(),
    )
    return out


@njit(parallel=True, cache=True, fastmath=FAST)
def _transposed_product(indptr, rows, order, values, matrix, out, blocks, parts):
    """All latents walk a block of rows before the next, which stays in cache for them."""
    d = matrix.shape[1]
    for t in prange(parts):
        own = range(len(out) * t // parts, len(out) * (t + 1) // parts)
        place = indptr[own.start : own.stop].copy()
        for b in range(blocks):
            block = len(matrix) * (b + 1) // blocks
            for i in own:
                target = out[i]
                if b == 0:
                    target[:] = 0
                start = end = place[i - own.start]
                if b == blocks - 1:
                    end = indptr[i + 1]
                while end < indptr[i + 1] and rows[end] < block:
                    end += 1
                place[i - own.start] = end
                four = start + (end - start) // 4 * 4
                for e in range(start, four, 4):  # as in `_product`
                    v0, v1 = values[order[e]], values[order[e + 1]]
                    v2, v3 = values[order[e + 2]], values[order[e + 3]]
                    s0, s1 = matrix[rows[e]], matrix[rows[e + 1]]
                    s2, s3 = matrix[rows[e + 2]], matrix[rows[e + 3]]
                    for c in range(d):
                        target[c] += v0 * s0[c] + v1 * s1[c] + v2 * s2[c] + v3 * s3[c]
                for e in range(four, end):
                    v, s = values[order[e]], matrix[rows[e]]
                    for c in range(d):
                        target[c] += v * s[c]


def sampled_product(code: Code, left: Tensor, right: Tensor) -> Tensor:
    """As `reference.sampled_product`."""
    out = torch.empty(len(code.indices))
    if _is_dense(code):
        indptr, indices = array(code.indptr), array(code.indices)
        for part, tile in tiles(*code.shape):
            torch.mm(left[part], right.detach().T, out=tile)
            _pick(indptr[part.start : part.stop + 1], indices, array(tile), array(out))
        return out
    indptr = array(code.indptr)
    sampled(
        indptr[:-1], np.diff(indptr), array(code.indices), array(left), array(right), array(out)
    )
    return out


def squared_error(
    x: Tensor,
    code: Code,
    decoder: Tensor,
    pre_bias: Tensor | None,
    nested: Sequence[float],
    whole: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.squared_error`, but where a product is dense or not whole a row at a time."""
    if whole is not None or _is_dense(code):
        products = sys.modules[__name__]
        return reference.squared_error(x, code, decoder, pre_bias, nested, whole, products)
    rows, d = x.shape
    pull = torch.empty(code.shape[0], d)
    error = torch.empty(rows, d) if nested else pull
    sampled, norms = torch.empty(len(code.indices)), torch.empty(rows)
    _squared_error(
        array(x),
        array(code.indptr),
        array(code.indices),
        array(code.values),
        array(decoder),
        np.zeros(d, np.float32) if pre_bias is None else array(pre_bias),
        np.array([1.0, *nested], np.float32),
        array(error),
        array(pull),
        array(sampled),
        array(norms),
    )
    return norms.sum(), error, pull, sampled


@njit(parallel=True, cache=True, fastmath=FAST)
def _squared_error(x, indptr, indices, values, decoder, bias, weights, error, pull, sampled, norms):
    levels, d = len(weights), x.shape[1]
    for r in prange(len(x)):
        first, norm = r * levels, np.float32(0.0)
        for e in range(first, first + levels):
            target = pull[e]
            _decoded(indptr[e], indptr[e + 1], indices, values, decoder, target)
            if e == first:
                for c in range(d):
                    target[c] = x[r, c] - bias[c] - target[c]
            else:
                for c in range(d):
                    target[c] = pull[e - 1, c] - target[c]
            square = np.float32(0.0)
            for c in range(d):
                square += target[c] * target[c]
            norm += weights[e - first] * square
        norms[r] = norm
        if levels > 1:
            error[r] = pull[first]
        for e in range(first + levels - 1, first - 1, -1):
            target = pull[e]
            if e > first:
                for c in range(d):
                    target[c] *= weights[e - first]
            if e < first + levels - 1:
                for c in range(d):
                    target[c] += pull[e + 1, c]
            dots(target, indptr[e], indptr[e + 1], indices, decoder, sampled)


def latent_sums(code: Code) -> Tensor:
    """As `reference.latent_sums`."""
    out = torch.zeros(code.n)
    _latent_sums(array(code.indices), array(code.values), array(out))
    return out


@njit(cache=True)
def _latent_sums(indices, values, out):
    for e in range(len(indices)):
        out[indices[e]] += values[e]


def reset_active(silent: Tensor, code: Code) -> Tensor:
    """As `reference.reset_active`."""
    return torch.tensor(_reset_active(array(code.indices), array(code.values), silent.numpy()))


@njit(cache=True)
def _reset_active(indices, values, silent):
    # Whether a triple is active no one can predict: in place of a branch all others go to place 0.
    seen = np.zeros(len(silent) + 1, np.uint8)
    active = 0
    for e in range(len(indices)):
        is_active = values[e] != 0
        seen[(indices[e] + 1) * is_active] = 1
        active += is_active
    for i in range(len(silent)):
        silent[i] *= 1 - seen[i + 1]
    return active


def adam(
    parameter: Tensor,
    gradient: Tensor,
    state: AdamState,
    rates: Rates,
    gradient_scale: Tensor,
    unit_rows: bool,
) -> None:
    """As `reference.adam`, in one pass over memory."""

    rate, root, ema_decay = rates

    def rows(tensor: Tensor) -> np.ndarray:
        return array(tensor) if tensor.ndim == 2 else array(tensor)[None]

    _adam(
        rows(parameter),
        rows(gradient),
        rows(state.mean),
        rows(state.square),
        rows(state.ema),
        float(rate),
        float(root),
        gradient_scale.item(),
        float(ema_decay),
        unit_rows,
    )


@njit(parallel=True, cache=True, fastmath=FAST)
def _adam(parameter, gradient, mean, square, ema, rate, root, scale, ema_decay, unit_rows):
    one, zero = np.float32(1.0), np.float32(0.0)
    beta1, beta2, eps = np.float32(BETAS[0]), np.float32(BETAS[1]), np.float32(EPS)
    rate, root, scale = np.float32(rate), np.float32(root), np.float32(scale)
    keep = np.float32(ema_decay)
    rows, d = parameter.shape
    for r in prange(rows):
        w, g, m, v, e = parameter[r], gradient[r], mean[r], square[r], ema[r]
        parallel = zero
        if unit_rows:
            for c in range(d):
                parallel += g[c] * w[c]
        for c in range(d):
            step = scale * (g[c] - parallel * w[c])
            m[c] = beta1 * m[c] + (one - beta1) * step
            v[c] = beta2 * v[c] + (one - beta2) * step * step
            w[c] -= rate * m[c] / (np.sqrt(v[c]) * root + eps)
        if unit_rows:
            norm = zero
            for c in range(d):
                norm += w[c] * w[c]
            inverse = one / np.sqrt(norm)
            for c in range(d):
                w[c] *= inverse
        for c in range(d):
            e[c] = keep * e[c] + (one - keep) * w[c]
