"""Every method against every other: which has the smaller error at equal L0, and how surely."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from l0plane.figures import style
from l0plane.figures.palette import assign_styles
from l0plane.series import require

# As in the figure of the claims; the lighter, the smaller the difference.
_COLORS = {"better": "#00735c", "worse": "#c44601", "undecided": "#9a9a9a"}
_TITLES = {"nmse": "normalised MSE", "delta_ce": "delta cross-entropy"}
# A log ratio as large as this has the full colour, and the smallest this share of it.
_FULL, _LEAST = 0.6, 0.18
# So many methods have room in half of the width.
_BESIDE = 12


@style.styled
def draw_comparisons(comparisons: pd.DataFrame, methods: pd.DataFrame) -> Figure:
    """One panel a measure: the error of a row's method against that of a column's, in percent.

    What to see: rows of green have the smaller error. A cell has the mean over levels of L0; it is
    grey where the 95% interval reaches 0. Intervals and levels are in comparisons.csv.

    Raises:
        UserError: a missing column.
    """
    columns = ["measure", "method", "other", "n", "effect", "verdict"]
    require(comparisons, "comparisons", columns)
    names = list(dict.fromkeys(comparisons["method"]))
    looks = assign_styles(methods, names)
    names = [method for method in looks if method in names]
    labels = [looks[method].label for method in names]
    measures = [name for name in _TITLES if name in set(comparisons["measure"])]
    height = 1.4 + 0.33 * max(3, len(names))
    if not measures:
        fig = style.new_figure(height)
        style.empty(fig.add_subplot(), "no two methods to compare")
        return fig
    # Side by side as long as there is room for numbers.
    below = len(measures) if len(names) > _BESIDE else 1
    fig = style.new_figure(0.3 + height * below)
    beside = len(measures) // below
    panels = fig.subplots(below, beside, sharey=True, squeeze=False).ravel()
    for ax, measure in zip(panels, measures, strict=True):
        rows = comparisons[comparisons["measure"] == measure]
        ax.set_title(_TITLES[measure], loc="left")
        _panel(ax, rows, {method: place for place, method in enumerate(names)})
        ax.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(names)), labels)
    size = f"at equal $L_0$, n = {comparisons['n'].iloc[0]:,}"
    panels[0].set_title(f"{_TITLES[measures[0]]} {size}", loc="left")
    handles = [
        Patch(facecolor=_tint("better", _FULL), label="row against column, in %: better"),
        Patch(facecolor=_tint("worse", _FULL), label="worse"),
        Patch(facecolor="white", edgecolor=_COLORS["undecided"], label="undecided"),
    ]
    style.legend_below(fig, handles, 3)
    return fig


def _panel(ax: Axes, rows: pd.DataFrame, places: dict[str, int]) -> None:
    for row in rows.itertuples():
        x, y = places[str(row.other)], places[str(row.method)]
        number, decided = float(str(row.effect)), row.verdict in ("better", "worse")
        if np.isnan(number):
            continue
        if decided:
            color = _tint(str(row.verdict), float(np.log1p(number / 100)))
            ax.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, color=color, linewidth=0)
        digits = 0 if abs(number) >= 9.95 else 1
        text = f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
        ink = "black" if decided else _COLORS["undecided"]
        size = 8.5 if len(places) <= 10 else 7
        ax.text(x, y, text, ha="center", va="center", fontsize=size, color=ink)
    ax.set(xlim=(-0.5, len(places) - 0.5), ylim=(len(places) - 0.5, -0.5), aspect="equal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for place in range(len(places) + 1):
        ax.axhline(place - 0.5, color="#e6e6e6", linewidth=0.6, zorder=0)
        ax.axvline(place - 0.5, color="#e6e6e6", linewidth=0.6, zorder=0)


def _tint(verdict: str, log_ratio: float) -> str:
    """The colour of a verdict, mixed with white: light enough for black numbers."""
    share = 0.6 * (_LEAST + (1 - _LEAST) * min(1.0, abs(log_ratio) / _FULL))
    red, green, blue = 1 - share * (1 - np.array(to_rgb(_COLORS[verdict])))
    return to_hex((red, green, blue))
