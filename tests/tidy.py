"""Made-up tidy tables in the form of a run's, with the paper's effects built in."""

from __future__ import annotations

import numpy as np
import pandas as pd

# method, label, knob, color, marker, nMSE relative to TopK, exponent of n, reconstruction bias
_METHODS = [
    ("relu", "ReLU", "lambda", "#3d3d3d", "o", 1.60, 0.12, 0.86),
    ("relu_scaled", "ReLU, scaled", "lambda", "#b0b0b0", "P", 1.42, 0.13, 0.99),
    ("prolu_relu", "ProLU-ReLU", "lambda", "#56b4e9", "D", 1.28, 0.16, 0.95),
    ("prolu_ste", "ProLU-STE", "lambda", "#117733", "v", 1.18, 0.17, 0.97),
    ("gated", "Gated", "lambda", "#0072b2", "^", 1.12, 0.18, 0.99),
    ("topk", "TopK", "k", "#d55e00", "s", 1.00, 0.22, 1.00),
    ("multi_topk", "Multi-TopK", "k", "#e69f00", "X", 1.05, 0.21, 1.00),
    ("batch_topk", "BatchTopK", "k", "#d92884", "p", 0.95, 0.22, 1.00),
    ("jumprelu", "JumpReLU", "lambda", "#6d1b93", "<", 0.97, 0.20, 0.99),
]
_QUALITY = {name: values for name, *_, a, b, c in _METHODS for values in [(a, b, c)]}
_KNOB = {row[0]: row[2] for row in _METHODS}
KEYS = ["run", "method", "n", "l0_target", "seed"]
PROVENANCE = {
    "training_tokens": 4_000_000,
    "learning_rate": 1e-3,
    "corpus_sha256": "c" * 64,
    "model_sha256": "d" * 64,
    "version": "0.1.0",
}
LEVELS, SIZES, N, L0 = (4, 8, 16, 32, 64), (512, 1024, 2048, 4096), 2048, 16
CONTEXTS, POSITIONS = 40, 64


def _rng(*key: object) -> np.random.Generator:
    """Noise that depends on its key alone, so that each table can be made without the others."""
    return np.random.default_rng(list(repr(key).encode()))


def _nmse(method: str, n: int, l0: float) -> float:
    level, exponent, _ = _QUALITY[method]
    return 0.75 * level * l0**-0.62 * (n / N) ** -exponent


def _reached(method: str, l0: float, *key: object) -> float:
    return l0 * (1.0 if _KNOB[method] == "k" else _rng("l0", method, l0, *key).normal(1, 0.015))


def methods() -> pd.DataFrame:
    names = ["method", "label", "knob", "color", "marker"]
    table = pd.DataFrame([row[:5] for row in _METHODS], columns=names)
    return table.assign(order=range(len(table)), citation="Someone 2024")


def settings() -> list[tuple[str, int, int, int]]:
    """Every trained autoencoder: (method, n, l0_target, seed); three seeds at one level."""
    grid = [(N, l0) for l0 in LEVELS] + [(n, L0) for n in SIZES if n != N]
    return [
        (row[0], n, l0, seed)
        for row in _METHODS
        for n, l0 in grid
        for seed in (range(3) if (n, l0) == (N, L0) else [0])
    ]


def _keys(method: str, n: int, l0: int, seed: int) -> dict[str, object]:
    return {"run": "made-up", "method": method, "n": n, "l0_target": l0, "seed": seed}


def autoencoders() -> pd.DataFrame:
    rows = []
    for setting in settings():
        method, n, l0, seed = setting
        rng, reached = _rng(*setting), _reached(method, l0, n, seed)
        nmse = _nmse(method, n, reached) * rng.normal(1, 0.01)
        delta_ce = 1.6 * nmse**1.15 * rng.normal(1, 0.04) - 0.01
        rows.append(
            _keys(*setting)
            | {
                "lambda": 0.3 / l0 if _KNOB[method] == "lambda" else np.nan,
                "l0": reached,
                "l0_se": 0.01 * reached,
                "nmse": nmse,
                "nmse_se": 0.005 * nmse,
                "delta_ce": delta_ce,
                "delta_ce_se": 0.01,
                "kl": 0.9 * delta_ce + 0.02,
                "ce_original": 3.1,
                "loss_recovered_zero": 1 - delta_ce / 5.2,
                "loss_recovered_mean": 1 - delta_ce / 4.0,
                "dead_fraction": rng.beta(2, 30),
                "relative_reconstruction_bias": _QUALITY[method][2],
                "training_seconds": n / N * rng.uniform(60, 90),
                "evaluation_tokens": CONTEXTS * POSITIONS,
            }
            | PROVENANCE
        )
    return pd.DataFrame(rows)


