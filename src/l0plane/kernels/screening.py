"""A product of rounded factors, and how far rounding can have moved it: to rule latents out."""

from __future__ import annotations

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
        rounded_x, rounded = (torch.empty(m.shape, dtype=torch.bfloat16) for m in (x, encoder))
        margin, holds = _margin(
            array(x),
            array(encoder),
            offset,
            cut,
            rounded_x.view(torch.uint16).numpy(),
            rounded.view(torch.uint16).numpy(),
        )
        return cls(rounded_x, rounded, margin) if holds else None

    def product(self, part: slice, tile: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Bits of the rounded product `[rows, n]`, in the tile's memory, and the rows' margins."""
        out = tile.view(-1).view(torch.bfloat16)[: tile.numel()].view(tile.shape)
        torch.mm(self.x[part], self.encoder.T, out=out)
        return out.view(torch.uint16).numpy(), self.margin[part]


@njit(cache=True)
def _margin(x, encoder, offset, cut, rounded_x, rounded):
    """Write both rounded matrices; return the margins `[rows]`, and whether they hold."""
    norm_x, error_x = _round(x, rounded_x)
    norm, error = _round(encoder, rounded)
    w, off = norm.max(), error.max()
    sums = x.shape[1] * 2.0**-22 * norm_x * w
    compared = 2.0**-22 * (np.abs(offset).max() + np.abs(cut).max())
    margin = 1.001 * (error_x * (w + off) + norm_x * off + sums + compared) + 1e-30
    return margin.astype(np.float32), np.all(margin < 1e30)


@njit(parallel=True, cache=True, fastmath=FAST)
def _round(matrix, out):
    """Write a matrix in bfloat16; return each row's norm, and that of what rounding took."""
    d = matrix.shape[1]
    lost = 2.0**-63 * np.sqrt(d)  # at most, in squares too small for float32
    norms, errors = np.empty(len(matrix)), np.empty(len(matrix))
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
        norms[r] = np.sqrt(norm) + lost
        errors[r] = np.sqrt(error) + lost
    return norms, errors
