"""Figure 10: sparsity changed at test time by another activation function."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from l0plane.figures import style
from l0plane.figures.palette import Style, assign_styles, shade
from l0plane.series import mean_over_seeds, require

# Thin dark dashes over a broad line: where the two coincide, both can be seen.
_LINES = {"topk": ("-", 2.6), "jumprelu": ("--", 1.0)}
_ONE_SEED = 0.8
_LABELS = ("test-time TopK(k')", r"test-time JumpReLU($\theta$)")
# Above 1 a reconstruction is worse than the mean activation: how much worse is of no interest.
_WORST_NMSE = 2.0


@style.styled
def draw_progressive(
    curves: pd.DataFrame, autoencoders: pd.DataFrame, methods: pd.DataFrame, n: int
) -> Figure:
    """Figure 10: nMSE (top) and delta cross-entropy (bottom) against L0, one column a method.

    A darker shade was trained at a higher L0; its marker is the training point. Solid lines keep
    the k' largest at test time, dashed ones all above a threshold; the dotted black line joins the
    training points. All are means over seeds; thin lines keep the k' largest of each seed, where
    there are several.

    What to see: whether a solid line keeps falling to the right of its marker (progressive) or
    turns up (C9, C10, C11, C13), whether dashed and solid coincide (C14, C15, C16), and whether a
    line passes below the dotted one (C17). The nMSE axis ends at 2.

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
    dots = ax.plot(frontier["l0"], frontier["value"], "k:", linewidth=1.4, zorder=2.9)
    # On the broad lines, which are as dark.
    dots[0].set_path_effects([withStroke(linewidth=3.2, foreground="white")])
    rows = curves[(curves["method"] == method) & (curves["l0"] > 0)].copy()
    rows[metric] = style.drop_nonpositive(ax, rows[metric].to_numpy())
    for level, all_seeds in rows.groupby("l0_target"):
        color = shade(look.color, _position(level, levels))
        for selection, (dash, width) in _LINES.items():
            points = all_seeds[all_seeds["selection"] == selection]
            if points.empty:
                continue
            if selection == "topk" and points["seed"].nunique() > 1:
                for _, line in points.sort_values("l0").groupby("seed"):
                    ax.plot(line["l0"], line[metric], color=color, linewidth=_ONE_SEED)
            line_color = color if dash == "-" else shade(look.color, 1)
            ax.plot(*_mean_curve(points, metric), color=line_color, linestyle=dash, linewidth=width)
        own = trained[(trained["l0_target"] == level) & trained["seed"].isin(all_seeds["seed"])]
        own = mean_over_seeds(own, ["l0_target"], metric)
        own = own[own["value"] > 0]
        ax.plot(
            own["l0"],
            own["value"],
            color=color,
            marker=look.marker,
            markeredgecolor="black",
            markersize=6.5,
            markeredgewidth=0.8,
            linestyle="none",
            zorder=3,
        )


def _mean_curve(points: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return L0 and the mean over seeds of one curve, as far as all seeds reach.

    At each L0 that some seed was measured at, the others are interpolated in both logarithms.
    """
    lines = [
        np.log(line.sort_values("l0")[["l0", metric]].to_numpy(dtype=float)).T
        for _, line in points.groupby("seed")
    ]
    log_l0 = np.unique(np.concatenate([line[0] for line in lines]))
    shared = (log_l0 >= max(x[0] for x, _ in lines)) & (log_l0 <= min(x[-1] for x, _ in lines))
    log_l0 = log_l0[shared]
    errors = [np.exp(np.interp(log_l0, *line)) for line in lines]
    return np.exp(log_l0), np.mean(errors, axis=0)


def _position(level: float, levels: list[float]) -> float:
    """Return the shade of `level` among `levels`: the lowest light, the highest nearly pure."""
    return float(np.interp(levels.index(level), [0, max(len(levels) - 1, 1)], [0.0, 0.55]))


def _legend(levels: list[float], several_seeds: bool) -> list[Line2D]:
    mean = ", mean" if several_seeds else ""
    handles = [
        Line2D([], [], color=style.GREY, ls=dash, lw=width, label=label + mean)
        for (dash, width), label in zip(_LINES.values(), _LABELS, strict=True)
    ]
    if several_seeds:
        label = f"{_LABELS[0]}, each seed"
        handles.append(Line2D([], [], color=style.GREY, lw=_ONE_SEED, label=label))
    handles.append(Line2D([], [], color="black", ls=":", label="trained at each level"))
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
