"""The embedded language model.

Reads the documents and the tokenizer; writes a small GPT-2 in Hugging Face layout with its
tokenizer and model card. To ship it, copy the folder to `resources/lm`.
"""

from pathlib import Path

from l0plane.corpus import split_texts
from l0plane.files import read_json
from l0plane.jobs import job
from l0plane.language_model_training import train
from l0plane.tokens import encode_contexts, load_tokenizer

DATA = {
    "docstrings": "docstrings of the pinned dependencies (train split)",
    "files": "files of the user (train split)",
    "hub": "a data set of the hub (train split)",
}

with job(snakemake):
    spec = snakemake.params.training
    tokenizer_directory = Path(snakemake.input.tokenizer).parent
    tokenizer = load_tokenizer(tokenizer_directory)
    contexts = {
        split: encode_contexts(
            split_texts(snakemake.input.documents, split), tokenizer, snakemake.params.context
        )
        for split in ("train", "validation")
    }
    manifest = read_json(snakemake.input.manifest)
    train(
        contexts["train"],
        contexts["validation"],
        spec,
        tokenizer_directory,
        Path(snakemake.output.weights).parent,
        spec["seed"],
        {"data": DATA[manifest["source"]], "corpus_sha256": manifest["sha256"]},
    )
