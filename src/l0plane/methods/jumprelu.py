"""JumpReLU trained on L0: one threshold per latent, loss `||x - x^||^2 + lambda ||z||_0`.

Rajamanoharan et al. 2024b, "Jumping ahead". `z = v 1[v > theta]` with `v = a + b_enc` and
`theta = exp(log_theta)`. Neither the jump nor L0 has a derivative in theta; the pseudo-derivatives
use a rectangle kernel K of bandwidth eps:

    dz/dtheta        = -(theta / eps) K((v - theta) / eps)
    d||z||_0/dtheta  = -(1 / eps) K((v - theta) / eps)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder, JumpReLU
from l0plane.methods.base import Loss, Method, Parameters, squared_error


class _Jump(torch.autograd.Function):
    """From values and thresholds, both `[nnz]`: `z` and the indicator of an active latent."""

    @staticmethod
    def forward(ctx, v, threshold, bandwidth):
        active = (v > threshold).to(v.dtype)
        ctx.save_for_backward(v, threshold, active)
        ctx.bandwidth = bandwidth
        return v * active, active.clone()

    @staticmethod
    def backward(ctx, grad_z, grad_count):
        v, threshold, active = ctx.saved_tensors
        inside = ((v - threshold) / ctx.bandwidth).abs() < 0.5
        grad_threshold = -(threshold * grad_z + grad_count) / ctx.bandwidth * inside
        return grad_z * active, grad_threshold, None


class JumpReLUMethod(Method):
    """JumpReLU with hyperparameters `bandwidth` (eps) and `threshold` (theta at the start)."""

    l0_delay = 0.04  # a threshold moves by a learning rate's share per step, no faster

    def extra_parameters(self, n: int) -> Parameters:
        """`b_enc`, zero, and the logarithm of each threshold."""
        start = math.log(self.hyperparameters["threshold"])
        return {"encoder_bias": torch.zeros(n), "log_threshold": torch.full((n,), start)}

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """Squared error, and L0 as the penalty."""
        p, bandwidth = parameters, self.hyperparameters["bandwidth"]
        threshold = p["log_threshold"].exp()
        # The pseudo-derivatives need the values just below their threshold as well.
        reach = (threshold.detach() - bandwidth / 2).clamp(min=0.0)
        near = kernels.encode_above(
            x, p["pre_bias"], p["encoder"], bias=p["encoder_bias"], threshold=reach
        )
        values, active = _Jump.apply(near.values, kernels.gather(threshold, near), bandwidth)
        code = near.with_values(values)
        reconstruction = kernels.decode(code, p["decoder"], p["pre_bias"])
        with torch.no_grad():
            kept = code.keep(active > 0)
        return Loss(squared_error(x, reconstruction), reconstruction, kept, active.sum())

    def finish(self, parameters: Parameters, batches: object) -> Autoencoder:
        """As trained, with the thresholds themselves."""
        threshold = parameters.pop("log_threshold").exp()
        return Autoencoder(**parameters, activation_function=JumpReLU(threshold))
