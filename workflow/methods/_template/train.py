"""Random directions: an autoencoder that learns nothing, to be replaced by a method that does.

Reads stored activations; writes a SAELens directory. Its latents are activations picked at random.
"""

from pathlib import Path

import torch

from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder, TopK
from l0plane.jobs import job
from l0plane.measuring import training_provenance

with job(snakemake):
    params = snakemake.params
    n, l0, seed = (int(snakemake.wildcards[name]) for name in ("n", "l0", "seed"))
    store = ActivationStore(snakemake.input.activations)
    directions = next(store.batches(batch_tokens=n, tokens=n, seed=seed)) - store.mean
    directions /= directions.norm(dim=1, keepdim=True)
    autoencoder = Autoencoder(
        encoder=directions.clone(),
        decoder=directions,
        pre_bias=store.mean,
        encoder_bias=torch.zeros(n),
        activation_function=TopK(l0),
    )
    keys = {"run": params.run, "method": params.method, "n": n, "l0_target": l0, "seed": seed}
    autoencoder.save(
        Path(snakemake.output.cfg).parent,
        training_provenance(keys, {"training_tokens": n}, store, params.language_model),
    )
