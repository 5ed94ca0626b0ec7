"""What every method shares: the parameters of section 2.1 and their initialisation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder
from l0plane.code import Code
from l0plane.distributed import ALONE, Ranks
from l0plane.files import UserError
from l0plane.memory import PIECE

Parameters = dict[str, Tensor]


class Loss(NamedTuple):
    """The parts of a training loss on one batch."""

    objective: Tensor
    """Sum over the batch of the method's squared errors (one or several): what is minimised."""
    error: Tensor
    """`[rows, d]`: the batch less the reconstruction that the method is judged by."""
    code: Code
    """The code of that reconstruction; a triple of value 0 does not count as active."""
    penalty: Tensor | None = None
    """Sum over the batch of the sparsity penalty, before its factor lambda; none for TopK."""


class Method(ABC):
    """What makes one method different: its extra parameters, its loss, its trained form.

    Several processes may train it, each with some rows of a batch or some latents: all parameters
    but `pre_bias` are `[n, ...]`, and `ranks` has the operations that concern the others.

    Args:
        l0: the L0 asked for.
        hyperparameters: the method's own, from its `method.yaml`.
    """

    auxk = False
    """Whether the method revives dead latents with the AuxK loss (Appendix A.2).

    Its loss is then of the whole batch, with about k active latents a row. Any other is a sum over
    rows, of which many latents may be active, and a large batch is taken in `pieces`.
    """

    ranks: Ranks = ALONE
    """The processes that train it."""

    recorded = False
    """Whether `loss`, of a small batch, is the same work for a GPU in every step.

    It then waits for nothing on the GPU, makes codes that are `padded`, and reads no number on the
    host that changes from step to step: the step is told to the GPU once (`recording`).
    """

    estimates = 0
    """How many training batches `estimate` is shown, with the trained parameters."""

    l0_delay = 0.02
    """Share of a training in which L0 answers a change of the penalty's factor."""

    def __init__(self, l0: float, hyperparameters: dict[str, Any]):
        self.l0 = l0
        self.hyperparameters = hyperparameters
        #: Numbers that a method remembers from step to step, beside its parameters.
        self.memory: dict[str, float] = {}

    def initialise(self, sample: Tensor, n: int, generator: torch.Generator) -> Parameters:
        """Parameters before training, from a data sample `[rows, d]` (Appendix A.1).

        `pre_bias` is the sample's geometric median, the decoder's rows are random unit vectors,
        and the encoder has the same directions, scaled so that reconstructions start at the
        data's norm.

        Raises:
            UserError: there is nothing to scale, as no latent is active.
        """
        pre_bias = geometric_median(sample)
        # Drawn on the CPU, so that a seed means the same on every device.
        decoder = self.ranks.random_latents(n, sample.shape[1], generator).to(sample.device)
        decoder /= decoder.norm(dim=1, keepdim=True)
        parameters = {"encoder": decoder.clone(), "decoder": decoder, "pre_bias": pre_bias}
        own = self.extra_parameters(len(decoder))
        parameters |= {k: p.to(sample.device) for k, p in own.items()}
        rows = self.ranks.rows(sample)
        with torch.no_grad():
            loss = self.loss(parameters, rows)
        if not self.ranks.over_all(loss.code.values.count_nonzero().item()):
            raise UserError(self.silent_at_start())
        start = rows - loss.error - pre_bias
        norm = math.sqrt(self.ranks.over_rows(start.square().sum().item()))
        parameters["encoder"] *= (sample - pre_bias).norm() / norm
        return parameters

    def pieces(self, rows: int, n: int) -> int:
        """Into how many pieces to cut this rank's part of `rows`, with `n` latents here.

        The same number on all ranks, though one may have a row more.
        """
        shares = 1 if self.ranks.shard_latents else self.ranks.size
        return math.ceil(math.ceil(rows / shares) * n / PIECE)

    def extra_parameters(self, n: int) -> Parameters:
        """Initial values of the parameters that only this method has."""
        return {}

    def silent_at_start(self) -> str:
        """What to tell the person where no latent is active before the first step."""
        return "no latent is active before the first step; do the activations differ at all?"

    def repeats(self, x: Tensor, n: int) -> bool:
        """Whether a step with `x [rows, d]` and `n` latents is `recorded`.

        What a class says of its own loss is not said of one that another class puts in its place.
        """
        owner = next(c for c in type(self).__mro__ if "loss" in vars(c))
        said = vars(owner).get("recorded", False)
        return said and self.ranks.size == 1 and kernels.pads_whole(x, n)

    @abstractmethod
    def loss(self, parameters: Parameters, x: Tensor) -> Loss:
        """The training loss of a batch `x [rows, d]`."""

    def estimate(self, parameters: Parameters, x: Tensor) -> None:  # noqa: B027  # most need none
        """Take what `finish` needs to know from a training batch `x [rows, d]`, in `estimates`."""

    @abstractmethod
    def finish(self, parameters: Parameters) -> Autoencoder:
        """The trained autoencoder.

        Also called before the first step, with the initial parameters, where there are no
        `estimates`: a mistake is known then.
        """


def geometric_median(x: Tensor, tolerance: float = 1e-6, iterations: int = 200) -> Tensor:
    """The point with the least summed distance to the rows of `x`, by Weiszfeld's iteration."""
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1).clamp(min=1e-12)
        new = (weights[:, None] * x).sum(0) / weights.sum()
        if (new - median).norm() <= tolerance * median.norm():
            return new
        median = new
    return median
