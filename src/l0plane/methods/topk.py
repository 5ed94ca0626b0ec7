"""TopK: keep the `k` largest pre-activations (then ReLU); squared error and AuxK, no L1.

Makhzani and Frey 2013; section 2.3 of Gao et al. 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l0plane.autoencoder import Autoencoder, TopK
from l0plane.methods.base import Loss, Method, Parameters


class TopKMethod(Method):
    """TopK with `k` the L0 asked for."""

    auxk = True
    recorded = True

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """Squared error of the `k` largest."""
        pre_bias, encoder = parameters["pre_bias"], parameters["encoder"]
        code = self.ranks.encode_top_k(x, pre_bias, encoder, int(self.l0), padded=True)
        return Loss(*self.ranks.squared_error(x, code, parameters["decoder"], pre_bias), code)

    def finish(self, parameters: Parameters) -> Autoencoder:
        """As trained; TopK has no encoder bias."""
        bias = torch.zeros(len(parameters["encoder"]))
        return Autoencoder(**parameters, encoder_bias=bias, activation_function=TopK(int(self.l0)))
