"""Which pre-activations are active, on the CPU: the `k` largest, or all above a threshold.

To know them takes the product of all activations with all of the encoder, the most costly part of
a training step. Where the processor multiplies bfloat16 numbers twice as fast, the product of
rounded factors comes first. It screens: how far rounding can have moved a pre-activation is known,
so that only the few that it cannot rule out are computed in float32, from the factors as they are.
Nothing is approximated: active latents and values are those of the whole float32 product, but for
the order in which sums are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from torch import Tensor

from l0plane.code import Code
from l0plane.device import bfloat16_is_faster
from l0plane.kernels.arrays import FAST, array, sampled, tiles
from l0plane.kernels.screening import Screen

#: Whether to screen: elsewhere the rounded product is slower, and how it sums is not known.
SCREENS = bfloat16_is_faster()
#: Of more candidates than this share of the latents, the whole product is cheaper.
CANDIDATES = 1 / 8
#: By what part of itself rounding to bfloat16 moves a number at most; and a little, for float32.
ROUNDING = np.float32(2.0**-8 + 2.0**-20)

#: Latents and values `[any]`; of each row where its own start, and how many they are, `[rows]`.
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
#: From the values `[rows, n]` or, if there are any, the bits of the screening and its margins.
Find = Callable[[np.ndarray, np.ndarray, np.ndarray], Candidates]


def select_above(
    x: Tensor, encoder: Tensor, bias: Tensor | None, threshold: Tensor | float
) -> Code:
    """As `reference.select_above`."""
    n = len(encoder)
    offset = _offset(bias, n)
    cut = array(torch.as_tensor(threshold, dtype=torch.float32).expand(n))
    groups = min(n, 64 * math.ceil(n / (8 * 64)))

    def find(a: np.ndarray, bits: np.ndarray, margin: np.ndarray) -> Candidates:
        return _exceeding(a, bits, offset, margin, cut, groups, get_num_threads())

    counts = np.empty(len(x), np.int32)
    pieces = [(np.empty(0, np.int32), np.empty(0, np.float32))]
    for part, candidates in _selected(x, encoder, offset, cut, find, SCREENS):
        counts[part] = candidates[-1]
        pieces.append(_joined(*candidates))
    indices, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return _csr(counts, indices, values, n)


def select_top_k(x: Tensor, encoder: Tensor, bias: Tensor | None, k: int) -> Code:
    """As `reference.select_top_k`."""
    n = len(encoder)
    k = min(k, n)
    offset, cut = _offset(bias, n), np.zeros(n, np.float32)
    # The work on group maxima grows with the groups, that on their members falls.
    groups = min(n, 64 * math.ceil(0.75 * math.sqrt(n * k) / 64))

    def find(a: np.ndarray, bits: np.ndarray, margin: np.ndarray) -> Candidates:
        return _largest(a, bits, offset, margin, k, groups, get_num_threads())

    indices = np.empty((len(x), k), np.int32)
    values = np.empty((len(x), k), np.float32)
    counts = np.empty(len(x), np.int32)
    screens = SCREENS and 2 * k <= CANDIDATES * n  # there may be twice as many candidates
    for part, candidates in _selected(x, encoder, offset, cut, find, screens):
        _keep_largest(*candidates, k, indices[part], values[part], counts[part])
    if counts.sum() < indices.size:
        full = np.arange(k) < counts[:, None]
        return _csr(counts, indices[full], values[full], n)
    return _csr(counts, indices.reshape(-1), values.reshape(-1), n)


def _offset(bias: Tensor | None, n: int) -> np.ndarray:
    return np.zeros(n, np.float32) if bias is None else array(bias)


def _csr(counts: np.ndarray, indices: np.ndarray, values: np.ndarray, n: int) -> Code:
    """The code of arrays that hold the triples of one row after another."""
    indptr = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=indptr[1:])
    return Code(torch.from_numpy(indptr), torch.from_numpy(indices), torch.from_numpy(values), n)


# --- pre-activations, a tile of rows at a time


def _selected(
    x: Tensor, encoder: Tensor, offset: np.ndarray, cut: np.ndarray, find: Find, screens: bool
) -> Iterator[tuple[slice, Candidates]]:
    """For each tile its rows, and the candidates that `find` has in each, all above `cut`."""
    screen = Screen.of(x, encoder, offset, cut) if screens else None
    for part, tile in tiles(len(x), len(encoder)):
        if screen is not None:
            candidates = find(array(tile), *screen.product(part, tile))
            latents, values, starts, counts = candidates
            if counts.sum() <= CANDIDATES * tile.numel():
                sampled(starts, counts, latents, array(x[part]), array(encoder), values)
                _drop(offset, cut, *candidates)
                yield part, candidates
                continue
            screen = None  # nor will the next tiles have fewer
        torch.mm(x[part], encoder.T, out=tile)
        yield part, find(array(tile), np.empty((0, 0), np.uint16), np.empty(0, np.float32))


@njit(cache=True, fastmath=FAST)
def _read(a, bits, offset, margin, r, row):
    """Write row `r` of the values, plus the offset, to `row`; return how far each may be off."""
    if len(bits):
        off = margin[r] + ROUNDING * _widen(bits[r], row)
        for i in range(len(row)):
            row[i] += offset[i]
        return off
    values = a[r]
    for i in range(len(row)):
        row[i] = values[i] + offset[i]
    return np.float32(0.0)


@njit(cache=True, fastmath=FAST)
def _widen(bits, row):
    """Write bfloat16 `bits [n]` as numbers to `row`; return the largest without its sign."""
    raw = row.view(np.uint32)
    largest = np.int32(0)
    for i in range(len(bits)):
        raw[i] = np.uint32(bits[i]) << np.uint32(16)
        largest = max(largest, np.int32(bits[i] & np.uint16(0x7FFF)))
    return np.full(1, largest << np.int32(16), np.int32).view(np.float32)[0]


@njit(parallel=True, cache=True, fastmath=FAST)
def _drop(offset, cut, latents, values, starts, counts):
    """Add the offset to the candidates' values; keep those that are then above `cut`."""
    for r in prange(len(counts)):
        latent, value = latents[starts[r] :], values[starts[r] :]
        kept = np.uint32(0)
        for c in range(counts[r]):
            i = latent[c]
            latent[kept] = i
            value[kept] = value[c] + offset[i]
            kept += np.uint32(value[kept] > cut[i])
        counts[r] = kept


