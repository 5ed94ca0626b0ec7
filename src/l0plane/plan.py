"""What a checked configuration asks for: autoencoders, their hyperparameters, what tuning tries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
#: By name: a number, or numbers by the L0 that they were tuned at.
Hyperparameters = dict[str, float | dict[int, float]]

#: A hyperparameter: for each of some numbers of latents, how many times as large the learning rate
#: is as the rule for sizes says.
FACTOR = "learning_rate_factor"


@dataclass(frozen=True, order=True)
class Level:
    """The size, asked sparsity and seed of one autoencoder; written `n1024-l16-s0` in paths."""

    n: int
    l0: int
    seed: int

    def __str__(self) -> str:
        return f"n{self.n}-l{self.l0}-s{self.seed}"


def levels(config: Config) -> list[Level]:
    """Every autoencoder that each method trains: both panels, without repetition."""
    found: set[Level] = set()
    sparsity, size = config["sparsity_panel"], config["size_panel"]
    for l0 in sparsity["l0"]:
        seeds = config["seeds"] if l0 in sparsity["replicated"] else 1
        found.update(Level(sparsity["n"], l0, seed) for seed in range(seeds))
    for n in size["n"]:
        seeds = config["seeds"] if n in size["replicated"] else 1
        found.update(Level(n, size["l0"], seed) for seed in range(seeds))
    return sorted(found)


def panel_levels(config: Config, section: str) -> list[Level]:
    """The levels that `refinement` or `progressive` looks at, all their seeds."""
    n, asked = config["sparsity_panel"]["n"], config[section]["l0"]
    return [level for level in levels(config) if level.n == n and level.l0 in asked]


def hyperparameters(config: Config, method: str, facts: Config) -> Hyperparameters:
    """A method's hyperparameters: its method.yaml, overridden by the configuration.

    With a rate of its own the configuration has its own factors, too, if any.
    """
    known, own = facts["hyperparameters"], config["hyperparameters"].get(method, {})
    if "learning_rate" in own:
        known = {name: value for name, value in known.items() if name != FACTOR}
    return {**known, **own}


def at_level(own: Hyperparameters, n: int, l0: float, reference_n: int) -> dict[str, float]:
    """A method's hyperparameters `own` for one level, each a number.

    One that was tuned at several L0s has between them what log-log interpolation gives, and beyond
    them that of the nearest. The learning rate, tuned at `reference_n` latents, falls as 1/sqrt(n)
    (Gao et al. 2024, Appendix A), but for a factor where `FACTOR` has one for so many latents.
    """
    factors: Any = whole_keys(own.get(FACTOR, {}))
    found = {name: _at_l0(value, l0) for name, value in own.items() if name != FACTOR}
    if "learning_rate" in found:
        factor = 1.0 if n == reference_n else factors.get(n, 1.0)
        found["learning_rate"] *= math.sqrt(reference_n / n) * factor
    return found


def at_size_by_rule(own: Hyperparameters, n: int, l0: float, reference_n: int) -> dict[str, float]:
    """As `at_level`, without what tuning found at so many latents: its rate is the rule's."""
    return at_level({k: v for k, v in own.items() if k != FACTOR}, n, l0, reference_n)


def whole_keys(value: Any) -> Any:
    """With numbers for L0s and latents, which JSON and the command line have as text."""
    return {int(key): number for key, number in value.items()} if isinstance(value, dict) else value


def _at_l0(value: float | dict[int, float], l0: float) -> float:
    if not isinstance(value, dict):
        return value
    tuned: dict[int, float] = whole_keys(value)
    low = max([at for at in tuned if at <= l0] or [min(tuned)])
    high = min([at for at in tuned if at >= l0] or [max(tuned)])
    if tuned[low] == tuned[high]:
        return tuned[low]
    share = math.log(l0 / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(tuned[low]) + share * math.log(tuned[high]))


def penalised(facts: Config) -> bool:
    """Whether a method reaches its L0 by a penalty's lambda; one that derives from it does not."""
    return facts["knob"] == "lambda" and "derived_from" not in facts


def tunable(facts: Config) -> bool:
    """Whether `tune` can vary a method: it has a learning rate."""
    return "learning_rate" in facts["hyperparameters"]


def candidates(config: Config, facts: Config) -> dict[str, dict[str, float]]:
    """What `tune` tries for a method: name of each candidate -> the hyperparameters it changes.

    Every learning rate, and with each of them every value of each knob in the method's grid.
    """
    knobs = [(knob, value) for knob, values in facts["grid"].items() for value in values]
    found: dict[str, dict[str, float]] = {}
    for rate in config["tuning"]["learning_rates"]:
        if not knobs:
            found[f"learning_rate{rate:g}"] = {"learning_rate": rate}
        for knob, value in knobs:
            name = f"learning_rate{rate:g}-{knob}{value:g}"
            found[name] = {"learning_rate": rate, knob: value}
    return found


def tuned_sizes(config: Config) -> list[int]:
    """At which numbers of latents `tune` tries rates, beside that at which it tries the grid.

    At none that is smaller than the L0 there.
    """
    own, l0 = config["sparsity_panel"]["n"], config["size_panel"]["l0"]
    return [n for n in config["tuning"]["n"] if n != own and n >= l0]
