"""ReLU, the baseline: `z = ReLU(a + b_enc)`, loss `||x - x^||^2 + lambda ||z||_1`.

Bricken et al. 2023; Cunningham et al. 2023; section 2.2 of Gao et al. 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder, ReLU
from l0plane.methods.base import Loss, Method, Parameters


class ReLUMethod(Method):
    """ReLU with an L1 penalty."""

    recorded = True

    def extra_parameters(self, n: int) -> Parameters:
        """`b_enc`, zero at the start."""
        return {"encoder_bias": torch.zeros(n)}

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """Squared error, and the L1 norm as the penalty."""
        p = parameters
        inputs, bias = (x, p["pre_bias"], p["encoder"]), p["encoder_bias"]
        code = kernels.encode_above(*inputs, bias=bias, padded=True)
        objective, error = self.ranks.squared_error(x, code, p["decoder"], p["pre_bias"])
        return Loss(objective, error, code, code.values.sum())

    def finish(self, parameters: Parameters) -> Autoencoder:
        """As trained."""
        return Autoencoder(**parameters, activation_function=ReLU())
