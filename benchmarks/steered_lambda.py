"""Does steering lambda change what is compared? Train again with lambda held constant.

    python benchmarks/steered_lambda.py results/default results/reference/steered_lambda.csv

Trains each penalty method twice at the first configured level: steered to the L0 asked for, and
with the mean of that run's lambda over its second half held constant from the first step. Both are
measured on validation activations. Since the second reaches another L0, its error is also moved to
the first one's along the slope of the method's frontier in `autoencoders.csv`.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from l0plane import tidy
from l0plane.activation_store import ActivationStore
from l0plane.files import read_json
from l0plane.training import train
from l0plane.tuning import validate

METHODS = ("relu", "prolu_relu", "prolu_ste", "gated", "jumprelu")


def main(run: Path, output: Path) -> None:
    """Train, measure, write one row per method and way."""
    facts = read_json(run / "run.json")
    config = facts["config"]
    n, l0 = config["sparsity_panel"]["n"], config["size_panel"]["l0"]
    store = ActivationStore(run / "activations/train")
    validation = ActivationStore(run / "activations/validation")
    measured = tidy.read(run / "autoencoders.csv")
    rows = []
    for method in METHODS:
        frontier = measured[(measured["method"] == method) & (measured["n"] == n)]
        slope = np.polyfit(np.log(frontier["l0"]), np.log(frontier["nmse"]), 1)[0]
        own = facts["methods"][method]["hyperparameters"]
        autoencoder, log, _ = train(method, store, n, l0, 0, config["training"], own)
        steered = validate(autoencoder, validation)
        constant = log["lambda"].iloc[len(log) // 2 :].mean()
        fixed = {**own, "lambda": constant}
        autoencoder, _, _ = train(method, store, n, l0, 0, config["training"], fixed)
        held = validate(autoencoder, validation)
        moved = held["nmse"] * (steered["l0"] / held["l0"]) ** slope
        for way, result in (("steered", steered), ("constant", held)):
            row = {"method": method, "n": n, "l0_target": l0, "way": way, "lambda": constant}
            row |= {key: result[key] for key in ("l0", "nmse", "nmse_se")}
            row["nmse_at_steered_l0"] = steered["nmse"] if way == "steered" else moved
            rows.append(row)
        print(f"{method}: constant / steered = {moved / steered['nmse']:.3f}")
    tidy.write(pd.DataFrame(rows), output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
