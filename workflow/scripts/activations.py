"""Stored activations for training and validation.

Reads the contexts and the language model; writes, for each of the two splits, shuffled shards of
preprocessed activations, so that no training run needs the language model again.
"""

from l0plane.activation_store import write
from l0plane.device import available_device
from l0plane.files import read_json
from l0plane.jobs import job
from l0plane.language_model import LanguageModel
from l0plane.tokens import load_contexts

with job(snakemake):
    params = snakemake.params
    language_model = LanguageModel.load(
        params.language_model_path, params.language_model["hook"], available_device()
    )
    corpus = read_json(snakemake.input.manifest)
    for split in ("train", "validation"):
        write(
            snakemake.output[split],
            load_contexts(snakemake.input[split]),
            language_model,
            split=split,
            tokens=params.activations[f"{split}_tokens"],
            shard_tokens=params.activations["shard_tokens"],
            seed=params.activations["seed"],
            drop_first_position=params.language_model["drop_first_position"],
            facts={"corpus_sha256": corpus["sha256"]},
        )
