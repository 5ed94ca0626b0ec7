"""What a run will cost: hours of training and gigabytes of disk, from one measured speed.

    python benchmarks/cost.py config/gpt2.yaml --width 768 --measured 100000 768 32768

The speed is tokens per second of a training step at some width d and number of latents n, as
`benchmarks/gpu.py` measures on a GPU and `benchmarks/training_step.py` on a CPU. All the rest is
counted: a step costs in proportion to n d (the encoder's product), so with v the speed times n d,

    hours = sum over trainings of tokens n d / (3600 v)

on one GPU (or with one core's speed, on one core); divide by how many there are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from l0plane import config as l0config

REPOSITORY = Path(__file__).parents[1]
#: Trainings that a search for lambda takes at most.
SEARCH = 5


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's configuration over the default one, and the methods."""
    workflow = REPOSITORY / "workflow"
    methods = l0config.read_methods(workflow / "methods", workflow / "schemas/method.schema.yaml")
    values = yaml.safe_load((REPOSITORY / "config/default.yaml").read_text())
    for key, value in yaml.safe_load(path.read_text()).items():
        section = isinstance(value, dict) and isinstance(values[key], dict)
        values[key] = values[key] | value if section else value
    schema = workflow / "schemas/config.schema.yaml"
    return l0config.load(values, schema, methods, REPOSITORY), methods


def trainings(config: dict[str, Any], methods: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """What is trained for tuning, for lambda and for the figures: (tokens, n) of each."""
    levels, tokens = l0config.levels(config), config["training"]["tokens"]
    found: dict[str, list[tuple[int, int]]] = {"tuning": [], "search for lambda": []}
    if config["tuning"]["table"] == l0config.MEASURE:
        for name in filter(
            lambda name: l0config.tunable(methods[name]), config["tuning"]["methods"]
        ):
            each = SEARCH if l0config.penalised(methods[name]) else 1
            candidates = len(l0config.candidates(config, methods[name]))
            one = (config["tuning"]["tokens"], config["sparsity_panel"]["n"])
            found["tuning"] += [one] * (each * candidates)
    if config["lambdas"] == l0config.MEASURE:
        penalised = [name for name in config["methods"] if l0config.penalised(methods[name])]
        for n, _ in {(level.n, level.l0) for level in levels}:
            found["search for lambda"] += [(tokens, n)] * (SEARCH * len(penalised))
    found["autoencoders"] = [(tokens, level.n) for level in levels for _ in config["methods"]]
    return found


def table(config: dict[str, Any], methods: dict[str, Any], d: int, speed: float) -> str:
    """The costs at width `d`, with `speed` in tokens n d per second."""
    activations = config["activations"]
    stored = 4 * d * (activations["train_tokens"] + activations["validation_tokens"]) / 1e9
    lines = [f"{'':18}{'trainings':>10}{'hours':>9}{'GB of disk':>12}"]
    lines.append(f"{'activations':18}{'':10}{'':9}{stored:12,.1f}")
    for name, found in trainings(config, methods).items():
        hours = sum(tokens * n for tokens, n in found) * d / speed / 3600
        kept = sum(8 * n * d for _, n in found) / 1e9 if name == "autoencoders" else 0.0
        lines.append(f"{name:18}{len(found):10}{hours:9,.1f}{kept:12,.1f}")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configuration", type=Path)
    parser.add_argument("--width", type=int, required=True, help="of the activations, d")
    parser.add_argument(
        "--measured", type=float, nargs=3, required=True, metavar=("TOKENS_PER_SECOND", "D", "N")
    )
    arguments = parser.parse_args()
    config, methods = read(arguments.configuration)
    tokens_per_second, d, n = arguments.measured
    print(table(config, methods, arguments.width, tokens_per_second * d * n))


if __name__ == "__main__":
    main()
