"""Every pair of methods at equal L0: which has the smaller error, by how much, and how surely.

What the claims C1 to C3 ask of some pairs, for all of them, a new method's among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd

from l0plane import __version__
from l0plane.claims.bootstrap import RESAMPLES, Unit, estimate
from l0plane.claims.points import Evidence, compare
from l0plane.claims.report import interval, missing
from l0plane.claims.tables import Tables
from l0plane.claims.verdicts import (
    BORROWED,
    NO_REPEATS,
    Part,
    otherwise_without,
    percent,
    spread,
)

BETTER, WORSE, UNDECIDED, NOT_COMPARED = "better", "worse", "undecided", "not compared"
_REVERSED = {BETTER: WORSE, WORSE: BETTER}
_NOT_COMPARED = Part("", NOT_COMPARED, "no levels of L0 that both methods reached")
#: What is compared, and what a reader calls it.
MEASURES = {"nmse": "nMSE", "delta_ce": "delta cross-entropy"}
COLUMNS = [
    *("run", "measure", "method", "other", "n", "effect", "low", "high"),
    *("verdict", "otherwise", "detail", "version"),
]


def compare_methods(
    tables: Tables, methods: Sequence[str], resamples: int = RESAMPLES, random_seed: int = 0
) -> pd.DataFrame:
    """Compare every method with every other, at the size that was trained at the most levels.

    Args:
        tables: of a run; `autoencoders` and `contexts` are looked at.
        methods: those to compare, in the order of rows.
        resamples: of the contexts.
        random_seed: of resamples and of the seeds' part.

    Returns:
        Two rows, one each way, per measure and pair, with the columns `COLUMNS`: `effect` is the
        difference of the method's error from the other's in percent, a geometric mean over levels
        of L0, with its 95% interval `low` to `high`; the verdict is `BETTER` or `WORSE` if that
        lies wholly below or above 0; `otherwise` says what it would be without a level that it
        hangs on.
    """
    evidence = Evidence.of(Tables(tables.autoencoders, tables.contexts), resamples, random_seed)
    if evidence.trained is None:
        return pd.DataFrame(columns=COLUMNS)
    panel = evidence.trained.panel()
    resampler = evidence.resampler

    def judged(units: Sequence[Unit]) -> Part:
        mean = estimate(percent(resampler.combine(units)))
        verdict = BETTER if mean.high < 0 else WORSE if mean.low > 0 else UNDECIDED
        return Part("", verdict, spread(units), mean.effect, "%", mean.low, mean.high)

    about = {"run": tables.run, "n": int(panel.keys["n"].iloc[0]), "version": __version__}
    rows = []
    for measure in (measure for measure in MEASURES if measure in panel.values):
        # The later over the earlier, as C1 and C2 have it.
        for other, method in combinations(methods, 2):
            units = compare(panel.where(method=method), panel.where(method=other), measure, measure)
            units = [unit for unit in units if np.isfinite(unit.values[0])]
            part = judged(units) if units else _NOT_COMPARED
            without = otherwise_without(part, units, judged)
            keys = {**about, "measure": measure, "method": method, "other": other}
            rows.append(_row(keys, part, without))
            if units:
                back = [Unit(unit.block, unit.seed, -unit.values) for unit in units]
                part = replace(_reversed(part), detail=spread(back))
                without = {level: _reversed(left) for level, left in without.items()}
            rows.append(_row({**keys, "method": other, "other": method}, part, without))
    orders = {
        "measure": [*MEASURES].index,
        "method": methods.index,
        "other": methods.index,
    }
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values([*orders], key=lambda keys: keys.map(orders[keys.name]))


def _reversed(part: Part) -> Part:
    """The other method against the first: the inverse of the ratio of errors."""
    with np.errstate(divide="ignore"):  # the far tail of a Student's t
        ratios = np.log1p(np.array([part.effect, part.high, part.low]) / 100)
    effect, low, high = (float(value) for value in percent(-ratios))
    verdict = _REVERSED.get(part.verdict, part.verdict)
    return replace(part, verdict=verdict, effect=effect, low=low, high=high)


def _row(keys: dict[str, object], part: Part, without: dict[float, Part]) -> dict[str, object]:
    others: dict[str, list[str]] = {}
    for level, left in without.items():
        others.setdefault(left.verdict, []).append(f"{level:.4g}")
    return {
        **keys,
        "effect": part.effect,
        "low": part.low,
        "high": part.high,
        "verdict": part.verdict,
        "otherwise": ", ".join(
            f"{verdict} without {' or '.join(levels)}" for verdict, levels in others.items()
        ),
        "detail": part.detail,
    }


def to_page(
    comparisons: pd.DataFrame, labels: Mapping[str, str], failures: Sequence[str] = ()
) -> str:
    """Render the table of `compare_methods`, also as read back from CSV, as a Markdown page.

    `failures` names the autoencoders that nothing is known about (`tidy.failures`).
    """
    if comparisons.empty:
        return "# Methods compared\n\nThere are no two methods to compare.\n"
    comparisons = comparisons.fillna({"otherwise": "", "run": ""})
    first = comparisons.iloc[0]
    lines = [
        f"# Methods compared on {first['run'] or 'an unnamed run'}",
        "",
        f"The error of each method against every other's at equal L0, with {first['n']:,} latents: "
        "a geometric mean over levels of L0, with its 95% interval. -10% is a tenth less error. A "
        "method is better if the whole interval lies below 0, worse if above; a verdict that hangs "
        "on one level of L0 has beside it what it would be without. Each interval holds for "
        "itself: of twenty pairs that do not differ, one will seem to. `docs/claims.md` says where "
        f"intervals come from; `comparisons.csv` has every level.{_seeds(comparisons['detail'])}",
        "",
        *missing(failures),
    ]

    def name(method: object) -> str:
        return labels.get(str(method), str(method)).replace("|", "\\|")

    for method, rows in comparisons.groupby("method", sort=False):
        shown = [measure for measure in MEASURES if measure in set(rows["measure"])]
        lines += [f"## {name(method)}", ""]
        lines.append(f"| against | {' | '.join(MEASURES[measure] for measure in shown)} |")
        lines.append("| --- |" + " --- |" * len(shown))
        for other, pair in rows.groupby("other", sort=False):
            of = pair.set_index("measure")
            cells = [_cell(of.loc[measure]) for measure in shown]
            lines.append(f"| {name(other)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _seeds(details: pd.Series) -> str:
    if details.str.contains(NO_REPEATS).any():
        return " No seed was repeated: another one could move an effect by more than its interval."
    if details.str.contains(BORROWED).any():
        return " Levels with one seed borrow the spread between seeds from those with several."
    return ""


def _cell(row: pd.Series) -> str:
    verdict = f"**{row.verdict}**" if row.verdict in _REVERSED else row.verdict
    number, _, ends = interval(row).partition(" ")
    measured = f", {number}% {ends}" if number else ""
    return f"{verdict}{measured}{row.otherwise and f'; {row.otherwise}'}"
