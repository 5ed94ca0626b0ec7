"""The course of a penalty's factor lambda over a training: constant, or steered to an L0.

Steered, lambda follows the L0 of the batches: it rises while L0 comes down to the L0 asked for, and
settles there. One training reaches that L0, but its history of lambda is not that of the papers;
`lambdas.search_lambda` starts from it and finds the constant lambda that gives the same L0.
"""

from __future__ import annotations

import math

#: Share of the training over which a constant lambda rises linearly from zero: at full strength
#: from the first step, before the encoder has learned anything, it kills latents for good.
WARM_UP = 0.1
#: The search for the lambda that gives an L0 ends after so many trainings with a constant one.
TRIALS = 14
#: Trainings that it takes at most, with the steered one that it starts from.
SEARCH = 1 + TRIALS


def warm_up(step: int, steps: int) -> float:
    """What a constant lambda is multiplied by in a step (of `steps`, counted from 0)."""
    return min(1.0, (step + 1) / (WARM_UP * steps))


class PenaltyController:
    """Proportional-integral control of log lambda by log(L0 / goal).

    The goal falls geometrically from the first batch's L0 to the target over the first part of
    the training: asked to jump, lambda would overshoot and kill latents for good.

    Args:
        target: the L0 asked for.
        steps: the length of the training.
        delay: share of the training in which L0 answers a change of lambda; sets the integral
            part.
    """

    START = 1e-3
    MOST = 10.0
    """No method needs as much; without an end, an L0 that does not answer drives lambda to
    infinity."""
    APPROACH = 0.2
    """Share of the training in which the goal reaches the target."""
    PROPORTIONAL = 2.0
    FASTEST = 60.0
    """Most that log lambda may move in a training: an L0 that answers late must not wind it up."""

    def __init__(self, target: float, steps: int, delay: float):
        self.target = target
        self.steps = steps
        self.delay_steps = delay * steps
        self.value = self.START
        self.first: float | None = None
        self.last_error = 0.0
        self.seen = 0

    def observe(self, l0: float) -> None:
        """Take the mean L0 of one batch into account."""
        l0 = max(l0, 0.01 * self.target)
        if self.first is None:
            self.first = max(l0, self.target)
        self.seen += 1
        left = max(0.0, 1 - self.seen / (self.APPROACH * self.steps))
        error = math.log(l0 / self.target) - left * math.log(self.first / self.target)
        integral = error / self.delay_steps
        change = self.PROPORTIONAL * (error - self.last_error + integral)
        limit = self.FASTEST / self.steps
        self.value = min(self.MOST, self.value * math.exp(max(-limit, min(limit, change))))
        self.last_error = error
