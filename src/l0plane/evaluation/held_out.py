"""The held-out contexts: everything about them that does not depend on an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from l0plane.evaluation.downstream import ablated_loss, spliced_loss
from l0plane.language_model import LanguageModel
from l0plane.preprocessing import normalise, restore

#: Floats in one tensor of log-probabilities (32 MiB): beyond this, fresh memory costs more than
#: the arithmetic.
LOGIT_FLOATS = 1 << 23


class HeldOut:
    """Contexts, their activations at the hook, and what the language model makes of them.

    One of these serves every autoencoder that a job evaluates. Log-probabilities are computed
    again for each, part by part: kept, they would take gigabytes.

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

    def __len__(self) -> int:
        """How many contexts."""
        return len(self.tokens)

    @property
    def _contexts_per_part(self) -> int:
        width = self.tokens.shape[1] * self.language_model.vocabulary
        return max(1, LOGIT_FLOATS // width)

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """Split the contexts from `start` to `stop` (the end) into parts that one pass can hold."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, self._contexts_per_part):
            yield slice(first, min(first + self._contexts_per_part, stop))

    def rows(self, contexts: slice) -> Tensor:
        """The preprocessed activations `[rows, d]` of some contexts."""
        return self.x[contexts.start * self.positions : contexts.stop * self.positions]

    def per_context(self, per_row: Tensor) -> Tensor:
        """Sum a number per row `[rows]` over the positions of each context, float64."""
        return per_row.double().reshape(-1, self.positions).sum(1)

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
        parts = self.parts()
        return torch.cat([spliced_loss(self, part, self.residual[part]) for part in parts])

    @cached_property
    def zero_ablated_loss(self) -> float:
        """Mean cross-entropy, nats, with zeros for the activations."""
        return ablated_loss(self, torch.zeros_like(self.residual[0, 0]))

    @cached_property
    def mean_ablated_loss(self) -> float:
        """Mean cross-entropy, nats, with their mean for the activations."""
        return ablated_loss(self, self.residual[:, self._first :].mean((0, 1)))
