"""What a run will cost: hours and gigabytes of disk, from two measured speeds.

    python benchmarks/cost.py config/gpt2.yaml --width 768 --language-model 100000 \\
        --measured 100000 768 32768

One speed is tokens per second of a training step at some width d and number of latents n, the
other tokens per second of the language model up to the hook. `benchmarks/gpu.py` measures both on a
GPU; on a CPU `benchmarks/training_step.py` does the first, and the log of `activations` says the
second. All the rest is counted: a step costs in proportion to n d (the encoder's product), so with
v the first speed times n d and u the second,

    hours = sum over trainings of tokens n d / (3600 v)
          + sum over passes of the language model of tokens / (3600 u)

on one GPU (or with one core's speed, on one core); divide by how many there are. What is read from
stored activations, 4 d bytes a token, is told in terabytes: a GPU waits for it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from l0plane import config as l0config
from l0plane import method_folders, plan
from l0plane.penalty import SEARCH, TRIALS
from l0plane.tuning import sides

REPOSITORY = Path(__file__).parents[1]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's configuration over the default one, and the methods."""
    workflow = REPOSITORY / "workflow"
    methods = method_folders.read_methods(
        workflow / "methods", workflow / "schemas/method.schema.yaml"
    )
    values = yaml.safe_load((REPOSITORY / "config/default.yaml").read_text())
    for key, value in yaml.safe_load(path.read_text()).items():
        section = isinstance(value, dict) and isinstance(values[key], dict)
        values[key] = values[key] | value if section else value
    schema = workflow / "schemas/config.schema.yaml"
    return l0config.load(values, schema, methods, REPOSITORY), methods


def trainings(config: dict[str, Any], methods: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """What is trained for tuning, for lambda and for the figures: (tokens, n) of each."""
    levels, tokens = plan.levels(config), config["training"]["tokens"]
    found: dict[str, list[tuple[int, int]]] = {"tuning": [], "search for lambda": []}
    if config["tuning"]["table"] == l0config.MEASURE:
        for name in filter(lambda name: plan.tunable(methods[name]), config["tuning"]["methods"]):
            each = SEARCH if plan.penalised(methods[name]) else 1
            candidates = len(plan.candidates(config, methods[name]))
            candidates += len(sides(config["tuning"]["learning_rates"]))
            candidates *= len(config["tuning"]["l0"])
            tokens_of_each, size = config["tuning"]["tokens"], config["sparsity_panel"]["n"]
            found["tuning"] += [(tokens_of_each, size)] * (each * candidates)
            # At each other size three rates at least, and mostly no more.
            others = [(tokens_of_each, n) for n in plan.tuned_sizes(config)]
            found["tuning"] += others * (each * 3)
    if config["lambdas"] == l0config.MEASURE:
        penalised = [name for name in config["methods"] if plan.penalised(methods[name])]
        for level in levels:
            most = TRIALS if level.seed else SEARCH  # from what seed 0 found
            found["search for lambda"] += [(tokens, level.n)] * (most * len(penalised))
    found["autoencoders"] = [(tokens, level.n) for level in levels for _ in config["methods"]]
    return found


def passes(config: dict[str, Any], methods: dict[str, Any]) -> dict[str, list[int]]:
    """What the language model reads to store activations, and to stream them: tokens of each pass.

    One stream feeds all levels of a method; a method that derives from another has none.
    """
    model, activations = config["language_model"], config["activations"]
    stored = activations["train_tokens"] + activations["validation_tokens"]
    own = [name for name in config["methods"] if "derived_from" not in methods[name]]
    streams = [config["training"]["tokens"]] * len(own)
    read = model["context"] / (model["context"] - model["drop_first_position"])
    return {
        "activations": [round(stored * read)],
        "streams": [
            round(tokens * read) for tokens in streams if config["training"]["stream_buffer_tokens"]
        ],
    }


def read_tokens(config: dict[str, Any], methods: dict[str, Any]) -> dict[str, int]:
    """How many stored activations are read: by each training, or by those that share batches."""
    found = {
        name: sum(tokens for tokens, _ in its) for name, its in trainings(config, methods).items()
    }
    streams = config["training"]["stream_buffer_tokens"] > 0
    alone = [name for name in config["methods"] if not streams or "derived_from" in methods[name]]
    levels = plan.levels(config)
    orders = (
        len({level.seed for level in levels}) if config["execution"]["together"] else len(levels)
    )
    return found | {"autoencoders": len(alone) * orders * config["training"]["tokens"]}


def table(
    config: dict[str, Any], methods: dict[str, Any], d: int, speed: float, model_speed: float
) -> str:
    """The costs at width `d`, with `speed` in tokens n d and `model_speed` in tokens per second."""
    activations = config["activations"]
    stored = 4 * d * (activations["train_tokens"] + activations["validation_tokens"]) / 1e9
    rows = [
        (name, len(found), sum(found) / model_speed, stored if name == "activations" else 0.0, 0.0)
        for name, found in passes(config, methods).items()
    ]
    read = read_tokens(config, methods)
    for name, found in trainings(config, methods).items():
        seconds = sum(tokens * n for tokens, n in found) * d / speed
        kept = sum(8 * n * d for _, n in found) / 1e9 if name == "autoencoders" else 0.0
        rows.append((name, len(found), seconds, kept, 4e-12 * d * read[name]))
    rows.append(("in all", 0, *(sum(row[place] for row in rows) for place in (2, 3, 4))))
    lines = [f"{'':18}{'how many':>10}{'hours':>9}{'GB of disk':>12}{'TB read':>10}"]
    for name, count, seconds, kept, terabytes in rows:
        lines.append(
            f"{name:18}{count or '':10}{seconds / 3600:9,.1f}{kept:12,.1f}{terabytes:10,.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configuration", type=Path)
    parser.add_argument("--width", type=int, required=True, help="of the activations, d")
    parser.add_argument("--language-model", type=float, required=True, metavar="TOKENS_PER_SECOND")
    parser.add_argument(
        "--measured", type=float, nargs=3, required=True, metavar=("TOKENS_PER_SECOND", "D", "N")
    )
    arguments = parser.parse_args()
    config, methods = read(arguments.configuration)
    tokens_per_second, d, n = arguments.measured
    print(
        table(config, methods, arguments.width, tokens_per_second * d * n, arguments.language_model)
    )


if __name__ == "__main__":
    main()
