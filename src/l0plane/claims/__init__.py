"""What a run says about each claim of Gao et al. 2024, sections 5.1 to 5.3 and 6.

The rule and the margins behind each verdict are in docs/claims.md.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from l0plane import __version__
from l0plane.claims import rules_refined, rules_test_time, rules_trained
from l0plane.claims.bootstrap import RESAMPLES
from l0plane.claims.comparisons import compare_methods
from l0plane.claims.points import Evidence
from l0plane.claims.report import to_markdown
from l0plane.claims.tables import Tables, published_tables
from l0plane.claims.verdicts import Part, whole

__all__ = [
    "CLAIMS",
    "Tables",
    "compare_methods",
    "judge",
    "published_tables",
    "to_markdown",
]

Rule = Callable[[Evidence], list[Part]]

CLAIMS: dict[str, tuple[str, Rule]] = {
    "C1": (
        "Gated and both ProLUs improve the L0-nMSE frontier over ReLU",
        rules_trained.improved_frontier,
    ),
    "C2": ("TopK has the best nMSE at equal L0 overall", rules_trained.topk_best),
    "C3": ("C1 and C2 hold for downstream cross-entropy", rules_trained.downstream),
    "C4": (
        "At fixed L0, nMSE falls faster with n for TopK than for ReLU",
        rules_trained.steeper_in_size,
    ),
    "C5": ("Fine-tuned scales improve ReLU at unchanged L0", rules_trained.scales_help),
    "C6": ("Refinement is biased upward for ReLU", rules_refined.relu_biased),
    "C7": (
        "Refinement is unbiased for TopK, and smaller in magnitude than for ReLU",
        rules_refined.topk_unbiased,
    ),
    "C8": (
        "Refinement closes only part of the gap between ReLU and TopK",
        rules_refined.part_of_gap,
    ),
    "C9": (
        "TopK: nMSE keeps improving for k' slightly over k, then gets substantially worse",
        rules_test_time.overfits_k,
    ),
    "C10": ("The same effect on downstream loss is more muted", rules_test_time.muted_downstream),
    "C11": (
        "Multi-TopK gives a progressive code over all k'",
        rules_test_time.multi_topk_progressive,
    ),
    "C12": ("Multi-TopK is slightly worse than TopK at k", rules_trained.multi_topk_at_k),
    "C13": (
        "ReLU is progressive up to using all its positive latents",
        rules_test_time.relu_progressive,
    ),
    "C14": (
        "TopK: test-time TopK and JumpReLU curves coincide below the training L0, and JumpReLU "
        "is worse above it",
        rules_test_time.curves_part_at_k,
    ),
    "C15": (
        "With Multi-TopK the two curves nearly coincide everywhere",
        rules_test_time.curves_nearly_coincide,
    ),
    "C16": ("For ReLU the two curves coincide", rules_test_time.curves_coincide),
    "C17": (
        "Sometimes a ReLU trained with low L1 and cut by TopK or JumpReLU at test time beats one "
        "trained with higher L1 at the same L0",
        rules_test_time.cut_beats_trained,
    ),
    "C18": ("Lower learning rates give fewer dead latents", rules_trained.dead_latents),
}


def judge(tables: Tables, resamples: int = RESAMPLES, random_seed: int = 0) -> pd.DataFrame:
    """Judge every claim on the tables of a run.

    Returns the columns claim, part, statement, effect, unit, low, high (95% interval), claimed_low,
    claimed_high (where the claim says that the effect lies), verdict, detail, run, version. A claim
    has a row with an empty `part`; a claim of several parts has one more row for each of them.
    """
    evidence = Evidence.of(tables, resamples, random_seed)
    rows = []
    for claim, (statement, rule) in CLAIMS.items():
        parts = rule(evidence)
        overall = whole(parts)
        shown = [("", overall)]
        if len(parts) > 1:
            shown += [(part.name, part) for part in parts]
        rows += [
            {
                "claim": claim,
                "part": name,
                "statement": statement,
                "effect": part.effect,
                "unit": part.unit,
                "low": part.low,
                "high": part.high,
                "claimed_low": part.claimed.low,
                "claimed_high": part.claimed.high,
                "verdict": part.verdict,
                "detail": part.detail,
                "run": tables.run,
                "version": __version__,
            }
            for name, part in shown
        ]
    return pd.DataFrame(rows)
