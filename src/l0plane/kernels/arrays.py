"""What the compiled CPU kernels share: tensors as NumPy sees them, and memory that is kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numba import njit
from torch import Tensor

#: Rows in a tile of pre-activations: with fewer the product is less efficient (of a large encoder,
#: which it reads again for each tile, by half with 64), with more the tile leaves the cache before
#: the selection has read it.
TILE_ROWS = 512
#: Reassociation lets sums and maxima use vector lanes; NaN must keep comparing false.
FAST = {"reassoc", "contract", "nsz"}

_tile = torch.empty(0)


def array(tensor: Tensor) -> np.ndarray:
    """The same memory if the tensor is contiguous, without its gradient."""
    return tensor.detach().contiguous().numpy()


def tiles(rows: int, n: int) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows, each with a buffer `[rows in the range, n]` that later tiles reuse."""
    global _tile
    if _tile.numel() < min(TILE_ROWS, rows) * n:
        _tile = torch.empty(min(TILE_ROWS, rows) * n)
    for start in range(0, rows, TILE_ROWS):
        part = slice(start, min(start + TILE_ROWS, rows))
        yield part, _tile[: (part.stop - start) * n].view(-1, n)


@njit(cache=True, fastmath=FAST)
def dots(row, matrix, indices, out):
    """Write the products of `row [d]` with those rows of `matrix [n, d]` that `indices` names."""
    d, four = len(row), len(indices) // 4 * 4
    # Four at a time: sums that wait for nothing, and a quarter of the loads of the row.
    for e in range(0, four, 4):
        r0, r1 = matrix[indices[e]], matrix[indices[e + 1]]
        r2, r3 = matrix[indices[e + 2]], matrix[indices[e + 3]]
        t0, t1, t2, t3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for c in range(d):
            t0 += row[c] * r0[c]
            t1 += row[c] * r1[c]
            t2 += row[c] * r2[c]
            t3 += row[c] * r3[c]
        out[e], out[e + 1], out[e + 2], out[e + 3] = t0, t1, t2, t3
    for e in range(four, len(indices)):
        other, total = matrix[indices[e]], np.float32(0.0)
        for c in range(d):
            total += row[c] * other[c]
        out[e] = total
