"""A product of rounded factors, and how far rounding can have moved it: to rule latents out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from l0plane.kernels.arrays import FAST, array


class Screen(NamedTuple):
    """Factors rounded to bfloat16, and how far that can move a product of their rows.

    Of rows x, w and rounded ones x', w': `x w - x' w' = (x - x') w + x' (w - w')`, so that by
    Cauchy and Schwarz `|x w - x' w'| <= |x - x'| |w| + |x'| |w - w'|`. The margin is this for the
    largest `|w|` and `|w - w'|`, and a little for float32: `d 2^-24 |x| |w|` for each of the sums
    in question, last bits of offset and threshold, and products too small for a normal number.
    What rounding the product itself does is in proportion to it: `selection._read` adds that.
    """

    x: Tensor
    """bfloat16 `[rows, d]`."""
    encoder: Tensor
    """bfloat16 `[n, d]`."""
    margin: np.ndarray
    """`[rows]`."""

    @classmethod
    def of(cls, x: Tensor, encoder: Tensor, offset: np.ndarray, cut: np.ndarray) -> Screen | None:
        """None if anything is not finite, or near to it: no margin holds there."""
        rounded_x, norm_x, error_x = _rounded(x)
        rounded, norm, error = _rounded(encoder)
        w, off = norm.max(), error.max()
        with np.errstate(over="ignore", invalid="ignore"):
            sums = x.shape[1] * 2.0**-22 * norm_x * w
            compared = 2.0**-22 * (np.abs(offset).max() + np.abs(cut).max())
            margin = 1.001 * (error_x * (w + off) + norm_x * off + sums + compared) + 1e-30
        if not (margin < 1e30).all():
            return None
        return cls(rounded_x, rounded, margin.astype(np.float32))

    def product(self, part: slice, tile: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Bits of the rounded product `[rows, n]`, in the tile's memory, and the rows' margins."""
        out = tile.view(-1).view(torch.bfloat16)[: tile.numel()].view(tile.shape)
        torch.mm(self.x[part], self.encoder.T, out=out)
        return out.view(torch.uint16).numpy(), self.margin[part]


def _rounded(matrix: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """A matrix in bfloat16; of each row its norm, and that of what rounding took."""
    out = torch.empty(matrix.shape, dtype=torch.bfloat16)
    norms, errors = np.empty((2, len(matrix)))
    _round(array(matrix), out.view(torch.uint16).numpy(), norms, errors)
    lost = 2.0**-63 * math.sqrt(matrix.shape[1])  # at most, in squares too small for float32
    return out, norms + lost, errors + lost


@njit(parallel=True, cache=True, fastmath=FAST)
def _round(matrix, out, norms, errors):
    d = matrix.shape[1]
    for r in prange(len(matrix)):
        bits, target = matrix[r].view(np.uint32), out[r]
        raw = np.empty(d, np.uint32)
        for c in range(d):
            # To the nearest, of two as near to the even one.
            half = np.uint32(0x7FFF) + ((bits[c] >> np.uint32(16)) & np.uint32(1))
            raw[c] = (bits[c] + half) & np.uint32(0xFFFF0000)
            target[c] = np.uint16(raw[c] >> np.uint32(16))
        value, rounded = matrix[r], raw.view(np.float32)
        norm, error = np.float32(0.0), np.float32(0.0)
        for c in range(d):
            norm += value[c] * value[c]
            error += (value[c] - rounded[c]) * (value[c] - rounded[c])
        norms[r] = np.sqrt(norm)
        errors[r] = np.sqrt(error)
