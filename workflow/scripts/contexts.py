"""Token contexts of the three splits.

Reads the documents and the language model's tokenizer; writes the contexts of each split in random
order, so that the first ones, which is what the later rules use, are a sample of the whole text.
Says here, before anything expensive, when the text is too short for what the run asks; of what is
asked later, whoever uses it.
"""

import os

import numpy as np

from l0plane.config import check_token_supply
from l0plane.corpus import split_texts
from l0plane.jobs import job
from l0plane.tokens import encode_contexts, load_tokenizer, save_contexts

with job(snakemake):
    params = snakemake.params
    # Both are read at the first batch.
    os.environ.update(TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=str(snakemake.threads))
    tokenizer = load_tokenizer(params.tokenizer)
    length = params.language_model["context"]
    contexts = {}
    for split in ("train", "validation", "test"):
        texts = split_texts(snakemake.input.documents, split)
        contexts[split] = encode_contexts(texts, tokenizer, length)
        print(f"{split}: {len(contexts[split])} contexts of {length} tokens", flush=True)
    # Of the whole configuration, which is no parameter: to ask for more tests repeats nothing.
    check_token_supply(snakemake.config, {split: len(found) for split, found in contexts.items()})
    for split, found in contexts.items():
        order = np.random.default_rng(params.seed)
        save_contexts(snakemake.output[split], order.permutation(found))
