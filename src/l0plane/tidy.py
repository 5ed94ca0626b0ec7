"""Tidy tables on disk: keys first, provenance last, CSV or Parquet by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from l0plane.files import UserError, replacing

#: What stands first and last in every measured table.
KEYS = ["run", "method", "n", "l0_target", "seed"]
PROVENANCE = ["training_tokens", "learning_rate", "corpus_sha256", "model_sha256", "version"]
_PER_CONTEXT = ["context", "squared_error", "variance", "l0", "delta_ce"]
_REFINED = ["context", "squared_error", "squared_error_refined", "shift_sum"]
_REFINED += ["absolute_shift_sum", "value_sum", "active", "variance", "l0"]
#: The columns between them, for where there is nothing to measure.
MEASURED = {
    "autoencoders": [
        *("lambda", "lambda_steered", "l0", "l0_se", "nmse", "nmse_se", "delta_ce", "delta_ce_se"),
        *("kl", "kl_se", "ce_original", "loss_recovered_zero", "loss_recovered_mean"),
        *("dead_fraction", "relative_reconstruction_bias", "training_seconds"),
        *("evaluation_tokens", "source", "weights_sha256", "failed"),
    ],
    "contexts": [*_PER_CONTEXT, "kl"],
    "training": [
        *("step", "tokens", "loss", "gradient_norm", "nmse", "l0", "dead_fraction", "lambda"),
    ],
    "refinement": [
        *("l0", "nmse", "nmse_refined", "mean_shift", "mean_absolute_shift", "mean_value"),
        "fraction_up",
    ],
    "refinement_contexts": _REFINED,
    "refinement_histogram": ["bin_left", "bin_right", "count"],
    "curves": ["selection", "value", "l0", "nmse", "delta_ce"],
    "curve_contexts": ["selection", "value", *_PER_CONTEXT],
}


def together(tables: list[pd.DataFrame], name: str) -> pd.DataFrame:
    """The rows of several tables called `name` as one; all its columns also where there is none."""
    # An empty table has no types to agree with.
    rows = [table for table in tables if len(table)]
    if rows:
        return pd.concat(rows, ignore_index=True)
    return pd.DataFrame(columns=[*KEYS, *MEASURED[name], *PROVENANCE])


def failures(autoencoders: pd.DataFrame) -> list[str]:
    """For each row of autoencoders.csv without measurements: which one it is, and why."""
    if "failed" not in autoencoders:  # somebody else's table
        return []
    rows = autoencoders.dropna(subset="failed")
    return [
        f"{row.method} n={row.n} L0={row.l0_target} seed={row.seed}: {row.failed}"
        for row in rows.itertuples()
    ]


def arrange(
    table: pd.DataFrame, keys: dict[str, Any], provenance: dict[str, Any] | None = None
) -> pd.DataFrame:
    """Put the columns `keys` before those of `table` and the columns `provenance` behind them."""
    provenance = provenance or {}
    return table.assign(**keys, **provenance)[[*keys, *table.columns, *provenance]]


def read(path: str | Path) -> pd.DataFrame:
    """Read a table; UserError naming the file where it is none."""
    try:
        return pd.read_csv(path) if Path(path).suffix == ".csv" else pd.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable table ({error})") from None


def write(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table, whole or not at all."""
    with replacing(path) as part:
        if Path(path).suffix == ".csv":
            table.to_csv(part, index=False)
        else:
            table.to_parquet(part, index=False)
