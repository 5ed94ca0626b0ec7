"""One autoencoder of a built-in method.

Reads stored activations (and the autoencoder that the method derives from, and the lambda that was
found for a penalty); writes a SAELens directory, its provenance and the training log.
"""

from pathlib import Path

from l0plane import tidy
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder
from l0plane.device import available_device
from l0plane.files import read_json
from l0plane.jobs import job
from l0plane.measuring import training_provenance
from l0plane.training import learning_rate, train
from l0plane.tuning import read_lambda

with job(snakemake):
    params = snakemake.params
    n, l0, seed = (int(snakemake.wildcards[name]) for name in ("n", "l0", "seed"))
    hyperparameters = dict(params.hyperparameters)
    hyperparameters["learning_rate"] = learning_rate(hyperparameters, n, params.reference_n)
    store = ActivationStore(snakemake.input.activations, available_device())
    if table := snakemake.input.get("lambdas"):
        subject = {key: store.manifest[key] for key in ("corpus_sha256", "model_sha256")}
        level = {"method": params.method, "n": n, "l0_target": l0, **subject}
        found = read_lambda(table, level, params.settings, hyperparameters["learning_rate"])
        if found is None:
            print(f"{table} knows no lambda for this level, text, model and training: steering it")
        else:
            hyperparameters["lambda"] = found
    base = snakemake.input.get("base")
    autoencoder, log, facts = train(
        params.method,
        store,
        n,
        l0,
        seed,
        params.settings,
        hyperparameters,
        base=Autoencoder.load(Path(base).parent) if base else None,
    )
    if base:  # what it cost includes what it started from
        earlier = read_json(snakemake.input.base_provenance)
        for cost in ("training_tokens", "training_seconds"):
            facts[cost] += earlier[cost]
    keys = {"run": params.run, "method": params.method, "n": n, "l0_target": l0, "seed": seed}
    autoencoder.save(
        Path(snakemake.output.cfg).parent,
        training_provenance(keys, facts, store, params.language_model),
    )
    tidy.write(tidy.arrange(log, keys), snakemake.output.training)
