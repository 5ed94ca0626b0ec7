"""Downstream loss (Figure 5): what the language model loses when it reads reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from l0plane.evaluation.held_out import HeldOut


def cross_entropy(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Next-token cross-entropy of each context, nats, mean over its predicted positions.

    Args:
        log_probabilities: `[contexts, context - 1, vocabulary]`.
        tokens: int `[contexts, context]`.

    Returns:
        float64 `[contexts]`.
    """
    following = tokens[:, 1:, None].long().to(log_probabilities.device)
    return -log_probabilities.gather(-1, following)[..., 0].double().mean(1)


class Untouched(NamedTuple):
    """What the untouched model predicts on some contexts, as far as it is compared with."""

    probabilities: Tensor
    """`[contexts, context - 1, vocabulary]`."""
    entropy: Tensor
    """Of each prediction, nats, `[contexts, context - 1]`."""
    loss: Tensor
    """Cross-entropy, nats, float64 `[contexts]`."""

    @classmethod
    def of(cls, log_probabilities: Tensor, tokens: Tensor) -> Untouched:
        """From its predictions; arguments as for `cross_entropy`."""
        loss = cross_entropy(log_probabilities, tokens)
        probabilities = log_probabilities.exp()
        return cls(probabilities, _crossed(probabilities, log_probabilities), loss)

    def divergence(self, spliced: Tensor) -> Tensor:
        """KL(untouched || spliced) of each context, nats, mean over its predicted positions.

        `spliced` are log-probabilities `[contexts, context - 1, vocabulary]`; float64 `[contexts]`.
        """
        return (_crossed(self.probabilities, spliced) - self.entropy).double().mean(1)


def _crossed(probabilities: Tensor, log_probabilities: Tensor) -> Tensor:
    """`-sum p log q`, nats, `[contexts, context - 1]`."""
    return -(probabilities * log_probabilities).sum(-1)


def spliced_loss(held_out: HeldOut, contexts: slice, spliced: Tensor) -> Tensor:
    """Cross-entropy of some contexts with the activations `spliced [contexts, context, d]`.

    Nats, mean over predicted positions, float64 `[contexts]`.
    """
    tokens = held_out.tokens[contexts]
    return cross_entropy(held_out.language_model.log_probabilities(tokens, spliced), tokens)


def compare(held_out: HeldOut, contexts: slice, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Delta cross-entropy and KL(untouched || spliced) of each context, float64 `[contexts]`, nats.

    The reconstructions `x_hat [rows, d]` go in at every position that the autoencoder was trained
    on; both measures are means over all predicted positions.
    """
    tokens = held_out.tokens[contexts]
    lm = held_out.language_model
    untouched = held_out.untouched(contexts)
    spliced = lm.log_probabilities(tokens, held_out.splice_reconstruction(contexts, x_hat))
    return cross_entropy(spliced, tokens) - untouched.loss, untouched.divergence(spliced)


def ablated_loss(held_out: HeldOut, residual: Tensor) -> float:
    """Mean cross-entropy, nats, with one activation `residual [d]` at every spliced position."""
    parts = held_out.parts()
    losses = [spliced_loss(held_out, part, held_out.splice(part, residual)) for part in parts]
    return torch.cat(losses).mean().item()
