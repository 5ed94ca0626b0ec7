"""Paired bootstrap over evaluation contexts, with the spread between seeds added.

One draw of context weights is shared by everything that is compared, so that what two
autoencoders find hard in common cancels in their difference. A quantity with its resamples is an
array `[..., 1 + resamples]` whose entry 0 is the estimate itself; combined over seeds it has
`SEED_DRAWS` times as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# The ends of an interval then move by a few hundredths of its standard error with the random seed.
RESAMPLES = 10_000
# How many draws of the seeds' part go with each draw of contexts: numbers, where those are tables.
SEED_DRAWS = 20
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
        """Weighted sum over blocks of the mean over seeds, `[1 + resamples * SEED_DRAWS]`.

        By default every block weighs the same. A handful of seeds cannot be resampled (three
        give ten distinct draws, and an interval a third too short), so their part is a
        Student's t, of variance sum_b c_b s_b^2 with s_b^2 the variance between the S_b seeds of
        a block and c_b = w_b^2 / S_b. Levels differ in s_b by factors, so the degrees of freedom
        are Satterthwaite's (1946): (sum_b c_b s_b^2)^2 / sum_b (c_b s_b^2)^2 / (S_b - 1). Blocks
        with one seed borrow the pooled variance of the others, which adds to these c_b; without
        any repeated seed there is none to add.
        """
        blocks: dict[Any, list[np.ndarray]] = {}
        for unit in units:
            blocks.setdefault(unit.block, []).append(unit.values)
        if weights is None:
            weights = dict.fromkeys(blocks, 1 / len(blocks))
        total = sum(weight * np.mean(blocks[block], axis=0) for block, weight in weights.items())
        total = np.append(total[0], np.repeat(total[1:], SEED_DRAWS))
        repeated = [block for block in blocks if len(blocks[block]) > 1]
        if not repeated:
            return total
        seeds = np.array([len(blocks[block]) for block in repeated])
        between = np.array([np.var([v[0] for v in blocks[b]], ddof=1) for b in repeated])
        share = np.array([weights.get(block, 0.0) for block in repeated]) ** 2 / seeds
        borrowed = sum(w**2 for block, w in weights.items() if len(blocks[block]) == 1)
        share += borrowed * (seeds - 1) / (seeds - 1).sum()
        variance = share * between
        if variance.any():
            freedom = variance.sum() ** 2 / (variance**2 / (seeds - 1)).sum()
            draws = self.random.standard_t(freedom, len(total) - 1)
            total[1:] += np.sqrt(variance.sum()) * draws
        return total


def estimate(values: np.ndarray) -> Estimate:
    """Percentile interval of a quantity `[1 + resamples]`."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return Estimate(float(values[0]), float(low), float(high))


def simultaneous(values: np.ndarray) -> list[Estimate]:
    """Intervals of `[quantities, 1 + resamples]` that all hold at once with 95% confidence.

    They are effect +- c * standard error, c the 95% quantile over resamples of the largest
    studentised deviation, which heeds the correlation that Bonferroni's correction ignores. The
    standard error is half of what the middle 68% span: Student's t of two seeds has no variance.
    """
    effect, deviation = values[:, 0], values[:, 1:] - values[:, :1]
    error = np.ptp(np.quantile(deviation, [0.1587, 0.8413], axis=1), axis=0) / 2
    studentised = np.abs(deviation) / np.maximum(error, np.finfo(float).tiny)[:, None]
    reach = np.quantile(studentised.max(axis=0), LEVEL) * error
    return [
        Estimate(float(e), float(e - r), float(e + r)) for e, r in zip(effect, reach, strict=True)
    ]
