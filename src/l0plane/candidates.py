"""A candidate of the tuning: trained, and measured on validation activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from l0plane import __version__, tidy
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder, Failed
from l0plane.checkpoint import Checkpoint
from l0plane.files import rebuilt_by_the_run
from l0plane.lambdas import TRIED, Progress, error_at, search_lambda
from l0plane.training import code_of, train
from l0plane.tuning import validate


class TunedLevel(NamedTuple):
    """What all candidates of a method at one number of latents and L0 have in common.

    Attributes:
        run: the name of the run.
        method: a key of `METHODS`.
        n: how many latents.
        l0: the L0 asked for.
        settings: the configuration's `training` section, with the tokens of the tuning.
        penalised: whether a lambda is searched for.
        base: the weights of the autoencoder that the method starts from, if it does.
        train: training activations.
        validation: where L0 and error are measured.
        checkpoint_minutes: least time between two saves of a training.
    """

    run: str
    method: str
    n: int
    l0: int
    settings: dict[str, Any]
    penalised: bool
    base: str | None
    train: ActivationStore
    validation: ActivationStore
    checkpoint_minutes: float

    def candidate(
        self, hyperparameters: Mapping[str, float], changed: Mapping[str, float], place: Path
    ) -> pd.DataFrame:
        """One row of `tuning.csv`, but for what `choose` adds.

        A penalty's error is that at exactly the L0 asked for, with a lambda searched for anew,
        since it depends on the learning rate. A training that fails is a row without measurements.

        Args:
            hyperparameters: the method's own at this level.
            changed: those that the candidate has in place of them.
            place: where a killed job has left its trainings, if it has; they are kept there until
                its owner removes it.
        """
        tried = {**hyperparameters, **changed}
        progress = Progress(place, self.checkpoint_minutes)
        try:
            measured = (
                self._searched(tried, progress)
                if self.penalised
                else self._trained(tried, progress)
            )
        except Failed as error:
            print(error)
            measured = dict.fromkeys(TRIED, math.nan)
        knob = next((name for name in changed if name != "learning_rate"), None)
        row = {"knob": knob, "value": changed.get(knob, math.nan) if knob else math.nan, **measured}
        keys = {
            "run": self.run,
            "method": self.method,
            "n": self.n,
            "l0_target": self.l0,
            "seed": 0,
        }
        last = {
            "training_tokens": self.settings["tokens"],
            "learning_rate": tried["learning_rate"],
            "corpus_sha256": self.train.manifest["corpus_sha256"],
            "model_sha256": self.train.manifest["model_sha256"],
            "version": __version__,
        }
        return tidy.arrange(pd.DataFrame([row]), keys, last)

    def _searched(self, tried: dict[str, float], progress: Progress) -> dict[str, float]:
        trials = search_lambda(
            *(self.method, self.train, self.validation, self.n, self.l0, self.settings, tried),
            progress=progress,
        )
        return trials.iloc[0].to_dict() | {"nmse": error_at(trials, self.l0)}

    def _trained(self, tried: dict[str, float], progress: Progress) -> dict[str, float]:
        start = None
        if self.base:
            with rebuilt_by_the_run(Path(self.base).parent):
                start = Autoencoder.load(Path(self.base).parent)
        facts = [self.settings, tried, self.train.manifest, self.validation.manifest]
        base = None if start is None else start.digest()
        candidate = [self.method, self.n, self.l0, *facts, base]
        progress.begin({"candidate": candidate, "code": code_of(self.method)})

        def measure(checkpoint: Checkpoint) -> dict[str, float]:
            autoencoder, _, _ = train(
                *(self.method, self.train, self.n, self.l0, 0, self.settings, tried),
                *(start, checkpoint),
            )
            return validate(autoencoder, self.validation)

        return {"lambda": math.nan, **progress.once("trained", measure)}
