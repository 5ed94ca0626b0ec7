"""Sparse code operations compiled for the CPU with numba; float32.

The dense pre-activations exist for one tile of rows at a time, in memory that is kept: the
encoder product writes a tile that fits in cache, and the selection reads it from there. All other
work is on the active triples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from torch import Tensor

from l0plane.code import ByLatent, Code
from l0plane.kernels.reference import BETAS, EPS, AdamState

#: Rows in a tile of pre-activations: with fewer the product is less efficient (of a large encoder,
#: which it reads again for each tile, by half with 64), with more the tile leaves the cache before
#: the selection has read it.
TILE_ROWS = 512
#: Reassociation lets sums and maxima use vector lanes; NaN must keep comparing false.
FAST = {"reassoc", "contract", "nsz"}
#: Above this share of active latents a dense product is faster than a sparse one: more than that
#: where the decoder fits in cache, about that where it does not.
DENSE_SHARE = 1 / 8

_tile = torch.empty(0)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _tiles(rows: int, n: int) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows, each with a buffer `[rows in the range, n]` that later tiles reuse."""
    global _tile
    if _tile.numel() < min(TILE_ROWS, rows) * n:
        _tile = torch.empty(min(TILE_ROWS, rows) * n)
    for start in range(0, rows, TILE_ROWS):
        part = slice(start, min(start + TILE_ROWS, rows))
        yield part, _tile[: (part.stop - start) * n].view(-1, n)


def _csr(counts: np.ndarray, indices: np.ndarray, values: np.ndarray, n: int) -> Code:
    """The code of arrays that hold the triples of one row after another."""
    indptr = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=indptr[1:])
    return Code(torch.from_numpy(indptr), torch.from_numpy(indices), torch.from_numpy(values), n)


# --- selection


def select_above(
    x: Tensor, encoder: Tensor, bias: Tensor | None, threshold: Tensor | float
) -> Code:
    """As `reference.select_above`."""
    n = len(encoder)
    offset = np.zeros(n, np.float32) if bias is None else _array(bias)
    cut = _array(torch.as_tensor(threshold, dtype=torch.float32).expand(n))
    counts = np.empty(len(x), np.int32)
    groups = min(n, 64 * math.ceil(n / (8 * 64)))
    pieces = []
    for part, tile in _tiles(len(x), n):
        torch.mm(x[part], encoder.T, out=tile)
        pieces.append(_above(_array(tile), offset, cut, groups, counts[part]))
    indices, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return _csr(counts, indices, values, n)


@njit(parallel=True, cache=True, fastmath=FAST)
def _above(a, offset, cut, groups, counts):
    """Indices and values of a tile `a`, to which the offset is added in place."""
    rows, n = a.shape
    members = n // groups
    latents = np.empty((rows, n + 1), np.uint32)
    for r in prange(rows):
        row, latent = a[r], latents[r]
        for i in range(n):
            row[i] += offset[i]
        # Groups as in `_top_k`; only those that hold something are read again.
        hits = np.zeros(groups, np.int32)
        for m in range(members):
            part, limit = row[m * groups : (m + 1) * groups], cut[m * groups : (m + 1) * groups]
            for j in range(groups):
                hits[j] += np.int32(part[j] > limit[j])
        part, limit = row[members * groups :], cut[members * groups :]
        for j in range(len(part)):
            hits[j] += np.int32(part[j] > limit[j])
        counts[r] = hits.sum()
        group = np.empty(groups + 1, np.uint32)
        chosen = np.uint32(0)
        for j in range(groups):
            group[chosen] = j
            chosen += np.uint32(hits[j] > 0)
        found = np.uint32(0)
        for c in range(chosen):
            i = group[c]
            while i < n:
                latent[found] = i
                found += np.uint32(row[i] > cut[i])
                i += np.uint32(groups)
    starts = np.zeros(rows + 1, np.int64)
    for r in range(rows):
        starts[r + 1] = starts[r] + counts[r]
    indices = np.empty(starts[rows], np.int32)
    values = np.empty(starts[rows], np.float32)
    for r in prange(rows):
        row, latent, place = a[r], latents[r], starts[r]
        for c in range(counts[r]):
            indices[place + c] = latent[c]
            values[place + c] = row[latent[c]]
    return indices, values


