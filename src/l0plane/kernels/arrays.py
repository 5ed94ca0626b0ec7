"""What the compiled CPU kernels share: tensors as NumPy sees them, and memory that is kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
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
