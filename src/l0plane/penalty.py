"""Steering a penalty's factor lambda so that a method reaches the L0 asked for.

A sweep over lambda gives each method other values of L0, and comparing at equal L0 then needs
interpolation. Here lambda follows the L0 of the batches instead, slowly, and settles.
"""

from __future__ import annotations

import math


class PenaltyController:
    """Integral control of log lambda by log(L0 / target).

    Args:
        target: the L0 asked for.
        steps: the length of the training.
    """

    START = 1e-3
    GAIN = 10.0

    def __init__(self, target: float, steps: int):
        self.target = target
        self.rate = self.GAIN / steps
        self.value = self.START

    def observe(self, l0: float) -> None:
        """Take the mean L0 of one batch into account."""
        error = math.log(max(l0, 0.1) / self.target)
        self.value *= math.exp(self.rate * max(-1.0, min(1.0, error)))
