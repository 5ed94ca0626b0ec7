"""The constant lambda that gives a penalty method an L0: found by training, kept in a table.

A penalty method is compared at the L0 asked for, with its lambda constant from the first step as in
the papers. Which lambda that is has to be searched for, on validation activations.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from l0plane import tidy
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder, Failed
from l0plane.checkpoint import Checkpoint, subject_hash
from l0plane.files import UserError, read_sealed, sealed, write_json
from l0plane.penalty import TRIALS, PenaltyController
from l0plane.training import code_of, train
from l0plane.tuning import SETTLED, validate

#: A lambda gives the L0 if it comes as close as this (relative); `TRIALS` trainings are the most.
CLOSE = 0.03
#: A steered training whose L0 is off by more than this factor says nothing about lambda.
LOST = 1.25
#: How much L0 answers lambda, -d log L0 / d log lambda, is about 1: estimates from two trainings
#: that lie outside of these are taken for noise. Below the negative of the least one, L0 rises.
LEAST_ANSWER, MOST_ANSWER = 0.3, 3.0
#: Most that the search changes lambda by at once.
FARTHEST = 10.0
#: Once a lambda gives the L0, the search goes down from the least tried by factors of `PROBE`
#: until L0 is `MORE` times the one asked for, and up from the greatest until it is so many times
#: `FEWER`; never farther than a factor of `FARTHEST_PROBE` from the lambdas that give it.
PROBE, MORE, FEWER, FARTHEST_PROBE = 2.0, 3.0, 2.0, 32.0
#: Between lambdas closer than this (a factor) L0 jumps.
CLIFF = 1.1
#: How fast nMSE can fall as L0 rises, d log nMSE / d log L0; what is beyond is no frontier.
STEEPEST = -2.0

#: What of `training` and of hyperparameters lambda does not depend on, or has a column of its own.
_APART = {"tokens", "aux_k", "aux_weight", "dead_after_tokens", "stream_buffer_tokens"}
_APART |= {"learning_rate", "lambda"}

#: What a trial of the search says.
TRIED = ["lambda", "nmse", "nmse_se", "l0", "dead_fraction"]


class Progress:
    """What a search has found so far, on disk: one that was killed goes on from there.

    Args:
        directory: where it lies; nothing else may be there.
        minutes: least time between two saves of the training that is going on.
    """

    def __init__(self, directory: str | Path, minutes: float):
        self.directory = Path(directory)
        self.checkpoint = Checkpoint(self.directory / "training", minutes)
        self.subject = ""
        self.found: dict[str, dict[str, float]] = {}

    def begin(self, subject: dict[str, Any]) -> None:
        """Read what an earlier try found, if it was a search of the same subject."""
        self.subject, self.found = subject_hash(subject), {}
        try:
            saved = read_sealed(self._file)
            if saved["subject"] == self.subject:
                self.found = saved["found"]
                print(f"going on after {len(self.found)} trainings of the search", flush=True)
        except (UserError, KeyError, TypeError):  # none, or not whole
            pass

    def once(
        self, name: str, measure: Callable[[Checkpoint], dict[str, float]]
    ) -> dict[str, float]:
        """What `measure` gives; if it was measured before, what it gave."""
        if name not in self.found:
            self.found[name] = measure(self.checkpoint)
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                write_json(self._file, sealed({"subject": self.subject, "found": self.found}))
            except OSError as error:  # a full disk costs what could be gone on from, no more
                print(f"{self._file}: not written ({error})", flush=True)
            self.checkpoint.remove()
        return self.found[name]

    def remove(self) -> None:
        """Forget it: the search is finished and its result is written."""
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _file(self) -> Path:
        return self.directory / "trials.json"


def search_lambda(
    method: str,
    store: ActivationStore,
    validation: ActivationStore,
    n: int,
    l0: float,
    settings: dict[str, Any],
    hyperparameters: dict[str, Any],
    seed: int = 0,
    start: float | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Train a penalty method with one constant lambda after another until its L0 is `l0`.

    The first lambda comes from a training with a steered one, if `start` does not give it; the
    next ones from the secant of log L0 over log lambda, inside the bracket once there is one. L0
    need not fall steadily with lambda, and several can give the same: so the search looks on both
    sides of the one that it found (`following`), and takes the one with the least error.

    Args:
        method: a key of `METHODS` whose loss has a penalty.
        store: training activations.
        validation: where L0 and error are measured.
        n: how many latents.
        l0: the L0 asked for.
        settings: the configuration's `training` section.
        hyperparameters: as for `train`, without `lambda`.
        seed: of the trainings.
        start: the first lambda, such as the one that was found for another seed; the search ends
            with the first that gives the L0. If its training fails, it begins as without.
        progress: where a killed search has left its trainings, if it has; it is written from now
            on. Its owner removes it when the result is safe.

    Returns:
        One row per training: `lambda` and what `validate` measures. First the one that was found:
        of those whose L0 is `CLOSE` the one with the least error, or else the closest; then the
        others as their lambdas come nearest to its. Beyond a lambda whose training failed, and
        around it, none is tried; before one gives the L0, the search ends with it.

    Raises:
        Failed: as `train` does, if not one training went through.
    """
    if progress is not None:
        facts = [settings, hyperparameters, store.manifest, validation.manifest]
        progress.begin({"search": [method, n, l0, seed, *facts], "code": code_of(method)})

    def once(name: str, fixed: dict[str, Any], measure: Callable[..., dict[str, float]]) -> Any:
        """What is measured of a training with these hyperparameters, in this or an earlier try."""

        def trained(checkpoint: Checkpoint | None = None) -> dict[str, float]:
            arguments = (method, store, n, l0, seed, settings, fixed)
            return measure(*train(*arguments, checkpoint=checkpoint)[:2])

        return trained() if progress is None else progress.once(name, trained)

    def late(_: Autoencoder, log: pd.DataFrame) -> dict[str, float]:
        rows = log.iloc[len(log) // 2 :]
        return {"log_lambda": float(np.log(rows["lambda"]).mean()), "l0": float(rows["l0"].mean())}

    factor = start
    if factor is None:
        steered = once("steered", hyperparameters, late)
        factor = math.exp(steered["log_lambda"])
        if abs(math.log(max(steered["l0"] / l0, 1e-9))) > math.log(LOST):
            # Its lambda overshot and killed latents. From below, the search comes to the least
            # lambda that gives the L0: larger ones can give it too, often with a larger error.
            factor = PenaltyController.START
    trials: list[dict[str, float]] = []
    failed: list[float] = []
    while factor is not None and len(trials) + len(failed) < TRIALS:
        fixed = {**hyperparameters, "lambda": factor}
        try:
            measured = once(repr(factor), fixed, lambda found, _: validate(found, validation))
        except Failed as failure:
            if trials:
                print(f"lambda {factor:.4g} fails: {failure}", flush=True)
                failed.append(factor)
            elif start is None:
                raise
            else:
                print(f"lambda {factor:.4g}, of another seed, fails with this one", flush=True)
                arguments = (method, store, validation, n, l0, settings, hyperparameters, seed)
                return search_lambda(*arguments, progress=progress)
        else:
            trials.append({"lambda": factor, **measured})
            print(f"lambda {factor:.4g} gives L0 {measured['l0']:.2f} (asked: {l0:g})", flush=True)
        factor = following(trials, l0, around=start is None, failed=failed)
    table = pd.DataFrame(trials, columns=TRIED)
    distance = np.abs(np.log(table["l0"].clip(lower=1e-9) / l0))
    close = table["nmse"].where(_close(table["l0"], l0))
    found = close.idxmin() if close.notna().any() else distance.idxmin()
    away = np.abs(np.log(table["lambda"] / table["lambda"][found]))
    return table.iloc[np.argsort(away, kind="stable")].reset_index(drop=True)


def following(
    trials: list[dict[str, float]], l0: float, around: bool, failed: Sequence[float] = ()
) -> float | None:
    """The lambda to try after some trials of a search; None where it is over.

    Once a lambda gives the L0, and if `around`, ones beyond the least are tried until one gives
    many more latents, and ones beyond the greatest until one gives many fewer; not beyond one that
    `failed`, nor between neighbours around it. Wherever two neighbours of which neither gives the
    L0 then have it between them, one that gives it is sought there, too, until L0 jumps between
    close lambdas.
    """
    tried = sorted((trial["lambda"], trial["l0"]) for trial in trials)
    found = [factor for factor, got in tried if _close(got, l0)]
    if not found:
        if failed:
            return None
        if unanswered(trials, l0):
            # So small a penalty, where steering left lambda, has nothing to say yet.
            small = PenaltyController.START
            return small if tried[-1][0] < small and tried[-1][1] > l0 else None
        return next_lambda([(trial["lambda"], trial["l0"]) for trial in trials], l0)
    if not around:
        return None
    (least, most_latents), (greatest, fewest_latents) = tried[0], tried[-1]
    down, up = min([least, *failed]) == least, max([greatest, *failed]) == greatest
    if down and most_latents < MORE * l0 and least > found[0] / FARTHEST_PROBE:
        return least / PROBE
    if up and fewest_latents > l0 / FEWER and greatest < found[-1] * FARTHEST_PROBE:
        return greatest * PROBE
    for low, high in _crossings(tried, l0):
        given = _close(low[1], l0) or _close(high[1], l0)
        spoilt = any(low[0] < factor < high[0] for factor in failed)
        if not (given or spoilt or high[0] < CLIFF * low[0]):
            return _secant(_point(*low, l0), _point(*high, l0))
    return None


def _crossings(
    trials: list[tuple[float, float]], l0: float
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Neighbours among (lambda, L0) with `l0` between them, those of the largest lambdas first."""
    pairs = reversed([*pairwise(sorted(trials))])
    return [(low, high) for low, high in pairs if (low[1] > l0) != (high[1] > l0)]


def _close(got: Any, l0: float) -> Any:
    return abs(got / l0 - 1) <= CLOSE


def unanswered(trials: list[dict[str, float]], l0: float) -> bool:
    """Whether two lambdas in turn brought an L0 that misses on one side only no closer to `l0`."""
    errors = [math.log(max(trial["l0"] / l0, 1e-9)) for trial in trials]
    one_side = min(errors) > 0 or max(errors) < 0
    return one_side and len(errors) > 2 and min(map(abs, errors[-2:])) >= abs(errors[-3])


def next_lambda(trials: list[tuple[float, float]], l0: float) -> float:
    """The lambda to try next, from the (lambda, L0) tried so far.

    Between neighbours that have the L0 between them, if there are such; else beyond the last, by
    the answer that the two latest trials showed. Where L0 clearly rises with lambda it is on the
    other side, unless one was tried there before: the L0 of a small lambda is large in the end,
    and that of a large one small.
    """
    for low, high in _crossings(trials, l0):
        return _secant(_point(*low, l0), _point(*high, l0))
    points = [_point(factor, got, l0) for factor, got in trials]
    answer = 1.0
    if len(points) > 1:
        (x0, y0), (x1, y1) = points[-2:]
        answer = -(y1 - y0) / (x1 - x0)
    too_many = points[0][1] > 0
    other_side = min(points) if too_many else max(points)
    rises = answer < -LEAST_ANSWER and other_side in points[-2:]
    x, y = max(points) if too_many != rises else min(points)
    answer = max(answer, -MOST_ANSWER if rises else LEAST_ANSWER)
    step = y / min(answer, MOST_ANSWER)
    return math.exp(x + min(max(step, -math.log(FARTHEST)), math.log(FARTHEST)))


def _point(factor: float, got: float, l0: float) -> tuple[float, float]:
    """Log lambda, and how far off its L0 is: of a collapsed one that says nothing."""
    return math.log(factor), math.log(max(got / l0, 0.05))


def _secant(one: tuple[float, float], other: tuple[float, float]) -> float:
    """The lambda at which the error of L0, of two signs at two points, is zero on their line."""
    (x0, y0), (x1, y1) = one, other
    # A point close to one end halves the bracket slowly: the secant stays off the ends.
    return math.exp(x0 + (x1 - x0) * min(max(y0 / (y0 - y1), 0.1), 0.9))


def error_at(trials: pd.DataFrame, l0: float) -> float:
    """nMSE at exactly `l0`, log-log from the trial found by `search_lambda` to the next one.

    The error of the one found itself if that is off by more than `SETTLED`, or if from it to
    the next one the error does not fall as on a frontier.
    """
    found = trials.iloc[0]
    if len(trials) == 1 or abs(found["l0"] / l0 - 1) > SETTLED:
        return float(found["nmse"])
    other = trials.iloc[1]
    if other["l0"] in (0, found["l0"]):
        return float(found["nmse"])
    slope = math.log(other["nmse"] / found["nmse"]) / math.log(other["l0"] / found["l0"])
    # Two lambdas that give about one L0 with two errors say nothing about the frontier.
    if not STEEPEST <= slope <= 0:
        return float(found["nmse"])
    return float(found["nmse"] * (l0 / found["l0"]) ** slope)


# --- the table of what was found


def setting(
    manifest: dict[str, Any], settings: dict[str, Any], hyperparameters: dict[str, Any]
) -> str:
    """A name for all that a lambda holds for beside what lambdas.csv says in columns of its own.

    Args:
        manifest: of the training activations.
        settings: the configuration's `training` section.
        hyperparameters: the method's.
    """
    facts = {
        "activations": {key: manifest[key] for key in ("hook", "context", "drop_first_position")},
        "training": {key: settings[key] for key in settings if key not in _APART},
        "method": {key: hyperparameters[key] for key in hyperparameters if key not in _APART},
    }
    if facts["training"].get("precision") == "float32":  # which is what no precision is
        del facts["training"]["precision"]
    # With a letter in front: digits alone would be read back as a number.
    return "s" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def read_lambda(
    paths: Sequence[str | Path],
    wanted: dict[str, Any],
    seed: int,
    settings: dict[str, Any],
    rate: float,
) -> float | None:
    """The lambda that an earlier search found for one autoencoder, from its tables.

    Args:
        paths: of tables like lambdas.csv.
        wanted: method, n, l0_target, corpus_sha256, model_sha256 and `setting`.
        seed: of the training. Where it was not searched for, the lowest that was stands in.
        settings: the configuration's `training` section.
        rate: the learning rate.

    Returns:
        Nothing if no row is about this level, text, model and training: lambda would miss; nor if
        the search failed.

    Raises:
        UserError: the tables are not such.
    """
    table = pd.concat(map(tidy.read, paths), ignore_index=True)
    wanted = {**wanted, "training_tokens": settings["tokens"]}
    if missing := {*wanted, "seed", "lambda", "learning_rate"} - set(table):
        raise UserError(
            f"{paths[0]}: no column {', '.join(sorted(missing))}; expected the lambdas.csv of "
            "`snakemake lambdas`"
        )
    rows = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    rows = rows[np.isclose(rows["learning_rate"], rate, rtol=1e-6)]
    found = rows.drop_duplicates("seed").set_index("seed")["lambda"].sort_index()
    value = found[seed] if seed in found else next(iter(found.dropna()), math.nan)
    return None if math.isnan(value) else float(value)
