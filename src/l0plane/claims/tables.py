"""The tidy tables of a run that the claims are judged on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from l0plane import tidy
from l0plane.files import UserError
from l0plane.formats import published_latents

KEYS = tidy.KEYS[1:]
CURVE_KEYS = [*KEYS, "selection", "value"]

REQUIRED = {
    "autoencoders": [*KEYS, "l0", "nmse"],
    "contexts": [*KEYS, "context", "squared_error", "variance", "l0"],
    "curve_contexts": [*CURVE_KEYS, "context", "squared_error", "variance", "l0"],
    "refinement_contexts": [
        *KEYS,
        *("context", "squared_error", "squared_error_refined", "variance", "l0"),
        *("shift_sum", "absolute_shift_sum", "active"),
    ],
    "tuning": [*KEYS, "learning_rate"],
}


@dataclass(frozen=True)
class Tables:
    """What a run measured; a table that is None or empty leaves its claims not measured.

    Raises:
        UserError: a table lacks a column.
    """

    autoencoders: pd.DataFrame | None = None
    """One row per autoencoder; used for the errors only where `contexts` is absent."""
    contexts: pd.DataFrame | None = None
    """One row per (autoencoder, context); `delta_ce` is optional."""
    curve_contexts: pd.DataFrame | None = None
    """One row per (point of a test-time curve, context); `delta_ce` is optional."""
    refinement_contexts: pd.DataFrame | None = None
    """One row per (refined autoencoder, context)."""
    tuning: pd.DataFrame | None = None
    """One row per learning rate tried; `dead_fraction` and `diverged` are optional."""

    def __post_init__(self) -> None:
        for name, required in REQUIRED.items():
            table = getattr(self, name)
            if table is None:
                continue
            if name == "autoencoders" and "nmse" in table.columns:  # what failed has none
                table = table.dropna(subset="nmse")
                object.__setattr__(self, name, table)
            if table.empty:
                object.__setattr__(self, name, None)
                continue
            missing = [column for column in required if column not in table.columns]
            if missing:
                raise UserError(f"{name}: no column {', '.join(missing)}")

    @property
    def run(self) -> str:
        """Name of the run, from the first table that carries one."""
        for field in fields(self):
            table = getattr(self, field.name)
            if table is not None and "run" in table.columns:
                return str(table["run"].iloc[0])
        return ""

    @classmethod
    def read(cls, directory: str | Path) -> Tables:
        """Read the tables that exist in the `directory` of a run."""
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"{directory}: no such directory of results")
        found: dict[str, pd.DataFrame] = {}
        for name in REQUIRED:
            if (parquet := directory / f"{name}.parquet").exists():
                found[name] = pd.read_parquet(parquet)
            elif (csv := directory / f"{name}.csv").exists():
                found[name] = pd.read_csv(csv)
        return cls(**found)


def published_tables(path: str | Path) -> Tables:
    """Convert a published frontier (columns method, l0, mse, delta_ce) to `Tables`.

    `mse` is summed over the raw activation's coordinates; it stands in for nMSE without any
    constant, since every claim that these tables can bear is about a ratio of errors, in which
    the constant cancels. The L0 asked for is not published: the L0 reached takes its place.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    missing = {"method", "l0", "mse", "delta_ce"} - set(table.columns)
    if missing:
        raise UserError(f"{path}: no column {', '.join(sorted(missing))}")
    return Tables(
        autoencoders=table.rename(columns={"mse": "nmse"}).assign(
            run=f"published/{path.stem}", n=published_latents(path), l0_target=table["l0"], seed=0
        )
    )
