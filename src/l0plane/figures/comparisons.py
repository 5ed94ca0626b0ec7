"""Every method against every other: which has the smaller error at equal L0, and how surely."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from l0plane.claims.comparisons import MEASURES, with_fewer
from l0plane.figures import style
from l0plane.figures.palette import assign_styles
from l0plane.series import require

# As in the figure of the claims; the lighter, the smaller the difference.
_COLORS = {"better": "#00735c", "worse": "#c44601"}
_NOTHING = "#ededed"
# A log ratio as large as this has the full colour, and the smallest this share of it.
_FULL, _LEAST = 0.6, 0.18
# So many methods have room in half of the width.
_BESIDE = 12
# Labels are wrapped to so many letters.
_LETTERS = 18


@style.styled
def draw_comparisons(comparisons: pd.DataFrame, methods: pd.DataFrame) -> Figure:
    """One panel a measure: the error of a row's method against that of a column's, in percent.

    What to see: rows of green have the smaller error. A cell has the mean over levels of L0; it is
    white where the 95% interval reaches 0. From twice the error on it says how many times. An
    asterisk marks pairs of fewer levels or seeds than others. Intervals and levels are in
    comparisons.csv.

    Raises:
        UserError: a missing column.
    """
    columns = ["measure", "method", "other", "n", "levels", "fewest_seeds", "most_seeds"]
    require(comparisons, "comparisons", [*columns, "effect", "verdict"])
    names = list(dict.fromkeys(comparisons["method"]))
    looks = assign_styles(methods, names)
    names = [method for method in looks if method in names]
    labels = [textwrap.fill(looks[method].label, _LETTERS) for method in names]
    measures = [name for name in MEASURES if name in set(comparisons["measure"])]
    # Labels at the bottom are turned by 45 degrees.
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    # Side by side as long as there is room for numbers.
    below = len(measures) if len(names) > _BESIDE else 1
    width = (style.WIDTH - 0.4 - 0.08 * longest) * below / 2 / max(1, len(names))
    height = 0.6 + 0.06 * longest + min(0.55, width) * max(3, len(names))
    if not measures:
        fig = style.new_figure(height)
        style.empty(fig.add_subplot(), "no two methods to compare")
        return fig
    fig = style.new_figure(0.6 + height * below)
    beside = len(measures) // below
    panels = fig.subplots(below, beside, sharey=True, squeeze=False).ravel()
    comparisons = with_fewer(comparisons)
    for ax, measure in zip(panels, measures, strict=True):
        rows = comparisons[comparisons["measure"] == measure]
        ax.set_title(MEASURES[measure], loc="left")
        _panel(ax, rows, {method: place for place, method in enumerate(names)})
        ax.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(names)), labels)
    what = "the error of the row's method against the column's, in %, at equal $L_0$"
    said = [f"{what}, n = {comparisons['n'].iloc[0]:,}"]
    if comparisons["fewer"].any():
        said.append("* fewer levels or seeds than others")
    if comparisons["most_seeds"].max() == 1:
        said.append("no seed repeated: verdicts are about these autoencoders, not their methods")
    elif comparisons["fewest_seeds"].max() == 1:
        said.append("levels with one seed borrow the spread of others: rather too sure")
    fig.suptitle("\n".join(said), x=0.01, ha="left", fontsize=9, color=style.GREY, style="italic")
    handles = [
        Patch(facecolor=_tint("better", _FULL), label="better: less error"),
        Patch(facecolor=_tint("worse", _FULL), label="worse"),
        Patch(facecolor="white", edgecolor=style.GREY, label="undecided"),
    ]
    style.legend_below(fig, handles, 3)
    _fit(fig)
    return fig


def _panel(ax: Axes, rows: pd.DataFrame, places: dict[str, int]) -> None:
    ax.set_facecolor(_NOTHING)
    for row in rows.itertuples():
        x, y = places[str(row.other)], places[str(row.method)]
        effect, decided = float(str(row.effect)), str(row.verdict) in _COLORS
        if np.isnan(effect):
            ax.text(x, y, "n/a", ha="center", va="center", fontsize=8.5, color=style.GREY)
            continue
        color = _tint(str(row.verdict), np.log1p(max(effect, -99.9) / 100)) if decided else "white"
        ax.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, color=color, linewidth=0)
        text = _number(effect) + "*" * bool(row.fewer)
        ink = "black" if decided else style.GREY
        ax.text(x, y, text, ha="center", va="center", fontsize=8.5, color=ink)
    ax.set(xlim=(-0.5, len(places) - 0.5), ylim=(len(places) - 0.5, -0.5), aspect="equal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for place in range(len(places) + 1):
        ax.axhline(place - 0.5, color="#d9d9d9", linewidth=0.6)
        ax.axvline(place - 0.5, color="#d9d9d9", linewidth=0.6)


def _fit(fig: Figure) -> None:
    """Make the numbers as small as the narrowest cell needs."""
    fig.draw_without_rendering()
    for ax in fig.axes:
        (left, _), (right, _) = ax.transData.transform([(0, 0), (1, 0)])
        widest = max((text.get_window_extent().width for text in ax.texts), default=0.0)
        if widest > (room := 0.92 * (right - left)):
            for text in ax.texts:
                text.set_fontsize(text.get_fontsize() * room / widest)


def _number(effect: float) -> str:
    """A difference in percent in four letters at most; from twice the error on, how many times."""
    times = 1 + effect / 100
    if times >= 1.995:
        return f"×{times:.1f}" if times < 9.95 else f"×{times:.0f}" if times < 999.5 else "≫"
    digits = 0 if abs(effect) >= 9.95 else 1 if abs(effect) >= 0.095 or not effect else 2
    return f"{effect:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _tint(verdict: str, log_ratio: float) -> str:
    """The colour of a verdict, mixed with white: light enough for black numbers."""
    share = 0.6 * (_LEAST + (1 - _LEAST) * min(1.0, abs(log_ratio) / _FULL))
    red, green, blue = 1 - share * (1 - np.array(to_rgb(_COLORS[verdict])))
    return to_hex((red, green, blue))
