"""Whether the compiled kernels train to the same error as the reference, at equal tokens.

    python benchmarks/same_quality.py results/default results/reference/benchmark_quality.csv

Trains on the activations of a run, once with the compiled kernels and once with the plain PyTorch
of `kernels.reference`, from the same seeds in the same order, and measures both on the validation
activations. Rounding differs, and a training magnifies it: what the seeds differ by is the scale.
"""

import sys
from pathlib import Path

import pandas as pd

from l0plane import kernels, tidy
from l0plane.activation_store import ActivationStore
from l0plane.files import read_json
from l0plane.plan import at_level
from l0plane.training import train
from l0plane.tuning import validate

METHODS = ("topk", "relu", "jumprelu")
SEEDS = 3
TOKENS = 200_000  # the reference is slow


def main(run: Path, output: Path) -> None:
    """Train, measure, write one row per method, seed and implementation."""
    facts = read_json(run / "run.json")
    config = facts["config"]
    n, l0 = config["sparsity_panel"]["n"], config["size_panel"]["l0"]
    settings = config["training"] | {"tokens": TOKENS}
    store = ActivationStore(run / "activations/train")
    validation = ActivationStore(run / "activations/validation")
    compiled, rows = kernels.cpu, []
    for method in METHODS:
        own = at_level(facts["methods"][method]["hyperparameters"], n, l0, n)
        for seed in range(SEEDS):
            for name, backend in (("compiled", compiled), ("reference", None)):
                kernels.cpu = backend
                autoencoder, _, record = train(method, store, n, l0, seed, settings, own)
                row = {"method": method, "n": n, "l0_target": l0, "seed": seed, "kernels": name}
                row |= {"training_tokens": TOKENS, **validate(autoencoder, validation)}
                rows.append(row | {"training_seconds": record["training_seconds"]})
                print(f"{method} seed {seed} {name}: nMSE {row['nmse']:.4f}", flush=True)
    tidy.write(pd.DataFrame(rows), output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
