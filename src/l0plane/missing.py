"""What a run was asked for and does not have: a table, so that nobody takes a gap for a result.

And whose the run is while it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pandas as pd

from l0plane import tidy
from l0plane.files import locked
from l0plane.jobs import AGAIN, DONE

#: The locks that this process holds.
_held: list[TextIO | None] = []


def hold(results: str | Path, logs: str | Path) -> None:
    """Hold a run's folder until this process ends, whatever ends it.

    Raises:
        UserError: another Snakemake has it, or a job of an earlier one is still at work; each would
            remove the other's files.
    """
    with suppress(OSError):  # jobs will say more of it
        Path(results).mkdir(parents=True, exist_ok=True)
    taken = (
        f"{results}: another snakemake is at work on this run; wait for it, or give this one "
        "a name of its own (--config run=...)"
    )
    _held.append(locked(Path(results, ".lock"), taken))
    for lock in Path(logs).rglob(".*.lock"):
        log = lock.with_name(lock.stem[1:])
        taken = (
            f"{log}: a job of an earlier snakemake is still at work; wait for it or stop it (on a "
            f"cluster: squeue --me, scancel), {AGAIN}"
        )
        if own := locked(lock, taken):
            own.close()


class Job(NamedTuple):
    """One job that an autoencoder's row in the results needs."""

    rule: str
    output: str
    """A file that is there once it is done."""
    log: str


class Asked(NamedTuple):
    """One autoencoder that a run asks for."""

    keys: dict[str, Any]
    """run, method, n, l0_target, seed; None for what is not known before it is read."""
    jobs: Sequence[Job]
    """In their order; the last measures it."""
    own: int = 2
    """How many of them, the last ones, make it and its row: the last but one trains it, unless it
    comes from elsewhere."""


def missing(asked: Sequence[Asked]) -> pd.DataFrame:
    """The autoencoders that are not there or not measured: their keys, and the reason.

    Each try of a job begins its log anew. What stands there is the reason only if that try came to
    nothing: where it went well and its files were lost since, the job has not begun again.
    """
    rows = []
    for keys, jobs, own in asked:
        if all(Path(job.output).exists() for job in jobs[-own:]):
            continue
        undone = [job for job in jobs if not Path(job.output).exists()]
        begun = [job for job in undone if Path(job.log).exists()]
        begun.sort(key=lambda job: Path(job.log).stat().st_mtime_ns, reverse=True)
        reasons = filter(None, map(_reason, begun))
        rows.append({**keys, "reason": next(reasons, "not begun")})
    # Whole numbers stay whole beside what is not known.
    return pd.DataFrame(rows, columns=[*tidy.KEYS, "reason"]).convert_dtypes()


def note(asked: Sequence[Asked], path: str | Path) -> str:
    """Write the table of what is missing to `path`, or remove it where nothing is.

    Returns:
        What to tell the person; empty where nothing is missing.
    """
    table = missing(asked)
    if table.empty:
        Path(path).unlink(missing_ok=True)
        return ""
    try:
        tidy.write(table, path)
        place = f"{path} names them"
    except OSError as error:
        place = f"{path} cannot be written: {error.strerror}"
    counts = table["reason"].value_counts(sort=False)
    reasons = "".join(f"\n  {count} x {reason}" for reason, count in counts.items())
    return f"{len(table)} of {len(asked)} autoencoders are missing ({place}):{reasons}"


def _reason(job: Job) -> str | None:
    """What the job said last, if its last try failed; `jobs.job` ends the log of one that did."""
    lines = Path(job.log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1] if lines else ""
    entries = [line for line in lines if not line.startswith("  ")]  # without the files it wrote
    if entries and entries[-1].startswith(DONE):
        return None
    if not last:
        return (
            f"{job.rule}: ended before its log began: an error in what it imports (Snakemake shows "
            "it), or killed"
        )
    said = f"; it last said: {last}"
    if f": {job.rule}, l0plane " not in lines[0]:  # a program of a user's own
        return last if last.startswith(f"{job.rule}: ") else f"{job.rule}: failed{said}"
    # A message may have several lines.
    for number in range(len(lines) - 1, 0, -1):
        if lines[number].startswith(f"{job.rule}: "):
            return " ".join(line.strip() for line in lines[number:])
    return f"{job.rule}: stopped without a message, as when killed (out of memory?){said}"
