"""What tuning measures on validation activations, and which hyperparameters it chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder
from l0plane.device import full_precision

#: A candidate whose L0 is farther from the asked one than this (relative) did not settle: its
#: error cannot be compared at equal L0.
SETTLED = 0.1
#: By what factor the rates differ from the grid's best that are tried once it is known.
_SIDES = {"lower": 2**-0.5, "higher": 2**0.5}
#: How many rates a climb tries at most.
CLIMB = 7


@torch.no_grad()
@full_precision()
def validate(autoencoder: Autoencoder, store: ActivationStore) -> dict[str, float]:
    """Measure an autoencoder on all validation activations.

    Returns:
        `nmse`, `nmse_se` (over tokens, by the delta method), mean `l0`, and `dead_fraction`, the
        share of latents silent on all of them.
    """
    errors, l0 = [], 0
    x = store.sample(store.tokens)
    autoencoder = autoencoder.to(x.device)
    used = torch.zeros(autoencoder.n, dtype=torch.bool, device=x.device)
    for rows in x.split(4096):
        code = autoencoder.encode(rows)
        errors.append((rows - autoencoder.decode(code)).square().sum(1))
        used[code.indices.long()] = True
        l0 += len(code.indices)
    error = torch.cat(errors)
    mean = x.mean(0)
    variance = torch.cat([(rows - mean).square().sum(1) for rows in x.split(4096)])
    nmse = (error.sum() / variance.sum()).item()
    spread = (error - nmse * variance).std().item()
    return {
        "nmse": nmse,
        "nmse_se": spread / math.sqrt(len(x)) / variance.mean().item(),
        "l0": l0 / len(x),
        "dead_fraction": 1 - used.float().mean().item(),
    }


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """Add `diverged`, `off_target` and `chosen`: the least nMSE of a method's others at its level.

    They stand before the provenance. Diverged is what lost all finite numbers or is worse than
    predicting the mean; off target is what missed the asked L0 by more than `SETTLED`.
    """
    table = table.drop(columns=["diverged", "off_target", "chosen"], errors="ignore")
    diverged = ~(table["nmse"] < 1)
    off_target = ~((table["l0"] / table["l0_target"] - 1).abs() <= SETTLED)
    level = [table["method"], table["n"], table["l0_target"]]
    best = table["nmse"].where(~diverged & ~off_target).groupby(level).transform("min")
    chosen = (table["nmse"] == best) & ~off_target
    place = table.columns.get_loc("training_tokens")
    for name, column in (("chosen", chosen), ("off_target", off_target), ("diverged", diverged)):
        table.insert(place, name, column)
    return table


def sides(rates: Sequence[float]) -> list[str]:
    """Where a candidate beside the best one of a grid of `rates` is tried; of one rate nowhere."""
    return [*_SIDES] if len(rates) > 1 else []


def neighbour(grid: pd.DataFrame, side: str) -> dict[str, float]:
    """What a candidate beside the best one of the grid changes in its method's hyperparameters.

    Args:
        grid: rows of tuning.csv, those of one method and L0; `choose` need not have seen them.
        side: one of `sides`.

    Returns:
        The learning rate, of two digits, and the best one's value of the knob, if it has one. If
        none of the grid can be chosen, beside the one that came closest to its L0.
    """
    table = choose(grid)
    table["miss"] = (table["l0"] / table["l0_target"] - 1).abs()
    order = table.sort_values(["chosen", "diverged", "miss"], ascending=[False, True, True])
    best = order.iloc[0]
    changed = {"learning_rate": float(f"{best['learning_rate'] * _SIDES[side]:.2g}")}
    return changed | ({best["knob"]: best["value"]} if isinstance(best["knob"], str) else {})


def climb(rate: float, candidate: Callable[[float], pd.DataFrame]) -> pd.DataFrame:
    """Try a rate and those beside it, and go on at the end where the best one is.

    Args:
        rate: the first one. The others are 0.71, 1.4, 0.5, 2, ... times as large, a factor of
            sqrt 2 from each other.
        candidate: gives the row of a rate, as in `neighbour`.

    Returns:
        The rows by rate: all of them worse than one that has a neighbour on both sides, or as many
        as are tried at most. Where none can be chosen, the first three.
    """
    rows = {place: candidate(rate * _factor(place)) for place in (0, -1, 1)}
    while True:
        places = sorted(rows)
        table = pd.concat([rows[place] for place in places], ignore_index=True)
        best = table.index[choose(table)["chosen"]]
        ends = {0: places[0] - 1, len(places) - 1: places[-1] + 1}
        beyond = [ends[row] for row in best if row in ends]
        if not beyond or len(rows) == CLIMB:
            return table
        rows[beyond[0]] = candidate(rate * _factor(beyond[0]))


def size_factors(chosen: pd.DataFrame, n: int, l0: int) -> pd.Series:
    """What `learning_rate_factor` is to say of each chosen rate at another size than `n`.

    That is how many times as large the rate is as that chosen at `n` and `l0` times `1/sqrt(n)`, of
    three digits. NaN for all others, and where nothing was chosen there.
    """
    there = chosen[(chosen["n"] == n) & (chosen["l0_target"] == l0)].drop_duplicates("method")
    by_rule = chosen["method"].map(there.set_index("method")["learning_rate"]) * np.sqrt(
        n / chosen["n"]
    )
    factors = (chosen["learning_rate"] / by_rule).where(chosen["n"] != n)
    return factors.map(lambda factor: float(f"{factor:.3g}"))


def _factor(place: int) -> float:
    return float(f"{2 ** (place / 2):.2g}")
