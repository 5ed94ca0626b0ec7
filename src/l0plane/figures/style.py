"""The common form of all figures: sizes, log axes, notes, legends, and saving."""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from l0plane.files import replacing

# 8 inches at 200 dpi are 1600 pixels: shown 800 pixels wide, a 10 point letter is 14 pixels high.
WIDTH = 8.0
GREY = "#6e6e6e"
L0_LABEL = r"$L_0$ (active latents per token)"
METRIC_LABELS = {"nmse": "normalised MSE", "delta_ce": "delta cross-entropy\n(nats per token)"}

_RC: Any = {
    **seaborn.axes_style("ticks"),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so the same bytes everywhere
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "l0plane",
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function under the project's style, leaving matplotlib's own untouched."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(height: float) -> Figure:
    """Return an empty figure, sizes in inches, that lays out its panels and legends by itself."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def save(fig: Figure, stem: str | Path) -> list[Path]:
    """Write `stem`.png (200 dpi), .pdf and .svg: the same figure gives the same bytes.

    Dates and versions stay out of the metadata, and the ids of SVG elements come from a fixed salt.
    """
    no_metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
        "svg": {"Creator": None, "Date": None},
    }
    paths = []
    with matplotlib.rc_context(_RC):
        for suffix, metadata in no_metadata.items():
            path = Path(f"{stem}.{suffix}")
            with replacing(path) as part:
                fig.savefig(part, dpi=200, metadata=metadata, format=suffix)
            paths.append(path)
    return paths


def powers_of_two(ax: Axes) -> None:
    """Make the x axis logarithmic with labels such as 8, 16, 32. Call it once all is drawn."""
    axis = _log_axis(ax, "x")
    low, high = np.log2(axis.get_view_interval())
    for step in (1, 2, 4):
        ticks = 2.0 ** np.arange(np.ceil(low / step) * step, high + 1e-9, step)
        if len(ticks) <= 8:
            break
    short = high > np.log2(10_000)
    labels = [f"{t / 1024:g}k" if short and t >= 1024 else f"{t:,g}" for t in ticks]
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter(labels))
    axis.set_minor_locator(NullLocator())


def powers_of_ten(ax: Axes, name: str = "y", highest: float = np.inf) -> None:
    """Make axis `name` logarithmic with labels such as 0.1, 0.2. Call it once all is drawn.

    The axis ends at `highest` at the latest.
    """
    axis = _log_axis(ax, name)
    low, high = axis.get_view_interval()
    if low < highest < high:
        high = highest
        getattr(ax, f"set_{name}lim")(low, high)
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    even = [list(np.arange(10, 100, step) / 10) for step in (5, 2, 1)]
    for steps in ([1.0], [1, 3.0], [1, 2, 5.0], [1, 1.5, 2, 3, 4, 5, 7], *even):
        ticks = np.outer(decades, steps).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 4:
            break
    if len(ticks) < 2:  # all within a few percent: evenly spaced numbers
        ticks = np.asarray(MaxNLocator(4).tick_values(low, high))
        ticks = ticks[(ticks >= low) & (ticks <= high)]
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter([f"{t:.6g}" for t in ticks]))
    axis.set_minor_locator(LogLocator(subs=range(2, 10)))
    axis.set_minor_formatter(NullFormatter())


def _log_axis(ax: Axes, name: str) -> Axis:
    getattr(ax, f"set_{name}scale")("log")
    return getattr(ax, f"{name}axis")


def drop_nonpositive(ax: Axes, values: np.ndarray) -> np.ndarray:
    """Return `values` with those that a log axis cannot show as NaN, and say so in the panel."""
    hidden = int((values <= 0).sum())
    if hidden:
        plural = "s" if hidden > 1 else ""
        note(ax, f"{hidden} point{plural} at or below 0 not shown")
    return np.where(values > 0, values, np.nan)


def span_of_seeds(points: pd.DataFrame) -> list[pd.Series]:
    """How far the bars of `mean_over_seeds` go down and up; none where there is one seed."""
    several = points["seeds"] > 1
    ends = points["value"] - points["low"], points["high"] - points["value"]
    return [end.where(several) for end in ends]


def note(ax: Axes, text: str, x: float = 0.98, y: float = 0.98) -> None:
    """Write a small remark inside a panel, in axes coordinates, aligned to the nearer edges."""
    ax.text(
        x,
        y,
        text,
        transform=ax.transAxes,
        ha="right" if x > 0.5 else "left",
        va="top" if y > 0.5 else "bottom",
        fontsize=8.5,
        color=GREY,
        style="italic",
    )


def missing(ax: Axes, labels: Iterable[str]) -> None:
    """Say in a panel of which methods an autoencoder failed; one label for each that did."""
    counts = Counter(labels)
    if counts:
        failed = ", ".join(f"{count} of {label}" for label, count in counts.items())
        note(ax, "\n".join(textwrap.wrap(f"failed, not shown: {failed}", 40)), y=0.92)


def empty(ax: Axes, text: str) -> None:
    """Say in a panel why nothing is drawn in it."""
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", color=GREY, style="italic")


def method_handle(label: str, color: str, marker: str, **kwargs: Any) -> Line2D:
    """Return a legend entry: line and marker."""
    return Line2D([], [], label=label, color=color, marker=marker, **kwargs)


def legend_below(fig: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Put one legend for all panels under them, outside of every axes."""
    if handles:
        fig.legend(
            handles=list(handles),
            loc="outside lower center",
            ncols=columns,
            columnspacing=1.6,
            handletextpad=0.6,
        )
