"""Multi-TopK: `L(k) + L(4k)/8`, both from the same pre-activations (5.3.1), plus AuxK."""

from __future__ import annotations

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.methods.base import Loss, Parameters
from l0plane.methods.topk import TopKMethod

WIDER = 4
WIDER_WEIGHT = 1 / 8


class MultiTopKMethod(TopKMethod):
    """TopK trained at `k` and, with a smaller weight, at `4k`."""

    recorded = True

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """The two squared errors; judged by the reconstruction at `k`."""
        k, pre_bias = int(self.l0), parameters["pre_bias"]
        with torch.no_grad():
            encoder = parameters["encoder"]
            wide = self.ranks.encode_top_k(x, pre_bias, encoder, WIDER * k, padded=True)
            among_k = self.ranks.top_k_mask(wide, k)
            narrow = wide.with_values(wide.values * among_k)
            wide, halves = wide.parted(among_k)
        # The k largest of a row are a row of their own before that of the others, which the second
        # reconstruction has beyond the first: each of the 4k is walked once.
        wide = kernels.encoded(wide, x, pre_bias, parameters["encoder"])
        code, nested = halves.with_values(wide.values), (WIDER_WEIGHT,)
        errors = self.ranks.squared_error(x, code, parameters["decoder"], pre_bias, nested)
        return Loss(*errors, narrow)
