"""Learning rates of a method at one level: one candidate of the grid, or several of them.

Reads stored activations, and for a neighbour of the best of the grid the rows of these; trains, and
writes a row for each candidate with the errors on the validation activations, at equal L0. At an L0
that the configuration's tuning section gives that is one candidate: a learning rate (and one value
of a knob). At another number of latents it is the rate that the rule for sizes gives, and those
beside it until the best one has both neighbours. A training that fails is a row too. A job that was
killed goes on from what lies beside its log.
"""

import shutil
from pathlib import Path

import pandas as pd

from l0plane import tidy
from l0plane.activation_store import ActivationStore
from l0plane.candidates import TunedLevel
from l0plane.device import available_device, use_precision
from l0plane.jobs import job
from l0plane.tuning import climb, neighbour

with job(snakemake):
    params, wildcards = snakemake.params, snakemake.wildcards
    use_precision(params.settings)
    hyperparameters, changed = params.hyperparameters, params.changed
    level = TunedLevel(
        run=params.run,
        method=wildcards.method,
        n=params.n,
        l0=params.l0,
        settings=params.settings,
        penalised=params.penalised,
        base=next(iter(snakemake.input.get("base", [])), None),
        train=ActivationStore(snakemake.input.train, available_device()),
        validation=ActivationStore(snakemake.input.validation, available_device()),
        checkpoint_minutes=snakemake.config["execution"]["checkpoint_minutes"],
    )
    place = Path(snakemake.log[0]).with_suffix(".checkpoint")
    if grid := snakemake.input.get("grid"):
        rows = pd.concat([tidy.read(path) for path in grid], ignore_index=True)
        changed = neighbour(rows, wildcards.side)
        print("beside the best of the grid:", changed)
    if params.climbs:
        table = climb(
            hyperparameters["learning_rate"],
            lambda rate: level.candidate(
                hyperparameters, {"learning_rate": rate}, place / f"{rate:.2e}"
            ),
        )
    else:
        table = level.candidate(hyperparameters, changed, place)
    tidy.write(table, snakemake.output[0])
    shutil.rmtree(place, ignore_errors=True)
