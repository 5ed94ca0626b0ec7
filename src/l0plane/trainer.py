"""One training step: loss, gradients, clipping, Adam, dead latents.

Gao et al. 2024, Appendix A.
"""

from __future__ import annotations

import math
import operator
import time
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.distributed import REPLICATED
from l0plane.kernels import AdamState
from l0plane.methods import Method, Parameters

#: A loss (in normalised MSE, of which the mean activation alone gives 1) or a gradient norm beyond
#: this has exploded: nothing good comes of it, though the numbers may stay finite for long.
EXPLODED = 1e6


class Taken(NamedTuple):
    """A step that was taken, or on a GPU will be: what `Trainer.read` is to tell of it."""

    tokens: int
    """In its batch."""
    tokens_until: int
    """In all batches up to this one."""
    numbers: dict[str, Tensor]
    """Each `[]` and on the CPU, of a GPU once it has come to the end of the step."""
    seconds: float | tuple[torch.cuda.Event, torch.cuda.Event]
    """How long it took; what a GPU notes at its beginning and at its end."""


class Trainer:
    """Parameters, optimiser state and dead-latent accounting of one run."""

    def __init__(
        self, method: Method, parameters: Parameters, variance: float, settings: dict[str, Any]
    ):
        self.method = method
        self.parameters = {k: p.detach().requires_grad_() for k, p in parameters.items()}
        self.states = {
            key: AdamState(torch.zeros_like(p), torch.zeros_like(p), p.detach().clone())
            for key, p in self.parameters.items()
        }
        self.variance = variance
        self.settings = settings
        self.penalised = False
        self.steps = 0
        latents = next(p for key, p in parameters.items() if key != REPLICATED)
        self.silent_tokens = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        self._n = method.ranks.over_latents(len(latents))
        self._tokens = 0
        #: At so many tokens or later each latent was active. Unknown until a step was read:
        #: `silent_tokens` may come from a checkpoint.
        self._all_active = -math.inf

    def step(self, x: Tensor, learning_rate: float, penalty_factor: float) -> Taken:
        """One optimiser step on a batch `x [rows, d]`; what comes of it, `read` says.

        The host does not wait for a GPU to end the step, but where a selection has no fixed length.
        """
        ranks, tokens, n = self.method.ranks, len(x), len(self.silent_tokens)
        began = _now(x)
        x = ranks.rows(x)
        pieces = [x] if self.method.auxk else x.tensor_split(self.method.pieces(tokens, n))
        scale = 1 / (tokens * self.variance)
        gradients: Parameters = {}
        self.silent_tokens += tokens
        self._tokens += tokens
        parts = [self._piece(rows, scale, penalty_factor / tokens, gradients) for rows in pieces]
        ranks.sum_gradients(gradients)
        norm = self._norm(gradients)
        self._update(gradients, norm, learning_rate)
        objective, penalty, squared, active = (
            reduce(operator.add, each) for each in zip(*parts, strict=True)
        )
        loss = ranks.over_rows(objective)
        if self.penalised:
            loss = loss + ranks.over_all(penalty)
        longest, dead = self._silence()
        numbers = {
            "loss": loss,
            "gradient_norm": norm,
            "squared_error": ranks.over_rows(squared),
            "active": ranks.over_all(active),
            "dead": ranks.over_latents(dead),
            "longest_silence": longest,
        }
        if x.is_cuda:
            there = torch.stack([number.double() for number in numbers.values()])
            here = there.to("cpu", non_blocking=True)
            numbers = dict(zip(numbers, here.unbind(), strict=True))
        ended = _now(x)
        seconds = ended - began if isinstance(ended, float) else (began, ended)
        return Taken(tokens, self._tokens, numbers, seconds)

    def read(self, taken: Taken) -> dict[str, float] | None:
        """Facts of a step for the log, and the seconds that it took; waits for a GPU to end it.

        None where the loss or the norm of its gradient exploded: the parameters are spoilt.
        """
        if isinstance(taken.seconds, float):
            seconds = taken.seconds
        else:
            began, ended = taken.seconds
            ended.synchronize()
            seconds = began.elapsed_time(ended) / 1e3
        numbers = {name: number.item() for name, number in taken.numbers.items()}
        loss, norm = numbers["loss"], numbers["gradient_norm"]
        if not (abs(loss) < EXPLODED and norm < EXPLODED):
            return None
        self._all_active = max(self._all_active, taken.tokens_until - numbers["longest_silence"])
        return {
            "loss": loss,
            "gradient_norm": norm,
            "nmse": numbers["squared_error"] / (taken.tokens * self.variance),
            "l0": numbers["active"] / taken.tokens,
            "dead_fraction": numbers["dead"] / self._n,
            "seconds": seconds,
        }

    def _piece(
        self, rows: Tensor, scale: float, penalty_scale: float, gradients: Parameters
    ) -> tuple[Tensor, Tensor | float, Tensor, Tensor]:
        """Add to `gradients` those of the loss on some rows; nothing else of them is kept.

        Returns:
            The objective (with AuxK) and the penalty, both scaled; the squared error; how many
            triples are active.
        """
        loss = self.method.loss(self.parameters, rows)
        total = scale * loss.objective
        squared = _squared_norm(loss.error)
        active = kernels.reset_active(self.silent_tokens, loss.code)
        revived: Parameters = {}
        dead = self.silent_tokens[:0]
        if self.method.auxk:
            dead = self._dead_latents()
            if self.method.ranks.over_latents(len(dead)):
                # Leaves of their own: gradients of a few rows, not two more of all of them.
                for key in ("encoder", "decoder"):
                    revived[key] = self.parameters[key].detach()[dead].requires_grad_()
                missed = self._auxk(rows, loss.error, squared, **revived)
                total = total + self.settings["aux_weight"] * missed
        objective = total.detach()
        penalty: Tensor | float = 0.0
        if loss.penalty is not None:
            self.penalised = True
            weighted = penalty_scale * loss.penalty
            total = total + weighted
            penalty = weighted.detach()
        found = torch.autograd.grad(total, [*self.parameters.values(), *revived.values()])
        for key, gradient in zip(self.parameters, found, strict=False):
            gradients[key] = gradients[key].add_(gradient) if key in gradients else gradient
        for key, gradient in zip(revived, found[len(self.parameters) :], strict=True):
            gradients[key].index_add_(0, dead, gradient)
        return objective, penalty, squared, active

    def _norm(self, gradients: Parameters) -> Tensor:
        """That of all gradients together, float64 `[]`."""
        squares = {key: _squared_norm(gradient) for key, gradient in gradients.items()}
        replicated = squares.pop(REPLICATED, 0.0)
        own = torch.stack([*squares.values()]).sum(dtype=torch.float64)
        return (self.method.ranks.over_latents(own) + replicated).sqrt()

    def _update(self, gradients: Parameters, norm: Tensor, learning_rate: float) -> None:
        self.steps += 1
        gradient_scale = (self.settings["clip_norm"] / norm).clamp(max=1.0)
        # The average follows quickly at first, so that it does not remember the initial weights.
        decay = min(self.settings["ema"], (1 + self.steps) / (10 + self.steps))
        for key, parameter in self.parameters.items():
            state = self.states[key]
            state.step = self.steps
            kernels.adam(
                parameter.detach(),
                gradients[key],
                state,
                learning_rate,
                gradient_scale,
                decay,
                unit_rows=key == "decoder",
            )

    def _silence(self) -> tuple[Tensor, Tensor]:
        """How long the latent has been silent that was so the longest; how many are dead."""
        if not self.method.auxk:  # which had to know it before its loss
            self.method.ranks.shortest(self.silent_tokens)
        dead = self.silent_tokens >= self.settings["dead_after_tokens"]
        return self.silent_tokens.max(), dead.sum()

    def _dead_latents(self) -> Tensor:
        """int64 indices of the latents that have been silent for `dead_after_tokens`."""
        ranks = self.method.ranks
        # Most steps of a training know beforehand that there are none, and need not ask a GPU.
        silent_at_most = self._tokens - self._all_active
        if ranks.size == 1 and silent_at_most < self.settings["dead_after_tokens"]:
            return self.silent_tokens[:0]
        ranks.shortest(self.silent_tokens)
        return (self.silent_tokens >= self.settings["dead_after_tokens"]).nonzero()[:, 0]

    def _auxk(
        self, x: Tensor, error: Tensor, squared: Tensor, encoder: Tensor, decoder: Tensor
    ) -> Tensor:
        """`||e - e^||^2 / ||e||^2` with e^ from the top `aux_k` dead latents (Appendix A.2).

        `squared` is this rank's part of the denominator, which is of the whole batch; encoder and
        decoder are of dead latents.
        """
        ranks, pre_bias = self.method.ranks, self.parameters["pre_bias"].detach()
        whole = ranks.over_rows(squared).to(squared.dtype)
        code = ranks.encode_top_k(x, pre_bias, encoder, self.settings["aux_k"], padded=True)
        missed, _ = ranks.squared_error(error, code, decoder)
        return (missed / whole).nan_to_num()


def _squared_norm(x: Tensor) -> Tensor:
    """A dot product: one pass over memory, twice as fast as `x.norm()`."""
    return x.flatten().dot(x.flatten())


def _now(x: Tensor) -> Any:
    """The time in seconds; of a GPU an event, when it has done what it was told so far."""
    if not x.is_cuda:
        return time.perf_counter()
    moment = torch.cuda.Event(enable_timing=True)
    moment.record()
    return moment
