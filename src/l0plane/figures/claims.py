"""All claims at a glance: effect, 95% interval and verdict of each."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l0plane.figures import style
from l0plane.files import UserError
from l0plane.series import require

# Colours apart for red-green vision too, and a sign for print without colour.
_VERDICTS = {
    "reproduced": ("#00735c", "✓"),
    "contradicted": ("#c44601", "✗"),
    "inconclusive": ("#7a6a00", "?"),
    "not measured": ("#8a8a8a", "–"),
}
# Where each column starts, in parts of the figure's width.
_STATEMENT, _INTERVAL, _EFFECT, _VERDICT = 0.065, (0.48, 0.585), 0.605, 0.84
_CLAIMED = "#cfe8e1"
# A row's scale ends a little beyond all that is in it, so that a bound has two sides to be seen.
_MARGIN = 1.15


@style.styled
def draw_claims(claims: pd.DataFrame) -> Figure:
    """One row a claim (C1 to C18): statement, effect with its 95% interval, verdict.

    Where claims.csv has further rows for the parts of a claim, only the claim as a whole is shown.

    What to see: the verdicts on the right, and how far inside or outside the shade (where the claim
    says that the effect lies) an interval is. Intervals are drawn each in its own scale, around a
    grey line at zero, since effects have different units. A table without claimed_low and
    claimed_high, of an earlier version, gives no shade.

    Raises:
        UserError: a missing column, or a verdict that is none of the four.
    """
    require(claims, "claims", ["claim", "statement", "effect", "unit", "low", "high", "verdict"])
    if "part" in claims:
        claims = claims[claims["part"].fillna("") == ""]
    unknown = set(claims["verdict"]) - set(_VERDICTS)
    if unknown:
        raise UserError(
            f"claims: verdict {sorted(unknown)[0]!r}; expected one of {', '.join(_VERDICTS)}"
        )
    statements = [textwrap.wrap(str(statement), 47) for statement in claims["statement"]]
    effects = [textwrap.wrap(_effect(claim), 26) for _, claim in claims.iterrows()]
    lines = [max(len(a), len(b), 1) for a, b in zip(statements, effects, strict=True)]
    heights = [0.17 * count + 0.14 for count in lines]
    fig = Figure(figsize=(style.WIDTH, sum(heights) + 0.65))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 1), ylim=(-sum(heights) - 0.28, 0.37))
    ax.set_axis_off()
    for x, heading in (
        (0.015, "claim"),
        (_INTERVAL[0], "95% interval"),
        (_EFFECT, "effect"),
        (_VERDICT, "verdict"),
    ):
        ax.text(x, 0.18, heading, va="center", weight="bold", fontsize=9)
    top = 0.0
    rows = zip(claims.iterrows(), statements, effects, heights, strict=True)
    for (_, claim), statement, effect, height in rows:
        ax.axhline(top, color="#d9d9d9", linewidth=0.8)
        y = top - height / 2
        ax.text(_STATEMENT, y, "\n".join(statement), va="center", fontsize=9)
        ax.text(_EFFECT, y, "\n".join(effect), va="center", fontsize=8.5)
        _row(claim, y, ax)
        top -= height
    note = "grey line: zero; a scale for each row"
    if ax.collections:
        note = f"shade: where the claim says that the effect lies; {note}"
    ax.text(0.015, top - 0.14, note, va="center", fontsize=8.5, color=style.GREY, style="italic")
    return fig


def _effect(claim: pd.Series) -> str:
    """Return effect and unit in words; nothing where none was measured."""
    if pd.isna(claim["effect"]):
        return ""
    unit = "" if pd.isna(claim["unit"]) else str(claim["unit"])
    space = "" if unit.startswith("%") else " "
    return f"{claim['effect']:+.3g}".replace("-", "−") + space + unit


def _row(claim: pd.Series, y: float, ax: Axes) -> None:
    """Write a claim's id and verdict at height `y`, and draw its interval and what is claimed."""
    color, sign = _VERDICTS[claim["verdict"]]
    ax.text(0.015, y, str(claim["claim"]), va="center", weight="bold", fontsize=9)
    ax.text(
        _VERDICT,
        y,
        f"{sign} {claim['verdict']}",
        va="center",
        color=color,
        weight="bold",
        fontsize=9,
    )
    effect, low, high = (float(claim[name]) for name in ("effect", "low", "high"))
    if not np.isfinite(effect):
        return
    claimed = np.array([claim.get(name, np.nan) for name in ("claimed_low", "claimed_high")])
    middle, half = sum(_INTERVAL) / 2, (_INTERVAL[1] - _INTERVAL[0]) / 2
    shown = np.abs([effect, low, high, *claimed])
    extent = _MARGIN * float(shown[np.isfinite(shown)].max()) or 1.0
    if not np.isnan(claimed).any():
        inside = middle + half * np.clip(claimed / extent, -1, 1)
        ax.fill_between(inside, y - 0.11, y + 0.11, color=_CLAIMED, linewidth=0, zorder=0)
    ax.plot([middle, middle], [y - 0.11, y + 0.11], color="#bdbdbd", linewidth=0.9)
    low, effect, high = (middle + half * value / extent for value in (low, effect, high))
    ax.plot([low, high], [y, y], color=color, linewidth=1.8, solid_capstyle="butt")
    ax.plot([effect], [y], color=color, marker="o", markersize=5)
