"""Tidy tables on disk: keys first, provenance last, CSV or Parquet by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from l0plane.files import replacing


def arrange(
    table: pd.DataFrame, keys: dict[str, Any], provenance: dict[str, Any] | None = None
) -> pd.DataFrame:
    """Put the columns `keys` before those of `table` and the columns `provenance` behind them."""
    provenance = provenance or {}
    return table.assign(**keys, **provenance)[[*keys, *table.columns, *provenance]]


def read(path: str | Path) -> pd.DataFrame:
    """Read a table."""
    return pd.read_csv(path) if Path(path).suffix == ".csv" else pd.read_parquet(path)


def write(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table, whole or not at all."""
    with replacing(path) as part:
        if Path(path).suffix == ".csv":
            table.to_csv(part, index=False)
        else:
            table.to_parquet(part, index=False)
