"""Where the time of a run went."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from l0plane.figures import style
from l0plane.figures.palette import assign_styles
from l0plane.series import require


@style.styled
def draw_timing(timing: pd.DataFrame, methods: pd.DataFrame) -> Figure:
    """Wall-clock seconds of all jobs by stage, methods in their colours.

    What to see: the longest bar is what to make faster, or to give more cores. Jobs run side by
    side, so that the run took about the sum over the number of cores. Bears on no claim.

    Raises:
        UserError: a missing column.
    """
    require(timing, "timing", ["stage", "method", "seconds"])
    styles = assign_styles(methods, timing["method"].dropna())
    totals = timing.groupby("stage")["seconds"].agg(["sum", "size"]).sort_values("sum")
    fig = style.new_figure(height=1.2 + 0.28 * len(totals))
    ax = fig.subplots()
    for place, (stage, row) in enumerate(totals.iterrows()):
        jobs = timing[timing["stage"] == stage]
        left = 0.0
        for method, look in styles.items():
            seconds = jobs.loc[jobs["method"] == method, "seconds"].sum()
            ax.barh(place, seconds, left=left, color=look.color, height=0.7)
            left += seconds
        ax.barh(place, row["sum"] - left, left=left, color=style.GREY, height=0.7)
        count = f"{row['size']:.0f} job{'s' if row['size'] > 1 else ''}"
        ax.annotate(
            f"{row['sum']:,.0f} s in {count}",
            (row["sum"], place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    ax.set_yticks(range(len(totals)), [str(stage) for stage in totals.index])
    ax.set_xlim(0, totals["sum"].max() * 1.22)
    ax.set_xlabel("seconds, summed over jobs")
    ax.set_title(
        f"{timing['seconds'].sum() / 60:,.0f} minutes of work in {len(timing)} jobs", loc="left"
    )
    handles = [
        style.method_handle(look.label, look.color, "s", ls="none") for look in styles.values()
    ]
    style.legend_below(fig, handles, columns=5)
    return fig