def with_failures(table: pd.DataFrame) -> pd.DataFrame:
    """The table of autoencoders when all of gated and one of TopK failed."""
    failed = (table["method"] == "gated") | (
        (table["method"] == "topk") & (table["n"] == N) & (table["l0_target"] == 64)
    )
    measured = table.columns[
        table.columns.get_loc("l0") : table.columns.get_loc("training_seconds")
    ]
    table = table.assign(failed=np.where(failed, "the loss exploded", None))
    table.loc[failed, measured] = np.nan
    return table


def contexts() -> pd.DataFrame:
    parts = []
    for row in autoencoders().to_dict("records"):
        rng = _rng("contexts", *(row[key] for key in KEYS))
        # The same contexts are hard for every autoencoder, as with real text.
        variance = _rng("variance").gamma(40, 1.5, CONTEXTS)
        hardness = _rng("hardness").lognormal(0, 0.1, CONTEXTS)
        parts.append(
            pd.DataFrame(
                {
                    "context": np.arange(CONTEXTS),
                    "squared_error": row["nmse"] * variance * hardness,
                    "variance": variance,
                    "l0": row["l0"] * rng.normal(1, 0.02, CONTEXTS),
                    "delta_ce": row["delta_ce"] * hardness + rng.normal(0, 0.02, CONTEXTS),
                    "kl": row["kl"] * hardness,
                }
            )
            .astype({"squared_error": "float32", "variance": "float32"})
            .assign(**{key: row[key] for key in KEYS})
        )
    return _keys_first(pd.concat(parts, ignore_index=True))


def _keys_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[KEYS + [column for column in table.columns if column not in KEYS]]


def curves() -> pd.DataFrame:
    """Test-time curves of ReLU, TopK and Multi-TopK, at the sparsity panel's size."""
    rows = []
    for method, n, l0, seed in settings():
        if method not in ("relu", "topk", "multi_topk") or n != N:
            continue
        for selection in ("topk", "jumprelu"):
            for chosen in 2.0 ** np.arange(0, 9):
                nmse = _test_time_nmse(method, selection, l0, chosen)
                rows.append(
                    _keys(method, n, l0, seed)
                    | {
                        "selection": selection,
                        "value": chosen if selection == "topk" else 0.2 / chosen,
                        "l0": min(chosen, 2.5 * l0) if method == "relu" else chosen,
                        "nmse": nmse,
                        "delta_ce": 1.6 * nmse**1.1,
                    }
                    | PROVENANCE
                )
    return pd.DataFrame(rows)


def _test_time_nmse(method: str, selection: str, trained: float, chosen: float) -> float:
    """Best near the training level; past it flat, or for TopK worse, the more with a threshold."""
    best = _nmse(method, N, trained)
    below = best * max(trained / chosen, 1) ** 0.75
    if method != "topk":
        return below * (max(chosen / trained, 1) ** -0.25 if method == "multi_topk" else 1.0)
    past = np.log2(max(chosen / trained, 1))
    better, worse = (-0.08, 0.09) if selection == "topk" else (-0.05, 0.13)
    return below * float(np.exp(better * past + worse * past**2))


def curve_contexts() -> pd.DataFrame:
    table = (
        curves().drop(columns=list(PROVENANCE)).merge(pd.DataFrame({"context": range(8)}), "cross")
    )
    variance = _rng("variance").gamma(40, 1.5, CONTEXTS)[table["context"]]
    table = table.assign(squared_error=table["nmse"] * variance, variance=variance)
    table.loc[table["context"] >= 4, "delta_ce"] = np.nan
    return table.drop(columns="nmse")


