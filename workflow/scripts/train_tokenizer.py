"""The embedded language model's tokenizer.

Reads the training split, writes a byte-level BPE tokenizer in Hugging Face layout.
"""

from pathlib import Path

from l0plane.corpus import split_texts
from l0plane.jobs import job
from l0plane.tokens import train_tokenizer

with job(snakemake):
    train_tokenizer(
        split_texts(snakemake.input.documents, "train"),
        snakemake.params.vocabulary,
        Path(snakemake.output.tokenizer).parent,
    )
