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
from l0plane.files import UserError
from l0plane.methods.base import Loss, Method, Parameters


class _Jump(torch.autograd.Function):
    """From values and thresholds, both `[nnz]`: `z`, and how many are active in all.

    These vectors are the longest there are, so each pass over memory counts.
    """

    @staticmethod
    def forward(ctx, v, threshold, bandwidth):
        active = v > threshold
        ctx.save_for_backward(v, threshold, active)
        ctx.bandwidth = bandwidth
        return v * active, active.sum(dtype=v.dtype)

    @staticmethod
    def backward(ctx, grad_z, grad_count):
        v, threshold, active = ctx.saved_tensors
        inside = (v - threshold).abs_() < ctx.bandwidth / 2
        scale = -1 / ctx.bandwidth
        grad_threshold = torch.addcmul(scale * grad_count, threshold, grad_z, value=scale)
        return grad_z * active, grad_threshold.mul_(inside), None


class JumpReLUMethod(Method):
    """JumpReLU with hyperparameters `bandwidth` (eps) and `threshold` (theta at the start).

    `threshold` is for an encoder with unit rows, and is scaled with it.
    """

    recorded = True
    l0_delay = 0.04  # a threshold moves by a learning rate's share per step, no faster

    def initialise(self, sample: Tensor, n: int, generator: torch.Generator) -> Parameters:
        """As for every method; thresholds follow the encoder's scale.

        Left where they are they would be above nearly all pre-activations of a large encoder,
        whose scale falls as 1/n, and most latents would never live.
        """
        parameters = super().initialise(sample, n, generator)
        parameters["log_threshold"] += parameters["encoder"].norm(dim=1).log()
        return parameters

    def extra_parameters(self, n: int) -> Parameters:
        """`b_enc`, zero, and the logarithm of each threshold."""
        for name in ("threshold", "bandwidth"):
            if self.hyperparameters[name] <= 0:
                raise UserError(
                    f"hyperparameters.jumprelu.{name}: {self.hyperparameters[name]}; "
                    "expected a number above 0"
                )
        start = math.log(self.hyperparameters["threshold"])
        return {"encoder_bias": torch.zeros(n), "log_threshold": torch.full((n,), start)}

    def silent_at_start(self) -> str:
        """The threshold is above all that an encoder with unit rows gives."""
        return (
            f"hyperparameters.jumprelu.threshold: {self.hyperparameters['threshold']}; expected so "
            "little that some latent is active before the first step"
        )

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """Squared error, and L0 as the penalty."""
        p, bandwidth = parameters, self.hyperparameters["bandwidth"]
        threshold = p["log_threshold"].exp()
        # The pseudo-derivatives need the values just below their threshold as well.
        reach = (threshold.detach() - bandwidth / 2).clamp(min=0.0)
        inputs, bias = (x, p["pre_bias"], p["encoder"]), p["encoder_bias"]
        near = kernels.encode_above(*inputs, bias=bias, threshold=reach, padded=True)
        values, count = _Jump.apply(near.values, kernels.gather(threshold, near), bandwidth)
        code = near.with_values(values)
        objective, error = self.ranks.squared_error(x, code, p["decoder"], p["pre_bias"])
        return Loss(objective, error, code, count)

    def finish(self, parameters: Parameters) -> Autoencoder:
        """As trained, with the thresholds themselves."""
        threshold = parameters.pop("log_threshold").exp()
        return Autoencoder(**parameters, activation_function=JumpReLU(threshold))
