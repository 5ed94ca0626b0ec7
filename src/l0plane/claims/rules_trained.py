"""Rules for the claims about trained frontiers: C1 to C5, C12 and C18."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from l0plane.claims.bootstrap import LEVEL, Estimate, Unit, estimate
from l0plane.claims.points import (
    LEVEL_TOLERANCE,
    NAMES,
    Evidence,
    Points,
    compare,
    why_not_compared,
)
from l0plane.claims.verdicts import (
    NEGATIVE,
    NO_REPEATS,
    POSITIVE,
    SLIGHTLY,
    UNCHANGED_L0,
    Part,
    Region,
    judge_mean,
    judge_part,
    not_measured,
    percent,
)

# The methods that section 5.2 compares.
IMPROVED = ["gated", "prolu_relu", "prolu_ste"]
RIVALS = ["relu", "relu_scaled", *IMPROVED]
# A method whose dead latents stay below this share at every rate says nothing about the rate.
SOME_DEAD = 0.001


def _better(evidence: Evidence, better: str, worse: str, measure: str, label: str) -> Part:
    trained, name = evidence.trained, f"{NAMES[better]} against {NAMES[worse]}"
    if trained is None or measure not in trained.values:
        return not_measured(name, f"no {label} of trained autoencoders")
    panel = trained.panel()
    units = compare(panel.where(method=better), panel.where(method=worse), measure, measure)
    absent = why_not_compared(panel, (better, worse), measure)
    return judge_mean(name, units, NEGATIVE, f"% {label} at equal L0", evidence.resampler, absent)


def improved_frontier(evidence: Evidence) -> list[Part]:
    """C1: nMSE of Gated and of both ProLUs below ReLU's at equal L0."""
    return [_better(evidence, method, "relu", "nmse", "nMSE") for method in IMPROVED]


def topk_best(evidence: Evidence) -> list[Part]:
    """C2: nMSE of TopK below that of every method that the paper compares."""
    return [_better(evidence, "topk", rival, "nmse", "nMSE") for rival in RIVALS]


def downstream(evidence: Evidence) -> list[Part]:
    """C3: the comparisons of C1 and C2 in delta cross-entropy."""
    pairs = [*((method, "relu") for method in IMPROVED), *(("topk", rival) for rival in RIVALS)]
    return [_better(evidence, *pair, "delta_ce", "delta cross-entropy") for pair in pairs]


def steeper_in_size(evidence: Evidence) -> list[Part]:
    """C4: slope of log nMSE in log n at fixed L0, TopK minus ReLU, below zero."""
    absent = "no level of L0 at which both TopK and ReLU were trained at two sizes or more"
    if evidence.trained is None:
        return [not_measured("", absent)]
    methods = tuple(evidence.trained.where(method=method) for method in ("topk", "relu"))
    sizes = {
        target: _common_sizes(methods, target)
        for target in set(methods[0].keys["l0_target"]) & set(methods[1].keys["l0_target"])
    }
    target = max(sizes, key=lambda key: (len(sizes[key]), key), default=None)
    if target is None or len(sizes[target]) < 2:
        return [not_measured("", absent)]
    topk, relu = (_at_target(method, target) for method in methods)
    units = [Unit(n, seed, topk[n, seed] - relu[n, seed]) for n, seed in sorted({*topk} & {*relu})]
    # The slope of a regression is a weighted sum of its ordinates.
    log_n = {n: float(np.log(n)) for n in sorted({unit.block for unit in units})}
    missed = [*_missed("topk", methods[0], target), *_missed("relu", methods[1], target)]
    left_out = f"; left out, over 10% off that L0: {', '.join(missed)}" if missed else ""
    if len(log_n) < 2:
        return [not_measured("", f"fewer than two sizes at L0 {target:g}{left_out}")]
    centred = np.array([*log_n.values()]) - np.mean([*log_n.values()])
    weights = dict(zip(log_n, centred / np.sum(centred**2), strict=True))
    slope = evidence.resampler.combine(units, weights)
    ratios = {n: np.mean([u.values[0] for u in units if u.block == n]) for n in log_n}
    detail = f"TopK to ReLU nMSE at L0 {target:g}: " + ", ".join(
        f"{percent(ratio):+.3g}% at n = {n}" for n, ratio in ratios.items()
    )
    detail += left_out
    if len(units) == len(log_n):
        detail += f"; {NO_REPEATS}"
    return [
        judge_part(
            "", estimate(slope), NEGATIVE, "difference of slopes d log nMSE / d log n", detail
        )
    ]


def _common_sizes(methods: Sequence[Points], target: float) -> set[int]:
    return set.intersection(*(set(m.where(l0_target=target).keys["n"]) for m in methods))


def _missed(method: str, points: Points, target: float) -> list[str]:
    """The autoencoders asked for `target` that `_at_target` leaves out."""
    asked = points.where(l0_target=target)
    return [
        f"{NAMES[method]} with n = {n:,}, seed {seed} ({l0:.3g})"
        for n, seed, l0 in zip(
            asked.keys["n"], asked.keys["seed"], asked.values["l0"][:, 0], strict=True
        )
        if abs(np.log(target / l0)) > LEVEL_TOLERANCE
    ]


