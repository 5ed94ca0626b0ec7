"""The spaces that autoencoders work in: first of all activations without their mean, at unit norm.

Every autoencoder trained here works in that one, and errors are measured in it. Those trained
elsewhere may want their activations otherwise.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

EPS = 1e-5

#: What an autoencoder wants done to each activation; see `normalise`.
Normalisation = Literal["unit_norm", "none", "constant_norm"]


def normalise(x: Tensor, how: Normalisation = "unit_norm") -> tuple[Tensor, Tensor, Tensor]:
    """Subtract a mean from each activation and divide it by a scale.

    - `unit_norm`: `(x - mean) / ((std + EPS) sqrt(d - 1))` with the mean over coordinates and the
      std over d - 1 (Gao et al. 2024, Appendix A, in the form that SAELens calls `layer_norm`, so
      that a saved autoencoder opens there): of unit norm but for EPS / std.
    - `none`: as the language model gives it; the mean is 0 and the scale 1.
    - `constant_norm`: `x sqrt(d) / ||x||` (SAELens' `constant_norm_rescale`); the mean is 0.

    Args:
        x: activations of the language model `[..., d]`.
        how: which of them.

    Returns:
        The activations in that space `[..., d]`; their mean and scale `[..., 1]`, for `restore`.
    """
    mean = torch.zeros_like(x[..., :1])
    scale = torch.ones_like(mean)
    if how == "unit_norm":
        mean = x.mean(-1, keepdim=True)
        scale = (x.std(-1, keepdim=True) + EPS) * math.sqrt(x.shape[-1] - 1)
    elif how == "constant_norm":
        scale = x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
    return (x - mean) / scale, mean, scale


def restore(x_in: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Take `x_in [..., d]` back to the language model's space: the inverse of `normalise`."""
    return x_in * scale + mean
