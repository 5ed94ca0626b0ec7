"""Points of the L0-error plane with their resamples, and curves through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from l0plane.claims.bootstrap import Resampler, Unit
from l0plane.claims.tables import CURVE_KEYS, KEYS, Tables
from l0plane.files import UserError
from l0plane.interpolation import interpolate

# name of a quantity -> (numerator, denominator) columns of a context table; None: contexts.
Ratios = dict[str, tuple[str, str | None]]
TRAINED: Ratios = {
    "l0": ("l0", None),
    "nmse": ("squared_error", "variance"),
    "delta_ce": ("delta_ce", None),
}
# A curve's downstream loss is measured on some of its contexts: the error on these alone.
CURVES: Ratios = {**TRAINED, "nmse_downstream": ("squared_error_downstream", "variance")}
REFINED: Ratios = {
    "l0": ("l0", None),
    "nmse": ("squared_error", "variance"),
    "nmse_refined": ("squared_error_refined", "variance"),
    "bias": ("shift_sum", "absolute_shift_sum"),
    "magnitude": ("absolute_shift_sum", "active"),
}

#: What a reader calls the methods that come with l0plane: their labels in the figures.
NAMES = {
    "relu": "ReLU",
    "relu_scaled": "ReLU, scaled",
    "gated": "Gated",
    "prolu_relu": "ProLU-ReLU",
    "prolu_ste": "ProLU-STE",
    "topk": "TopK",
    "multi_topk": "Multi-TopK",
    "batch_topk": "BatchTopK",
    "jumprelu": "JumpReLU",
}

# A level missed by more than this is not compared; levels this close count as the same.
LEVEL_TOLERANCE = np.log(1.10)
SAME_LEVEL = np.log(1.02)
# A resample may make a small mean loss negative; its logarithm is that of this.
SMALLEST = 1e-6


@dataclass(frozen=True)
class Curve:
    """Error as a function of L0, both as logarithms `[points, 1 + resamples]`, rising in L0."""

    log_l0: np.ndarray
    log_error: np.ndarray

    @property
    def low(self) -> float:
        """Logarithm of the least L0 measured."""
        return float(self.log_l0[0, 0])

    @property
    def high(self) -> float:
        """Logarithm of the largest L0 measured."""
        return float(self.log_l0[-1, 0])

    def at(self, log_l0: float | np.ndarray) -> np.ndarray:
        """Log error `[1 + resamples]` at one L0, by log-log interpolation; never beyond the ends.

        The segment is that of the estimate (entry 0) in every resample.
        """
        return interpolate(self.log_l0, self.log_error, log_l0)


@dataclass(frozen=True)
class Points:
    """Measured points: one row of `keys` and of every array of `values` each."""

    keys: pd.DataFrame
    values: dict[str, np.ndarray]
    """Quantity -> `[points, 1 + resamples]`; always has "l0"."""

    def where(self, **conditions: object) -> Points:
        """The points whose keys equal all of `conditions`."""
        mask = np.ones(len(self.keys), dtype=bool)
        for key, wanted in conditions.items():
            mask &= (self.keys[key] == wanted).to_numpy()
        return self._take(np.flatnonzero(mask))

    def __len__(self) -> int:
        return len(self.keys)

    def _take(self, rows: np.ndarray) -> Points:
        return Points(
            self.keys.iloc[rows].reset_index(drop=True),
            {name: array[rows] for name, array in self.values.items()},
        )

    def curve(self, measure: str) -> Curve:
        """All points as one curve of `measure`; NaN where its estimate is not positive."""
        order = np.argsort(self.values["l0"][:, 0], kind="stable")
        l0, error = self.values["l0"][order], self.values[measure][order]
        log_error = np.log(np.maximum(error, SMALLEST))
        log_error[~(error[:, 0] > 0)] = np.nan
        return Curve(np.log(np.maximum(l0, SMALLEST)), log_error)

    def frontier(self, seed: int) -> Points:
        """One point per level: this seed's, or the lowest seed's where it was not trained."""
        ranked = self.keys.assign(other=self.keys["seed"] != seed).sort_values(["other", "seed"])
        rows = ranked.drop_duplicates("l0_target").index.to_numpy()
        return self._take(np.sort(rows))

    def seeds_near(self, l0_target: float) -> set[int]:
        """The seeds trained at the level nearest to `l0_target`."""
        levels = self.keys["l0_target"].to_numpy(dtype=float)
        nearest = levels[np.argmin(np.abs(np.log(levels / l0_target)))]
        return set(self.keys.loc[levels == nearest, "seed"])

    def autoencoders(self) -> Iterator[tuple[float, int, Points]]:
        """(l0_target, seed, points) of each autoencoder."""
        for (level, seed), rows in self.keys.groupby(["l0_target", "seed"]).indices.items():
            yield float(level), int(seed), self._take(rows)

    def panel(self) -> Points:
        """The points at the number of latents that was trained at the most levels of L0."""
        levels = self.keys.groupby("n")["l0_target"].nunique()
        return self.where(n=levels.index[levels == levels.max()].max())


def compare(a: Points, b: Points, measure_a: str, measure_b: str) -> list[Unit]:
    """Log ratio of the errors of method `a` to method `b` at equal L0: a unit per level and seed.

    Both frontiers are interpolated at the levels asked of `a`. A level outside the range of L0
    that both reached is moved to that range's edge if that is within 10%, and is left out
    otherwise.
    """
    units: list[Unit] = []
    if not len(a) or not len(b):
        return units
    curves = {
        seed: (a.frontier(seed).curve(measure_a), b.frontier(seed).curve(measure_b))
        for seed in set(a.keys["seed"]) & set(b.keys["seed"])
    }
    seen: set[tuple[float, int]] = set()
    for target in sorted(set(a.keys["l0_target"])):
        for seed in sorted(a.seeds_near(target) & b.seeds_near(target)):
            of_a, of_b = curves[seed]
            low, high = max(of_a.low, of_b.low), min(of_a.high, of_b.high)
            if low > high + SAME_LEVEL:
                continue
            level = float(np.clip(np.log(target), min(low, high), max(low, high)))
            if abs(level - np.log(target)) > LEVEL_TOLERANCE or (level, seed) in seen:
                continue
            seen.add((level, seed))
            units.append(Unit(float(target), seed, of_a.at(level) - of_b.at(level)))
    return units


def why_not_compared(
    panel: Points, pair: tuple[str, str], measure: str, names: Mapping[str, str] = NAMES
) -> str:
    """Why `compare` finds no unit for a pair of methods at the size of `panel`."""
    of = {method: panel.where(method=method) for method in pair}
    if absent := [names.get(method, method) for method in pair if not len(of[method])]:
        size = f" with {panel.keys['n'].iloc[0]:,} latents" if len(panel) else ""
        return f"no autoencoder of {' or of '.join(absent)}{size}"
    one, other = of.values()
    if not (set(one.keys["seed"]) & set(other.keys["seed"])):
        return "no seed in common"
    for method, points in of.items():
        if not (points.values[measure][:, 0] > 0).any():
            return f"{names.get(method, method)} has no error above 0"
    spans = [points.values["l0"][:, 0] for points in (one, other)]
    if max(span.min() for span in spans) > min(span.max() for span in spans):
        reached = " and ".join(f"{span.min():.3g} to {span.max():.3g}" for span in spans)
        return f"the L0s that they reached do not meet: {reached}"
    return "no level of L0 in common"


@dataclass(frozen=True)
class Evidence:
    """Everything that the rules look at, with its resamples; None where it was not measured."""

    resampler: Resampler
    trained: Points | None
    curves: Points | None
    refined: Points | None
    tuning: pd.DataFrame | None

    @classmethod
    def of(cls, tables: Tables, resamples: int, random_seed: int) -> Evidence:
        """Resample the tables of a run, with the same draw of contexts for all of them."""
        curves = tables.curve_contexts
        if curves is not None and "delta_ce" in curves:
            read = curves["squared_error"].where(curves["delta_ce"].notna())
            curves = curves.assign(squared_error_downstream=read)
        per_context = [tables.contexts, curves, tables.refinement_contexts]
        contexts = [table["context"].unique() for table in per_context if table is not None]
        resampler = Resampler(np.concatenate([*contexts, []]), resamples, random_seed)
        trained = _from_contexts(tables.contexts, KEYS, TRAINED, resampler)
        if trained is None and tables.autoencoders is not None:
            trained = _from_scatter(tables.autoencoders, resampler)
        return cls(
            resampler,
            trained,
            _from_contexts(curves, CURVE_KEYS, CURVES, resampler),
            _from_contexts(tables.refinement_contexts, KEYS, REFINED, resampler),
            tables.tuning,
        )


def _from_contexts(
    table: pd.DataFrame | None, keys: list[str], ratios: Ratios, resampler: Resampler
) -> Points | None:
    if table is None:
        return None
    groups = table.groupby(keys, sort=False)
    row, column = groups.ngroup().to_numpy(), np.searchsorted(resampler.contexts, table["context"])
    shape = (groups.ngroups, len(resampler.contexts))
    if len(np.unique(row * shape[1] + column)) < len(table):
        raise UserError(f"a table of contexts has two rows for one context and one {keys}")

    def grid(name: str | None) -> np.ndarray:
        filled = np.full(shape, np.nan)
        filled[row, column] = 1.0 if name is None else table[name].to_numpy(dtype=float)
        return filled

    values: dict[str, np.ndarray] = {}
    for name, (numerator, denominator) in ratios.items():
        if numerator in table.columns:
            values[name] = resampler.ratio(grid(numerator), grid(denominator))
    first = np.unique(row, return_index=True)[1]
    return Points(table[keys].iloc[first].reset_index(drop=True), values)


def _from_scatter(table: pd.DataFrame, resampler: Resampler) -> Points:
    """Points known only by their totals: noise is their scatter about a smooth frontier.

    Each inner point of a method's frontier is predicted from its two neighbours (log-log, shares
    w and 1 - w); the mean of residual^2 / (1 + w^2 + (1 - w)^2) is the variance of one point, with
    as many degrees of freedom as there are inner points. Curvature counts as noise, so that the
    interval errs on the wide side. Fewer than two inner points tell nothing: NaN.
    """
    points = table.reset_index(drop=True)
    size = (len(points), 1 + resampler.resamples)
    values = {"l0": np.broadcast_to(points["l0"].to_numpy(dtype=float)[:, None], size)}
    for measure in ("nmse", "delta_ce"):
        if measure not in points.columns:
            continue
        log_error = np.log(np.maximum(points[measure].to_numpy(dtype=float), SMALLEST))
        noisy = np.repeat(log_error[:, None], size[1], axis=1)
        for rows in points.groupby(["method", "n"]).indices.values():
            order = rows[np.argsort(points["l0"].to_numpy()[rows])]
            noisy[order, 1:] += _scatter(
                np.log(points["l0"].to_numpy(dtype=float)[order]), log_error[order], resampler
            )
        values[measure] = np.exp(noisy)
    return Points(points[KEYS], values)


def _scatter(x: np.ndarray, y: np.ndarray, resampler: Resampler) -> np.ndarray:
    freedom = len(x) - 2
    if freedom < 2:
        return np.full((len(x), resampler.resamples), np.nan)
    share = (x[1:-1] - x[:-2]) / np.maximum(x[2:] - x[:-2], 1e-12)
    residual = y[1:-1] - (1 - share) * y[:-2] - share * y[2:]
    variance = np.mean(residual**2 / (1 + share**2 + (1 - share) ** 2))
    normal = resampler.random.standard_normal((len(x), resampler.resamples))
    chi2 = resampler.random.chisquare(freedom, resampler.resamples) / freedom
    return np.sqrt(variance / chi2) * normal
