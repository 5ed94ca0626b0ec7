"""Figures 2 and 5 as the paper prints them: sparsity panel and size panel side by side."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from l0plane.figures import style
from l0plane.figures.frontier import frontier
from l0plane.figures.palette import assign_styles
from l0plane.figures.scaling import scaling


@style.styled
def draw_combined(
    autoencoders: pd.DataFrame,
    methods: pd.DataFrame,
    metric: str,
    n: int,
    l0: int,
    published: pd.DataFrame | None = None,
    published_variance: float | None = None,
) -> Figure:
    """Figure 2 (`metric` "nmse") or 5 ("delta_ce"): (a) against L0 at `n`, (b) against n at `l0`.

    What to see: left, which method lies lowest at an L0; right, which falls fastest with n. Bears
    on C1, C2 and C4 (nMSE) and C3 (delta cross-entropy). Arguments and errors as for `frontier`.
    """
    fig = style.new_figure(height=5.0)
    left, right = fig.subplots(1, 2)
    by_l0 = frontier(autoencoders, methods, metric, n, left, published, published_variance)
    by_n = scaling(autoencoders, methods, metric, l0, right)
    right.set_ylabel("")
    left.set_title(f"(a) n = {n:,} latents", loc="left")
    right.set_title(rf"(b) $L_0$ = {l0};  lines: $a\,n^{{-b}}$", loc="left")

    # The entries of (b) carry the exponents, so they stand for both panels; notes come last.
    handles = by_l0 | by_n
    order = [m for m in assign_styles(methods, autoencoders["method"]) if m in handles]
    order += [key for key in handles if key not in order]
    style.legend_below(fig, [handles[key] for key in order], columns=3)
    return fig
