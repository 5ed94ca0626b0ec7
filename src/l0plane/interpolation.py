"""A curve through measured points, for what lies between two of them."""

from __future__ import annotations

import numpy as np

# Two points closer than this on the axis have no slope between them.
_CLOSEST = 1e-12


def interpolate(x: np.ndarray, y: np.ndarray, at: float | np.ndarray) -> np.ndarray:
    """The monotone cubic through points (Fritsch and Butland 1984, SciPy's PCHIP); see below.

    A chord between two points of a frontier that bends lies on one side of it. This curve has at
    each point a slope between those to its neighbours, and rises and falls where the points do.

    Args:
        x: `[points, ...]`, rising in the first entry of each point, which says between which `at`
            lies for all entries: one that passes a point goes on with the slope there, as near to
            it as noise can move it, so that it is not moved to one side.
        y: `[points, ...]`; a value that is not finite spoils only what lies between it and its
            neighbours.
        at: one position, or one for each of the other axes' entries; the first is kept inside the
            points, and the others move with it.

    Returns:
        The values `[...]` at `at`.
    """
    if len(x) == 1:
        return y[0]
    first = x.reshape(len(x), -1)[:, 0]
    wanted = np.ravel(at)[0]
    inside = np.clip(wanted, first[0], first[-1])
    at = (at - wanted) + inside
    left = int(np.clip(np.searchsorted(first, inside, side="right") - 1, 0, len(x) - 2))
    if left and inside == first[left] and not np.isfinite(y.reshape(len(y), -1)[left + 1, 0]):
        left -= 1
    width = x[left + 1] - x[left]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(width > _CLOSEST, (at - x[left]) / width, 0.0)
        before, after = (_slope(x, y, left, point) * width for point in (left, left + 1))
        rest = 1 - share
        bent = rest * share * (rest * before - share * after)
        of_left = rest**2 * (1 + 2 * share) * y[left] + bent
        of_right = share**2 * (1 + 2 * rest) * y[left + 1]
        below = y[left] + np.where(share < 0, share * before, 0.0)
        above = y[left + 1] + np.where(share > 1, -rest * after, 0.0)
    between = (share > 0) & (share < 1)
    return np.where(between, of_left + of_right, np.where(share > 0, above, below))


def _slope(x: np.ndarray, y: np.ndarray, segment: int, point: int) -> np.ndarray:
    """The curve's slope at one end of a segment; the chord's where no other segment is known."""

    def chord(segment: int) -> tuple[np.ndarray, np.ndarray]:
        width = x[segment + 1] - x[segment]
        return width, np.where(width > _CLOSEST, (y[segment + 1] - y[segment]) / width, np.nan)

    (h0, m0), last = chord(segment), len(x) - 1
    if last == 1:
        return m0
    if 0 < point < last:
        h1, m1 = chord(segment - 1 if point == segment else segment + 1)
        w0, w1 = 2 * h1 + h0, h1 + 2 * h0
        # The nearer of two chords weighs more: w0 belongs to this segment's.
        slope = np.where(m0 * m1 > 0, (w0 + w1) / (w0 / m0 + w1 / m1), 0.0)
    else:
        h1, m1 = chord(1 if point == 0 else last - 2)
        slope = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
        slope = np.where(slope * m0 <= 0, 0.0, slope)
        slope = np.where((m0 * m1 <= 0) & (np.abs(slope) > 3 * np.abs(m0)), 3 * m0, slope)
    return np.where(np.isfinite(m1), slope, m0)
