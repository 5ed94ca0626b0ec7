"""From an interval and a claimed region to a verdict; docs/claims.md gives the reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from l0plane.claims.bootstrap import Estimate, Resampler, Unit, estimate

REPRODUCED = "reproduced"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"
NOT_MEASURED = "not measured"
VERDICTS = [REPRODUCED, CONTRADICTED, INCONCLUSIVE, NOT_MEASURED]

# Margins, in percent; fixed before any run.
COINCIDE = 5.0
NEARLY_COINCIDE = 10.0
SLIGHTLY = 10.0
SUBSTANTIALLY = 10.0
UNBIASED = 10.0
UNCHANGED_L0 = 1.0
PART_OF_GAP = 5.0
PROGRESSIVE = 5.0


#: How much each level weighs in a mean; None: all the same.
Weights = dict[float, float] | None

NO_REPEATS = "no seed repeated"
BORROWED = "where its spread is borrowed"


@dataclass(frozen=True)
class Region:
    """Where a claim says that the effect lies: strictly between `low` and `high`."""

    low: float
    high: float


NEGATIVE = Region(-np.inf, 0.0)
POSITIVE = Region(0.0, np.inf)
UNKNOWN = Region(np.nan, np.nan)


@dataclass(frozen=True)
class Part:
    """One measurable statement of a claim, judged."""

    name: str
    verdict: str
    detail: str
    effect: float = np.nan
    unit: str = ""
    low: float = np.nan
    high: float = np.nan
    slack: float = np.nan
    """Distance from the interval to the nearest end of the claimed region, in interval widths."""
    claimed: Region = UNKNOWN


def not_measured(name: str, detail: str) -> Part:
    """A part for which the run has no data."""
    return Part(name, NOT_MEASURED, detail)


def judge_part(name: str, result: Estimate, region: Region, unit: str, detail: str) -> Part:
    """Reproduced if the whole interval lies inside `region`, contradicted if wholly outside."""
    low, high = result.low, result.high
    if not np.isfinite([low, high]).all():
        verdict = INCONCLUSIVE
        detail += "; the uncertainty is unknown"
    elif region.low < low and high < region.high:
        verdict = REPRODUCED
    elif high <= region.low or low >= region.high:
        verdict = CONTRADICTED
    else:
        verdict = INCONCLUSIVE
    slack = min(low - region.low, region.high - high) / max(high - low, 1e-12)
    return Part(name, verdict, detail, result.effect, unit, low, high, slack, region)


def whole(parts: Sequence[Part]) -> Part:
    """Verdict on a claim from its parts, shown by the part that decides it.

    All must hold for "reproduced", and one contradicted contradicts the claim. Parts that were
    not measured keep it from being reproduced, not from being contradicted.
    """
    if len(parts) == 1:
        return parts[0]
    found = {part.verdict for part in parts}
    if CONTRADICTED in found:
        verdict = CONTRADICTED
    elif len(found) == 1:
        (verdict,) = found
    else:
        verdict = INCONCLUSIVE
    measured = [part for part in parts if part.verdict != NOT_MEASURED]
    counts = ", ".join(
        f"{kind}: {', '.join(part.name for part in parts if part.verdict == kind)}"
        for kind in VERDICTS
        if kind in found
    )
    if not measured:
        return Part("", verdict, parts[0].detail)
    # The worst verdict among the measured parts, and of these the nearest to its limit.
    order = [CONTRADICTED, INCONCLUSIVE, REPRODUCED]
    decisive = min(
        measured,
        key=lambda part: (order.index(part.verdict), np.nan_to_num(part.slack, nan=-np.inf)),
    )
    detail = f"parts {counts}; the figures are those of {decisive.name}: {decisive.detail}"
    unit = f"{decisive.unit} ({decisive.name})"
    if len(measured) < len(parts):
        unit += f"; {len(parts) - len(measured)} of {len(parts)} parts not measured"
    return replace(decisive, name="", verdict=verdict, detail=detail, unit=unit)


def percent(log_ratio: np.ndarray) -> np.ndarray:
    """A log ratio as a difference in percent."""
    with np.errstate(over="ignore"):  # the far tail of a Student's t
        return 100 * np.expm1(log_ratio)


def judge_mean(
    name: str,
    units: Sequence[Unit],
    region: Region,
    unit: str,
    resampler: Resampler,
    absent: str,
    percents: bool = False,
) -> Part:
    """Judge the mean over levels of `units`, in percent, and say which levels it hangs on.

    The units are log ratios, of which the mean is geometric, or `percents`.
    """
    units = [unit for unit in units if np.isfinite(unit.values[0])]
    if not units:
        return not_measured(name, absent)

    def judged(weights: Weights) -> Part:
        mean = resampler.combine(units, weights)
        effect = estimate(mean if percents else percent(mean))
        return judge_part(name, effect, region, unit, spread(units, percents))

    return with_levels_left_out(units, judged)


def with_levels_left_out(units: Sequence[Unit], judged: Callable[[Weights], Part]) -> Part:
    """What `judged` says of the mean over levels; its detail says without which it would differ."""
    part = judged(None)
    hangs = "".join(
        f"; without {level:.4g} the part would be {left.verdict}, "
        f"{left.effect:.3g} [{left.low:.3g}, {left.high:.3g}]"
        for level, left in otherwise_without(part, units, judged).items()
    )
    return replace(part, detail=part.detail + hangs)


def otherwise_without(
    part: Part, units: Sequence[Unit], judged: Callable[[Weights], Part]
) -> dict[float, Part]:
    """What `judged` says without one level, of three or more, where that is another verdict.

    The spread between seeds remains what it is with all levels.
    """
    levels = sorted({unit.block for unit in units})
    if len(levels) < 3:
        return {}
    found = {}
    for level in levels:
        left = judged({other: 1 / (len(levels) - 1) for other in levels if other != level})
        if left.verdict != part.verdict:
            found[level] = left
    return found


def spread(units: Sequence[Unit], percents: bool = False) -> str:
    """Each level's mean of log `units` (or of `percents`), and how many seeds stand behind it."""
    blocks = sorted({unit.block for unit in units})
    means = [
        float(np.mean([unit.values[0] for unit in units if unit.block == block]))
        for block in blocks
    ]
    if not percents:
        means = [float(percent(np.asarray(mean))) for mean in means]
    levels = ", ".join(
        f"{mean:+.3g}% at {block:.4g}" for block, mean in zip(blocks, means, strict=True)
    )
    seeds = [sum(unit.block == block for unit in units) for block in blocks]
    if (most := max(seeds)) == 1:
        return f"by level of L0: {levels}; {NO_REPEATS}"
    found = zip(seeds, blocks, strict=True)
    fewer = ", ".join(f"{count} at {block:.4g}" for count, block in found if count < most)
    borrowed = f", {BORROWED}" if min(seeds) == 1 else ""
    return f"by level of L0: {levels}; {most} seeds{fewer and f' ({fewer}{borrowed})'}"
