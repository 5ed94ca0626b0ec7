"""One training step: loss, gradients, clipping, Adam, dead latents.

Gao et al. 2024, Appendix A.
"""

from __future__ import annotations

import math
import operator
import time
from collections import Counter
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l0plane import kernels, recording
from l0plane.distributed import REPLICATED
from l0plane.files import UserError
from l0plane.kernels import AdamState
from l0plane.methods import Method, Parameters

#: A loss (in normalised MSE, of which the mean activation alone gives 1) or a gradient norm beyond
#: this has exploded: nothing good comes of it, though the numbers may stay finite for long.
EXPLODED = 1e6


class Taken(NamedTuple):
    """A step that was taken, or on a GPU will be: what `Trainer.read` is to tell of it."""

    tokens: int
    """In its batch."""
    tokens_until: int
    """In all batches up to this one."""
    numbers: Tensor
    """What `_work` gives, on the CPU; of a GPU once it has come to the end of the step."""
    seconds: float | tuple[torch.cuda.Event, torch.cuda.Event]
    """How long it took; what a GPU notes at its beginning and at its end."""


class Trainer:
    """Parameters, optimiser state and dead-latent accounting of one run."""

    def __init__(
        self, method: Method, parameters: Parameters, variance: float, settings: dict[str, Any]
    ):
        self.method = method
        self.parameters = {key: p.detach() for key, p in parameters.items()}
        self.states = {
            key: AdamState(torch.zeros_like(p), torch.zeros_like(p), p.clone())
            for key, p in self.parameters.items()
        }
        self.variance = variance
        self.settings = settings
        self.penalised = False
        self.steps = 0
        latents = next(p for key, p in parameters.items() if key != REPLICATED)
        self.silent_tokens = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        self._n = method.ranks.over_latents(len(latents))
        self._tokens = 0
        #: At so many tokens or later each latent was active. Unknown until a step was read:
        #: `silent_tokens` may come from a checkpoint.
        self._all_active = -math.inf
        #: Adam's rates and the penalty's factor for a row: numbers, on a GPU there.
        self._told = torch.zeros(4, dtype=torch.float64, device=latents.device)
        self._rates: kernels.Rates = self._told[:3]
        self._penalty: float | Tensor = self._told[3]
        #: Of steps with batches of a shape, with or without dead latents: how many were taken
        #: before there was a recording, and the recording.
        self._before: Counter[Any] = Counter()
        self._recordings: dict[Any, recording.Recording] = {}

    def step(self, x: Tensor, learning_rate: float, penalty_factor: float) -> Taken:
        """One optimiser step on a batch `x [rows, d]`; what comes of it, `read` says.

        The host does not wait for a GPU to end the step, but where a selection has no fixed length
        or latents may be dead, and the step is none that the method `repeats`.
        """
        tokens = len(x)
        began = _now(x)
        self._tokens += tokens
        self.steps += 1
        # The average follows quickly at first, so that it does not remember the initial weights.
        decay = min(self.settings["ema"], (1 + self.steps) / (10 + self.steps))
        self._tell(learning_rate, decay, penalty_factor / tokens, x.device)
        rows = self.method.ranks.rows(x)
        repeats = self.method.repeats(x, len(self.silent_tokens))
        numbers = (self._repeated if repeats else self._work)(rows, tokens)
        if x.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
        ended = _now(x)
        seconds = ended - began if isinstance(ended, float) else (began, ended)
        return Taken(tokens, self._tokens, numbers, seconds)

    def _tell(self, learning_rate: float, decay: float, penalty: float, device: Any) -> None:
        """Note what changes from step to step: Adam's rates, the penalty's factor for each row.

        On a GPU where it reads them, so that recorded steps do, too.
        """
        told = (*kernels.adam_rates(self.steps, learning_rate, decay), penalty)
        if device.type == "cuda":
            there = torch.tensor(told, dtype=torch.float64).pin_memory()
            self._told.copy_(there, non_blocking=True)
        else:
            self._rates, self._penalty = told[:3], told[3]

    def _repeated(self, x: Tensor, tokens: int) -> Tensor:
        """As `_work`, of a step that the method `repeats`: after some steps from a recording."""
        way = (tuple(x.shape), self._revives())
        if way not in self._recordings and self._before[way] == recording.WARM_UP:
            try:
                self._recordings[way] = recording.Recording(lambda x: self._work(x, tokens), x)
            except RuntimeError as error:
                print(f"steps are not recorded: {str(error).splitlines()[0]}", flush=True)
        self._before[way] += 1
        if way in self._recordings:
            return self._recordings[way](x)
        return self._work(x, tokens)

    def _work(self, x: Tensor, tokens: int) -> Tensor:
        """The step itself on this rank's rows of a batch of `tokens`.

        Returns:
            float64 `[6]`: the loss, the norm of its gradient, the squared error, how many triples
            are active, how many latents are dead, and the tokens of the longest silence.
        """
        ranks, n = self.method.ranks, len(self.silent_tokens)
        pieces = [x] if self.method.auxk else x.tensor_split(self.method.pieces(tokens, n))
        gradients: Parameters = {}
        self.silent_tokens += tokens
        parts = [self._piece(rows, 1 / (tokens * self.variance), gradients) for rows in pieces]
        ranks.sum_gradients(gradients)
        norm = self._norm(gradients)
        self._update(gradients, norm)
        objective, penalty, squared, active = (
            reduce(operator.add, each) for each in zip(*parts, strict=True)
        )
        loss = ranks.over_rows(objective)
        if self.penalised:
            loss = loss + ranks.over_all(penalty)
        longest, dead = self._silence()
        sums = (ranks.over_rows(squared), ranks.over_all(active), ranks.over_latents(dead))
        return torch.stack([number.double() for number in (loss, norm, *sums, longest)])

    def read(self, taken: Taken) -> dict[str, float] | None:
        """Facts of a step for the log, and the seconds that it took; waits for a GPU to end it.

        None where the loss or the norm of its gradient exploded: the parameters are spoilt.
        """
        if isinstance(taken.seconds, float):
            seconds = taken.seconds
        else:
            began, ended = taken.seconds
            ended.synchronize()
            seconds = began.elapsed_time(ended) / 1e3
        loss, norm, squared, active, dead, silence = taken.numbers.tolist()
        if not (abs(loss) < EXPLODED and norm < EXPLODED):
            return None
        self._all_active = max(self._all_active, taken.tokens_until - silence)
        return {
            "loss": loss,
            "gradient_norm": norm,
            "nmse": squared / (taken.tokens * self.variance),
            "l0": active / taken.tokens,
            "dead_fraction": dead / self._n,
            "seconds": seconds,
        }

    def _piece(
        self, rows: Tensor, scale: float, gradients: Parameters
    ) -> tuple[Tensor, Tensor | float, Tensor, Tensor]:
        """Add to `gradients` those of the loss on some rows; nothing else of them is kept.

        Returns:
            The objective (with AuxK) and the penalty, both scaled; the squared error; how many
            triples are active.
        """
        # Leaves of this step: those of another belong to the stream that it ran on.
        leaves = {key: p.detach().requires_grad_() for key, p in self.parameters.items()}
        loss = self.method.loss(leaves, rows)
        total = scale * loss.objective
        squared = _squared_norm(loss.error)
        active = kernels.reset_active(self.silent_tokens, loss.code)
        revived: Parameters = {}
        dead = self.silent_tokens[:0]
        if self._revives():
            if self.method.repeats(rows, len(self.silent_tokens)):
                total = total + self._auxk_among_all(rows, loss.error, squared, leaves)
            else:
                dead = self._dead_latents()
            if self.method.ranks.over_latents(len(dead)):
                # Leaves of their own: gradients of a few rows, not two more of all of them.
                for key in ("encoder", "decoder"):
                    revived[key] = self.parameters[key][dead].requires_grad_()
                total = total + self._auxk(rows, loss.error, squared, **revived)
        objective = total.detach()
        penalty: Tensor | float = 0.0
        if loss.penalty is not None:
            self.penalised = True
            factor = self._penalty
            if isinstance(factor, Tensor):
                factor = factor.to(loss.penalty.dtype)
            weighted = factor * loss.penalty
            total = total + weighted
            penalty = weighted.detach()
        each = [*leaves.values(), *revived.values()]
        found = torch.autograd.grad(total, each, allow_unused=True)
        for key, gradient in zip([*leaves, *revived], found, strict=True):
            if gradient is None:
                name = type(self.method).__name__
                raise UserError(f"{name}: its loss does not depend on the parameter {key}")
        for key, gradient in zip(leaves, found, strict=False):
            gradients[key] = gradients[key].add_(gradient) if key in gradients else gradient
        for key, gradient in zip(revived, found[len(leaves) :], strict=True):
            gradients[key].index_add_(0, dead, gradient)
        return objective, penalty, squared, active

    def _norm(self, gradients: Parameters) -> Tensor:
        """That of all gradients together, float64 `[]`."""
        squares = {key: _squared_norm(gradient) for key, gradient in gradients.items()}
        replicated = squares.pop(REPLICATED, 0.0)
        own = torch.stack([*squares.values()]).sum(dtype=torch.float64)
        return (self.method.ranks.over_latents(own) + replicated).sqrt()

    def _update(self, gradients: Parameters, norm: Tensor) -> None:
        scale = (self.settings["clip_norm"] / norm).clamp(max=1.0)
        for key, parameter in self.parameters.items():
            gradient, state = gradients[key], self.states[key]
            kernels.adam(parameter, gradient, state, self._rates, scale, key == "decoder")

    def _silence(self) -> tuple[Tensor, Tensor]:
        """How long the latent has been silent that was so the longest; how many are dead."""
        if not self.method.auxk:  # which had to know it before its loss
            self.method.ranks.shortest(self.silent_tokens)
        dead = self.silent_tokens >= self.settings["dead_after_tokens"]
        return self.silent_tokens.max(), dead.sum()

    def _revives(self) -> bool:
        """Whether the step has AuxK; not where it is known, and a GPU not asked, that none is dead.

        That is so in most steps.
        """
        silent_at_most = self._tokens - self._all_active
        alone = self.method.ranks.size == 1
        none_dead = alone and silent_at_most < self.settings["dead_after_tokens"]
        return self.method.auxk and not none_dead

    def _dead_latents(self) -> Tensor:
        """int64 indices of the latents that have been silent for `dead_after_tokens`."""
        ranks = self.method.ranks
        ranks.shortest(self.silent_tokens)
        return (self.silent_tokens >= self.settings["dead_after_tokens"]).nonzero()[:, 0]

    def _auxk(
        self, x: Tensor, error: Tensor, squared: Tensor, encoder: Tensor, decoder: Tensor
    ) -> Tensor:
        """`||e - e^||^2 / ||e||^2` with e^ from the top `aux_k` dead latents, times its weight.

        Appendix A.2. `squared` is this rank's part of the denominator, which is of the whole batch;
        encoder and decoder are of dead latents.
        """
        ranks, pre_bias = self.method.ranks, self.parameters["pre_bias"]
        whole = ranks.over_rows(squared).to(squared.dtype)
        code = ranks.encode_top_k(x, pre_bias, encoder, self.settings["aux_k"], padded=True)
        missed, _ = ranks.squared_error(error, code, decoder)
        return self.settings["aux_weight"] * (missed / whole).nan_to_num()

    def _auxk_among_all(
        self, x: Tensor, error: Tensor, squared: Tensor, leaves: Parameters
    ) -> Tensor:
        """The same, the latents that are not dead being shut out: the host need not know which."""
        alive = self.silent_tokens < self.settings["dead_after_tokens"]
        shut = torch.where(alive, -math.inf, 0.0)
        pre_bias, encoder, decoder = (leaves[k] for k in ("pre_bias", "encoder", "decoder"))
        aux_k = self.settings["aux_k"]
        code = kernels.encode_top_k(x, pre_bias.detach(), encoder, aux_k, shut, padded=True)
        missed, _ = kernels.squared_error(error, code, decoder)
        share = (missed / squared).nan_to_num()
        return self.settings["aux_weight"] * torch.where(alive.all(), 0.0, share)


def _squared_norm(x: Tensor) -> Tensor:
    """A dot product: one pass over memory, twice as fast as `x.norm()`."""
    return x.flatten().dot(x.flatten())


def _now(x: Tensor) -> Any:
    """The time in seconds; of a GPU an event, when it has done what it was told so far."""
    if not x.is_cuda:
        return time.perf_counter()
    moment = torch.cuda.Event(enable_timing=True)
    moment.record()
    return moment
