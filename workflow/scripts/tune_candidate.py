"""One candidate of the tuning: a method with one learning rate (and one value of a knob).

Reads stored activations; trains at the level that the configuration's tuning section gives and
writes one row with the errors on the validation activations, at equal L0: a penalty's lambda is
searched for anew, since it depends on the learning rate. Training that diverges is a row too.
"""

import math
from pathlib import Path

import pandas as pd

from l0plane import __version__, tidy
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder
from l0plane.device import available_device
from l0plane.jobs import job
from l0plane.training import Diverged, train
from l0plane.tuning import error_at, search_lambda, validate

MEASURED = ["lambda", "nmse", "nmse_se", "l0", "dead_fraction"]

with job(snakemake):
    params, method = snakemake.params, snakemake.wildcards.method
    store = ActivationStore(snakemake.input.train, available_device())
    keys = {"run": params.run, "method": method, "n": params.n, "l0_target": params.l0, "seed": 0}
    hyperparameters = params.hyperparameters
    validation = ActivationStore(snakemake.input.validation, available_device())
    level = (params.n, params.l0)
    base = snakemake.input.get("base")
    try:
        if params.penalised:
            trials = search_lambda(
                method, store, validation, *level, params.settings, hyperparameters
            )
            measured = trials.iloc[0].to_dict() | {"nmse": error_at(trials, params.l0)}
        else:
            start = Autoencoder.load(Path(base[0]).parent) if base else None
            autoencoder, _, _ = train(
                method, store, *level, 0, params.settings, hyperparameters, base=start
            )
            measured = {"lambda": math.nan, **validate(autoencoder, validation)}
    except Diverged as error:
        print(error)
        measured = dict.fromkeys(MEASURED, math.nan)
    knob = next((name for name in params.changed if name != "learning_rate"), None)
    row = {"knob": knob, "value": params.changed.get(knob, math.nan), **measured}
    last = {
        "training_tokens": params.settings["tokens"],
        "learning_rate": hyperparameters["learning_rate"],
        "corpus_sha256": store.manifest["corpus_sha256"],
        "model_sha256": store.manifest["model_sha256"],
        "version": __version__,
    }
    tidy.write(tidy.arrange(pd.DataFrame([row]), keys, last), snakemake.output[0])
