"""Paired bootstrap over evaluation contexts, with the spread between seeds added.

One draw of context weights is shared by everything that is compared, so that what two
autoencoders find hard in common cancels in their difference. A quantity with its resamples is an
array `[..., 1 + resamples]` whose entry 0 is the estimate itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """An effect and its 95% interval; NaN ends where the uncertainty is unknown."""

    effect: float
    low: float
    high: float


@dataclass(frozen=True)
class Unit:
    """One contrast between autoencoders of one seed."""

    block: Any
    """What the contrast was made at, as a key: a level of L0, a number of latents."""
    seed: int
    values: np.ndarray
    """`[1 + resamples]`."""


class Resampler:
    """Weights of the evaluation contexts and the random numbers behind every interval."""

    def __init__(
        self, contexts: np.ndarray, resamples: int = RESAMPLES, random_seed: int = 0
    ) -> None:
        self.random = np.random.default_rng(random_seed)
        self.resamples = resamples
        self.contexts = np.unique(contexts)
        count = len(self.contexts)
        self.weights = np.ones((1 + resamples, count))
        if not count:
            return
        self.weights[1:] = self.random.multinomial(count, np.full(count, 1 / count), resamples)

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        """Ratio of context-weighted sums, `[points, 1 + resamples]`, of `[points, contexts]`.

        A context that any point lacks (NaN) is left out for every point, so that all points are
        measured on the same text; a point that lacks every context is NaN itself.
        """
        finite = np.isfinite(numerator) & np.isfinite(denominator)
        known = finite[finite.any(axis=1)].all(axis=0) & finite.any()
        weights = self.weights[:, known].T
        with np.errstate(divide="ignore", invalid="ignore"):
            return (numerator[:, known] @ weights) / (denominator[:, known] @ weights)

    def combine(self, units: Sequence[Unit], weights: dict[Any, float] | None = None) -> np.ndarray:
        """Weighted sum over blocks of the mean over seeds, `[1 + resamples]`.

        By default every block weighs the same. A handful of seeds cannot be resampled (three
        give ten distinct draws, and an interval a third too short), so their part is a
        Student's t: variance sigma^2 sum_b w_b^2 / S_b with sigma^2 the variance between the
        S_b seeds of a block, pooled over blocks, and its degrees of freedom. Blocks with one
        seed borrow the spread of the others; without any repeated seed there is none to add.
        """
        blocks: dict[Any, list[np.ndarray]] = {}
        for unit in units:
            blocks.setdefault(unit.block, []).append(unit.values)
        if weights is None:
            weights = dict.fromkeys(blocks, 1 / len(blocks))
        total = sum(weight * np.mean(blocks[block], axis=0) for block, weight in weights.items())
        freedom = sum(len(values) - 1 for values in blocks.values())
        if freedom:
            squares = sum(
                float(np.var([value[0] for value in values]) * len(values))
                for values in blocks.values()
            )
            share = sum(weight**2 / len(blocks[block]) for block, weight in weights.items())
            spread = np.sqrt(squares / freedom * share)
            total = total + np.append(0, spread * self.random.standard_t(freedom, self.resamples))
        return np.asarray(total)


def estimate(values: np.ndarray) -> Estimate:
    """Percentile interval of a quantity `[1 + resamples]`."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return Estimate(float(values[0]), float(low), float(high))


def simultaneous(values: np.ndarray) -> list[Estimate]:
    """Intervals of `[quantities, 1 + resamples]` that all hold at once with 95% confidence.

    They are effect +- c * standard error, c the 95% quantile over resamples of the largest
    studentised deviation, which heeds the correlation that Bonferroni's correction ignores.
    """
    effect, deviation = values[:, 0], values[:, 1:] - values[:, :1]
    error = deviation.std(axis=1)
    studentised = np.abs(deviation) / np.maximum(error, np.finfo(float).tiny)[:, None]
    reach = np.quantile(studentised.max(axis=0), LEVEL) * error
    return [
        Estimate(float(e), float(e - r), float(e + r)) for e, r in zip(effect, reach, strict=True)
    ]
