"""Rules for the claims about sparsity chosen at test time: C9 to C11 and C13 to C17."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.integrate import trapezoid

from l0plane.claims.bootstrap import Unit, simultaneous
from l0plane.claims.points import NAMES, SAME_LEVEL, Curve, Evidence, Points
from l0plane.claims.verdicts import (
    COINCIDE,
    CONTRADICTED,
    INCONCLUSIVE,
    NEARLY_COINCIDE,
    NEGATIVE,
    POSITIVE,
    PROGRESSIVE,
    REPRODUCED,
    SUBSTANTIALLY,
    Part,
    Region,
    judge_mean,
    not_measured,
    percent,
)

# "Slightly over k" is at most this many times k; the rise is read at FAR times k (where the
# paper's Multi-TopK trains its second loss), or where all positive latents are in use if that
# comes first, which must be at least NEAREST_FAR times k.
SLIGHTLY_OVER = 1.5
FAR = 4.0
NEAREST_FAR = 2.0


def _units(
    evidence: Evidence, method: str, effect: Callable[[Points, float], np.ndarray | None]
) -> list[Unit]:
    """`effect(curves, l0_target)` of each autoencoder of `method` for which it is not None."""
    if evidence.curves is None:
        return []
    points = evidence.curves.where(method=method)
    if not len(points):
        return []
    found = ((lv, seed, effect(own, lv)) for lv, seed, own in points.panel().autoencoders())
    return [Unit(level, seed, values) for level, seed, values in found if values is not None]


def _curve(own: Points, selection: str, measure: str = "nmse") -> Curve | None:
    points = own.where(selection=selection)
    return points.curve(measure) if len(points) > 1 and measure in points.values else None


def _slightly_over(own: Points, k: float) -> np.ndarray | None:
    """Log nMSE at the first measured point over k, against k."""
    curve = _curve(own, "topk")
    if curve is None or not curve.low <= np.log(k) <= curve.high:
        return None
    over = curve.log_l0[:, 0] - np.log(k)
    near = np.flatnonzero((over > SAME_LEVEL) & (over <= np.log(SLIGHTLY_OVER)))
    return curve.log_error[near[0]] - curve.at(np.log(k)) if len(near) else None


def _rise(own: Points, k: float, measure: str) -> np.ndarray | None:
    """Log of `measure` far over k, against the L0 of k or more at which nMSE is least."""
    curve, ends = _curve(own, "topk", measure), _ends_of_rise(own, k)
    if curve is None or ends is None:
        return None
    least, far = ends
    return curve.at(far) - curve.at(least)


def _ends_of_rise(own: Points, k: float) -> tuple[float, float] | None:
    """Log L0 of `k` or more at which nMSE is least, and far over k."""
    nmse = _curve(own, "topk")
    if nmse is None or not nmse.low <= np.log(k) <= nmse.high:
        return None
    far = min(np.log(FAR * k), nmse.high)
    if far < np.log(NEAREST_FAR * k):
        return None
    inside = (nmse.log_l0[:, 0] >= np.log(k) - SAME_LEVEL) & (nmse.log_l0[:, 0] <= far)
    candidates = np.flatnonzero(inside)
    if not len(candidates):
        return None
    return float(nmse.log_l0[candidates[np.argmin(nmse.log_error[candidates, 0])], 0]), far


def overfits_k(evidence: Evidence) -> list[Part]:
    """C9: TopK improves for k' slightly over k, and is substantially worse far over it."""
    absent = "no test-time TopK curve of TopK with points {}"
    return [
        judge_mean(
            "slightly over k",
            _units(evidence, "topk", _slightly_over),
            NEGATIVE,
            "% nMSE at the first k' over k against k",
            evidence.resampler,
            absent.format(f"at k and between k and {SLIGHTLY_OVER:g}k"),
        ),
        judge_mean(
            "far over k",
            _units(evidence, "topk", lambda own, k: _rise(own, k, "nmse")),
            Region(SUBSTANTIALLY, np.inf),
            f"% nMSE at k' = {FAR:g}k against the least over k",
            evidence.resampler,
            absent.format(f"at k and at {NEAREST_FAR:g}k or more"),
        ),
    ]


