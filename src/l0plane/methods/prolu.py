"""ProLU: `z = m 1[m + b > 0 and m > 0]` with `m = a`, `b = b_enc`, and an L1 penalty.

Taggart 2024; the same forward pass as TRec (Konda et al. 2014). The condition on `b` has no
derivative; the two variants differ in what they put in its place:

- ProLU-ReLU: `dz/dm = dz/db = gate`, as for a ReLU of `m + b`.
- ProLU-STE: `dz/db = gate m`, `dz/dm = gate (1 + m)`.

`gate` is one at the active triples, the only ones there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder, JumpReLU
from l0plane.methods.base import Loss, Method, Parameters


class _ReLUGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, m, b):
        return m.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, m, b):
        ctx.save_for_backward(m)
        return m.clone()

    @staticmethod
    def backward(ctx, grad):
        (m,) = ctx.saved_tensors
        return grad * (1 + m), grad * m


class _ProLU(Method):
    gradient: type[torch.autograd.Function]
    recorded = True

    def extra_parameters(self, n: int) -> Parameters:
        """`b_enc`, zero at the start."""
        return {"encoder_bias": torch.zeros(n)}

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """Squared error, and the L1 norm as the penalty."""
        p, bias = parameters, parameters["encoder_bias"]
        inputs, threshold = (x, p["pre_bias"], p["encoder"]), _threshold(bias)
        selected = kernels.encode_above(*inputs, threshold=threshold, padded=True)
        values = self.gradient.apply(selected.values, kernels.gather(bias, selected))
        code = selected.with_values(values)
        objective, error = self.ranks.squared_error(x, code, p["decoder"], p["pre_bias"])
        return Loss(objective, error, code, values.sum())

    def finish(self, parameters: Parameters) -> Autoencoder:
        """Exactly a JumpReLU with threshold `max(0, -b)` and no encoder bias."""
        bias = parameters.pop("encoder_bias")
        return Autoencoder(
            **parameters,
            encoder_bias=torch.zeros_like(bias),
            activation_function=JumpReLU(_threshold(bias)),
        )


def _threshold(bias: Tensor) -> Tensor:
    """`m + b > 0 and m > 0` is `m > max(0, -b)`."""
    return (-bias.detach()).clamp(min=0.0)


class ProLUReLU(_ProLU):
    """ProLU with the gradient of a ReLU."""

    gradient = _ReLUGradient


class ProLUSTE(_ProLU):
    """ProLU with a straight-through estimator."""

    gradient = _StraightThrough
