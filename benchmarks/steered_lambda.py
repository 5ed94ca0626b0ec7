"""What steering lambda to an L0 within one training changes, against the constant lambda.

    python benchmarks/steered_lambda.py results/default results/reference/steered_lambda.csv

Trains each penalty method again, steered, at the level of the size panel; measures it beside the
run's own autoencoder, whose lambda is constant, on the validation activations. Their L0 differ by a
few percent: the steered error is moved over that distance along the slope of the method's frontier.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from l0plane import tidy
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder
from l0plane.files import read_json
from l0plane.plan import at_level
from l0plane.training import train
from l0plane.tuning import validate


def main(run: Path, output: Path) -> None:
    """Train, measure, write one row per method and way."""
    facts = read_json(run / "run.json")
    config = facts["config"]
    n, l0 = config["sparsity_panel"]["n"], config["size_panel"]["l0"]
    store = ActivationStore(run / "activations/train")
    validation = ActivationStore(run / "activations/validation")
    measured = tidy.read(run / "autoencoders.csv")
    rows = []
    for method in measured.loc[measured["lambda"].notna(), "method"].unique():
        frontier = measured[(measured["method"] == method) & (measured["n"] == n)]
        slope = np.polyfit(np.log(frontier["l0"]), np.log(frontier["nmse"]), 1)[0]
        directory = run / f"autoencoders/{method}/n{n}-l{l0}-s0"
        constant = validate(Autoencoder.load(directory), validation)
        own = at_level(facts["methods"][method]["hyperparameters"], n, l0, n)
        autoencoder, log, _ = train(method, store, n, l0, 0, config["training"], own)
        steered = validate(autoencoder, validation)
        moved = steered["nmse"] * (constant["l0"] / steered["l0"]) ** slope
        last = {"constant": read_json(directory / "provenance.json")["lambda"]}
        last["steered"] = log["lambda"].iloc[-1]
        for way, result in (("constant", constant), ("steered", steered)):
            row = {"method": method, "n": n, "l0_target": l0, "way": way, "lambda": last[way]}
            row |= {key: result[key] for key in ("l0", "nmse", "nmse_se", "dead_fraction")}
            row["nmse_at_constant_l0"] = moved if way == "steered" else constant["nmse"]
            rows.append(row)
        print(f"{method}: steered / constant = {moved / constant['nmse']:.3f}", flush=True)
    tidy.write(pd.DataFrame(rows), output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
