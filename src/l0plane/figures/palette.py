"""One colour, marker and label per method, kept across all figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn
from matplotlib.colors import is_color_like, to_hex, to_rgb
from matplotlib.markers import MarkerStyle

from l0plane.files import UserError

# Markers with an inside, so that each can also be drawn hollow.
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*", "d", "8", "H"]
# Linear RGB as seen without the middle cones (Machado et al. 2009, severity 1).
_DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
# Linear RGB to cone responses, and their cube roots to OKLab (Ottosson 2020).
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure."""

    label: str
    color: str
    marker: str


def assign_styles(methods: pd.DataFrame, present: Iterable[str] = ()) -> dict[str, Style]:
    """Give each method its look, in the order of legends.

    `methods` is methods.csv; a blank or absent label, colour, marker or order is filled, always in
    the same way. `present` are methods met in the results: those not in the table come last.

    Raises:
        UserError: a colour or marker that matplotlib does not know.
    """
    table = methods.drop_duplicates("method").set_index("method")
    table = table.reindex(columns=["label", "color", "marker", "order"]).astype(
        {"label": object, "color": object, "marker": object, "order": float}
    )
    table = table.reindex([*table.index, *sorted(set(present) - set(table.index))])
    table = table.assign(id=table.index).sort_values(["order", "id"], na_position="last")
    looks = table[["label", "color", "marker"]].notna()
    for method in table.index:
        color, marker = table.at[method, "color"], table.at[method, "marker"]
        if looks.at[method, "color"] and not is_color_like(color):
            raise UserError(f"method {method}: color {color!r}; expected one such as '#0072b2'")
        if looks.at[method, "marker"] and marker not in MarkerStyle.markers:
            raise UserError(f"method {method}: marker {marker!r}; expected one of matplotlib's")

    colors = table.loc[looks["color"], "color"].to_list()
    markers = table.loc[looks["marker"], "marker"].to_list()
    styles = {}
    for method, row in table.iterrows():
        color, marker = row["color"], row["marker"]
        if not looks.at[method, "color"]:
            colors.append(color := _distant_color(colors))
        if not looks.at[method, "marker"]:
            markers.append(marker := min(_MARKERS, key=markers.count))
        label = row["label"] if looks.at[method, "label"] else method
        styles[str(method)] = Style(str(label), str(color), str(marker))
    return styles


def shade(color: str, position: float) -> str:
    """Lighten (position towards 0) or darken (towards 1) a colour; 0.5 leaves it as it is."""
    target = np.ones(3) if position < 0.5 else np.zeros(3)
    weight = 1.2 * abs(position - 0.5)
    red, green, blue = (1 - weight) * np.array(to_rgb(color)) + weight * target
    return to_hex((red, green, blue))


def _distant_color(taken: list[str]) -> str:
    """Return the candidate farthest from all taken colours, for full and for red-green vision."""
    candidates = [
        to_hex(color)
        for lightness in (0.4, 0.55, 0.7)
        for color in seaborn.husl_palette(24, s=0.9, l=lightness)
    ]
    others = np.array([_seen(color) for color in [*taken, "white"]])

    def distance(color: str) -> float:
        return float(np.linalg.norm(others - _seen(color), axis=2).min())

    return max(candidates, key=distance)


def _seen(color: str) -> np.ndarray:
    """OKLab coordinates of a colour, [2, 3]: as seen by full and by red-green vision."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    views = np.stack([linear, (_DEUTERANOPIA @ linear).clip(0, 1)])
    return np.cbrt(views @ _CONES.T) @ _OKLAB.T
