"""Figure 10: sparsity changed at test time by another activation function."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from l0plane.figures import style
from l0plane.figures.palette import Style, assign_styles, shade
from l0plane.figures.series import mean_over_seeds, require

# Thin dark dashes over a broad line: where the two coincide, both can be seen.
_LINES = {"topk": ("-", 2.6), "jumprelu": ("--", 1.0)}
_OTHER_SEEDS = 0.8
_LABELS = ("test-time TopK(k')", r"test-time JumpReLU($\theta$)")
# Above 1 a reconstruction is worse than the mean activation: how much worse is of no interest.
_WORST_NMSE = 2.0


@style.styled
def draw_progressive(
    curves: pd.DataFrame, autoencoders: pd.DataFrame, methods: pd.DataFrame, n: int
) -> Figure:
    """Figure 10: nMSE (top) and delta cross-entropy (bottom) against L0, one column a method.

    A darker shade was trained at a higher L0; its marker is the training point. Solid lines keep
    the k' largest at test time, dashed ones all above a threshold; the dotted grey line joins the
    training points. They are of one seed, the first that was measured; thin lines keep the k'
    largest of the others.

    What to see: whether a solid line keeps falling to the right of its marker (progressive) or
    turns up (C9, C10, C11, C13), whether dashed and solid coincide (C14, C15, C16), and whether a
    line passes below the dotted grey one (C17). The nMSE axis ends at 2.

    Raises:
        UserError: a missing column.
    """
    keys = ["method", "n", "l0_target", "seed"]
    require(curves, "curves", [*keys, "selection", "value", "l0", "nmse", "delta_ce"])
    require(autoencoders, "autoencoders", [*keys, "l0", "nmse", "delta_ce"])
    curves = curves[curves["n"] == n]
    trained = autoencoders[autoencoders["n"] == n]
    styles = assign_styles(methods, curves["method"])
    looks = {m: look for m, look in styles.items() if m in set(curves["method"])}
    levels = sorted(curves["l0_target"].unique())

    fig = style.new_figure(height=6.2)
    columns = max(len(looks), 1)
    axes = fig.subplots(2, columns, sharex=True, sharey="row", squeeze=False)
    for row, metric in enumerate(("nmse", "delta_ce")):
        for column, (method, look) in enumerate(looks.items()):
            ax = axes[row, column]
            _column(curves, trained[trained["method"] == method], method, look, levels, metric, ax)
            if row == 0:
                ax.set_title(look.label, loc="left")
            else:
                ax.set_xlabel(r"$L_0$")
        axes[row, 0].set_ylabel(style.METRIC_LABELS[metric])
        if looks:
            for ax in axes[row]:
                style.powers_of_two(ax)
            style.powers_of_ten(axes[row, 0], highest=_WORST_NMSE if row == 0 else np.inf)
        else:
            style.empty(axes[row, 0], f"no curve with n = {n:,}")
    several = (curves.groupby(["method", "l0_target"])["seed"].nunique() > 1).any()
    style.legend_below(fig, _legend(levels, several), columns=4)
    return fig


def _column(
    curves: pd.DataFrame,
    trained: pd.DataFrame,
    method: str,
    look: Style,
    levels: list[float],
    metric: str,
    ax: Axes,
) -> None:
    """Draw one method's test-time curves and training points in one panel."""
    frontier = mean_over_seeds(trained, ["l0_target"], metric).sort_values("l0")
    frontier = frontier[frontier["value"] > 0]
    ax.plot(frontier["l0"], frontier["value"], color=style.GREY, linestyle=":", linewidth=1.2)
    rows = curves[(curves["method"] == method) & (curves["l0"] > 0)].copy()
    rows[metric] = style.drop_nonpositive(ax, rows[metric].to_numpy())
    for level, all_seeds in rows.groupby("l0_target"):
        color = shade(look.color, _position(level, levels))
        first = all_seeds["seed"].min()
        others = all_seeds[(all_seeds["seed"] != first) & (all_seeds["selection"] == "topk")]
        for _, line in others.sort_values("l0").groupby("seed"):
            ax.plot(line["l0"], line[metric], color=color, linewidth=_OTHER_SEEDS)
        points = all_seeds[all_seeds["seed"] == first]
        for selection in _LINES:
            line = points[points["selection"] == selection].sort_values("l0")
            dash, width = _LINES[selection]
            line_color = color if dash == "-" else shade(look.color, 1)
            ax.plot(line["l0"], line[metric], color=line_color, linestyle=dash, linewidth=width)
        own = trained[(trained["l0_target"] == level) & (trained["seed"] == first)]
        own = own[own[metric] > 0]
        ax.plot(
            own["l0"],
            own[metric],
            color=color,
            marker=look.marker,
            markeredgecolor="black",
            markersize=6.5,
            markeredgewidth=0.8,
            linestyle="none",
            zorder=3,
        )


def _position(level: float, levels: list[float]) -> float:
    """Return the shade of `level` among `levels`: the lowest light, the highest nearly pure."""
    return float(np.interp(levels.index(level), [0, max(len(levels) - 1, 1)], [0.0, 0.55]))


def _legend(levels: list[float], several_seeds: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=style.GREY, ls=dash, lw=width, label=label)
        for (dash, width), label in zip(_LINES.values(), _LABELS, strict=True)
    ]
    if several_seeds:
        label = f"{_LABELS[0]}, other seeds"
        handles.append(Line2D([], [], color=style.GREY, lw=_OTHER_SEEDS, label=label))
    handles.append(Line2D([], [], color=style.GREY, ls=":", label="trained at each level"))
    return handles + [
        style.method_handle(
            rf"trained at $L_0$ = {level:g}",
            shade(style.GREY, _position(level, levels)),
            "o",
            markeredgecolor="black",
            markeredgewidth=0.8,
        )
        for level in levels
    ]