# --- candidates: all values that exceed a threshold, or that may be among the k largest


@njit(cache=True)
def _room(rows, n):
    """Arrays for the candidates of a tile, of which only what is written takes memory."""
    latents, values = np.empty(rows * n, np.uint32), np.empty(rows * n, np.float32)
    return latents, values, np.empty(rows, np.int64), np.empty(rows, np.int32)


@njit(parallel=True, cache=True, fastmath=FAST)
def _exceeding(a, bits, offset, margin, cut, groups, parts):
    """Candidates are what exceeds `cut`; of a screening, what may. See `_selected`."""
    rows, n = a.shape
    members = n // groups
    latents, values, starts, counts = _room(rows, n)
    for t in prange(parts):
        row = np.empty(n, np.float32)
        hits, group = np.empty(groups, np.int32), np.empty(groups + 1, np.uint32)
        start = rows * t // parts * n
        for r in range(rows * t // parts, rows * (t + 1) // parts):
            latent, value = latents[start:], values[start:]
            off = _read(a, bits, offset, margin, r, row)
            for i in range(n):
                row[i] += off
            # Groups as in `_largest`; only those that hold something are read again.
            hits[:] = 0
            for m in range(members):
                part = row[m * groups : (m + 1) * groups]
                limit = cut[m * groups : (m + 1) * groups]
                for j in range(groups):
                    hits[j] += np.int32(part[j] > limit[j])
            part, limit = row[members * groups :], cut[members * groups :]
            for j in range(len(part)):
                hits[j] += np.int32(part[j] > limit[j])
            chosen = np.uint32(0)
            for j in range(groups):
                group[chosen] = j
                chosen += np.uint32(hits[j] > 0)
            found = np.uint32(0)
            for c in range(chosen):
                i = group[c]
                while i < n:
                    latent[found] = i
                    value[found] = row[i]
                    found += np.uint32(row[i] > cut[i])
                    i += np.uint32(groups)
            starts[r], counts[r] = start, found
            start += found
    return latents, values, starts, counts


@njit(parallel=True, cache=True, fastmath=FAST)
def _largest(a, bits, offset, margin, k, groups, parts):
    """Candidates are the `k` largest positive values, of a screening what may be, and some more.

    See `_selected`.
    """
    rows, n = a.shape
    members = n // groups
    latents, values, starts, counts = _room(rows, n)
    for t in prange(parts):
        row = np.empty(n, np.float32)
        # Latents i, i + groups, i + 2 groups, ... are one group, so that the maxima of all groups
        # come from whole vectors: `table` has a group per column, `rest` the last member of some.
        table, rest = row[: members * groups].reshape(members, groups), row[members * groups :]
        maxima, group = np.empty(groups, np.float32), np.empty(groups + 1, np.uint32)
        start = rows * t // parts * n
        for r in range(rows * t // parts, rows * (t + 1) // parts):
            latent, value = latents[start:], values[start:]
            off = _read(a, bits, offset, margin, r, row)
            maxima[:] = 0
            for m in range(members):
                part = table[m]
                for j in range(groups):
                    maxima[j] = part[j] if part[j] > maxima[j] else maxima[j]
            for j in range(len(rest)):
                maxima[j] = rest[j] if rest[j] > maxima[j] else maxima[j]
            # The k-th largest maximum is a lower bound of the k-th largest value: each of k groups
            # holds at least one value as large. A rough one does, and only these groups are read
            # again.
            least = _least(maxima, k, k // 4, off)
            chosen = np.uint32(0)
            for j in range(groups):
                group[chosen] = j
                chosen += np.uint32(maxima[j] >= least)
            # A store per value, kept or not, is faster than a branch that no one can predict. NaN
            # compares false.
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
            if off > 0 and found > k:
                least, before, found = _least(value[:found], k, 0, off), found, np.uint32(0)
                for c in range(before):
                    latent[found] = latent[c]
                    found += np.uint32(value[c] >= least)
            starts[r], counts[r] = start, found
            start += found
    return latents, values, starts, counts


@njit(cache=True, fastmath=FAST)
def _least(values, k, slack, off):
    """What a value reaches if it may be one of the `k` largest positive ones, all off by `off`.

    Where the k-th largest is seen is too high by that much at most, and another too low.
    """
    bound = max(np.int32(1), _kth_largest(values.view(np.int32), k, slack))
    seen = np.full(1, bound, np.int32).view(np.float32)[0]
    return max(seen - np.float32(2.0) * off, -off)


# --- the triples of all rows


@njit(parallel=True, cache=True, fastmath=FAST)
def _joined(latents, values, starts, counts):
    """Indices and values of all rows, one after the other."""
    rows = len(counts)
    ends = counts.cumsum()
    all_indices, all_values = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float32)
    for r in prange(rows):
        start, place = starts[r], ends[r] - counts[r]
        for c in range(counts[r]):
            all_indices[place + c] = latents[start + c]
            all_values[place + c] = values[start + c]
    return all_indices, all_values


@njit(parallel=True, cache=True, fastmath=FAST)
def _keep_largest(latents, values, starts, counts, k, kept_indices, kept_values, kept):
    """Of each row's candidates, the `k` largest."""
    for r in prange(len(counts)):
        own = slice(starts[r], starts[r] + counts[r])
        kept[r] = _keep_k(latents[own], values[own], k, kept_indices[r], kept_values[r])


@njit(cache=True, fastmath=FAST)
def _count(bits, least):
    """How many there are from `least` up."""
    count = np.uint32(0)
    for j in range(len(bits)):
        count += np.uint32(bits[j] >= least)
    return count


@njit(cache=True, fastmath=FAST)
def _keep_k(latent, value, k, indices, values):
    """Write the k largest of positive values, of equal ones the lower latent; return how many."""
    bits = value.view(np.int32)
    cut = np.int32(0) if len(value) <= k else _kth_largest(bits, k, 0)
    above = _count(bits, cut)
    ties = above > k  # more than one value is equal to the k-th largest
    if ties:
        cut += np.int32(1)
        above = _count(bits, cut)
    place, c = np.uint32(0), np.uint32(0)
    while place < above:  # stores as in `_largest`, none beyond the last that is kept
        indices[place] = latent[c]
        values[place] = value[c]
        place += np.uint32(bits[c] >= cut)
        c += np.uint32(1)
    if ties:
        tied = np.sort(latent[bits == cut - np.int32(1)])
        for t in range(k - place):
            indices[place + t] = tied[t]
            values[place + t] = value[bits == cut - np.int32(1)][0]
        return k
    return place


@njit(cache=True, fastmath=FAST)
def _kth_largest(bits, k, slack):
    """The bits of the k-th largest of positive values (which order as integers do), by bisection.

    Or of a lower bound, as soon as one has at most `k + slack` values from it up; 0 if fewer than
    k are positive.
    """
    high = np.int32(0)
    for j in range(len(bits)):
        high = max(high, bits[j])
    low = np.int32(0)
    # The k-th largest is seldom below a 16th of the largest: bisect from there.
    middle = max(np.int32(1), high - np.int32(4 << 23))
    high += np.int32(1)
    while high - low > 1:
        count = _count(bits, middle)
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
    _top_k_mask(array(code.indptr), array(code.indices), array(code.values), k, mask)
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