def muted_downstream(evidence: Evidence) -> list[Part]:
    """C10: far over k, delta cross-entropy rises by a smaller factor than nMSE, which rises."""

    def muted(own: Points, k: float) -> np.ndarray | None:
        # Where nMSE falls all the way there is nothing to mute, and both factors are 1.
        ends = _ends_of_rise(own, k)
        if ends is None or ends[1] - ends[0] < SAME_LEVEL:
            return None
        # Both on the same contexts, so that what these have in common falls out.
        downstream, nmse = _rise(own, k, "delta_ce"), _rise(own, k, "nmse_downstream")
        return None if downstream is None or nmse is None else downstream - nmse

    absent = "no test-time TopK curve of TopK far over k with delta cross-entropy"
    if not _units(evidence, "topk", lambda own, k: _rise(own, k, "delta_ce")):
        return [not_measured("muted", absent)]
    return [
        judge_mean(
            "nMSE rises",
            _units(evidence, "topk", lambda own, k: _rise(own, k, "nmse")),
            POSITIVE,
            f"% nMSE at k' = {FAR:g}k against the least over k",
            evidence.resampler,
            absent,
        ),
        judge_mean(
            "muted",
            _units(evidence, "topk", muted),
            NEGATIVE,
            "% rise factor of delta cross-entropy against that of nMSE",
            evidence.resampler,
            "no level at which nMSE rises far over k",
        ),
    ]


def _largest_rise(own: Points, far: float | None) -> np.ndarray | None:
    """Largest log nMSE of a point of the TopK curve against one with fewer latents."""
    curve = _curve(own, "topk")
    if curve is None or (far is not None and curve.high < np.log(far)):
        return None
    least = np.minimum.accumulate(curve.log_error, axis=0)
    return np.max(curve.log_error[1:] - least[:-1], axis=0)


def _progressive(evidence: Evidence, method: str, units: list[Unit]) -> list[Part]:
    return [
        judge_mean(
            "",
            units,
            Region(-np.inf, PROGRESSIVE),
            "% largest rise of nMSE with k'",
            evidence.resampler,
            f"no test-time TopK curve of {NAMES[method]} that reaches far enough",
        )
    ]


def multi_topk_progressive(evidence: Evidence) -> list[Part]:
    """C11: nMSE of Multi-TopK does not rise with k' over all of k', which goes past 2k."""
    units = _units(evidence, "multi_topk", lambda own, k: _largest_rise(own, NEAREST_FAR * k))
    return _progressive(evidence, "multi_topk", units)


def relu_progressive(evidence: Evidence) -> list[Part]:
    """C13: nMSE of ReLU does not rise with k' up to using all its positive latents."""
    units = _units(evidence, "relu", lambda own, _: _largest_rise(own, None))
    return _progressive(evidence, "relu", units)


