"""One training step: loss, gradients, clipping, Adam, dead latents.

Gao et al. 2024, Appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.distributed import REPLICATED
from l0plane.kernels import AdamState
from l0plane.methods import Method, Parameters
from l0plane.methods.base import squared_error

#: A loss (in normalised MSE, of which the mean activation alone gives 1) or a gradient norm beyond
#: this has exploded: nothing good comes of it, though the numbers may stay finite for long.
EXPLODED = 1e6


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
        #: No latent has been silent for longer. Unknown until a step has looked: `silent_tokens`
        #: may come from a checkpoint.
        self._silent_at_most = math.inf

    def step(
        self, x: Tensor, learning_rate: float, penalty_factor: float
    ) -> dict[str, float] | None:
        """One optimiser step on a batch `x [rows, d]`; facts of it for the log.

        None, and no step, where the loss or the norm of its gradient has exploded.
        """
        ranks, tokens, n = self.method.ranks, len(x), len(self.silent_tokens)
        x = ranks.rows(x)
        pieces = [x] if self.method.auxk else x.tensor_split(self.method.pieces(tokens, n))
        scale = 1 / (tokens * self.variance)
        gradients: Parameters = {}
        self.silent_tokens += tokens
        self._silent_at_most += tokens
        parts = [self._piece(rows, scale, penalty_factor / tokens, gradients) for rows in pieces]
        ranks.sum_gradients(gradients)
        # All that the host has to know of the step, at once: a GPU is waited for.
        sums = [sum(each) for each in zip(*parts, strict=True)]
        norms = [_squared_norm(gradient) for gradient in gradients.values()]
        found = _numbers([*sums, *self._silence(), *norms])
        objective, penalty, squared, active, self._silent_at_most, dead, *squares = found
        own = dict(zip(gradients, squares, strict=True))
        replicated = own.pop(REPLICATED, 0.0)
        norm = math.sqrt(replicated + ranks.over_latents(sum(own.values())))
        reported = ranks.over_rows(objective)
        if self.penalised:
            reported += ranks.over_all(penalty)
        if not (abs(reported) < EXPLODED and norm < EXPLODED):
            return None
        self._update(gradients, norm, learning_rate)
        return {
            "loss": reported,
            "gradient_norm": norm,
            "nmse": scale * ranks.over_rows(squared),
            "l0": ranks.over_all(active) / tokens,
            "dead_fraction": ranks.over_latents(dead) / ranks.over_latents(n),
        }

    def _piece(
        self, rows: Tensor, scale: float, penalty_scale: float, gradients: Parameters
    ) -> tuple[Tensor, Tensor | float, Tensor, int]:
        """Add to `gradients` those of the loss on some rows; nothing else of them is kept.

        Returns:
            The objective (with AuxK) and the penalty, both scaled; the squared error; how many
            triples are active.
        """
        loss = self.method.loss(self.parameters, rows)
        total = scale * loss.objective
        error = (rows - loss.reconstruction).detach()
        squared = _squared_norm(error)
        self.silent_tokens.index_fill_(0, loss.code.indices.long(), 0)
        revived: Parameters = {}
        dead = loss.code.indices[:0].long()
        if self.method.auxk:
            dead = self._dead_latents()
            if self.method.ranks.over_latents(len(dead)):
                # Leaves of their own: gradients of a few rows, not two more of all of them.
                for key in ("encoder", "decoder"):
                    revived[key] = self.parameters[key].detach()[dead].requires_grad_()
                missed = self._auxk(rows, error, squared, **revived)
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
        return objective, penalty, squared, len(loss.code.indices)

    def _update(self, gradients: Parameters, norm: float, learning_rate: float) -> None:
        self.steps += 1
        clip = self.settings["clip_norm"]
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
                min(1.0, clip / norm) if norm > 0 else 1.0,
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
        if ranks.size == 1 and self._silent_at_most < self.settings["dead_after_tokens"]:
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
        whole = squared if ranks.size == 1 else ranks.over_rows(squared.item())
        code = ranks.encode_top_k(x, pre_bias, encoder, self.settings["aux_k"])
        return (squared_error(error, ranks.decode(code, decoder)) / whole).nan_to_num()


def _squared_norm(x: Tensor) -> Tensor:
    """A dot product: one pass over memory, twice as fast as `x.norm()`."""
    return x.flatten().dot(x.flatten())


def _numbers(values: Sequence[Tensor | float]) -> list[float]:
    """The values, of which all that are on a GPU come from there at once."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if tensors[0].is_cuda:
        fetched = iter(torch.stack([tensor.double() for tensor in tensors]).tolist())
    else:
        fetched = iter([tensor.item() for tensor in tensors])
    return [next(fetched) if isinstance(value, Tensor) else value for value in values]
