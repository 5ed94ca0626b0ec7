"""The held-out contexts: everything about them that does not depend on an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from l0plane.evaluation.downstream import Untouched, ablated_loss
from l0plane.language_model import LanguageModel
from l0plane.preprocessing import Normalisation, normalise, restore

#: Floats in one tensor of log-probabilities, by where they are. On a CPU (32 MiB), beyond this,
#: fresh memory costs more than the arithmetic; a GPU (1 GiB) needs work enough for a pass.
LOGIT_FLOATS = {"cpu": 1 << 23, "cuda": 1 << 28}
#: Floats of the untouched model's probabilities that are kept for the next autoencoder (1 GiB,
#: 8 GiB); those beyond are computed again.
KEPT_FLOATS = {"cpu": 1 << 28, "cuda": 1 << 31}
#: Pre-activations of which half, say, are positive and walked on the CPU (1 GiB in its arrays).
CODE_FLOATS = 1 << 26


class Seen(NamedTuple):
    """Activations in an autoencoder's own space, and the way from there to unit norm."""

    x: Tensor
    """`[rows, d]`, normalised as the autoencoder wants them."""
    shift: Tensor
    """`[rows, 1]`; for an autoencoder that works at unit norm 0."""
    stretch: Tensor
    """`[rows, 1]`; for an autoencoder that works at unit norm 1."""

    def at_unit_norm(self, x_hat: Tensor) -> Tensor:
        """Reconstructions `[rows, d]` of `x` in the space in which errors are measured."""
        return x_hat * self.stretch + self.shift


class HeldOut:
    """Contexts, their activations at the hook, and what the language model makes of them.

    One of these serves every autoencoder that a job evaluates.

    Attributes:
        language_model: the model under study.
        tokens: int64 `[contexts, context]`.
        residual: activations in the model's space, `[contexts, context, d]`.
        x: the same, preprocessed, at the positions that autoencoders see: `[rows, d]`, context by
            context.
        positions: how many such positions a context has.
    """

    def __init__(
        self, language_model: LanguageModel, contexts: np.ndarray, drop_first_position: bool
    ) -> None:
        """Run the language model once up to its hook.

        Args:
            language_model: gives the activations.
            contexts: int `[contexts, context]`.
            drop_first_position: autoencoders do not see position 0: it keeps its own activation
                and does not count in L0 and squared error.
        """
        self.language_model = language_model
        self.tokens = torch.from_numpy(contexts.astype(np.int64))
        self._first = int(drop_first_position)
        self.positions = contexts.shape[1] - self._first
        step = self._contexts_per_part
        self.residual = torch.cat(
            [language_model.residual(tokens) for tokens in self.tokens.split(step)]
        )
        x, self._mean, self._scale = normalise(self.residual[:, self._first :])
        self.x = x.reshape(-1, x.shape[-1])
        self._untouched: dict[tuple[int, int], Untouched] = {}

    def __len__(self) -> int:
        """How many contexts."""
        return len(self.tokens)

    @property
    def _contexts_per_part(self) -> int:
        width = self.tokens.shape[1] * self.language_model.vocabulary
        return max(1, LOGIT_FLOATS[self.language_model.device.type] // width)

    def parts(self, start: int = 0, stop: int | None = None, n: int = 0) -> Iterator[slice]:
        """Split the contexts from `start` to `stop` (the end) into parts that one pass can hold.

        And of which all positive values of `n` latents can be held.
        """
        stop = len(self) if stop is None else stop
        step = min(self._contexts_per_part, max(1, CODE_FLOATS // (self.positions * max(1, n))))
        for first in range(start, stop, step):
            yield slice(first, min(first + step, stop))

    def rows(self, contexts: slice) -> Tensor:
        """The preprocessed activations `[rows, d]` of some contexts."""
        return self.x[contexts.start * self.positions : contexts.stop * self.positions]

    def seen(self, contexts: slice, how: Normalisation) -> Seen:
        """Some contexts in the space of an autoencoder whose `normalisation` is `how`.

        The way back uses each token's own mean and scale at unit norm: every autoencoder's errors
        are thus relative to the same activations, whatever space it works in.
        """
        mean, scale = self._mean[contexts], self._scale[contexts]
        if how == "unit_norm":
            x, shift, stretch = self.rows(contexts), torch.zeros_like(mean), torch.ones_like(scale)
        else:
            x, own_mean, own_scale = normalise(self.residual[contexts, self._first :], how)
            shift, stretch = (own_mean - mean) / scale, own_scale / scale
        return Seen(x.reshape(-1, x.shape[-1]), shift.reshape(-1, 1), stretch.reshape(-1, 1))

    def per_context(self, per_row: Tensor) -> Tensor:
        """Sum a number per row `[rows]` over the positions of each context, float64."""
        return per_row.double().reshape(-1, self.positions).sum(1)

    def untouched(self, contexts: slice) -> Untouched:
        """What the untouched model predicts; the first `KEPT_FLOATS` of it are computed once."""
        key = (contexts.start, contexts.stop)
        if key not in self._untouched:
            tokens = self.tokens[contexts]
            predicted = self.language_model.log_probabilities(tokens, self.residual[contexts])
            found = Untouched.of(predicted, tokens)
            kept = sum(each.probabilities.numel() for each in self._untouched.values())
            if kept + predicted.numel() > KEPT_FLOATS[predicted.device.type]:
                return found
            self._untouched[key] = found
        return self._untouched[key]

    def splice(self, contexts: slice, residual: Tensor) -> Tensor:
        """Activations `[contexts, context, d]` with `residual` where autoencoders see them."""
        spliced = self.residual[contexts].clone()
        spliced[:, self._first :] = residual
        return spliced

    def splice_reconstruction(self, contexts: slice, x_hat: Tensor) -> Tensor:
        """The same for reconstructions `[rows, d]`, with each token's own mean and scale."""
        x_hat = x_hat.reshape(-1, self.positions, x_hat.shape[-1])
        return self.splice(contexts, restore(x_hat, self._mean[contexts], self._scale[contexts]))

    @cached_property
    def x_mean(self) -> Tensor:
        """The mean preprocessed activation `[d]`: what normalised MSE is measured against."""
        return self.x.mean(0)

    @cached_property
    def variance(self) -> Tensor:
        """`||x - x_mean||^2` summed over each context, float64 `[contexts]`."""
        return self.per_context((self.x - self.x_mean).square().sum(1))

    @cached_property
    def loss(self) -> Tensor:
        """Cross-entropy of the untouched model, nats, float64 `[contexts]`."""
        return torch.cat([self.untouched(part).loss for part in self.parts()])

    @cached_property
    def zero_ablated_loss(self) -> float:
        """Mean cross-entropy, nats, with zeros for the activations."""
        return ablated_loss(self, torch.zeros_like(self.residual[0, 0]))

    @cached_property
    def mean_ablated_loss(self) -> float:
        """Mean cross-entropy, nats, with their mean for the activations."""
        return ablated_loss(self, self.residual[:, self._first :].mean((0, 1)))
