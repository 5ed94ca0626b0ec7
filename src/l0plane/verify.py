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

_AUTOENCODER = ("method", "n", "l0_target", "seed")
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
RELATIVE = 0.01
#: ... or absolutely, whichever is more.
ABSOLUTE = 1e-4


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

    Text, whole numbers and truth values have to be the same; fractional numbers agree within
    RELATIVE or ABSOLUTE, an empty cell only with an empty cell, an infinite one with its like.

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
    used = []
    for column in expected.columns.intersection(found.columns):
        if column in LEFT_OUT:
            continue
        before, after = expected.loc[both, column], found.loc[both, column]
        if pd.api.types.is_float_dtype(before) and pd.api.types.is_numeric_dtype(after):
            allowed = np.maximum(RELATIVE * before.abs(), ABSOLUTE)
            same = (before == after) | (before.isna() & after.isna())
            # A number and nothing, or two infinities, are infinitely far apart if not the same.
            difference = (after - before).abs().fillna(np.inf).mask(same, 0.0)
            share = (difference / allowed).fillna(np.inf).mask(same, 0.0)
            used.append(pd.DataFrame({"column": column, "difference": difference, "share": share}))
            if (share > 1).any():
                moved.append(Moved(table, column, _worst(before, after, share)))
        else:
            same = (before == after) | (before.isna() & after.isna())
            if not same.all():
                moved.append(Moved(table, column, _worst(before, after, (~same).astype(float) * 2)))
    return moved, pd.concat(used) if used else pd.DataFrame(columns=["column", "difference"])


def _named(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The rows with a name for each: its keys, and its number among those that share them."""
    names = rows[keys].apply(
        lambda row: " ".join(f"{key}={value}" for key, value in row.items() if pd.notna(value)),
        axis=1,
    )
    number = names.groupby(names).cumcount()
    shared = names.duplicated(keep=False)
    return rows.set_axis(names + (" row " + number.astype(str)).where(shared, ""), axis=0)


def _worst(before: pd.Series, after: pd.Series, share: pd.Series) -> str:
    row = share.idxmax()
    old, new = before[row], after[row]
    change = ""
    if isinstance(old, float) and np.isfinite([old, new]).all():
        allowed = max(RELATIVE * abs(old), ABSOLUTE)
        change = f" ({new - old:+.2g}, allowed {allowed:.1g})"
        old, new = f"{old:.6g}", f"{new:.6g}"
    return (
        f"moved in {(share > 1).sum()} of {len(share)} rows, most in {row}: "
        f"expected {old}, found {new}{change}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Compare or, with --update, commit anew; the exit status is 1 if something moved."""
    parser = argparse.ArgumentParser(prog="python -m l0plane.verify", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run's tables, results/<run>")
    parser.add_argument("committed", type=Path, help="folder of the tables to compare with")
    parser.add_argument("--update", action="store_true", help="write the second from the first")
    options = parser.parse_args(arguments)
    try:
        found = {name: tidy.read(options.run / f"{name}.csv") for name in TABLES}
        if options.update:
            for name, rows in found.items():
                kept = [column for column in rows if column not in LEFT_OUT]
                tidy.write(rows[kept], options.committed / f"{name}.csv")
            print(f"{options.committed}: {len(found)} tables written from {options.run}")
            return 0
        expected = {name: tidy.read(options.committed / f"{name}.csv") for name in TABLES}
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    moved: list[Moved] = []
    used = []
    for name in TABLES:
        changes, shares = compare(name, expected[name], found[name])
        moved += changes
        used.append(shares.assign(table=name))
    numbers = pd.concat(used, ignore_index=True)
    print("\n".join(map(str, moved)), end="\n" if moved else "")
    same = (numbers["difference"] == 0).mean()
    worst = numbers.loc[numbers["share"].idxmax()]
    reach = f"at {worst['share']:.0%} of its" if np.isfinite(worst["share"]) else "beyond any"
    print(
        f"{len(numbers)} numbers in {len(TABLES)} tables, {same:.1%} of them the same to the last "
        f"bit; the farthest is {worst['column']} in {worst['table']}.csv, {reach} tolerance"
    )
    print(f"{len(moved)} column(s) moved" if moved else "all agree with the committed ones")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main())
