"""From tidy tables to what a panel draws: means over seeds, values at a level, power laws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from l0plane.files import UserError
from l0plane.interpolation import interpolate

# A reached L0 farther than this from the asked one is not "at fixed L0" (relative).
L0_TOLERANCE = 0.05
# A frontier's slope at its end is taken over so much of log L0: two points closer tell none.
_SLOPE_SPAN = np.log(1.10)


def require(table: pd.DataFrame, name: str, columns: list[str]) -> None:
    """Raise UserError naming the first of `columns` that the table called `name` lacks."""
    for column in columns:
        if column not in table.columns:
            raise UserError(f"{name}: no column {column!r}; found {', '.join(table.columns)}")


def mean_over_seeds(table: pd.DataFrame, by: list[str], metric: str) -> pd.DataFrame:
    """Average rows that differ in seed only; rows without L0 or metric are left out.

    Returns columns `by`, l0 (mean), value (mean), low and high (of the seeds) and seeds (how many),
    sorted by `by`.
    """
    groups = table.dropna(subset=["l0", metric]).groupby(by, as_index=False, dropna=False)
    return groups.agg(
        l0=("l0", "mean"),
        value=(metric, "mean"),
        low=(metric, "min"),
        high=(metric, "max"),
        seeds=(metric, "size"),
    )


def at_l0(l0: np.ndarray, values: np.ndarray, level: float) -> float:
    """Interpolate positive `values` of points at `l0` to `level`, in both logarithms.

    Up to 5% outside the points, which is what a sparsity knob misses its target by, the value goes
    on with the slope of the outermost 10% (none for a single point); farther out it is NaN.
    """
    usable = np.isfinite(l0) & np.isfinite(values) & (l0 > 0) & (values > 0)
    if not usable.any():
        return float("nan")
    order = np.argsort(l0[usable])
    x, y = np.log(l0[usable][order]), np.log(values[usable][order])
    inside = np.clip(np.log(level), x[0], x[-1])
    beyond = np.log(level) - inside
    if abs(beyond) > np.log1p(L0_TOLERANCE):
        return float("nan")
    step = np.copysign(_SLOPE_SPAN, beyond)
    value = interpolate(x, y, inside)
    slope = (value - interpolate(x, y, inside - step)) / step
    return float(np.exp(value + beyond * slope))


def misses_target(l0: pd.Series, l0_target: pd.Series) -> pd.Series:
    """Whether each reached L0 is more than 5% from the asked one."""
    return (l0 / l0_target - 1).abs() > L0_TOLERANCE


@dataclass(frozen=True)
class PowerLaw:
    """value = scale * n^-exponent; the exponent's standard error is NaN for two points."""

    scale: float
    exponent: float
    exponent_se: float

    def __call__(self, n: np.ndarray) -> np.ndarray:
        """Evaluate the law at sizes `n`."""
        return self.scale * n**-self.exponent


def fit_power_law(n: np.ndarray, values: np.ndarray) -> PowerLaw | None:
    """Fit value = a n^-b by least squares of log value on log n; None with fewer than two sizes.

    There is no irreducible term: a handful of sizes within one decade cannot tell it from b.
    """
    usable = np.isfinite(values) & (values > 0)
    x, y = np.log(n[usable]), np.log(values[usable])
    if len(np.unique(x)) < 2:
        return None
    centred = x - x.mean()
    slope = (centred @ y) / (centred @ centred)
    residual = y - y.mean() - slope * centred
    freedom = len(x) - 2
    se = np.sqrt(residual @ residual / freedom / (centred @ centred)) if freedom else np.nan
    return PowerLaw(float(np.exp(y.mean() - slope * x.mean())), float(-slope), float(se))