def _at_target(points: Points, target: float) -> dict[tuple[int, int], np.ndarray]:
    """(n, seed) -> log nMSE moved from the L0 reached to `target` along the method's frontier.

    Most sizes have one level only, so the frontier's slope is that of the size with the most
    levels, between the levels around `target`; 0 where there is just one.
    """
    panel = points.panel()
    slope: float | np.ndarray = 0.0
    if panel.keys["l0_target"].nunique() > 1:
        curve = panel.frontier(int(panel.keys["seed"].min())).curve("nmse")
        step = LEVEL_TOLERANCE
        left = float(np.clip(np.log(target) - step, curve.low, curve.high - step))
        slope = (curve.at(left + step) - curve.at(left)) / step
    found = {}
    at_level = points.where(l0_target=target)
    for row, (n, seed) in enumerate(zip(at_level.keys["n"], at_level.keys["seed"], strict=True)):
        missed = np.log(target) - np.log(at_level.values["l0"][row])
        if abs(missed[0]) <= LEVEL_TOLERANCE:
            found[n, seed] = np.log(at_level.values["nmse"][row]) + slope * missed
    return found


def scales_help(evidence: Evidence) -> list[Part]:
    """C5: fine-tuned scales lower the nMSE of ReLU and leave its L0 as it was."""
    error = _better(evidence, "relu_scaled", "relu", "nmse", "nMSE")
    if evidence.trained is None:
        return [error]
    panel = evidence.trained.panel()
    scaled = {key[:2]: key[2] for key in panel.where(method="relu_scaled").autoencoders()}
    relu = {key[:2]: key[2] for key in panel.where(method="relu").autoencoders()}
    units = [
        Unit(level, seed, np.log(scaled[level, seed].values["l0"][0] / before.values["l0"][0]))
        for (level, seed), before in relu.items()
        if (level, seed) in scaled
    ]
    unchanged = judge_mean(
        "L0 unchanged",
        units,
        Region(-UNCHANGED_L0, UNCHANGED_L0),
        "% L0",
        evidence.resampler,
        why_not_compared(panel, ("relu_scaled", "relu"), "nmse"),
    )
    return [error, unchanged]


def multi_topk_at_k(evidence: Evidence) -> list[Part]:
    """C12: nMSE of Multi-TopK at k above TopK's, by less than 10%."""
    if evidence.trained is None:
        return [not_measured("", "no nMSE of trained autoencoders")]
    panel = evidence.trained.panel()
    units = compare(panel.where(method="multi_topk"), panel.where(method="topk"), "nmse", "nmse")
    unit = "% nMSE of Multi-TopK against TopK"
    region = Region(0, SLIGHTLY)
    absent = why_not_compared(panel, ("multi_topk", "topk"), "nmse")
    return [judge_mean("", units, region, unit, evidence.resampler, absent)]


def dead_latents(evidence: Evidence) -> list[Part]:
    """C18: dead latents rise with the learning rate, on the mean over methods.

    At the size at which most rates were tried; at others they lie close to the best.
    """
    tuning, needed = (
        evidence.tuning,
        "three learning rates each for three methods with dead latents",
    )
    if tuning is None or "dead_fraction" not in tuning.columns:
        return [not_measured("", f"no dead latents by learning rate; needs {needed}")]
    if "n" in tuning.columns and len(tuning):
        tuning = tuning[tuning["n"] == tuning["n"].mode()[0]]
    for apart in ("diverged", "off_target"):  # these are not compared at equal L0
        if apart in tuning.columns:
            tuning = tuning[~tuning[apart].astype(bool)]
    tuning = tuning.dropna(subset=["dead_fraction"])
    slopes = _slopes(tuning)
    if len(slopes) < 3:
        return [not_measured("", f"{len(slopes)} methods qualify; needs {needed}")]
    result = _mean_slope(slopes)
    detail = "slopes: " + ", ".join(
        f"{NAMES.get(method, method)} {slope:+.3g}" for method, slope in slopes.items()
    )
    if len(sensible := _slopes(_up_to_chosen(tuning))) >= 3:
        mean = _mean_slope(sensible)
        detail += (
            f"; of rates up to the chosen ones alone {mean.effect:+.2g}, "
            f"{mean.low:+.2g} to {mean.high:+.2g}"
        )
    unit = "points of dead latents per tenfold learning rate"
    return [judge_part("", result, POSITIVE, unit, detail)]


def _up_to_chosen(tuning: pd.DataFrame) -> pd.DataFrame:
    """The candidates whose rates are not above the one chosen at their level."""
    level = ["method", "l0_target"]
    if "chosen" not in tuning.columns:
        return tuning.iloc[:0]
    chosen = tuning[tuning["chosen"].astype(bool)].drop_duplicates(level)
    most = tuning[level].merge(chosen[[*level, "learning_rate"]], "left")["learning_rate"]
    return tuning[tuning["learning_rate"].to_numpy() <= most.to_numpy() * 1.001]


def _mean_slope(slopes: dict[str, float]) -> Estimate:
    """The mean over methods, with Student's t."""
    values = np.array([*slopes.values()])
    reach = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return Estimate(float(values.mean()), *(float(values.mean() + s * reach) for s in (-1, 1)))


def _slopes(tuning: pd.DataFrame) -> dict[str, float]:
    """Points of dead latents in the tenfold of the rate, of each method that C18 can look at."""
    setting = [key for key in ("n", "l0_target", "seed", "knob", "value") if key in tuning.columns]
    slopes: dict[str, float] = {}
    for method, rows in tuning.groupby("method"):
        found = [
            100 * np.polyfit(np.log10(same["learning_rate"]), same["dead_fraction"], 1)[0]
            for _, same in rows.groupby(setting, dropna=False)
            if same["learning_rate"].nunique() >= 3
            and same["dead_fraction"].max() >= SOME_DEAD
            # The scales of a frozen encoder revive and kill nothing.
            and same["dead_fraction"].nunique() > 1
        ]
        if found:
            slopes[str(method)] = float(np.mean(found))
    return slopes
