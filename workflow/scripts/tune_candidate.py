"""One candidate of the tuning: a method with one learning rate (and one value of a knob).

Reads stored activations, and for a neighbour of the best of the grid the rows of these; trains at
one of the L0s that the configuration's tuning section gives and writes one row with the errors on
the validation activations, at equal L0: a penalty's lambda is searched for anew, since it depends
on the learning rate. A training that fails is a row too. A job that was killed goes on from what
lies beside its log.
"""

import math
from pathlib import Path

import pandas as pd

from l0plane import __version__, tidy
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder, Failed
from l0plane.checkpoint import Checkpoint
from l0plane.device import available_device, use_precision
from l0plane.files import rebuilt_by_the_run
from l0plane.jobs import job
from l0plane.lambdas import TRIED, Progress, error_at, search_lambda
from l0plane.training import train
from l0plane.tuning import neighbour, validate

with job(snakemake):
    params, method = snakemake.params, snakemake.wildcards.method
    use_precision(params.settings)
    store = ActivationStore(snakemake.input.train, available_device())
    n, l0 = level = params.n, int(snakemake.wildcards.l0)
    keys = {"run": params.run, "method": method, "n": n, "l0_target": l0, "seed": 0}
    changed = params.changed
    if grid := snakemake.input.get("grid"):
        rows = pd.concat([tidy.read(path) for path in grid], ignore_index=True)
        changed = neighbour(rows, snakemake.wildcards.side)
        print("beside the best of the grid:", changed)
    hyperparameters = {**params.hyperparameters, **changed}
    validation = ActivationStore(snakemake.input.validation, available_device())
    base = snakemake.input.get("base")
    place = Path(snakemake.log[0]).with_suffix(".checkpoint")
    minutes = snakemake.config["execution"]["checkpoint_minutes"]
    progress = (Progress if params.penalised else Checkpoint)(place, minutes)
    try:
        if params.penalised:
            trials = search_lambda(
                *(method, store, validation, *level, params.settings, hyperparameters),
                progress=progress,
            )
            measured = trials.iloc[0].to_dict() | {"nmse": error_at(trials, l0)}
        else:
            start = None
            if base:
                with rebuilt_by_the_run(Path(base[0]).parent):
                    start = Autoencoder.load(Path(base[0]).parent)
            autoencoder, _, _ = train(
                *(method, store, *level, 0, params.settings, hyperparameters),
                *(start, progress),
            )
            measured = {"lambda": math.nan, **validate(autoencoder, validation)}
    except Failed as error:
        print(error)
        measured = dict.fromkeys(TRIED, math.nan)
    knob = next((name for name in changed if name != "learning_rate"), None)
    row = {"knob": knob, "value": changed.get(knob, math.nan), **measured}
    last = {
        "training_tokens": params.settings["tokens"],
        "learning_rate": hyperparameters["learning_rate"],
        "corpus_sha256": store.manifest["corpus_sha256"],
        "model_sha256": store.manifest["model_sha256"],
        "version": __version__,
    }
    tidy.write(tidy.arrange(pd.DataFrame([row]), keys, last), snakemake.output[0])
    progress.remove()
