"""BatchTopK: keep the `k B` largest positive pre-activations of a batch of `B` (and AuxK).

Bussmann et al. 2024. It constrains E[L0] instead of every token's L0, as section 6 of Gao et al.
asks. At test time one threshold stands for the batch: the mean over batches of the smallest
value kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder, JumpReLU
from l0plane.code import Code
from l0plane.methods.base import Loss, Method, Parameters


class BatchTopKMethod(Method):
    """TopK over the batch, with `k` the mean L0 asked for."""

    auxk = True
    recorded = True
    estimates = 64

    def __init__(self, l0: float, hyperparameters: dict[str, Any]):
        super().__init__(l0, hyperparameters)
        self._smallest: list[float] = []

    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """Squared error of the `k B` largest."""
        code = self._select(parameters, x, padded=True)
        decoder, pre_bias = parameters["decoder"], parameters["pre_bias"]
        return Loss(*self.ranks.squared_error(x, code, decoder, pre_bias), code)

    def _select(self, p: Parameters, x: Tensor, padded: bool = False) -> Code:
        inputs = (x, p["pre_bias"], p["encoder"])
        with torch.no_grad():
            if padded and self.ranks.size == 1 and kernels.pads_whole(x, len(p["encoder"])):
                code = kernels.encode_above(*inputs, padded=True)
                code = code.only(_largest_mask(code.values, round(self.l0 * len(x))))
            else:
                code = self._largest(self.ranks.over_rows(len(x)), inputs)
        return kernels.encoded(code, *inputs)

    def _largest(self, batch: float, inputs: tuple[Tensor, Tensor, Tensor]) -> Code:
        x, pre_bias, encoder = inputs
        count = round(self.l0 * batch)

        def candidates_above(threshold: float) -> Code:
            found: list[Code] = []
            for rows in x.tensor_split(self.pieces(int(batch), len(encoder))):
                found.append(kernels.encode_above(rows, pre_bias, encoder, threshold=threshold))
                code = Code.stacked(found)
                if len(code.values) > count:
                    code = code.keep(_largest_mask(code.values, count))
                found = [code]
            return code

        # A lower bound of this batch's threshold, guessed from the last one, spares the selection
        # most candidates. A guess that turns out too high is dropped, so the result is exact.
        guess = self.memory.get("guess", 0.0)
        candidates = candidates_above(guess)
        if guess > 0 and self.ranks.over_all(len(candidates.values)) < count:
            candidates = candidates_above(0.0)
        values, own = self.ranks.gather(candidates.values)
        if len(values) > count:
            chosen = _largest_mask(values, count)
            candidates, values = candidates.keep(chosen[own]), values[chosen]
        self.memory["guess"] = 0.8 * values.min().item() if len(values) == count else 0.0
        return candidates

    @torch.no_grad()
    def estimate(self, parameters: Parameters, x: Tensor) -> None:
        """Note the smallest value that is kept."""
        values, _ = self.ranks.gather(self._select(parameters, x).values)
        self._smallest.append(values.min().item() if len(values) else 0.0)

    def finish(self, parameters: Parameters) -> Autoencoder:
        """A JumpReLU with the one estimated threshold."""
        threshold = sum(self._smallest) / len(self._smallest)
        n = len(parameters["encoder"])
        return Autoencoder(
            **parameters,
            encoder_bias=torch.zeros(n),
            activation_function=JumpReLU(torch.full((n,), threshold)),
        )


def _largest_mask(values: Tensor, count: int) -> Tensor:
    """Which of positive `values [any]` are the `count` largest: the whole batch as one row."""
    places = torch.arange(len(values), dtype=torch.int32, device=values.device)
    # Filled in, not copied to a GPU, which would be waited for.
    ends = places.new_zeros(2)
    ends[1:].fill_(len(values))
    return kernels.top_k_mask(Code(ends, places, values, len(values)), count)
