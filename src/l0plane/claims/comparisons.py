"""Every pair of methods at equal L0: which has the smaller error, by how much, and how surely.

What the claims C1 to C3 ask of some pairs, for all of them, a new method's among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd

from l0plane import __version__
from l0plane.claims.bootstrap import RESAMPLES, Resampler, Unit, estimate
from l0plane.claims.points import Evidence, Points, compare, why_not_compared
from l0plane.claims.report import missing, number
from l0plane.claims.tables import Tables
from l0plane.claims.verdicts import Part, Weights, otherwise_without, percent, spread

BETTER, WORSE, UNDECIDED, NOT_COMPARED = "better", "worse", "undecided", "not compared"
_OPPOSITE = {BETTER: WORSE, WORSE: BETTER}
#: What is compared, and what a reader calls it.
MEASURES = {"nmse": "nMSE", "delta_ce": "delta cross-entropy"}
COLUMNS = [
    *("run", "measure", "method", "other", "n", "levels", "fewest_seeds", "most_seeds"),
    *("effect", "low", "high", "verdict", "otherwise", "detail", "version"),
]


def compare_methods(
    tables: Tables, labels: Mapping[str, str], resamples: int = RESAMPLES, random_seed: int = 0
) -> pd.DataFrame:
    """Compare every method with every other, at the size that was trained at the most levels.

    What is said of a pair does not depend on the order of methods, nor on what others there are, as
    long as all were measured on the same contexts.

    Args:
        tables: of a run; `autoencoders` and `contexts` are looked at.
        labels: of the methods to compare, in the order of rows.
        resamples: of the contexts.
        random_seed: of resamples and, with the names of a pair, of its seeds' part.

    Returns:
        Two rows, one each way, per measure and pair, with the columns `COLUMNS`: `effect` is the
        difference of the method's error from the other's in percent, a geometric mean over the
        `levels` of L0 asked of both, with its 95% interval `low` to `high`; the verdict is `BETTER`
        or `WORSE` if that lies wholly below or above 0; `otherwise` says what it would be without a
        level that it hangs on.
    """
    methods = [*labels]
    found = (tables.autoencoders, tables.contexts)
    own = (None if table is None else table[table["method"].isin(methods)] for table in found)
    evidence = Evidence.of(Tables(*own), resamples, random_seed)
    if evidence.trained is None:
        return pd.DataFrame(columns=COLUMNS)
    panel = evidence.trained.panel()
    about = {"run": tables.run, "n": int(panel.keys["n"].iloc[0]), "version": __version__}
    rows = []
    for measure in MEASURES:
        if not np.isfinite(panel.values.get(measure, np.nan)).any():
            continue
        for pair in combinations(sorted(methods), 2):
            names = f"{measure} {' '.join(pair)}"
            evidence.resampler.random = np.random.default_rng([random_seed, *names.encode()])
            keys = {**about, "measure": measure}
            rows += _both_ways(keys, pair, panel, measure, evidence.resampler, labels)
    order = {"measure": [*MEASURES].index, "method": methods.index, "other": methods.index}
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values([*order], key=lambda keys: keys.map(order[keys.name]))


def _both_ways(
    keys: dict[str, object],
    pair: tuple[str, str],
    panel: Points,
    measure: str,
    resampler: Resampler,
    labels: Mapping[str, str],
) -> list[dict[str, object]]:
    """The rows of a pair of methods, the first against the second and back."""
    one, other = (panel.where(method=method) for method in pair)
    asked = set(one.keys["l0_target"]) & set(other.keys["l0_target"])
    units = compare(one, other, measure, measure)
    units = [unit for unit in units if unit.block in asked and np.isfinite(unit.values[0])]
    if not units:
        part = Part("", NOT_COMPARED, why_not_compared(panel, pair, measure, labels))
        return [_row(keys, way, [], part, {}) for way in (pair, pair[::-1])]

    def judged(weights: Weights) -> Part:
        mean = estimate(percent(resampler.combine(units, weights)))
        verdict = BETTER if mean.high < 0 else WORSE if mean.low > 0 else UNDECIDED
        return Part("", verdict, spread(units), mean.effect, "%", mean.low, mean.high)

    part = judged(None)
    without = otherwise_without(part, units, judged)
    back = [Unit(unit.block, unit.seed, -unit.values) for unit in units]
    inverse = {level: _inverse(left) for level, left in without.items()}
    return [
        _row(keys, pair, units, part, without),
        _row(keys, pair[::-1], back, replace(_inverse(part), detail=spread(back)), inverse),
    ]


def _inverse(part: Part) -> Part:
    """What is said of the other method against the first."""
    with np.errstate(divide="ignore"):  # the far tail of a Student's t
        ratios = np.log1p(np.array([part.effect, part.high, part.low]) / 100)
    effect, low, high = (float(value) + 0.0 for value in percent(-ratios))  # no -0
    verdict = _OPPOSITE.get(part.verdict, part.verdict)
    return replace(part, verdict=verdict, effect=effect, low=low, high=high)


def _row(
    keys: dict[str, object],
    way: Sequence[str],
    units: Sequence[Unit],
    part: Part,
    without: dict[float, Part],
) -> dict[str, object]:
    seeds = Counter(unit.block for unit in units)
    others: dict[str, list[str]] = {}
    for level, left in without.items():
        others.setdefault(left.verdict, []).append(f"{level:.4g}")
    return {
        **keys,
        "method": way[0],
        "other": way[1],
        "levels": ", ".join(f"{level:.4g}" for level in sorted(seeds)),
        "fewest_seeds": min(seeds.values(), default=0),
        "most_seeds": max(seeds.values(), default=0),
        "effect": part.effect,
        "low": part.low,
        "high": part.high,
        "verdict": part.verdict,
        "otherwise": "; ".join(
            f"{' or '.join(f'without {level}' for level in levels)}: {verdict}"
            for verdict, levels in others.items()
        ),
        "detail": part.detail,
    }


def to_page(
    comparisons: pd.DataFrame, labels: Mapping[str, str], failures: Sequence[str] = ()
) -> str:
    """Render the table of `compare_methods`, also as read back from CSV, as a Markdown page.

    `failures` names the autoencoders that nothing is known about (`tidy.failures`).
    """
    if not (comparisons["verdict"] != NOT_COMPARED).any():
        return "\n".join(
            ["# Methods compared", "", "No two methods can be compared.", "", *missing(failures)]
        )
    comparisons = with_fewer(comparisons.astype({"otherwise": object}).fillna({"otherwise": ""}))
    first = comparisons.iloc[0]
    usual = comparisons[~comparisons["fewer"] & comparisons["effect"].notna()].iloc[0]
    hangs = (
        "A verdict that hangs on one level of L0 has beside it what it would be without. "
        if usual["levels"].count(",") > 1
        else "With fewer than three levels nothing is said of how much one of them matters. "
    )
    lines = [
        f"# Methods compared on {first['run'] or 'an unnamed run'}",
        "",
        "The error of each method against every other's at equal L0, with "
        f"{first['n']:,} latents: a geometric mean over L0 = {usual['levels']}, with its 95% "
        "interval. -10% is a tenth less error. A method is better if the whole interval lies below "
        f"0, worse if above. {hangs}{_seeds(usual)} `docs/claims.md` says where intervals come "
        "from; `comparisons.csv` has every level.",
        "",
        *missing(failures),
    ]

    def name(method: object) -> str:
        return _escaped(labels.get(str(method), str(method)))

    for method, rows in comparisons.groupby("method", sort=False):
        shown = [measure for measure in MEASURES if measure in set(rows["measure"])]
        lines += [f"## {name(method)}", ""]
        lines.append(f"| against | {' | '.join(MEASURES[measure] for measure in shown)} |")
        lines.append("| --- |" + " --- |" * len(shown))
        for other, pair in rows.groupby("other", sort=False):
            of = pair.set_index("measure")
            cells = [_cell(of.loc[measure], usual) for measure in shown]
            lines.append(f"| {name(other)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def with_fewer(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `fewer`: which pairs rest on fewer levels or seeds than others.

    Fewer levels than any has, or one seed at a level where others have several at each. `levels`
    is text, also where a table that was read had one level alone.
    """
    levels = comparisons["levels"].map(lambda one: one if isinstance(one, str) else f"{one:g}")
    count, seeds = levels.str.count(","), comparisons["fewest_seeds"]
    fewer = (count < count.max()) | ((seeds == 1) & (seeds[count == count.max()].max() > 1))
    return comparisons.assign(levels=levels, fewer=fewer & comparisons["effect"].notna())


