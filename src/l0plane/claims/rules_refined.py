"""Rules for the claims about refined latent activations: C6 to C8."""

from __future__ import annotations

import numpy as np

from l0plane.claims.bootstrap import Unit, estimate
from l0plane.claims.points import NAMES, Evidence, Points, compare
from l0plane.claims.verdicts import (
    NEGATIVE,
    PART_OF_GAP,
    REPRODUCED,
    UNBIASED,
    Part,
    Region,
    Weights,
    judge_mean,
    judge_part,
    not_measured,
    spread,
    with_levels_left_out,
)

ABSENT = "ReLU and TopK were not both refined at common levels of L0"


def _refined(evidence: Evidence, method: str) -> Points | None:
    """The refined autoencoders of `method`, at the size refined at the most levels."""
    return None if evidence.refined is None else evidence.refined.panel().where(method=method)


def _bias(evidence: Evidence, method: str, name: str, region: Region) -> Part:
    """Mean shift as a share of the mean absolute shift: -100% all down, 100% all up."""
    points = _refined(evidence, method)
    if points is None or not len(points):
        return not_measured(name, f"no refinement of {NAMES[method]}")
    units = [
        Unit(level, seed, 100 * found.values["bias"][0])
        for level, seed, found in points.autoencoders()
        if np.isfinite(found.values["bias"][0]).all()
    ]
    unit, absent = "% of mean absolute shift", f"the refinement of {NAMES[method]} moved nothing"
    return judge_mean(name, units, region, unit, evidence.resampler, absent, percents=True)


def relu_biased(evidence: Evidence) -> list[Part]:
    """C6: the mean shift of ReLU is up by more than what C7 calls unbiased."""
    return [_bias(evidence, "relu", "", Region(UNBIASED, np.inf))]


def topk_unbiased(evidence: Evidence) -> list[Part]:
    """C7: the mean shift of TopK is near zero, and its mean absolute shift below ReLU's."""
    unbiased = _bias(evidence, "topk", "unbiased", Region(-UNBIASED, UNBIASED))
    topk, relu = _refined(evidence, "topk"), _refined(evidence, "relu")
    if topk is None or relu is None:
        return [unbiased, not_measured("smaller", ABSENT)]
    units = compare(topk, relu, "magnitude", "magnitude")
    unit = "% mean absolute shift of TopK against ReLU at equal L0"
    return [
        unbiased,
        judge_mean("smaller", units, NEGATIVE, unit, evidence.resampler, ABSENT),
    ]


def part_of_gap(evidence: Evidence) -> list[Part]:
    """C8: refining ReLU closes some of its gap in nMSE to TopK as trained, and not all of it.

    A share needs a gap: it is judged only if TopK is ahead of ReLU beyond doubt.
    """
    topk, relu = _refined(evidence, "topk"), _refined(evidence, "relu")
    if topk is None or relu is None:
        return [not_measured("gap", ABSENT)]
    gaps, closed = compare(topk, relu, "nmse", "nmse"), compare(relu, relu, "nmse_refined", "nmse")
    common = {(u.block, u.seed) for u in gaps} & {(u.block, u.seed) for u in closed}
    gaps, closed = ([u for u in units if (u.block, u.seed) in common] for units in (gaps, closed))
    resampler = evidence.resampler
    gap = judge_mean("gap", gaps, NEGATIVE, "% nMSE of TopK against ReLU", resampler, ABSENT)
    if gap.verdict != REPRODUCED:
        return [gap]

    shares = ", ".join(
        f"{_share(closed, gaps, level)} at {level:.4g}"
        for level in sorted({unit.block for unit in gaps})
    )

    def judged(weights: Weights) -> Part:
        # Errors are geometric means over levels.
        ours, all_of_it = (np.expm1(resampler.combine(units, weights)) for units in (closed, gaps))
        region = Region(PART_OF_GAP, 100 - PART_OF_GAP)
        detail = f"share at each level of L0: {shares}; ReLU's nMSE, refined, {spread(closed)}"
        share = estimate(100 * ours / all_of_it)
        return judge_part("share", share, region, "% of the gap closed", detail)

    return [gap, with_levels_left_out(closed, judged)]


def _share(closed: list[Unit], gaps: list[Unit], level: float) -> str:
    """What part of the gap is closed at one level; the errors are geometric means over seeds."""
    ours, all_of_it = (
        np.expm1(np.mean([unit.values[0] for unit in units if unit.block == level]))
        for units in (closed, gaps)
    )
    return f"{100 * ours / all_of_it:.3g}%" if all_of_it < 0 else "no gap"
