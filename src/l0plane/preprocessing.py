"""The space that autoencoders work in: activations without their own mean, at unit norm."""

from __future__ import annotations

import math

from torch import Tensor

EPS = 1e-5


def normalise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Subtract from each activation its mean over coordinates and scale it to unit norm.

    `(x - mean) / ((std + EPS) sqrt(d - 1))` with the std over d - 1 (Gao et al. 2024, Appendix A,
    in the form that SAELens calls `layer_norm`, so that a saved autoencoder opens there): of unit
    norm but for EPS / std.

    Args:
        x: activations of the language model `[..., d]`.

    Returns:
        The activations of unit norm `[..., d]`; their mean and scale `[..., 1]`, for `restore`.
    """
    mean = x.mean(-1, keepdim=True)
    scale = (x.std(-1, keepdim=True) + EPS) * math.sqrt(x.shape[-1] - 1)
    return (x - mean) / scale, mean, scale


def restore(x_unit: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Take `x_unit [..., d]` back to the language model's space: the inverse of `normalise`."""
    return x_unit * scale + mean
