"""Which pre-activations are active, on the GPU: the `k` largest, or all above a threshold.

The way it is done is described in `gpu`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from l0plane.code import Code
from l0plane.files import UserError
from l0plane.kernels import reference
from l0plane.kernels.gpu_products import GATHERED, operand, sampled

#: Bytes of a tile of pre-activations (1 GiB): enough rows for an efficient product.
TILE_BYTES = 1 << 30
#: Pre-activations that one program holds at a time: 16 registers of each of its threads.
SEGMENT = 1 << 13
WARPS = 16
#: Neighbouring pre-activations in a group, at most and at least, and groups for each of the k
#: largest: with fewer too many of the groups have one.
GROUP, LEAST_GROUP = 32, 8
GROUPS_FOR_EACH = 4
#: Groups that a warp looks at, and members of groups that a program looks at, at a time.
GROUPS_BY_WARP, MEMBERS = 1024, 2048
#: Triples of a row of a code that one program looks at, at a time, for the largest of them.
MARKED = 1 << 8
#: Places of triples are int32, up to GATHERED beyond the last.
MOST_TRIPLES = 2**31 - 1 - GATHERED


def select_above(
    x: Tensor, encoder: Tensor, bias: Tensor | None, threshold: Tensor | float
) -> Code:
    """As `reference.select_above`.

    Raises:
        UserError: too many are active to be counted in int32.
    """
    n = len(encoder)
    # A number is filled in: copied there, it would wait for all that the device still has to do.
    if not isinstance(threshold, Tensor):
        threshold = torch.full((n,), threshold, dtype=torch.float32, device=x.device)
    cut = threshold.to(x.device, torch.float32).expand(n).contiguous()
    total = 0
    indptr = torch.zeros(len(x) + 1, dtype=torch.int32, device=x.device)
    indices, values = [], []
    start = 0
    for rows in x.split(max(1, TILE_BYTES // (4 * n))):
        a = _product(rows, encoder)
        counts = torch.empty(len(a), dtype=torch.int32, device=x.device)
        _count_above[(len(a),)](a, bias, cut, counts, n, SEGMENT, num_warps=WARPS)
        ends = indptr[start + 1 : start + 1 + len(a)]
        torch.cumsum(counts, 0, dtype=torch.int32, out=ends)
        found = int(ends[-1])
        total += found
        _check(total, x, n)
        indices.append(torch.empty(found, dtype=torch.int32, device=x.device))
        values.append(torch.empty(found, device=x.device))
        _keep_above[(len(a),)](
            a, bias, cut, ends, counts, indices[-1], values[-1], n, SEGMENT, num_warps=WARPS
        )
        ends += indptr[start]
        start += len(a)
    return Code(indptr, torch.cat(indices), torch.cat(values), n)


def whole_above(x: Tensor, encoder: Tensor, bias: Tensor | None, threshold: Tensor | float) -> Code:
    """The same of a threshold of at least 0, each row padded to all latents.

    How many there are is known, so the host need not wait.
    """
    a = _product(x, encoder)
    return reference.whole_code(a if bias is None else a.add_(bias), threshold)


def select_top_k(x: Tensor, encoder: Tensor, bias: Tensor | None, k: int) -> Code:
    """As `reference.select_top_k`, but padded to `k` triples in each row.

    So the host need not ask how many there are. Where products are rounded to bfloat16 and more
    than `k` rounded pre-activations of a row are equal to the k-th largest of them, which of these
    are taken is up to their order.

    Raises:
        UserError: too many are active to be counted in int32.
    """
    n = len(encoder)
    k = min(k, n)
    _check(len(x) * k, x, n)
    x, encoder = operand(x), operand(encoder)
    # With fewer groups, or smaller ones, looking at groups first saves nothing.
    size = min(GROUP, triton.next_power_of_2(n // (GROUPS_FOR_EACH * k) + 1) // 2)
    if n <= SEGMENT or size < LEAST_GROUP:
        size = 0
    rounded = size > 0 and bias is None and x.dtype == torch.bfloat16
    rows = max(1, TILE_BYTES // ((2 if rounded else 4) * n))
    tiles = [_top_k_of(tile, encoder, bias, k, size, rounded) for tile in x.split(rows)]
    indices, values = (torch.cat(pieces).flatten() for pieces in zip(*tiles, strict=True))
    indptr = k * torch.arange(len(x) + 1, dtype=torch.int32, device=x.device)
    return Code(indptr, indices, values, n, live=values != 0)


def _check(triples: int, x: Tensor, n: int) -> None:
    if triples > MOST_TRIPLES:
        raise UserError(
            f"more than {MOST_TRIPLES} active latents in a batch of {len(x)} activations with {n} "
            "latents; lower training.batch_tokens, or give each GPU a part of the batch"
        )


def _top_k_of(
    x: Tensor, encoder: Tensor, bias: Tensor | None, k: int, size: int, rounded: bool
) -> tuple[Tensor, Tensor]:
    """What `_largest` gives, of a tile of rows.

    By groups of `size`, or 0; from a product that is `rounded` to bfloat16, or not.
    """
    if rounded:
        candidates, counts, values = _candidates(x @ encoder.T, k, size)
        starts = torch.arange(len(x), dtype=torch.int32, device=x.device) * candidates.shape[1]
        sampled(starts, starts + counts, candidates, x, encoder, values)
        return _largest(values, k, candidates, counts)
    a = _product(x, encoder)
    a = a if bias is None else a.add_(bias)
    if not size:
        return _largest(a, k)
    candidates, counts, values = _candidates(a, k, size)
    return _largest(values, k, candidates, counts)


def _product(x: Tensor, encoder: Tensor) -> Tensor:
    """`x encoder^T`, `[rows, n]`, with float32 sums."""
    x, encoder = operand(x), operand(encoder)
    options: dict[str, Any] = {"out_dtype": torch.float32} if x.dtype == torch.bfloat16 else {}
    return torch.mm(x, encoder.T, **options)


def _candidates(a: Tensor, k: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places in `a [rows, n]` among which are the `k` largest positive values of each row.

    Found by the largest values of groups of `size` neighbours.

    Returns:
        int32 `[rows, capacity]`, in order; how many of them there are, int32 `[rows]`, the rest
        being anything; their values, float32 `[rows, capacity]`.
    """
    rows, n = a.shape
    groups = triton.cdiv(n, size)
    maxima = torch.empty(rows, groups, dtype=a.dtype, device=a.device)
    _group_maxima[(rows, triton.cdiv(n, SEGMENT // 2))](
        *(a, maxima, n, groups),
        *(size, SEGMENT // 2),
    )
    capacity = triton.next_power_of_2(2 * k)
    chosen, candidates = torch.empty(2, rows, capacity, dtype=torch.int32, device=a.device)
    values = torch.empty(rows, capacity, device=a.device)
    counts = torch.empty(rows, dtype=torch.int32, device=a.device)
    padded = triton.next_power_of_2(groups)
    _narrow[(rows,)](
        *(a, maxima, chosen, candidates, values, counts, n, groups, k, capacity),
        # float32 is first compared by its upper bits, as many as bfloat16 has and four more.
        *(16 if a.dtype == torch.bfloat16 else 12, size, padded, MEMBERS),
        num_warps=min(WARPS, max(1, padded // GROUPS_BY_WARP)),
    )
    return candidates, counts, values


def _largest(
    a: Tensor, k: int, latents: Tensor | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `k` largest positive values of each row of `a [rows, width]`, in order of place.

    Args:
        a: see above.
        k: see above.
        latents: int32 `[rows, width]`, the latent at each place; none: the place itself.
        lengths: int32 `[rows]`, how many places of a row count; none: all.

    Returns:
        Their latents, int32, and values, both `[rows, k]`; 0 where there are no more.
    """
    rows, width = a.shape
    block = min(triton.next_power_of_2(width), max(SEGMENT, triton.next_power_of_2(2 * k)))
    segments = triton.cdiv(width, block)
    indices = torch.zeros(rows, segments * k, dtype=torch.int32, device=a.device)
    values = torch.zeros(rows, segments * k, device=a.device)
    _top_k[(rows, segments)](
        *(a, latents, lengths, indices, values, width, k),
        block,
        num_warps=min(WARPS, max(1, block // 256)),
    )
    # The largest of a row are among the largest of its segments, which stand in the order of place.
    return (indices, values) if segments == 1 else _largest(values, k, indices)


def top_k_mask(code: Code, k: int) -> Tensor:
    """As `reference.top_k_mask`, of a code whose rows are in the order of latents."""
    values = code.values.detach()
    if code.shape[0] == 1:  # a whole batch, say: not work for one program
        least = torch.topk(values, min(k, len(values)), sorted=True).values[-1:]
        above, last = values > least, values == least
        return above | (last & (last.cumsum(0) <= k - above.sum()))
    mask = torch.empty(len(values), dtype=torch.bool, device=values.device)
    _mark_top_k[(code.shape[0],)](code.indptr, values, mask, k, MARKED, num_warps=1)
    return mask


@triton.jit
def _count_above(a, bias, cut, counts, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        latent = start + tl.arange(0, BLOCK)
        inside = latent < n
        v = tl.load(a + row * n + latent, mask=inside, other=0.0)
        if bias is not None:
            v += tl.load(bias + latent, mask=inside, other=0.0)
        above = inside & (v > tl.load(cut + latent, mask=inside, other=0.0))
        count += above.to(tl.int32)
    tl.store(counts + row, tl.sum(count))


@triton.jit
def _keep_above(a, bias, cut, ends, counts, indices, values, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(ends + row) - tl.load(counts + row)
    for start in range(0, n, BLOCK):
        latent = start + tl.arange(0, BLOCK)
        inside = latent < n
        v = tl.load(a + row * n + latent, mask=inside, other=0.0)
        if bias is not None:
            v += tl.load(bias + latent, mask=inside, other=0.0)
        above = inside & (v > tl.load(cut + latent, mask=inside, other=0.0))
        rank = tl.cumsum(above.to(tl.int32), 0)
        tl.store(indices + place + rank - 1, latent, mask=above)
        tl.store(values + place + rank - 1, v, mask=above)
        place += tl.sum(above.to(tl.int32))


@triton.jit
def _bits(a, place, width):
    """Positive floats are in the order of their bits; all other values, NaN too, become zero."""
    v = tl.load(a + place, mask=place < width, other=0.0).to(tl.float32)
    return tl.where(v > 0, v.to(tl.int32, bitcast=True), 0)


@triton.jit
def _halved(low, high, found, middle, count, k):
    """The bounds of a bisection, and how many are from the lower up; `count` from the middle."""
    enough = count >= k
    found = tl.where(enough, count, found)
    return tl.where(enough, middle, low), tl.where(enough, high, middle), found


@triton.jit
def _bound(bits, k):
    """A lower bound of the k-th largest of `bits`: exactly k have it or more, but for ties.

    1 if fewer than k are positive.
    """
    low = 1
    high = tl.max(bits) + 1
    found = tl.sum((bits >= low).to(tl.int32))
    while (found > k) & (high - low > 1):
        middle = low + (high - low) // 2
        count = tl.sum((bits >= middle).to(tl.int32))
        low, high, found = _halved(low, high, found, middle, count, k)
    return low


@triton.jit
def _bits_of(a, n, groups, i, length, SIZE: tl.constexpr):
    """Of the i-th of `length` members of `groups` of `SIZE` in `a [n]`; and its place.

    Without groups the i-th of all.
    """
    place = i
    if groups is not None:
        group = tl.load(groups + i // SIZE, mask=i < length, other=0)
        place = group * SIZE + i % SIZE
    return _bits(a, tl.where(i < length, place, n), n), place


@triton.jit
def _bound_in_memory(
    a, n, groups, length, low, high, found, k, most, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """The same of `length` members in memory, of which `found` are from `low` up, none from `high`.

    k have it or more, `most` at most, but for ties.
    """
    column = tl.arange(0, BLOCK)
    while (found > most) & (high - low > 1):
        middle = low + (high - low) // 2
        count = 0
        for start in range(0, length, BLOCK):
            bits, _ = _bits_of(a, n, groups, start + column, length, SIZE)
            count += tl.sum((bits >= middle).to(tl.int32))
        low, high, found = _halved(low, high, found, middle, count, k)
    return low


@triton.jit
def _room(a, n, groups, length, low, most, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """How many of `most` are left for those that are equal to `low`."""
    column = tl.arange(0, BLOCK)
    room = most
    for start in range(0, length, BLOCK):
        bits, _ = _bits_of(a, n, groups, start + column, length, SIZE)
        room -= tl.sum((bits > low).to(tl.int32))
    return room


@triton.jit
def _kept(bits, low, room):
    """Which of `bits` are above `low`, or among the first `room` that are equal to it."""
    last = (bits == low).to(tl.int32)
    return (bits > low) | ((last > 0) & (tl.cumsum(last, 0) <= room))


@triton.jit
def _cut(
    a,
    n,
    groups,
    length,
    low,
    high,
    found,
    k,
    capacity,
    candidates,
    values,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write at most `capacity` of `length` members, among them the k largest; how many they are.

    Of those that are equal to the last, as many as there is room for. `low`, `high` and `found`
    are as for `_bound_in_memory`.
    """
    column = tl.arange(0, BLOCK)
    low = _bound_in_memory(a, n, groups, length, low, high, found, k, capacity, SIZE, BLOCK)
    room = _room(a, n, groups, length, low, capacity, SIZE, BLOCK)
    count = 0
    for start in range(0, length, BLOCK):
        bits, place = _bits_of(a, n, groups, start + column, length, SIZE)
        kept = _kept(bits, low, room)
        room -= tl.sum((bits == low).to(tl.int32))
        rank = count + tl.cumsum(kept.to(tl.int32), 0)
        tl.store(candidates + rank - 1, place, mask=kept)
        tl.store(values + rank - 1, bits.to(tl.float32, bitcast=True), mask=kept)
        count += tl.sum(kept.to(tl.int32))
    return count


@triton.jit
def _group_maxima(a, maxima, n, groups, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * (BLOCK // SIZE) + tl.arange(0, BLOCK // SIZE)
    place = group[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    v = tl.load(a + row * n + place, mask=place < n, other=0.0)
    tl.store(maxima + row * groups + group, tl.max(v, 1), mask=group < groups)


@triton.jit
def _narrow(
    a,
    maxima,
    chosen,
    candidates,
    values,
    counts,
    n,
    groups,
    k,
    capacity,
    SHIFT: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    a += row * n
    chosen += row * capacity
    candidates += row * capacity
    values += row * capacity
    # At least k groups have a value of `low` or more. So have k values.
    group = tl.arange(0, PADDED)
    largest = _bits(maxima + row * groups, group, groups)
    low = _bound(largest >> SHIFT, k)
    low = tl.where(low > 1, low << SHIFT, 1)
    wanted = largest >= low
    found = tl.sum(wanted.to(tl.int32))
    order = tl.cumsum(wanted.to(tl.int32), 0)
    tl.store(chosen + order - 1, group, mask=wanted & (order <= capacity))
    tl.debug_barrier()
    if found > capacity:
        # So many groups are equally good that there is no room for their names.
        high = tl.max(largest) + 1
        count = _cut(a, n, None, n, low, high, n, k, capacity, candidates, values, SIZE, BLOCK)
    else:
        # No value of `low` or more is in another group.
        members = found * SIZE
        column = tl.arange(0, BLOCK)
        count = 0
        for start in range(0, members, BLOCK):
            bits, place = _bits_of(a, n, chosen, start + column, members, SIZE)
            kept = bits >= low
            rank = count + tl.cumsum(kept.to(tl.int32), 0)
            fits = kept & (rank <= capacity)
            tl.store(candidates + rank - 1, place, mask=fits)
            tl.store(values + rank - 1, bits.to(tl.float32, bitcast=True), mask=fits)
            count += tl.sum(kept.to(tl.int32))
        if count > capacity:
            # Some groups have many large values. Other threads wrote to the same places.
            tl.debug_barrier()
            high = tl.max(largest) + 1
            count = _cut(
                *(a, n, chosen, members, low, high, count, k, capacity, candidates, values),
                SIZE,
                BLOCK,
            )
    tl.store(counts + row, count)


@triton.jit
def _top_k(a, latents, lengths, indices, values, width, k, BLOCK: tl.constexpr):
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    segments = tl.num_programs(1)
    place = segment * BLOCK + tl.arange(0, BLOCK)
    length = width
    if lengths is not None:
        length = tl.load(lengths + row)
    bits = _bits(a + row * width, place, length)
    low = _bound(bits, k)
    kept = _kept(bits, low, k - tl.sum((bits > low).to(tl.int32)))
    rank = tl.cumsum(kept.to(tl.int32), 0)
    latent = place
    if latents is not None:
        latent = tl.load(latents + row * width + place, mask=kept, other=0)
    out = (row * segments + segment) * k + rank - 1
    tl.store(indices + out, latent, mask=kept)
    tl.store(values + out, bits.to(tl.float32, bitcast=True), mask=kept)


@triton.jit
def _mark_top_k(indptr, values, mask, k, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(indptr + row)
    length = tl.load(indptr + row + 1) - first
    values += first
    mask += first
    place = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.int32)
    for start in range(0, length, BLOCK):
        largest = tl.maximum(largest, _bits(values, start + place, length))
    high = tl.max(largest) + 1
    low = tl.minimum(high, 1)
    low = _bound_in_memory(values, length, None, length, low, high, length, k, k, 1, BLOCK)
    room = _room(values, length, None, length, low, k, 1, BLOCK)
    for start in range(0, length, BLOCK):
        bits = _bits(values, start + place, length)
        kept = _kept(bits, low, room)
        room -= tl.sum((bits == low).to(tl.int32))
        tl.store(mask + start + place, kept, mask=start + place < length)
