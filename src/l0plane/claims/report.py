"""The page that a reader of a run sees first: each claim, its verdict, its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from l0plane.claims.verdicts import BORROWED, NO_REPEATS, VERDICTS


def to_markdown(claims: pd.DataFrame, failures: Sequence[str] = ()) -> str:
    """Render the table of `judge`, also as read back from CSV, as a Markdown page.

    `failures` names the autoencoders that nothing is known about (`tidy.failures`).
    """
    claims = claims.fillna({"part": "", "unit": "", "detail": "", "run": ""})
    wholes = claims[claims["part"] == ""]
    counts = wholes["verdict"].value_counts()
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)
    lines = [
        f"# Claims judged on {wholes['run'].iloc[0] or 'an unnamed run'}",
        "",
        f"Of {len(wholes)} claims: {tally}. Intervals are 95%; the rule behind each verdict is in "
        f'`docs/claims.md`. Where a detail says "{NO_REPEATS}", another seed could move the effect '
        f'by more than its interval. The same holds, less often, of a level "{BORROWED}".',
        "",
        *missing(failures),
        "| claim | statement | verdict | effect | unit |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.claim} | {row.statement} | **{row.verdict}** | {_interval(row)} | {row.unit} |"
        for row in wholes.itertuples()
    ]
    for claim, rows in claims.groupby("claim", sort=False):
        lines += ["", f"## {claim}: {rows['verdict'].iloc[0]}", "", rows["statement"].iloc[0] + "."]
        # The row of the whole repeats the part that decides it.
        parts = rows[rows["part"] != ""] if len(rows) > 1 else rows
        lines.append("")
        for row in parts.itertuples():
            name = f"{row.part}: " if row.part else ""
            measured = f" {_interval(row)} {row.unit};" if _interval(row) else ""
            lines.append(f"- {name}{row.verdict};{measured} {row.detail}.")
    return "\n".join(lines) + "\n"


def missing(failures: Sequence[str]) -> list[str]:
    """Lines that name the autoencoders which a page says nothing about; none if there are none."""
    if not failures:
        return []
    count = "One autoencoder is" if len(failures) == 1 else f"{len(failures)} autoencoders are"
    what = f"**{count} missing**: the training failed, and no verdict takes it into account."
    return [what, "", *(f"- {failure}" for failure in failures), ""]


def _interval(row: object) -> str:
    effect, low, high = (getattr(row, name) for name in ("effect", "low", "high"))
    if pd.isna(effect):
        return ""
    return number(effect) + ("" if pd.isna(low) else f" [{number(low)}, {number(high)}]")


def number(value: float) -> str:
    """Three digits, and never as 2.65e+03; what is as good as 0 as 0."""
    return f"{value if abs(value) > 1e-9 else 0:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
