"""Figure 9: what re-solving the values of a frozen set of active latents changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from l0plane.figures import style
from l0plane.figures.palette import Style, assign_styles
from l0plane.series import at_l0, mean_over_seeds, require

BASELINE, REFERENCE = "relu", "topk"
# The histogram shows this central share of each method's shifts.
_CENTRAL = 0.99
# Points between a marker and its arrow: both methods' markers can lie on one line.
_ASIDE = 5.0


def gap_closed(refinement: pd.DataFrame, n: int) -> pd.DataFrame:
    """Share of the ReLU-TopK gap that refining ReLU closes, at each L0 that ReLU reached.

    share = (ReLU - refined ReLU) / (ReLU - TopK), in nMSE of means over seeds, TopK interpolated
    to the L0 that ReLU reached; NaN where TopK was not measured or is not better. C8 judges it seed
    by seed at the L0 asked for, which can differ by a few points.

    Returns columns l0_target, l0, nmse, nmse_refined, share.
    """
    rows = refinement[refinement["n"] == n]
    table = _before_and_after(rows, BASELINE)
    topk = _before_and_after(rows, REFERENCE)
    reference = [at_l0(topk["l0"].to_numpy(), topk["nmse"].to_numpy(), x) for x in table["l0"]]
    gap = table["nmse"] - np.array(reference, dtype=float)
    share = (table["nmse"] - table["nmse_refined"]) / gap.where(gap > 0)
    return table.assign(share=share)


def _before_and_after(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    rows = rows[rows["method"] == method]
    before = mean_over_seeds(rows, ["l0_target"], "nmse")
    after = mean_over_seeds(rows, ["l0_target"], "nmse_refined")
    both = before.merge(after, on=["l0_target", "l0"], suffixes=("", "_refined"))
    both = both.rename(columns={"value": "nmse", "value_refined": "nmse_refined"})
    return both[["l0_target", "l0", "nmse", "nmse_refined"]].sort_values("l0")


@style.styled
def draw_refinement(
    refinement: pd.DataFrame, histogram: pd.DataFrame, methods: pd.DataFrame, n: int, l0: int
) -> Figure:
    """Figure 9: shifts at an asked L0 of `l0` (left), the L0-nMSE plane before and after (right).

    What to see: left, whether a distribution leans to the right of zero (values had been shrunk)
    and how wide it is; right, how far an arrow reaches from the ReLU line to the TopK line. Bears
    on C6, C7 (left) and C8 (right).

    Raises:
        UserError: a column missing in refinement.csv or refinement_histogram.csv.
    """
    keys = ["method", "n", "l0_target"]
    require(refinement, "refinement", [*keys, "l0", "nmse", "nmse_refined"])
    require(histogram, "refinement_histogram", [*keys, "bin_left", "bin_right", "count"])
    styles = assign_styles(methods, refinement["method"])
    shown = {BASELINE, REFERENCE} & set(refinement["method"])
    looks = {method: look for method, look in styles.items() if method in shown}
    fig = style.new_figure(height=4.4)
    left, right = fig.subplots(1, 2)
    _shifts(histogram[(histogram["n"] == n) & (histogram["l0_target"] == l0)], looks, left)
    left.set_title(rf"(a) shift of active latents, $L_0$ = {l0}", loc="left")
    _plane(refinement, n, looks, right)
    right.set_title(f"(b) before and after, n = {n:,}", loc="left")

    handles = [style.method_handle(k.label, k.color, k.marker) for k in looks.values()]
    handles += [
        Line2D([], [], label="before", color=style.GREY),
        Line2D([], [], label="refined (hollow)", color=style.GREY, linestyle="--"),
    ]
    style.legend_below(fig, handles, columns=4)
    return fig


def _shifts(histogram: pd.DataFrame, looks: dict[str, Style], ax: Axes) -> None:
    """Draw the density of refined minus original value over the active latents of each method."""
    limits, means = [0.0], []
    for method, look in looks.items():
        rows = histogram[histogram["method"] == method]
        bins = rows.groupby(["bin_left", "bin_right"], as_index=False)["count"].sum()
        if bins["count"].sum() == 0:
            continue
        share = bins["count"] / bins["count"].sum()
        width = bins["bin_right"] - bins["bin_left"]
        edges = [*bins["bin_left"], bins["bin_right"].iloc[-1]]
        ax.stairs(share / width, edges, color=look.color, fill=True, alpha=0.25)
        ax.stairs(share / width, edges, color=look.color, linewidth=1.4)
        mean = float((share * (bins["bin_left"] + bins["bin_right"]) / 2).sum())
        ax.axvline(mean, color=look.color, linestyle=":", linewidth=1.6)
        means.append(f"{look.label} {mean:+.2g}".replace("-", "−"))
        below = share.cumsum()
        central = (below >= (1 - _CENTRAL) / 2) & (below - share <= (1 + _CENTRAL) / 2)
        limits += [bins["bin_left"][central].min(), bins["bin_right"][central].max()]
    ax.set(xlabel="refined − original value", ylabel="density", yticks=[])
    ax.axvline(0, color=style.GREY, linewidth=0.8, zorder=0)
    ax.set_ylim(bottom=0)
    if means:
        ax.set_xlim(min(limits), max(limits))
        ax.locator_params(axis="x", nbins=5)
        style.note(ax, "\n".join(["dotted: mean", *means]))
    else:
        style.empty(ax, "no refined autoencoder at this level")


def _plane(refinement: pd.DataFrame, n: int, looks: dict[str, Style], ax: Axes) -> None:
    """Draw nMSE against L0 before and after, with arrows, and the share of the gap closed."""
    tables = {m: _before_and_after(refinement[refinement["n"] == n], m) for m in looks}
    for method, points in tables.items():
        line: dict[str, Any] = {"color": looks[method].color, "marker": looks[method].marker}
        ax.plot(points["l0"], points["nmse"], **line)
        # Not filled: refined, one method's points can come to lie on the other's.
        ax.plot(points["l0"], points["nmse_refined"], **line, linestyle="--", mfc="none", zorder=3)
    ax.set(xlabel=style.L0_LABEL, ylabel=style.METRIC_LABELS["nmse"])
    if all(points.empty for points in tables.values()):
        style.empty(ax, f"no refined autoencoder with n = {n:,}")
        return
    ax.margins(x=0.16)
    style.powers_of_two(ax)
    style.powers_of_ten(ax)
    for side, (method, points) in zip((-1, 1), tables.items(), strict=False):
        _arrows(points, looks[method].color, side * _ASIDE, ax)
    shares = gap_closed(refinement, n).dropna(subset=["share"])
    for _, point in shares.iterrows():
        ax.annotate(
            f"{point['share']:.0%}",
            (point["l0"], point["nmse"]),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=9,
        )
    if len(shares):
        style.note(ax, "percent: share of the gap\nto TopK closed by refinement")


def _arrows(points: pd.DataFrame, color: str, aside: float, ax: Axes) -> None:
    """Draw an arrow from before to after, `aside` of the markers, where there is room for one."""
    shortest = 0.05 * np.subtract(*np.log(ax.get_ylim())[::-1])
    beside = ax.transData + ScaledTranslation(aside / 72, 0, ax.figure.dpi_scale_trans)
    for l0, before, after in points[["l0", "nmse", "nmse_refined"]].itertuples(index=False):
        if np.log(before / after) > shortest:
            ax.annotate(
                "",
                xy=(l0, after),
                xytext=(l0, before),
                xycoords=beside,
                textcoords=beside,
                arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0},
                zorder=4,
            )