def _seeds(usual: pd.Series) -> str:
    """What the intervals of most pairs are worth."""
    if usual.most_seeds == 1:
        return (
            "No seed was repeated: intervals are about the choice of test text alone and verdicts "
            "about these autoencoders, not their methods; another seed could turn them."
        )
    holds = "Each interval holds for itself: of twenty pairs that do not differ, one will seem to"
    if usual.fewest_seeds == 1:
        return (
            "Levels with one seed borrow the spread between seeds from those with several; where "
            f"these are quiet, intervals are too short. {holds}, or more then."
        )
    return f"{holds}."


def _escaped(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", "\\|")


def _cell(row: pd.Series, usual: pd.Series) -> str:
    if row.verdict == NOT_COMPARED:
        return f"{NOT_COMPARED}: {_escaped(row.detail)}"
    verdict = f"**{row.verdict}**" if row.verdict in _OPPOSITE else row.verdict
    high = "over 1,000" if row.high > 999.5 else number(row.high)
    ends = f"[{number(row.low)}, {high}]"
    said = [f"{verdict}, {number(row.effect)}% {ends if pd.notna(row.low) else '(no interval)'}"]
    if row.levels != usual.levels:
        said.append(f"at {row.levels} only")
    if row.fewer and row.fewest_seeds == 1 < usual.fewest_seeds:
        said.append("one seed" if row.most_seeds == 1 else "one seed at some level")
    return "; ".join([*said, *([row.otherwise] if row.otherwise else [])])
