"""Figures 2b and 5b: reconstruction, or downstream loss, against size at a fixed sparsity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from l0plane.figures import style
from l0plane.figures.palette import assign_styles
from l0plane.series import fit_power_law, mean_over_seeds, misses_target, require

# A line of a fit that its points contradict.
_BROKEN: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9}


def scaling(
    autoencoders: pd.DataFrame, methods: pd.DataFrame, metric: str, l0: int, ax: Axes
) -> dict[str, Line2D]:
    """Draw `metric` ("nmse" or "delta_ce") against n for autoencoders asked for an L0 of `l0`.

    Points are means over seeds, bars span the seeds, and the line is a fitted power law a n^-b
    whose exponent stands in the legend, with its standard error. A point whose L0 is more than 5%
    off is hollow and not fitted; a line is thin and broken where the fitted points rise from some
    size to the next and fall from another, which no power law does.

    Returns the legend's entries by method id, and one each for hollow points and for broken lines
    where there are any.

    Raises:
        UserError: a missing column.
    """
    require(autoencoders, "autoencoders", ["method", "n", "l0_target", "l0", metric])
    styles = assign_styles(methods, autoencoders["method"])
    rows = autoencoders[autoencoders["l0_target"] == l0]
    means = mean_over_seeds(rows, ["method", "n", "l0_target"], metric)
    means["value"] = style.drop_nonpositive(ax, means["value"].to_numpy())
    means["off"] = misses_target(means["l0"], means["l0_target"])

    handles, broken = {}, False
    for method, look in styles.items():
        points = means[(means["method"] == method) & means["value"].notna()]
        if points.empty:
            continue
        for off, part in points.groupby("off"):
            ax.errorbar(
                part["n"],
                part["value"],
                yerr=style.span_of_seeds(part),
                color=look.color,
                marker=look.marker,
                markerfacecolor="none" if off else look.color,
                linestyle="none",
                elinewidth=1,
                capsize=2,
            )
        kept = points[~points["off"]]
        law = fit_power_law(kept["n"].to_numpy(), kept["value"].to_numpy())
        label = look.label
        if law is not None:
            ends = np.array([kept["n"].min(), kept["n"].max()], dtype=float)
            misfit = not _monotone(kept["value"].to_numpy())
            ax.plot(ends, law(ends), color=look.color, **(_BROKEN if misfit else {}))
            broken |= misfit
            label += f", b = {law.exponent:.3f}"
            label += "" if np.isnan(law.exponent_se) else f" ± {law.exponent_se:.3f}"
        handles[method] = style.method_handle(label, look.color, look.marker)
    if means["off"].any():
        handles["hollow"] = style.method_handle(
            r"hollow: $L_0$ over 5% off, not fitted", style.GREY, "o", mfc="white", ls="none"
        )
    if broken:
        label = "broken: rises and falls with n"
        handles["broken"] = Line2D([], [], label=label, color=style.GREY, **_BROKEN)

    style.missing(ax, [styles[m].label for m in rows.loc[rows[metric].isna(), "method"]])
    ax.set(xlabel="n (latents)", ylabel=style.METRIC_LABELS[metric])
    if means["value"].notna().any():
        style.powers_of_two(ax)
        style.powers_of_ten(ax)
    else:
        style.empty(ax, rf"no autoencoder at $L_0$ = {l0}")
    return handles


def _monotone(values: np.ndarray) -> bool:
    """Whether `values`, in the order of n, never rise or never fall."""
    steps = np.diff(values)
    return bool((steps <= 0).all() or (steps >= 0).all())


@style.styled
def draw_scaling(autoencoders: pd.DataFrame, methods: pd.DataFrame, metric: str, l0: int) -> Figure:
    """Figure 2b (`metric` "nmse") or 5b ("delta_ce") on its own.

    What to see: which line falls fastest; a larger b is a steeper one. Bears on C4 (nMSE).
    Arguments and errors as for `scaling`.
    """
    fig = style.new_figure(height=5.6)
    ax = fig.subplots()
    handles = scaling(autoencoders, methods, metric, l0, ax)
    ax.set_title(rf"$L_0$ = {l0};  lines: $a\,n^{{-b}}$", loc="left")
    style.legend_below(fig, list(handles.values()), columns=3)
    return fig
