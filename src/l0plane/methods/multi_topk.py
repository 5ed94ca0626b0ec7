"""Multi-TopK: `L(k) + L(4k)/8`, both from the same pre-activations (5.3.1), plus AuxK."""

from __future__ import annotations

from torch import Tensor

from l0plane.methods.base import Loss, Parameters, squared_error
from l0plane.methods.topk import TopKMethod

WIDER = 4
WIDER_WEIGHT = 1 / 8


class MultiTopKMethod(TopKMethod):
    """TopK trained at `k` and, with a smaller weight, at `4k`."""

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """The two squared errors; judged by the reconstruction at `k`."""
        k = int(self.l0)
        pre_bias, decoder = parameters["pre_bias"], parameters["decoder"]
        wide = self.ranks.encode_top_k(x, pre_bias, parameters["encoder"], WIDER * k)
        narrow = wide.keep(self.ranks.top_k_mask(wide, k))
        reconstruction = self.ranks.decode(narrow, decoder, pre_bias)
        wider = self.ranks.decode(wide, decoder, pre_bias)
        objective = squared_error(x, reconstruction) + WIDER_WEIGHT * squared_error(x, wider)
        return Loss(objective, reconstruction, narrow)
