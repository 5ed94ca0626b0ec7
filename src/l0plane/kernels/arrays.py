"""What the compiled CPU kernels share: tensors as NumPy sees them, and memory that is kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numba import config, njit, prange
from numba.core.codegen import get_host_cpu_features
from torch import Tensor

# For Intel's processors LLVM makes vectors of 256 bits unless told otherwise. With 512, walking
# rows of a matrix in the second-level cache takes 0.7 of the time.
_compiler, _features = vars(config), get_host_cpu_features()
if _compiler["CPU_FEATURES"] is None and "+avx512f" in _features:
    _compiler["CPU_FEATURES"] = f"{_features},-prefer-256-bit"

#: Rows in a tile of pre-activations: with fewer the product is less efficient (of a large encoder,
#: which it reads again for each tile, by half with 64), with more the tile leaves the cache before
#: the selection has read it.
TILE_ROWS = 512
#: Reassociation lets sums and maxima use vector lanes; NaN must keep comparing false.
FAST = {"reassoc", "contract", "nsz"}

_tile = torch.empty(0)


def array(tensor: Tensor) -> np.ndarray:
    """The same memory if the tensor is contiguous, without its gradient."""
    # Some fifty times a step: what does nothing is left out.
    return (tensor.detach() if tensor.requires_grad else tensor).contiguous().numpy()


def tiles(rows: int, n: int) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows, each with a buffer `[rows in the range, n]` that later tiles reuse."""
    global _tile
    if _tile.numel() < min(TILE_ROWS, rows) * n:
        _tile = torch.empty(min(TILE_ROWS, rows) * n)
    for start in range(0, rows, TILE_ROWS):
        part = slice(start, min(start + TILE_ROWS, rows))
        yield part, _tile[: (part.stop - start) * n].view(-1, n)


@njit(parallel=True, cache=True, fastmath=FAST)
def sampled(starts, counts, indices, left, right, out):
    """Write to `out`, for the `indices` of each row, its products with these rows of `right`.

    A row `r` of `left [rows, d]` has `counts[r]` indices from `starts[r]` on.
    """
    for r in prange(len(left)):
        dots(left[r], starts[r], starts[r] + counts[r], indices, right, out)


@njit(cache=True, fastmath=FAST)
def dots(row, start, end, indices, right, out):
    """The same for one row `[d]`, whose indices go from `start` to `end`."""
    last = end - 1
    # Four at a time: sums that wait for nothing, and a quarter of the loads of the row. At the
    # end the last one again, so that equal rows of `right` have equal products.
    for e0 in range(start, end, 4):
        e1, e2, e3 = min(e0 + 1, last), min(e0 + 2, last), min(e0 + 3, last)
        r0, r1, r2, r3 = (
            right[indices[e0]],
            right[indices[e1]],
            right[indices[e2]],
            right[indices[e3]],
        )
        t0, t1, t2, t3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for c in range(len(row)):
            t0 += row[c] * r0[c]
            t1 += row[c] * r1[c]
            t2 += row[c] * r2[c]
            t3 += row[c] * r3[c]
        out[e0], out[e1], out[e2], out[e3] = t0, t1, t2, t3
