"""Sparse code operations compiled for the CPU with numba; float32.

The dense pre-activations exist for one tile of rows at a time, in memory that is kept: the
encoder product writes a tile that fits in cache, and the selection reads it from there. All other
work is on the active triples.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from l0plane.code import ByLatent, Code
from l0plane.kernels.reference import BETAS, EPS, AdamState

#: Floats in a tile of pre-activations (2 MiB): large enough for an efficient product, small enough
#: to stay in cache until the selection has read it.
TILE_FLOATS = 1 << 19
#: Reassociation lets sums and maxima use vector lanes; NaN must keep comparing false.
FAST = {"reassoc", "contract", "nsz"}
BLOCK = 32

_tile = torch.empty(0)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _tiles(x: Tensor, encoder: Tensor) -> tuple[int, Tensor]:
    """Rows per tile, and a kept buffer `[rows per tile, n]` for them."""
    global _tile
    n = len(encoder)
    rows = min(len(x), max(16, TILE_FLOATS // n))
    if _tile.numel() < rows * n:
        _tile = torch.empty(rows * n)
    return rows, _tile[: rows * n].view(rows, n)


def select_above(
    x: Tensor, encoder: Tensor, bias: Tensor | None, threshold: Tensor | float
) -> Code:
    """As `reference.select_above`."""
    n = len(encoder)
    tile_rows, tile = _tiles(x, encoder)
    offset = np.zeros(n, np.float32) if bias is None else _array(bias)
    cut = _array(torch.as_tensor(threshold, dtype=torch.float32).expand(n))
    counts = np.zeros(len(x), np.int64)
    pieces = []
    for start in range(0, len(x), tile_rows):
        rows = x[start : start + tile_rows]
        a = tile[: len(rows)]
        torch.mm(rows, encoder.T, out=a)
        pieces.append(_above(_array(a), offset, cut, counts[start : start + tile_rows]))
    indptr = np.zeros(len(x) + 1, np.int32)
    np.cumsum(counts, out=indptr[1:])
    indices = np.concatenate([piece[0] for piece in pieces])
    values = np.concatenate([piece[1] for piece in pieces])
    return Code(torch.from_numpy(indptr), torch.from_numpy(indices), torch.from_numpy(values), n)


@njit(parallel=True, cache=True, fastmath=FAST)
def _above(a, offset, cut, counts):
    rows, n = a.shape
    for r in prange(rows):
        count = 0
        for i in range(n):
            if a[r, i] + offset[i] > cut[i]:
                count += 1
        counts[r] = count
    starts = np.zeros(rows + 1, np.int64)
    for r in range(rows):
        starts[r + 1] = starts[r] + counts[r]
    indices = np.empty(starts[rows], np.int32)
    values = np.empty(starts[rows], np.float32)
    for r in prange(rows):
        place = starts[r]
        end = starts[r + 1]
        for i in range(n):
            v = a[r, i] + offset[i]
            if v > cut[i] and place < end:
                indices[place] = i
                values[place] = v
                place += 1
    return indices, values


def select_top_k(x: Tensor, encoder: Tensor, bias: Tensor | None, k: int) -> Code:
    """As `reference.select_top_k`."""
    n = len(encoder)
    k = min(k, n)
    tile_rows, tile = _tiles(x, encoder)
    indices = np.empty((len(x), k), np.int32)
    values = np.empty((len(x), k), np.float32)
    counts = np.zeros(len(x), np.int64)
    # Blocks short enough that there are at least 2k of them, else every positive value is a
    # candidate.
    block = BLOCK
    while block > 1 and n // block < 2 * k:
        block //= 2
    for start in range(0, len(x), tile_rows):
        part = slice(start, start + tile_rows)
        rows = x[part]
        a = tile[: len(rows)]
        if bias is None:
            torch.mm(rows, encoder.T, out=a)
        else:
            torch.addmm(bias, rows, encoder.T, out=a)
        _top_k(_array(a), k, block, indices[part], values[part], counts[part])
    indptr = np.zeros(len(x) + 1, np.int32)
    np.cumsum(counts, out=indptr[1:])
    if indptr[-1] < indices.size:
        full = np.arange(k) < counts[:, None]
        indices, values = indices[full], values[full]
    return Code(
        torch.from_numpy(indptr),
        torch.from_numpy(indices.reshape(-1)),
        torch.from_numpy(values.reshape(-1)),
        n,
    )


@njit(parallel=True, cache=True, fastmath=FAST)
def _top_k(a, k, block, indices, values, counts):
    rows, n = a.shape
    blocks = n // block
    for r in prange(rows):
        row = a[r]
        # The k-th largest block maximum is a lower bound of the k-th largest value: each of k
        # blocks holds at least one value as large.
        bound = np.float32(0.0)
        if blocks >= k:
            maxima = np.empty(blocks, np.float32)
            for b in range(blocks):
                top = row[b * block]
                for i in range(b * block + 1, (b + 1) * block):
                    top = row[i] if row[i] > top else top
                maxima[b] = top
            bound = max(bound, _kth_largest(maxima, blocks, k))
        candidates = np.empty(n, np.int32)
        found = 0
        for i in range(n):
            if row[i] >= bound and row[i] > 0:
                candidates[found] = i
                found += 1
        if found <= k:
            for c in range(found):
                indices[r, c] = candidates[c]
                values[r, c] = row[candidates[c]]
            counts[r] = found
            continue
        scratch = np.empty(found, np.float32)
        for c in range(found):
            scratch[c] = row[candidates[c]]
        last = _kth_largest(scratch, found, k)
        above = 0
        for c in range(found):
            if row[candidates[c]] > last:
                above += 1
        ties = k - above
        place = 0
        for c in range(found):
            v = row[candidates[c]]
            if v > last or (v == last and ties > 0):
                if v == last:
                    ties -= 1
                indices[r, place] = candidates[c]
                values[r, place] = v
                place += 1
        counts[r] = place


@njit(cache=True)
def _kth_largest(v, length, k):
    """Quickselect; reorders `v[:length]`. NaN counts as smaller than everything."""
    for i in range(length):
        if v[i] != v[i]:
            v[i] = -np.inf
    low, high, target = 0, length - 1, k - 1
    while low < high:
        pivot = v[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while v[i] > pivot:
                i += 1
            while v[j] < pivot:
                j -= 1
            if i <= j:
                v[i], v[j] = v[j], v[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            return v[target]
    return v[target]


def transpose(code: Code) -> ByLatent:
    """As `reference.transpose`."""
    arrays = _transpose(_array(code.indptr), _array(code.indices), code.n)
    return ByLatent(*map(torch.from_numpy, arrays))


@njit(cache=True)
def _transpose(indptr, indices, n):
    starts = np.zeros(n + 1, np.int32)
    for e in range(len(indices)):
        starts[indices[e] + 1] += 1
    for i in range(n):
        starts[i + 1] += starts[i]
    place = starts[:-1].copy()
    rows = np.empty(len(indices), np.int32)
    order = np.empty(len(indices), np.int32)
    for r in range(len(indptr) - 1):
        for e in range(indptr[r], indptr[r + 1]):
            i = indices[e]
            rows[place[i]] = r
            order[place[i]] = e
            place[i] += 1
    return starts, rows, order


def product(code: Code, matrix: Tensor) -> Tensor:
    """As `reference.product`."""
    out = torch.empty(code.shape[0], matrix.shape[1])
    _product(
        _array(code.indptr),
        _array(code.indices),
        _array(code.values),
        _array(matrix),
        _array(out),
    )
    return out


@njit(parallel=True, cache=True, fastmath=FAST)
def _product(indptr, indices, values, matrix, out):
    d = matrix.shape[1]
    for r in prange(len(indptr) - 1):
        target = out[r]
        for c in range(d):
            target[c] = 0.0
        for e in range(indptr[r], indptr[r + 1]):
            source = matrix[indices[e]]
            v = values[e]
            for c in range(d):
                target[c] += v * source[c]


def transposed_product(code: Code, matrix: Tensor) -> Tensor:
    """As `reference.transposed_product`."""
    by_latent = code.by_latent
    out = torch.empty(code.n, matrix.shape[1])
    _transposed_product(
        _array(by_latent.indptr),
        _array(by_latent.rows),
        _array(by_latent.order),
        _array(code.values),
        _array(matrix),
        _array(out),
    )
    return out


@njit(parallel=True, cache=True, fastmath=FAST)
def _transposed_product(indptr, rows, order, values, matrix, out):
    d = matrix.shape[1]
    for i in prange(len(indptr) - 1):
        target = out[i]
        for c in range(d):
            target[c] = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            source = matrix[rows[e]]
            v = values[order[e]]
            for c in range(d):
                target[c] += v * source[c]


def sampled_product(code: Code, left: Tensor, right: Tensor) -> Tensor:
    """As `reference.sampled_product`."""
    out = torch.empty(len(code.indices))
    _sampled_product(
        _array(code.indptr),
        _array(code.indices),
        _array(left),
        _array(right),
        _array(out),
    )
    return out


@njit(parallel=True, cache=True, fastmath=FAST)
def _sampled_product(indptr, indices, left, right, out):
    d = left.shape[1]
    for r in prange(len(indptr) - 1):
        mine = left[r]
        for e in range(indptr[r], indptr[r + 1]):
            other = right[indices[e]]
            total = np.float32(0.0)
            for c in range(d):
                total += mine[c] * other[c]
            out[e] = total


def latent_sums(code: Code) -> Tensor:
    """As `reference.latent_sums`."""
    out = torch.zeros(code.n)
    _latent_sums(_array(code.indices), _array(code.values), _array(out))
    return out


@njit(cache=True)
def _latent_sums(indices, values, out):
    for e in range(len(indices)):
        out[indices[e]] += values[e]


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
    d = parameter.shape[-1]

    def rows(tensor: Tensor) -> np.ndarray:
        return _array(tensor).reshape(-1, d)

    _adam(
        rows(parameter),
        rows(gradient),
        rows(state.mean),
        rows(state.square),
        rows(state.ema),
        learning_rate / (1 - BETAS[0] ** state.step),
        1 / np.sqrt(1 - BETAS[1] ** state.step),
        gradient_scale,
        ema_decay,
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
