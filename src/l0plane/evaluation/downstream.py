"""Downstream loss (Figure 5): what the language model loses when it reads reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def divergence(original: Tensor, spliced: Tensor) -> Tensor:
    """KL(original || spliced) of each context, nats, mean over its predicted positions.

    Both are log-probabilities `[contexts, context - 1, vocabulary]`; float64 `[contexts]`.
    """
    # One temporary of this size is reused; at a large vocabulary it is all of the memory.
    difference = original - spliced
    return difference.mul_(original.exp()).sum(-1).double().mean(1)


def spliced_loss(held_out: HeldOut, contexts: slice, spliced: Tensor) -> Tensor:
    """Cross-entropy of some contexts with the activations `spliced [contexts, context, d]`.

    Nats, mean over predicted positions, float64 `[contexts]`.
    """
    tokens = held_out.tokens[contexts]
    return cross_entropy(held_out.language_model.log_probabilities(tokens, spliced), tokens)


def compare(held_out: HeldOut, contexts: slice, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Delta cross-entropy and KL(original || spliced) of each context, float64 `[contexts]`, nats.

    The reconstructions `x_hat [rows, d]` go in at every position that the autoencoder was trained
    on; both measures are means over all predicted positions.
    """
    tokens = held_out.tokens[contexts]
    lm = held_out.language_model
    original = held_out.original_log_probabilities(contexts)
    spliced = lm.log_probabilities(tokens, held_out.splice_reconstruction(contexts, x_hat))
    delta = cross_entropy(spliced, tokens) - cross_entropy(original, tokens)
    return delta, divergence(original, spliced)


def ablated_loss(held_out: HeldOut, residual: Tensor) -> float:
    """Mean cross-entropy, nats, with one activation `residual [d]` at every spliced position."""
    parts = held_out.parts()
    losses = [spliced_loss(held_out, part, held_out.splice(part, residual)) for part in parts]
    return torch.cat(losses).mean().item()
