"""Small tidy tables in which every claim of the text is true, or as wrong as a test asks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from l0plane.claims import Tables

CONTEXTS = 60
LEVELS = [4, 8, 16, 32]
SIZES = [512, 1024, 2048]
SIZE = 2048


@dataclass
class World:
    """The truth behind the tables; the defaults make all 18 claims true."""

    factor: dict = field(
        default_factory=lambda: {
            "relu": 1.0,
            "relu_scaled": 0.9,
            "gated": 0.8,
            "prolu_relu": 0.85,
            "prolu_ste": 0.82,
            "topk": 0.7,
            "multi_topk": 0.73,
        }
    )
    ce_factor: dict = field(default_factory=dict)
    size_slope: dict = field(default_factory=lambda: {"topk": -0.25})
    l0_factor: dict = field(default_factory=lambda: {"gated": 1.03, "relu": 0.97})
    scaled_l0: float = 1.0
    bias: dict = field(default_factory=lambda: {"relu": 0.7, "topk": 0.0})
    magnitude: dict = field(default_factory=lambda: {"relu": 0.2, "topk": 0.05})
    refined: float = 0.9
    dip: float = 0.97
    rise: float = 1.6
    ce_rise: float = 1.2
    fall: dict = field(default_factory=lambda: {"relu": -0.4, "multi_topk": -0.1})
    jump_below: dict = field(default_factory=lambda: {"multi_topk": 1.03})
    jump_above: float = 1.15
    cut: float = 0.93
    dead_slope: float = 0.1
    noise: float = 0.02
    """Standard deviation of the log error of one autoencoder in one context."""
    seed_noise: float = 0.0
    seeds: tuple = (0, 1)
    random_seed: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.random_seed)
        self.difficulty = np.exp(0.5 * self.random.standard_normal(CONTEXTS))
        self.errors: dict = {}

    def nmse(self, method: str, n: int, l0: float) -> float:
        slope = self.size_slope.get(method, -0.15)
        return 0.3 * self.factor[method] * (l0 / 4) ** -0.4 * (n / SIZE) ** slope

    def context_rows(self, keys: dict, l0: float, nmse: float, delta_ce: float, **extra) -> dict:
        def noisy(mean):
            wobble = np.exp(self.noise * self.random.standard_normal(CONTEXTS))
            return mean * self.difficulty * wobble

        return {
            "run": "synthetic",
            **keys,
            "context": np.arange(CONTEXTS),
            "squared_error": noisy(nmse),
            "variance": self.difficulty,
            "l0": np.full(CONTEXTS, l0),
            "delta_ce": noisy(delta_ce),
            **{name: noisy(value) for name, value in extra.items()},
        }

    def autoencoders(self):
        """keys, L0 reached and nMSE of each autoencoder."""
        for method in self.factor:
            for n in SIZES:
                for level in LEVELS if n == SIZE else [16]:
                    for seed in self.seeds if level in (8, 16) else self.seeds[:1]:
                        keys = {"method": method, "n": n, "l0_target": level, "seed": seed}
                        l0 = level * self.l0_factor.get(method.replace("_scaled", ""), 1.0)
                        if method == "relu_scaled":
                            l0 *= self.scaled_l0
                        luck = np.exp(self.seed_noise * self.random.standard_normal())
                        yield keys, l0, self.nmse(method, n, l0) * luck

    def contexts(self) -> pd.DataFrame:
        return frame(
            self.context_rows(keys, l0, nmse, nmse * self.ce_factor.get(keys["method"], 1.0))
            for keys, l0, nmse in self.autoencoders()
        )

    def refinement_contexts(self) -> pd.DataFrame:
        rows = []
        for keys, l0, nmse in self.autoencoders():
            if (method := keys["method"]) not in self.bias or keys["n"] != SIZE:
                continue
            row = self.context_rows(keys, l0, nmse, 0.1, active=l0)
            gain = self.refined if method == "relu" else 0.99
            row["squared_error_refined"] = row["squared_error"] * gain
            row["absolute_shift_sum"] = row["active"] * self.magnitude[method]
            wobble = 10 * self.noise * self.random.standard_normal(CONTEXTS)
            row["shift_sum"] = row["absolute_shift_sum"] * np.clip(
                self.bias[method] + wobble, -1, 1
            )
            rows.append(row)
        return frame(rows)

    def shape(self, method: str, level: int, l0: float) -> tuple[float, float]:
        """nMSE and delta cross-entropy of a curve at `l0`, against its training point."""
        if l0 <= level:
            relative = (l0 / level) ** self.fall.get(method, -0.4)
            return (relative * (self.cut if method == "relu" and l0 < level else 1.0),) * 2
        if method != "topk":
            return ((l0 / level) ** self.fall[method],) * 2
        knots = np.log([1, 1.25, 4, 8])
        return tuple(
            float(np.exp(np.interp(np.log(l0 / level), knots, np.log([1, self.dip, far, 2 * far]))))
            for far in (self.rise, self.ce_rise)
        )

    def curve_contexts(self) -> pd.DataFrame:
        rows = []
        for method in ("relu", "topk", "multi_topk"):
            for level in LEVELS:
                trained = self.nmse(method, SIZE, level)
                top = 1 if method == "relu" else 8
                for selection in ("topk", "jumprelu"):
                    for ratio in (0.125, 0.25, 0.5, 0.8, 1, 1.25, 2, 4, 8):
                        if ratio > top:
                            continue
                        l0 = level * ratio
                        nmse, delta_ce = self.shape(method, level, l0)
                        if selection == "jumprelu":
                            above = method == "topk" and ratio > 1
                            nmse *= self.jump_above if above else self.jump_below.get(method, 1.0)
                        keys = {"method": method, "n": SIZE, "l0_target": level, "seed": 0}
                        keys |= {"selection": selection, "value": ratio}
                        row = self.context_rows(keys, l0, nmse * trained, delta_ce * trained)
                        row["delta_ce"][CONTEXTS // 2 :] = np.nan
                        rows.append(row)
        return frame(rows)

    def tuning(self) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "method": method,
                "n": SIZE,
                "l0_target": 16,
                "seed": 0,
                "learning_rate": rate,
                "dead_fraction": max(
                    0,
                    0.3
                    + (self.dead_slope + self.noise * self.random.standard_normal())
                    * np.log10(rate / 1e-3),
                ),
                "diverged": False,
            }
            for method in self.factor
            for rate in (1e-4, 3e-4, 1e-3, 3e-3)
        )

    def tables(self) -> Tables:
        return Tables(
            contexts=self.contexts(),
            curve_contexts=self.curve_contexts(),
            refinement_contexts=self.refinement_contexts(),
            tuning=self.tuning(),
        )


def frame(rows) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)
