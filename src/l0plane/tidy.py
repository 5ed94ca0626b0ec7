"""Tidy tables on disk: keys first, provenance last, CSV or Parquet by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from l0plane.files import UserError, replacing


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
