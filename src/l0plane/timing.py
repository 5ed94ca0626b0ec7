"""Where the time of a run goes: Snakemake's own benchmark file of every job, as one table."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from l0plane.files import UserError

#: Column of a benchmark file -> column of the table.
_COLUMNS = {"s": "seconds", "cpu_time": "cpu_seconds", "max_rss": "max_rss_mb"}
#: First folder of a benchmark file's path -> what its jobs do; a file at the top names its rule.
_STAGES = {
    "autoencoders": "train",
    "lambdas": "search_lambda",
    "evaluate": "evaluate",
    "figures": "draw",
    "tuning": "tune",
}


def read_benchmarks(
    directory: str | Path, run: str, superseded: Collection[str] = ()
) -> pd.DataFrame:
    """The benchmark files (`*.tsv`) under a run's folder of logs.

    Args:
        directory: the folder.
        run: its name.
        superseded: jobs to leave out: their results were made anew by others.

    Returns:
        One row per job: run, stage (what it does), method (where it is about one), job (its path
        without suffix), wall-clock `seconds`, `cpu_seconds` and `max_rss_mb`. Jobs that took too
        short to be sampled have NaN for the last two.

    Raises:
        UserError: there is no such file.
    """
    rows = []
    for path in sorted(Path(directory).rglob("*.tsv")):
        parts = path.relative_to(directory).with_suffix("").parts
        if "/".join(parts) in superseded:
            continue
        stage = _STAGES.get(parts[0], parts[0])
        about_method = stage in ("train", "search_lambda", "evaluate", "tune")
        measured = pd.read_csv(path, sep="\t", na_values="-").iloc[-1]
        rows.append(
            {
                "run": run,
                "stage": stage,
                "method": parts[1] if about_method else None,
                "job": "/".join(parts),
                **{name: float(measured[column]) for column, name in _COLUMNS.items()},
            }
        )
    if not rows:
        raise UserError(f"{directory}: no benchmark file; expected those of a finished run")
    return pd.DataFrame(rows)
