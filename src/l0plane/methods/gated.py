"""Gated: which latents are active is decided apart from how active they are.

Rajamanoharan et al. 2024a, "Improving dictionary learning with gated sparse autoencoders":
`pi = a + b_gate`, `z = 1[pi > 0] ReLU(exp(r_mag) a + b_mag)`, and the loss
`||x - x^(z)||^2 + lambda ||ReLU(pi)||_1 + ||x - x^_frozen(ReLU(pi))||^2`, where the frozen decoder
and bias get no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder, Gated
from l0plane.methods.base import Loss, Method, Parameters


class GatedMethod(Method):
    """Gated with the L1 penalty on the gate's positive part."""

    recorded = True

    def extra_parameters(self, n: int) -> Parameters:
        """Both biases and the logarithm of the magnitude's scale, zero at the start."""
        return {name: torch.zeros(n) for name in ("gate_bias", "magnitude_bias", "log_scale")}

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """The reconstruction's and the frozen auxiliary squared error; L1 of the gate."""
        p = parameters
        inputs, bias = (x, p["pre_bias"], p["encoder"]), p["gate_bias"]
        gate = kernels.encode_above(*inputs, bias=bias, padded=True)
        a = gate.values - kernels.gather(p["gate_bias"], gate)
        magnitude = kernels.gather(p["log_scale"].exp(), gate) * a
        values = torch.relu(magnitude + kernels.gather(p["magnitude_bias"], gate))
        code = gate.with_values(values)
        decoder, pre_bias = p["decoder"], p["pre_bias"]
        objective, error = self.ranks.squared_error(x, code, decoder, pre_bias)
        frozen, _ = self.ranks.squared_error(x, gate, decoder.detach(), pre_bias.detach())
        return Loss(objective + frozen, error, code, gate.values.sum())

    def finish(self, parameters: Parameters) -> Autoencoder:
        """The gate's and the magnitude's parameters become the activation function."""
        function = Gated(**{name: parameters.pop(name) for name in self.extra_parameters(0)})
        bias = torch.zeros(len(parameters["encoder"]))
        return Autoencoder(**parameters, encoder_bias=bias, activation_function=function)
