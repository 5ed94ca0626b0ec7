"""ReLU with fine-tuned scales: `z' = s z` with one positive scale per latent (Wright and Sharkey).

Wright and Sharkey 2024, "Addressing feature suppression in SAEs". A trained ReLU autoencoder is
frozen; only the scales learn, on squared error alone. The active set, and so L0, stays the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder
from l0plane.methods.base import Loss, Method, Parameters


class ScaledReLUMethod(Method):
    """Scales on top of a frozen autoencoder, `base`."""

    base: Autoencoder

    def initialise(self, sample: Tensor, n: int, generator: torch.Generator) -> Parameters:
        """The logarithms of the scales, zero: the autoencoder as it is."""
        return {"log_scale": torch.zeros(self.base.n, device=sample.device)}

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """Squared error with scaled values."""
        frozen = self.base.encode(x)
        code = frozen.with_values(
            frozen.values * kernels.gather(parameters["log_scale"].exp(), frozen)
        )
        decoder, pre_bias = self.base.decoder, self.base.pre_bias
        return Loss(*self.ranks.squared_error(x, code, decoder, pre_bias), code)

    def finish(self, parameters: Parameters) -> Autoencoder:
        """The scales fold into the encoder: `s ReLU(v) = ReLU(s v)`; the decoder stays unit."""
        scale = parameters["log_scale"].exp()
        base = self.base
        return Autoencoder(
            base.encoder * scale[:, None],
            base.decoder,
            base.pre_bias,
            base.encoder_bias * scale,
            base.activation_function,
        )