def select_top_k(x: Tensor, encoder: Tensor, bias: Tensor | None, k: int) -> Code:
    """As `reference.select_top_k`."""
    n = len(encoder)
    k = min(k, n)
    indices = np.empty((len(x), k), np.int32)
    values = np.empty((len(x), k), np.float32)
    counts = np.empty(len(x), np.int32)
    # The work on group maxima grows with the groups, that on their members falls.
    groups = min(n, 64 * math.ceil(0.75 * math.sqrt(n * k) / 64))
    for part, tile in _tiles(len(x), n):
        torch.mm(x[part], encoder.T, out=tile)
        if bias is not None:
            tile += bias
        _top_k(_array(tile), k, groups, indices[part], values[part], counts[part])
    if counts.sum() < indices.size:
        full = np.arange(k) < counts[:, None]
        return _csr(counts, indices[full], values[full], n)
    return _csr(counts, indices.reshape(-1), values.reshape(-1), n)


@njit(parallel=True, cache=True, fastmath=FAST)
def _top_k(a, k, groups, indices, values, counts):
    rows, n = a.shape
    members = n // groups
    for r in prange(rows):
        # Latents i, i + groups, i + 2 groups, ... are one group, so that the maxima of all groups
        # come from whole vectors: `table` has a group per column, `rest` the last member of some.
        table = a[r, : members * groups].reshape(members, groups)
        rest = a[r, members * groups :]
        maxima = np.zeros(groups, np.float32)
        for m in range(members):
            part = table[m]
            for j in range(groups):
                maxima[j] = part[j] if part[j] > maxima[j] else maxima[j]
        for j in range(len(rest)):
            maxima[j] = rest[j] if rest[j] > maxima[j] else maxima[j]
        # The k-th largest maximum is a lower bound of the k-th largest value: each of k groups
        # holds at least one value as large. A rough one does, and only these groups are read again.
        bits = maxima.view(np.int32)
        bound = np.full(1, max(np.int32(1), _kth_largest(bits, k, k // 4)), np.int32)
        least = bound.view(np.float32)[0]
        group = np.empty(groups + 1, np.uint32)
        chosen = np.uint32(0)
        for j in range(groups):
            group[chosen] = j
            chosen += np.uint32(maxima[j] >= least)
        # A store per value, kept or not, is faster than a branch that no one can predict. NaN
        # compares false.
        latent = np.empty(n + 1, np.uint32)
        value = np.empty(n + 1, np.float32)
        found = np.uint32(0)
        for c in range(chosen):
            j = group[c]
            for m in range(members):
                latent[found] = m * groups + j
                value[found] = table[m, j]
                found += np.uint32(table[m, j] >= least)
            if j < len(rest):
                latent[found] = members * groups + j
                value[found] = rest[j]
                found += np.uint32(rest[j] >= least)
        counts[r] = _keep_k(latent[:found], value[:found], k, indices[r], values[r])


@njit(cache=True, fastmath=FAST)
def _keep_k(latent, value, k, indices, values):
    """Write the k largest of positive values, of equal ones the lower latent; return how many."""
    bits = value.view(np.int32)
    cut = np.int32(0) if len(value) <= k else _kth_largest(bits, k, 0)
    above = np.int32(0)
    for c in range(len(value)):
        above += np.int32(bits[c] >= cut)
    ties = above > k  # more than one value is equal to the k-th largest
    if ties:
        cut += np.int32(1)
    place = 0
    for c in range(len(value)):
        if bits[c] >= cut:
            indices[place] = latent[c]
            values[place] = value[c]
            place += 1
    if ties:
        tied = np.sort(latent[bits == cut - np.int32(1)])
        for c in range(k - place):
            indices[place + c] = tied[c]
            values[place + c] = value[bits == cut - np.int32(1)][0]
        place = k
    return place


@njit(cache=True, fastmath=FAST)
def _kth_largest(bits, k, slack):
    """The bits of the k-th largest of values >= 0 (which order as integers do), by bisection.

    Or of a lower bound, as soon as one has at most `k + slack` values from it up.
    """
    high = np.int32(0)
    for j in range(len(bits)):
        high = max(high, bits[j])
    low = np.int32(0)
    # The k-th largest is seldom below a 16th of the largest: bisect from there.
    middle = max(np.int32(1), high - np.int32(4 << 23))
    high += np.int32(1)
    while high - low > 1:
        count = np.int32(0)
        for j in range(len(bits)):
            count += np.int32(bits[j] >= middle)
        if count >= k:
            low = middle
            if count <= k + slack:
                break
        else:
            high = middle
        middle = low + (high - low) // np.int32(2)
    return low


def top_k_mask(code: Code, k: int) -> Tensor:
    """As `reference.top_k_mask`."""
    mask = np.empty(len(code.indices), np.bool_)
    _top_k_mask(_array(code.indptr), _array(code.indices), _array(code.values), k, mask)
    return torch.from_numpy(mask)


@njit(parallel=True, cache=True, fastmath=FAST)
def _top_k_mask(indptr, indices, values, k, mask):
    for r in prange(len(indptr) - 1):
        row = slice(indptr[r], indptr[r + 1])
        bits, latent, kept = values[row].view(np.int32), indices[row], mask[row]
        cut = np.int32(0) if len(bits) <= k else _kth_largest(bits, k, 0)
        count = 0
        for c in range(len(bits)):
            kept[c] = bits[c] >= cut
            count += kept[c]
        if count > k:
            # More than one value is equal to the k-th largest: drop the highest latents of them.
            tied = np.sort(latent[bits == cut])
            most = tied[len(tied) - 1 - (count - k)]
            for c in range(len(bits)):
                kept[c] = kept[c] and (bits[c] > cut or latent[c] <= most)


def places(code: Code, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.places`."""
    starts, kept = _places(_array(code.indptr), _array(mask))
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
        while place < starts[r + 1]:  # stores as in `_top_k`, and none beyond the row's last
            kept[place] = e
            place += np.int32(mask[e])
            e += np.int32(1)
    return starts, kept


def transpose(code: Code) -> ByLatent:
    """As `reference.transpose`."""
    arrays = _transpose(_array(code.indptr), _array(code.indices), code.n, get_num_threads())
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
    indptr, indices, values = _array(code.indptr), _array(code.indices), _array(code.values)
    for part, tile in _tiles(*code.shape):
        _scatter(indptr[part.start : part.stop + 1], indices, values, _array(tile))
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


def product(code: Code, matrix: Tensor) -> Tensor:
    """As `reference.product`."""
    out = torch.empty(code.shape[0], matrix.shape[1])
    if _is_dense(code):
        for part, dense in _dense_tiles(code):
            torch.mm(dense, matrix.detach(), out=out[part])
        return out
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
        target[:] = 0
        # Four at a time: a quarter of the loads and stores of the target (1.4 times faster).
        start, end = indptr[r], indptr[r + 1]
        four = start + (end - start) // 4 * 4
        for e in range(start, four, 4):
            v0, v1, v2, v3 = values[e], values[e + 1], values[e + 2], values[e + 3]
            s0, s1 = matrix[indices[e]], matrix[indices[e + 1]]
            s2, s3 = matrix[indices[e + 2]], matrix[indices[e + 3]]
            for c in range(d):
                target[c] += v0 * s0[c] + v1 * s1[c] + v2 * s2[c] + v3 * s3[c]
        for e in range(four, end):
            v, s = values[e], matrix[indices[e]]
            for c in range(d):
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
        target[:] = 0
        # Two at a time: as in `_product`, but many latents have only a few rows.
        start, end = indptr[i], indptr[i + 1]
        two = start + (end - start) // 2 * 2
        for e in range(start, two, 2):
            v0, v1 = values[order[e]], values[order[e + 1]]
            s0, s1 = matrix[rows[e]], matrix[rows[e + 1]]
            for c in range(d):
                target[c] += v0 * s0[c] + v1 * s1[c]
        for e in range(two, end):
            v, s = values[order[e]], matrix[rows[e]]
            for c in range(d):
                target[c] += v * s[c]


def sampled_product(code: Code, left: Tensor, right: Tensor) -> Tensor:
    """As `reference.sampled_product`."""
    out = torch.empty(len(code.indices))
    if _is_dense(code):
        indptr, indices = _array(code.indptr), _array(code.indices)
        for part, tile in _tiles(*code.shape):
            torch.mm(left[part], right.detach().T, out=tile)
            _pick(indptr[part.start : part.stop + 1], indices, _array(tile), _array(out))
        return out
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
