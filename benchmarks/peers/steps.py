"""Training steps of sparsify, dictionary-learning and SAELens, each by its own code, timed.

`../training_step.py` runs this in the peers' environment, with the cases as JSON on standard
input; one JSON row per line comes back. A step is forward, backward, Adam and what the library
does to the decoder and about dead latents; its batch lies ready. dictionary-learning computes on
dense codes, so its biases, and the L0 that they give, change nothing.
"""

import json
import os
import sys
import types
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels need a GPU
# dictionary-learning imports nnsight for its activation buffer alone.
sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=None))
sys.path.insert(0, str(Path(__file__).parents[1]))

# ruff: noqa: E402
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from rounds import Case, activations, compare
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from sparsify import SparseCoder, SparseCoderConfig

LEARNING_RATE = 1e-5
STEPS = 100_000
AUX_WEIGHT = 1 / 32
DEAD_AFTER = 10_000_000
DICTIONARY_LEARNING = {
    "topk": (TopKTrainer, True),
    "batch_topk": (BatchTopKTrainer, True),
    "relu": (StandardTrainer, False),
    "gated": (GatedSAETrainer, False),
    "jumprelu": (JumpReluTrainer, False),
}


def dictionary_learning(case, x):
    """A step of its trainer of the same method."""
    kind, has_k = DICTIONARY_LEARNING[case.method]
    names = {"steps": STEPS, "activation_dim": case.d, "dict_size": case.n}
    extra = {"k": case.k} if has_k else {}
    trainer = kind(**names, **extra, layer=0, lm_name="", lr=LEARNING_RATE, device="cpu")
    if case.dead:
        kill(case, trainer.ae.encoder.weight)
        trainer.num_tokens_since_fired[: case.dead] = DEAD_AFTER
    count = 0

    def step():
        nonlocal count
        trainer.update(count, x)
        count += 1

    return step


def sparsify(case, x):
    """What its trainer does around one forward pass, with Adam."""
    multi = case.method == "multi_topk"
    sae = SparseCoder(case.d, SparseCoderConfig(num_latents=case.n, k=case.k, multi_topk=multi))
    optimiser = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE)
    silent = torch.zeros(case.n, dtype=torch.long)
    kill(case, sae.encoder.weight)
    silent[: case.dead] = DEAD_AFTER + 1

    def step():
        sae.set_decoder_norm_to_unit_norm()
        dead = silent > DEAD_AFTER if case.dead else None
        out = sae(x, dead_mask=dead)
        (out.fvu + AUX_WEIGHT * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        silent.add_(len(x))
        silent[out.latent_indices.flatten()] = 0

    return step


def saelens(case, x):
    """A step of its trainer; its sparse activations have no backward pass on the CPU."""
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=case.d, d_sae=case.n, k=case.k))
    config = SAETrainerConfig(
        total_training_samples=STEPS * len(x),
        train_batch_size_samples=len(x),
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
    )
    trainer = SAETrainer(config, sae, iter(()))
    kill(case, sae.W_enc.T)
    trainer.n_forward_passes_since_fired[: case.dead] = 10 * config.dead_feature_window

    def step():
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def kill(case, encoder):
    """Make the first `dead` latents too weak to be among the k largest."""
    with torch.no_grad():
        encoder[: case.dead] *= 0.01


class Peer(NamedTuple):
    """How its step is made, which of our methods it has, the package whose version counts."""

    step: Callable
    methods: Collection[str]
    package: str


PEERS = {
    "sparsify": Peer(sparsify, ("topk", "multi_topk"), "eai-sparsify"),
    "dictionary-learning": Peer(dictionary_learning, DICTIONARY_LEARNING, "dictionary-learning"),
    "SAELens": Peer(saelens, ("topk",), "sae-lens"),
}


def main():
    """Read the cases, print the rows."""
    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    for case in (Case(*values) for values in order["cases"]):
        x = activations(case.rows, case.d, seed=2)
        able = {name: peer for name, peer in PEERS.items() if case.method in peer.methods}
        steps = {name: peer.step(case, x) for name, peer in able.items()}
        for row in compare(case, steps, order["seconds"]) if steps else []:
            package = able[row["implementation"]].package
            print(json.dumps({**row, "version": version(package)}), flush=True)


if __name__ == "__main__":
    main()
