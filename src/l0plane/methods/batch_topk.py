"""BatchTopK: keep the `k B` largest positive pre-activations of a batch of `B` (and AuxK).

Bussmann et al. 2024. It constrains E[L0] instead of every token's L0, as section 6 of Gao et al.
asks. At test time one threshold stands for the batch: the mean over batches of the smallest
value kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder, JumpReLU
from l0plane.code import Code
from l0plane.methods.base import Loss, Method, Parameters, squared_error

THRESHOLD_BATCHES = 64


class BatchTopKMethod(Method):
    """TopK over the batch, with `k` the mean L0 asked for."""

    auxk = True

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """Squared error of the `k B` largest."""
        code = self._select(parameters, x)
        reconstruction = kernels.decode(code, parameters["decoder"], parameters["pre_bias"])
        return Loss(squared_error(x, reconstruction), reconstruction, code)

    def _select(self, p: Parameters, x: Tensor) -> Code:
        inputs = (x, p["pre_bias"], p["encoder"])
        with torch.no_grad():
            code = self._largest(round(self.l0 * len(x)), inputs)
        return kernels.encoded(code, *inputs)

    def _largest(self, count: int, inputs: tuple[Tensor, Tensor, Tensor]) -> Code:
        # A lower bound of this batch's threshold, guessed from the last one, spares the selection
        # most candidates. A guess that turns out too high is dropped, so the result is exact.
        guess = self.memory.get("guess", 0.0)
        candidates = kernels.encode_above(*inputs, threshold=guess)
        if len(candidates.values) < count and guess > 0:
            candidates = kernels.encode_above(*inputs)
        if len(candidates.values) <= count:
            self.memory["guess"] = 0.0
            return candidates
        # The whole batch as one row.
        device = candidates.values.device
        places = torch.arange(len(candidates.values), dtype=torch.int32, device=device)
        ends = torch.tensor([0, len(places)], dtype=torch.int32, device=device)
        batch = Code(ends, places, candidates.values, len(places))
        chosen = kernels.top_k_mask(batch, count)
        self.memory["guess"] = 0.8 * batch.values[chosen].min().item()
        return candidates.keep(chosen)

    def finish(self, parameters: Parameters, batches: Iterable[Tensor]) -> Autoencoder:
        """A JumpReLU with the one estimated threshold."""
        smallest = []
        with torch.no_grad():
            for _, x in zip(range(THRESHOLD_BATCHES), batches, strict=False):
                values = self._select(parameters, x).values
                smallest.append(values.min().item() if len(values) else 0.0)
        threshold = sum(smallest) / len(smallest)
        n = len(parameters["encoder"])
        return Autoencoder(
            **parameters,
            encoder_bias=torch.zeros(n),
            activation_function=JumpReLU(torch.full((n,), threshold)),
        )
