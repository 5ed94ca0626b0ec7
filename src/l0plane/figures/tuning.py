"""The learning rates tried for each method, and those that were chosen."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from l0plane.figures import style
from l0plane.figures.palette import assign_styles, shade
from l0plane.series import require

_COLUMNS = 3
_IN_A_ROW = 5
# A run that is worse than predicting the mean activation has diverged: how far is of no interest.
# A little above 1, so that what is nearly as bad is seen whole.
_HIGHEST = 1.1
# Nor is it how bad the worst of those that missed their L0 is: the axis ends at this many times the
# highest of the others.
_ROOM = 1.3
# Of the values of a further knob.
_STYLES: Final = ("-", "--", ":")
#: What the lines of a panel differ in: a column, and how a value of it is written in the legend.
_LEVELS: Final = {"l0_target": "$L_0$ = {:g}", "n": "n = {:,}"}
_RING: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 10,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "markeredgewidth": 1.2,
    "clip_on": False,
}


@style.styled
def draw_tuning(
    tuning: pd.DataFrame, methods: pd.DataFrame, over: Literal["l0_target", "n"] = "l0_target"
) -> Figure:
    """Validation nMSE against learning rate, one panel a method, the chosen runs ringed.

    One line for each L0, darker for a larger one; where a method has a further knob, one for each
    of its values, too, broken but for the first; where its value was not varied, as at other
    numbers of latents, it is the one chosen at that L0. A hollow point missed the L0 by more than
    10%: its error is another level's. The axis ends a little above the highest of the others, and
    just above an nMSE of 1 at the latest: what lies higher has diverged.

    What to see: each ring lies at the bottom of a valley, not at the end of the range tried, so
    that a method loses in the other figures by itself and not by its learning rate. No claim
    rests on this figure; every comparison (C1 to C5) leans on it.

    Args:
        tuning: rows of `tuning.csv`.
        methods: labels and colours.
        over: `l0_target` for the L0s at the number of latents at which most rates were tried; `n`
            for the numbers of latents at the L0 at which several were.

    Raises:
        UserError: a missing column.
    """
    columns = ["method", "n", "l0_target", "learning_rate", "nmse", "off_target", "chosen"]
    require(tuning, "tuning", columns)
    tuning = tuning.dropna(subset=["learning_rate", "nmse"])
    if "value" not in tuning:
        tuning = tuning.assign(knob=None, value=np.nan)
    tuning = _with_chosen_value(tuning)
    styles = assign_styles(methods, tuning["method"])
    looks = {m: look for m, look in styles.items() if m in set(tuning["method"])}
    if over == "l0_target":
        tuning = tuning[tuning["n"].isin(tuning["n"].mode()[:1])]
    else:
        sizes = tuning.groupby("l0_target")["n"].transform("nunique")
        tuning = tuning[sizes == sizes.max()]
    levels = sorted(tuning[over].unique())
    shades = dict(zip(levels, np.linspace(0.15, 0.85, len(levels)), strict=True))
    if len(levels) == 1:
        shades = {levels[0]: 0.5}
    rows = max(-(-len(looks) // _COLUMNS), 1)
    settled = tuning.loc[~tuning["off_target"].astype(bool), "nmse"].max()
    highest = min(_HIGHEST, _ROOM * settled) if settled > 0 else _HIGHEST
    fig = style.new_figure(height=0.9 + 1.9 * rows)
    axes = fig.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    for ax, (method, look) in zip(axes.flat, looks.items(), strict=False):
        runs = tuning[tuning["method"] == method]
        values = sorted(runs["value"].dropna().unique())
        # Seeds and the other key are joined apart: a line is one setting at several learning rates.
        setting = [name for name in ("l0_target", "value", "n", "seed") if name in runs]
        for key, line in runs.sort_values("learning_rate").groupby(setting, dropna=False):
            level, value = (key[setting.index(name)] for name in (over, "value"))
            drawn: dict[str, Any] = {
                "color": shade(look.color, shades[level]),
                "marker": look.marker,
            }
            drawn["linestyle"] = (
                _STYLES[values.index(value) % len(_STYLES)] if value in values else "-"
            )
            ax.plot(line["learning_rate"], line["nmse"], **drawn)
            missed = line[line["off_target"].astype(bool)]
            drawn |= {"markerfacecolor": "white", "linestyle": "none"}
            ax.plot(missed["learning_rate"], missed["nmse"], **drawn)
        chosen = runs[runs["chosen"].astype(bool)]
        ax.plot(chosen["learning_rate"], chosen["nmse"], **_RING)
        ax.set_title(look.label, loc="left")
        if len(values) > 1:
            entries = [
                Line2D([], [], color=look.color, linestyle=_STYLES[place % len(_STYLES)])
                for place in range(len(values))
            ]
            names = [f"{runs['knob'].dropna().iloc[0]} = {value:g}" for value in values]
            ax.legend(entries, names, fontsize=8, handlelength=1.8)
    for ax in axes.flat[len(looks) :]:
        ax.set_axis_off()
    for ax in axes.flat[: len(looks)]:
        style.powers_of_ten(ax, "x")
        style.powers_of_ten(ax, "y", highest=highest)
    for ax in axes.flat[: len(looks)][-_COLUMNS:]:  # the lowest panel of each column
        ax.set_xlabel("learning rate")
        ax.tick_params(labelbottom=True)
    fig.supylabel("validation normalised MSE", fontsize=10)
    handles = [Line2D([], [], label="chosen", **_RING)]
    if tuning["off_target"].any():
        label = r"hollow: $L_0$ over 10% off, never chosen"
        handles.append(style.method_handle(label, style.GREY, "o", mfc="white", ls="none"))
    if len(levels) > 1:
        handles += [
            Line2D(
                [], [], color=shade(style.GREY, shades[level]), label=_LEVELS[over].format(level)
            )
            for level in levels
        ]
    rows = 1 if len(handles) <= _IN_A_ROW else 2
    style.legend_below(fig, handles, columns=-(-len(handles) // rows))
    return fig


def _with_chosen_value(tuning: pd.DataFrame) -> pd.DataFrame:
    """The table with a value of the knob for rows at which none was varied.

    Taken to be the one chosen at the row's L0, which `method.yaml` is to have.
    """
    level = ["method", "l0_target"]
    chosen = tuning[tuning["chosen"].astype(bool)].dropna(subset=["value"])
    values = chosen.drop_duplicates(level)[[*level, "value"]]
    there = tuning[level].merge(values, "left", on=level)["value"].set_axis(tuning.index)
    return tuning.assign(value=tuning["value"].fillna(there))