def refinement() -> pd.DataFrame:
    rows = []
    for row in autoencoders().to_dict("records"):
        if row["method"] not in ("relu", "topk") or row["n"] != N:
            continue
        gain, shift = (0.75, 0.012) if row["method"] == "relu" else (0.97, 0.0002)
        rows.append(
            {key: row[key] for key in KEYS}
            | {
                "l0": row["l0"],
                "nmse": row["nmse"],
                "nmse_refined": gain * row["nmse"],
                "mean_shift": shift,
                "mean_absolute_shift": max(shift, 0.006),
                "mean_value": 0.12,
                "fraction_up": 0.8 if row["method"] == "relu" else 0.5,
            }
            | PROVENANCE
        )
    return pd.DataFrame(rows)


def refinement_contexts() -> pd.DataFrame:
    table = (
        refinement()
        .drop(columns=list(PROVENANCE))
        .merge(pd.DataFrame({"context": range(CONTEXTS)}), "cross")
    )
    variance = _rng("variance").gamma(40, 1.5, CONTEXTS)[table["context"]]
    active = np.round(table["l0"] * POSITIONS)
    return pd.DataFrame(
        {key: table[key] for key in [*KEYS, "context"]}
        | {
            "squared_error": table["nmse"] * variance,
            "squared_error_refined": table["nmse_refined"] * variance,
            "variance": variance,
            "l0": table["l0"],
            "shift_sum": table["mean_shift"] * active * _rng("shift").normal(1, 0.1, len(table)),
            "absolute_shift_sum": table["mean_absolute_shift"] * active,
            "value_sum": table["mean_value"] * active,
            "active": active.astype(int),
        }
    )


def refinement_histogram() -> pd.DataFrame:
    parts = []
    edges = np.linspace(-0.1, 0.1, 161)
    for row in refinement().to_dict("records"):
        rng = _rng("histogram", *(row[key] for key in KEYS))
        shifts = row["mean_shift"] + rng.standard_t(3, 20_000) * row["mean_absolute_shift"] / 1.1
        count, _ = np.histogram(shifts.clip(-0.0999, 0.0999), edges)
        parts.append(
            pd.DataFrame({"bin_left": edges[:-1], "bin_right": edges[1:], "count": count}).assign(
                **{key: row[key] for key in KEYS}
            )
        )
    return _keys_first(pd.concat(parts, ignore_index=True))


def tuning() -> pd.DataFrame:
    rows = []
    for method, *_ in _METHODS:
        for rate in (3e-4, 1e-3, 3e-3, 1e-2):
            nmse = _nmse(method, N, L0) * (1 + 0.25 * np.log10(rate / 2e-3) ** 2)
            rows.append(
                _keys(method, N, L0, 0)
                | {"learning_rate": rate, "nmse": nmse, "nmse_se": 0.005 * nmse, "l0": float(L0)}
                | {"off_target": rate == 1e-2, "chosen": rate == 3e-3}
                | {name: PROVENANCE[name] for name in ("training_tokens", "version")}
            )
    return pd.DataFrame(rows)


def training() -> pd.DataFrame:
    steps = pd.DataFrame({"step": np.arange(0, 2001, 100)})
    table = autoencoders()[[*KEYS, "l0", "lambda", "nmse"]].merge(steps, "cross")
    nmse = table["nmse"] + np.exp(-table["step"] / 200)
    return table.assign(tokens=256 * table["step"], loss=nmse, nmse=nmse, dead_fraction=0.0)


def claims() -> pd.DataFrame:
    verdicts = ["reproduced", "reproduced", "contradicted", "inconclusive", "not measured"]
    rows = []
    for index in range(18):
        verdict = verdicts[index % 5]
        effect = {"contradicted": -0.08, "inconclusive": 0.02, "not measured": np.nan}.get(
            verdict, 0.14
        )
        rows.append(
            {
                "claim": f"C{index + 1}",
                "statement": "TopK: test-time TopK and JumpReLU curves coincide below the training "
                "L0, and JumpReLU is worse above it"[: 60 + 5 * (index % 8)],
                "effect": effect,
                "unit": "log nMSE",
                "low": effect - 0.05,
                "high": effect + 0.04,
                "claimed_low": np.nan if verdict == "not measured" else 0.0,
                "claimed_high": np.nan if verdict == "not measured" else np.inf,
                "verdict": verdict,
                "detail": "",
                "run": "made-up",
                "version": "0.1.0",
            }
        )
    return pd.DataFrame(rows)
