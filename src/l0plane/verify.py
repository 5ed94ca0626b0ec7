"""Does a run give the committed numbers? Tables compared column by column, within tolerances.

    python -m l0plane.verify results/verify results/reference/smoke

Exit status 1 says that something moved, and the output what. docs/reproducing.md has the tolerances
with their reasons.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from l0plane import tidy
from l0plane.files import UserError

_AUTOENCODER = tuple(tidy.KEYS[1:])
#: Table -> the columns that name a row; rows that share them are told apart by their order.
TABLES = {
    "autoencoders": _AUTOENCODER,
    "refinement": _AUTOENCODER,
    "curves": (*_AUTOENCODER, "selection"),
    "tuning": (*_AUTOENCODER, "learning_rate"),
    "lambdas": _AUTOENCODER,
    "claims": ("claim", "part"),
    "published_claims": ("claim", "part"),
}
#: Never the same twice, or said again in words: times; names; hashes that one bit of one weight
#: changes; sentences with numbers in them.
LEFT_OUT = {"run", "version", "training_seconds", "weights_sha256", "model_sha256", "detail"}
#: How far a measured number may be from the committed one, as a share of it ...
RELATIVE = 0.005
#: ... or absolutely, whichever is more: what float32 rounds of numbers about 1.
ABSOLUTE = 1e-7
#: The same for a standard error, which rests on few contexts, as a share of it.
STANDARD_ERROR = 0.05
#: And in nats for the difference of two cross-entropies, which are thousands of times as large.
DIFFERENCE = 2e-4
#: How many latents may be dead more, or fewer.
DEAD = 2
#: A search for lambda that ends farther than this from its L0 has found none, and which of those
#: tried came nearest is rounding's choice: of such rows the L0 alone is compared ...
MISSED = 0.05
#: ... within this share of it.
NEAR = 0.1
#: A rate above the chosen one is high enough for a training to be unstable: rounding counts more.
UNSTABLE = 5


class Moved(NamedTuple):
    """One column of one table that is not what it was."""

    table: str
    column: str
    what: str
    """How many rows, and the worst of them: what was expected, what was found, what is allowed."""

    def __str__(self) -> str:
        return f"{self.table}.csv: {self.column} {self.what}"


def compare(
    table: str, expected: pd.DataFrame, found: pd.DataFrame
) -> tuple[list[Moved], pd.DataFrame]:
    """Compare the rows of a table with the committed ones.

    Text, whole numbers and truth values have to be the same; fractional numbers agree within what
    `_allowed` says, an empty cell only with an empty cell, an infinite one with its like.

    Returns:
        What moved, at most once a column; and of every fractional number the columns `column`,
        `difference` and `share`, how much of its tolerance was used; both infinite where one of
        the two is empty or infinite and the other is not the same.
    """
    moved = [
        Moved(table, column, f"is {what}")
        for columns, others, what in (
            (expected, found, "missing"),
            (found, expected, "new: the committed tables are older than it"),
        )
        for column in columns
        if column not in others and column not in LEFT_OUT
    ]
    keys = [column for column in TABLES[table] if column in expected and column in found]
    expected, found = (_named(rows, keys) for rows in (expected, found))
    for rows, others, what in ((expected, found, "missing"), (found, expected, "new")):
        if names := [name for name in rows.index if name not in others.index]:
            moved.append(Moved(table, "rows", f"{what}: {len(names)}, such as {names[0]}"))
    both = expected.index.intersection(found.index)
    expected, found = expected.loc[both], found.loc[both]
    missed = _missed(expected)
    used = []
    for column in expected.columns.intersection(found.columns):
        if column in LEFT_OUT:
            continue
        compared = ~missed | (column == "l0")
        before, after = expected.loc[compared, column], found.loc[compared, column]
        if pd.api.types.is_float_dtype(before) and pd.api.types.is_numeric_dtype(after):
            allowed = _allowed(expected, column)[compared]
            same = (before == after) | (before.isna() & after.isna())
            # A number and nothing, or two infinities, are infinitely far apart if not the same.
            difference = (after - before).abs().fillna(np.inf).mask(same, 0.0)
            share = (difference / allowed).fillna(np.inf).mask(same, 0.0)
            used.append(pd.DataFrame({"column": column, "difference": difference, "share": share}))
            if (share > 1).any():
                moved.append(Moved(table, column, _worst(before, after, share, allowed)))
        else:
            same = (before == after) | (before.isna() & after.isna())
            if not same.all():
                moved.append(Moved(table, column, _worst(before, after, (~same) * 2.0)))
    return moved, pd.concat(used) if used else pd.DataFrame(
        columns=["column", "difference", "share"]
    )


def _named(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The rows with a name for each: its keys, and its number among those that share them."""
    names = rows[keys].apply(
        lambda row: " ".join(f"{key}={value}" for key, value in row.items() if pd.notna(value)),
        axis=1,
    )
    number = names.groupby(names).cumcount()
    shared = names.duplicated(keep=False)
    return rows.set_axis(names + (" row " + number.astype(str)).where(shared, ""), axis=0)


def _missed(rows: pd.DataFrame) -> pd.Series:
    """Which rows rest on a search for lambda that did not come near its L0."""
    if not {"lambda", "l0", "l0_target"} <= set(rows):
        return pd.Series(False, index=rows.index)
    return rows["lambda"].notna() & ((rows["l0"] / rows["l0_target"] - 1).abs() > MISSED)


