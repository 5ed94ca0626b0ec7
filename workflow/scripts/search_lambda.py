"""The constant lambda that gives a penalty method the L0 asked for.

Reads stored activations, and for the other seeds what seed 0 found, to start from; trains with one
lambda after another, measures L0 on the validation activations, and writes the one found. Where the
training fails the row is empty and says why; lambda is then steered. While it runs, what it has
found lies beside the log, and a checkpoint of the training; a job that was killed goes on from it.
"""

from pathlib import Path

import pandas as pd

from l0plane import __version__, tidy
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Failed
from l0plane.device import available_device, use_precision
from l0plane.jobs import job
from l0plane.lambdas import TRIED, Progress, search_lambda, setting

with job(snakemake):
    params, method = snakemake.params, snakemake.wildcards.method
    use_precision(params.settings)
    n, l0, seed = (int(snakemake.wildcards[name]) for name in ("n", "l0", "seed"))
    store = ActivationStore(snakemake.input.train, available_device())
    validation = ActivationStore(snakemake.input.validation, available_device())
    start = None
    if earlier := snakemake.input.get("start"):
        found = tidy.read(earlier)["lambda"].dropna()
        start = None if found.empty else float(found.iloc[0])
    minutes = snakemake.config["execution"]["checkpoint_minutes"]
    progress = Progress(Path(snakemake.log[0]).with_suffix(".checkpoint"), minutes)
    failed = None
    try:
        trials = search_lambda(
            *(method, store, validation, n, l0, params.settings, params.hyperparameters),
            *(seed, start, progress),
        )
    except Failed as error:
        print(error)
        failed, trials = str(error), pd.DataFrame(columns=TRIED)
    keys = {"run": params.run, "method": method, "n": n, "l0_target": l0, "seed": seed}
    last = {
        "training_tokens": params.settings["tokens"],
        "learning_rate": params.hyperparameters["learning_rate"],
        "corpus_sha256": store.manifest["corpus_sha256"],
        "model_sha256": store.manifest["model_sha256"],
        "version": __version__,
    }
    what = setting(store.manifest, params.settings, params.hyperparameters)
    table = trials.head(1).reindex([0]).assign(trials=len(trials), failed=failed, setting=what)
    tidy.write(tidy.arrange(table, keys, last), snakemake.output[0])
    progress.remove()
