"""One candidate of the tuning: a method with one learning rate (and one value of a knob).

Reads stored activations; trains at the level that the configuration's tuning section gives and
writes one row with the errors on the validation activations. Training that diverges is a row too.
"""

import math

import pandas as pd

from l0plane import __version__, tidy
from l0plane.activation_store import ActivationStore
from l0plane.jobs import job
from l0plane.training import Diverged, train
from l0plane.tuning import validate

with job(snakemake):
    params, method = snakemake.params, snakemake.wildcards.method
    store = ActivationStore(snakemake.input.train)
    keys = {"run": params.run, "method": method, "n": params.n, "l0_target": params.l0, "seed": 0}
    hyperparameters = params.hyperparameters
    try:
        autoencoder, _, _ = train(
            method, store, params.n, params.l0, 0, params.settings, hyperparameters
        )
        measured = validate(autoencoder, ActivationStore(snakemake.input.validation))
    except Diverged as error:
        print(error)
        measured = dict.fromkeys(("nmse", "nmse_se", "l0", "dead_fraction"), math.nan)
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