def _allowed(rows: pd.DataFrame, column: str) -> pd.Series:
    """How far each number of a column may be from the committed `rows`."""
    size = rows[column].abs()
    if column in ("effect", "low", "high"):
        return _allowed_effect(rows, column)
    if column.endswith("_se"):
        return np.maximum(STANDARD_ERROR * size, ABSOLUTE)
    allowed = np.maximum(RELATIVE * size, ABSOLUTE)
    if {"chosen", "learning_rate"} <= set(rows):
        rate = rows["learning_rate"]
        level = [rows[name] for name in _AUTOENCODER]
        chosen = rate.where(rows["chosen"]).groupby(level).transform("max")
        allowed = allowed.mask(rate > chosen, UNSTABLE * allowed)
    if column == "l0":
        return allowed.mask(_missed(rows), NEAR * size)
    if column == "delta_ce":
        return np.maximum(allowed, DIFFERENCE)
    if column.startswith("loss_recovered") and "delta_ce" in rows:
        # 1 - delta_ce / rise, so what delta_ce may differ by is divided by the same rise.
        rise = rows["delta_ce"] / (1 - rows[column])
        return np.maximum(allowed, (_allowed(rows, "delta_ce") / rise.abs()).fillna(0))
    if column == "mean_shift" and "mean_absolute_shift" in rows:
        # Shifts up less shifts down.
        return np.maximum(allowed, RELATIVE * rows["mean_absolute_shift"])
    if column == "value" and "selection" in rows:
        # A threshold near zero cuts among values that are no better known than the largest ones.
        curve = rows.groupby([*_AUTOENCODER, "selection"])["value"]
        return np.maximum(ABSOLUTE, RELATIVE * curve.transform("max"))
    if column == "dead_fraction":
        return np.maximum(allowed, DEAD / rows["n"] + ABSOLUTE)
    return allowed


def _allowed_effect(rows: pd.DataFrame, column: str) -> pd.Series:
    """The same for an effect and the ends of its interval.

    Most are ratios in percent, e% being 1 + e / 100, and differ by a share of the ratio: by what
    two errors differ, or by a standard error, a quarter of the interval, if that is more. What is a
    part of something ("% of ..."), or no percentage, differs by the same parts of itself.
    """
    ends = rows[["effect", "low", "high"]]
    width = (ends["high"] - ends["low"]).where(np.isfinite(ends["high"] - ends["low"]), 0)
    linear = np.maximum(2 * RELATIVE * ends[column].abs(), width / 4)
    ratio = (1 + ends / 100).clip(lower=ABSOLUTE)
    width = np.log(ratio["high"] / ratio["low"])
    share = np.maximum(2 * RELATIVE, (width.where(np.isfinite(width), 0) / 4))
    is_ratio = rows["unit"].str.match("% (?!of )").fillna(False).astype(bool)
    allowed = (100 * ratio[column] * np.expm1(share)).where(is_ratio, linear)
    return np.maximum(allowed, ABSOLUTE)


def _worst(
    before: pd.Series, after: pd.Series, share: pd.Series, allowed: pd.Series | None = None
) -> str:
    row = share.idxmax()
    old, new = before[row], after[row]
    change = ""
    if allowed is not None and np.isfinite([old, new]).all():
        change = f" ({new - old:+.2g}, allowed {allowed[row]:.1g})"
        old, new = f"{old:.6g}", f"{new:.6g}"
    return (
        f"moved in {(share > 1).sum()} of {len(share)} rows, most in {row}: "
        f"expected {old}, found {new}{change}"
    )


def _tables(committed: Path, update: bool) -> list[str]:
    """The names of the tables to compare: those that are committed. Says which it leaves out.

    Raises:
        UserError: there is none.
    """
    names = [name for name in TABLES if update or (committed / f"{name}.csv").is_file()]
    if not names:
        raise UserError(f"{committed}: no table to compare with, such as autoencoders.csv")
    if left := [f"{name}.csv" for name in TABLES if name not in names]:
        print(f"not in {committed}, left out: {', '.join(left)}")
    return names


def main(arguments: list[str] | None = None) -> int:
    """Compare or, with --update, commit anew; the exit status is 1 if something moved."""
    parser = argparse.ArgumentParser(prog="python -m l0plane.verify", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run's tables, results/<run>")
    parser.add_argument("committed", type=Path, help="folder of the tables to compare with")
    parser.add_argument("--update", action="store_true", help="write the second from the first")
    options = parser.parse_args(arguments)
    try:
        tables = _tables(options.committed, options.update)
        found = {name: tidy.read(options.run / f"{name}.csv") for name in tables}
        if options.update:
            for name, rows in found.items():
                kept = [column for column in rows if column not in LEFT_OUT]
                tidy.write(rows[kept], options.committed / f"{name}.csv")
            print(f"{options.committed}: {len(found)} tables written from {options.run}")
            return 0
        expected = {name: tidy.read(options.committed / f"{name}.csv") for name in tables}
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    moved: list[Moved] = []
    used = []
    for name in tables:
        changes, shares = compare(name, expected[name], found[name])
        moved += changes
        used.append(shares.assign(table=name))
    numbers = pd.concat(used, ignore_index=True)
    print("\n".join(map(str, moved)), end="\n" if moved else "")
    same = (numbers["difference"] == 0).mean()
    worst = numbers.loc[numbers["share"].idxmax()]
    reach = f"at {worst['share']:.0%} of its" if np.isfinite(worst["share"]) else "beyond any"
    print(
        f"{len(numbers)} numbers in {len(tables)} tables, {same:.1%} of them the same to the last "
        f"bit; the farthest is {worst['column']} in {worst['table']}.csv, {reach} tolerance"
    )
    if missed := sum(int(_missed(rows).sum()) for rows in expected.values()):
        print(f"in {missed} rows, which missed their L0, the L0 alone was compared")
    print(f"{len(moved)} column(s) moved" if moved else "all agree with the committed ones")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main())