def _mean_difference(
    own: Points, low: float, high: float, of: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray | None:
    """Mean over log L0 of what `of` makes of the log nMSE of JumpReLU to TopK, `[1 + resamples]`.

    From the TopK points with low < log L0 < high in the range of the JumpReLU curve. The axis is
    the figure's: where the last k' add nothing to L0, many points weigh no more than one.
    """
    topk, jump = _curve(own, "topk"), _curve(own, "jumprelu")
    if topk is None or jump is None:
        return None
    at = topk.log_l0[:, 0]
    inside = (at > max(low, jump.low)) & (at < min(high, jump.high))
    rows = [of(jump.at(topk.log_l0[i]) - topk.log_error[i]) for i in np.flatnonzero(inside)]
    if not rows:
        return None
    if np.ptp(at[inside]) < SAME_LEVEL:
        return np.mean(rows, axis=0)
    return trapezoid(rows, at[inside], axis=0) / np.ptp(at[inside])


def _distance(own: Points, low: float, high: float) -> np.ndarray | None:
    return _mean_difference(own, low, high, np.abs)


def _coincide(evidence: Evidence, method: str, margin: float, name: str, units: list[Unit]) -> Part:
    return judge_mean(
        name,
        units,
        Region(-np.inf, margin),
        "% mean absolute difference in nMSE of the JumpReLU and the TopK curve",
        evidence.resampler,
        f"no test-time TopK and JumpReLU curves of {NAMES[method]} over the same L0",
    )


def curves_part_at_k(evidence: Evidence) -> list[Part]:
    """C14: for TopK the two curves coincide below k, and JumpReLU's error is higher above."""

    def above(own: Points, k: float) -> np.ndarray | None:
        return _mean_difference(own, np.log(k) + SAME_LEVEL, np.inf)

    below = _units(evidence, "topk", lambda own, k: _distance(own, -np.inf, np.log(k) - SAME_LEVEL))
    return [
        _coincide(evidence, "topk", COINCIDE, "below k", below),
        judge_mean(
            "above k",
            _units(evidence, "topk", above),
            POSITIVE,
            "% nMSE of the JumpReLU curve against the TopK curve",
            evidence.resampler,
            "no test-time TopK and JumpReLU curves of TopK over the same L0 above k",
        ),
    ]


def curves_nearly_coincide(evidence: Evidence) -> list[Part]:
    """C15: for Multi-TopK the two curves nearly coincide everywhere."""
    units = _units(evidence, "multi_topk", lambda own, _: _distance(own, -np.inf, np.inf))
    return [_coincide(evidence, "multi_topk", NEARLY_COINCIDE, "", units)]


def curves_coincide(evidence: Evidence) -> list[Part]:
    """C16: for ReLU the two curves coincide."""
    units = _units(evidence, "relu", lambda own, _: _distance(own, -np.inf, np.inf))
    return [_coincide(evidence, "relu", COINCIDE, "", units)]


def cut_beats_trained(evidence: Evidence) -> list[Part]:
    """C17: some ReLU, cut at test time to the L0 of a sparser one, has the lower nMSE.

    One pair among many suffices, so the intervals of all pairs hold simultaneously. Reproduced
    if some pair's lies below zero; contradicted if every pair's lies above.
    """
    absent = "no test-time curve of a ReLU that passes the L0 of a sparser trained one"
    if evidence.curves is None or evidence.trained is None:
        return [not_measured("", absent)]
    curves = evidence.curves.where(method="relu")
    if not len(curves):
        return [not_measured("", absent)]
    curves = curves.panel()
    trained = evidence.trained.where(method="relu", n=curves.keys["n"].iloc[0])
    units: list[Unit] = []
    for level, seed, own in curves.autoencoders():
        for target, other_seed, sparser in trained.autoencoders():
            if other_seed != seed or target >= level:
                continue
            log_l0 = np.log(sparser.values["l0"][0])
            for selection in ("topk", "jumprelu"):
                curve = _curve(own, selection)
                if curve is not None and curve.low <= log_l0[0] <= curve.high:
                    ratio = curve.at(log_l0) - np.log(sparser.values["nmse"][0])
                    units.append(Unit((level, target, selection), seed, ratio))
    pairs = sorted({unit.block for unit in units})
    if not pairs:
        return [not_measured("", absent)]
    combined = [evidence.resampler.combine(units, {pair: 1.0}) for pair in pairs]
    results = simultaneous(np.stack(combined))
    best = min(range(len(pairs)), key=lambda i: results[i].high)
    if results[best].high < 0:
        verdict = REPRODUCED
    elif all(result.low > 0 for result in results):
        verdict = CONTRADICTED
    else:
        verdict = INCONCLUSIVE
    level, target, selection = pairs[best]
    won = sum(result.high < 0 for result in results)
    detail = (
        f"best of {len(pairs)} pairs: trained at L0 {level:g} and cut by {selection} to the L0 of "
        f"the one trained at {target:g}; {won} of the pairs lie wholly below zero at once"
    )
    shown = percent(np.array([results[best].effect, results[best].low, results[best].high]))
    return [
        Part(
            "",
            verdict,
            detail,
            float(shown[0]),
            "% nMSE of the cut against the trained (simultaneous interval)",
            float(shown[1]),
            float(shown[2]),
            claimed=NEGATIVE,
        )
    ]
