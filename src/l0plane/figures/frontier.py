"""Figures 2a and 5a: reconstruction, or downstream loss, against sparsity at a fixed size."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from l0plane.figures import style
from l0plane.figures.palette import Style, assign_styles
from l0plane.files import UserError
from l0plane.series import mean_over_seeds, require

# Published values so many times beyond a run's own would leave these no room.
_FAR = 3.0


def frontier(
    autoencoders: pd.DataFrame,
    methods: pd.DataFrame,
    metric: str,
    n: int,
    ax: Axes,
    published: pd.DataFrame | None = None,
    published_variance: float | None = None,
) -> dict[str, Line2D]:
    """Draw `metric` ("nmse" or "delta_ce") against the reached L0 of every method with `n` latents.

    Lines join means over seeds; bars span the seeds. `published` adds another paper's table
    (columns method, l0, mse, delta_ce), dotted; its raw squared errors become nMSE only through
    `published_variance`, the mean ||x - mean(x)||^2 of the activations that they were measured on.

    Returns the legend's entries by method id.

    Raises:
        UserError: a missing column, or published errors asked for without their variance.
    """
    require(autoencoders, "autoencoders", ["method", "n", "l0_target", "l0", metric])
    styles = assign_styles(methods, autoencoders["method"])
    rows = autoencoders[autoencoders["n"] == n]
    means = mean_over_seeds(rows, ["method", "l0_target"], metric).sort_values("l0")
    means["value"] = style.drop_nonpositive(ax, means["value"].to_numpy())

    handles = {}
    for method, look in styles.items():
        points = means[(means["method"] == method) & means["value"].notna()]
        if points.empty:
            continue
        ax.errorbar(
            points["l0"],
            points["value"],
            yerr=style.span_of_seeds(points),
            color=look.color,
            marker=look.marker,
            markeredgewidth=0.8,
            elinewidth=1,
            capsize=2,
        )
        handles[method] = style.method_handle(look.label, look.color, look.marker)
    if published is not None:
        handles |= _overlay(published, published_variance, metric, styles, means["value"], ax)

    style.missing(ax, [styles[m].label for m in rows.loc[rows[metric].isna(), "method"]])
    ax.set(xlabel=style.L0_LABEL, ylabel=style.METRIC_LABELS[metric])
    if handles:
        style.powers_of_two(ax)
        style.powers_of_ten(ax)
        style.note(ax, "lower left is better", x=0.02, y=0.02)
    else:
        style.empty(ax, f"no autoencoder with n = {n:,}")
    return handles


def _overlay(
    published: pd.DataFrame,
    variance: float | None,
    metric: str,
    styles: dict[str, Style],
    own: pd.Series,
    ax: Axes,
) -> dict[str, Line2D]:
    """Draw another paper's frontier, small and dotted; return its one legend entry.

    Points so far from a run's `own` values that these would have no room are counted only.
    """
    if metric == "nmse":
        if variance is None:
            raise UserError("published: its mse is not normalised; give published_variance")
        published = published.assign(nmse=published["mse"] / variance)
    near = published[metric].between(own.min() / _FAR, own.max() * _FAR) | own.isna().all()
    if hidden := int((~near).sum()):
        plural = "s" if hidden > 1 else ""
        style.note(ax, f"{hidden} published point{plural} beyond the axes", x=0.02, y=0.08)
    if not near.any():
        return {}
    for method, points in published[near].sort_values("l0").groupby("method"):
        look = styles.get(str(method)) or Style(str(method), style.GREY, "o")
        ax.plot(
            points["l0"],
            points[metric],
            color=look.color,
            marker=look.marker,
            linestyle=":",
            markersize=3.5,
            alpha=0.7,
        )
    return {"published": style.method_handle("published (dotted)", style.GREY, "o", ls=":", ms=3.5)}


@style.styled
def draw_frontier(
    autoencoders: pd.DataFrame,
    methods: pd.DataFrame,
    metric: str,
    n: int,
    published: pd.DataFrame | None = None,
    published_variance: float | None = None,
) -> Figure:
    """Figure 2a (`metric` "nmse") or 5a ("delta_ce") on its own.

    What to see: at any L0, which method lies lowest. Bears on C1 and C2 (nMSE) and C3 (delta
    cross-entropy). Arguments and errors as for `frontier`.
    """
    fig = style.new_figure(height=5.6)
    ax = fig.subplots()
    handles = frontier(autoencoders, methods, metric, n, ax, published, published_variance)
    ax.set_title(f"n = {n:,} latents", loc="left")
    style.legend_below(fig, list(handles.values()), columns=4)
    return fig
