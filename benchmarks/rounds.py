"""Times in rounds: what is compared takes turns, so that a busy moment of the machine meets all.

Needs nothing but PyTorch: the peers' environment uses it, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """What is trained: a method at a size, on batches of `rows` activations."""

    method: str
    d: int
    n: int
    k: int
    rows: int
    dead: int = 0
    """How many latents are dead, which the AuxK loss then revives."""


def activations(rows: int, d: int, seed: int = 0) -> Tensor:
    """Random activations of unit norm, `[rows, d]`."""
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def encoder_product(case: Case) -> Callable[[], object]:
    """The product that no exact method can avoid, `[rows, d]` by `[d, n]`, into kept memory."""
    x, encoder = activations(case.rows, case.d), activations(case.n, case.d, seed=1)
    out = torch.empty(case.rows, case.n)
    return lambda: torch.mm(x, encoder.T, out=out)


def compare(
    case: Case, steps: dict[str, Callable[[], object]], seconds: float, least: int = 2
) -> list[dict[str, object]]:
    """Time each step and the encoder product in turn, `least` rounds or more, for some seconds.

    Returns:
        One row per step: its time and the product's in ms, median and least; `ratio`, the median
        over rounds of their quotient, and `ratio_of_least`, the quotient of the least times.
    """
    everything = {"product": encoder_product(case), **steps}
    for run in everything.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in everything}
    end = time.perf_counter() + seconds
    while len(times["product"]) < least or time.perf_counter() < end:
        for name, run in everything.items():
            started = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - started))
    product = times.pop("product")
    return [
        {
            **case._asdict(),
            "implementation": name,
            "rounds": len(own),
            "ms": statistics.median(own),
            "least_ms": min(own),
            "product_ms": statistics.median(product),
            "least_product_ms": min(product),
            "ratio": statistics.median(a / b for a, b in zip(own, product, strict=True)),
            "ratio_of_least": min(own) / min(product),
        }
        for name, own in times.items()
    ]
