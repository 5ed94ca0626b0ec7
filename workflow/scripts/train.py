"""One autoencoder of a built-in method.

Reads stored activations (and the autoencoder that the method derives from); writes a SAELens
directory, its provenance and the training log. The learning rate falls with the number of latents
as 1/sqrt(n) (Gao et al. 2024, Appendix A).
"""

import math
from pathlib import Path

from l0plane import tidy
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder
from l0plane.jobs import job
from l0plane.measuring import training_provenance
from l0plane.training import train

with job(snakemake):
    params = snakemake.params
    n, l0, seed = (int(snakemake.wildcards[name]) for name in ("n", "l0", "seed"))
    hyperparameters = dict(params.hyperparameters)
    hyperparameters["learning_rate"] *= math.sqrt(params.reference_n / n)
    base = snakemake.input.get("base")
    store = ActivationStore(snakemake.input.activations)
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
    keys = {"run": params.run, "method": params.method, "n": n, "l0_target": l0, "seed": seed}
    autoencoder.save(
        Path(snakemake.output.cfg).parent,
        training_provenance(keys, facts, store, params.language_model),
    )
    tidy.write(tidy.arrange(log, keys), snakemake.output.training)
