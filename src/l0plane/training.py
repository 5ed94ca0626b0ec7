"""Training one autoencoder on stored activations.

The loop is the same for every method (Gao et al. 2024, Appendix A): Adam, clipped gradients, unit
decoder rows, a moving average of the weights that is what gets evaluated, dead latents counted in
tokens, AuxK where the method asks for it. All losses are in units of normalised MSE.
"""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from l0plane import kernels
from l0plane.autoencoder import Autoencoder
from l0plane.files import UserError
from l0plane.kernels import AdamState
from l0plane.methods import METHODS, Method, Parameters
from l0plane.penalty import PenaltyController, warm_up

INITIALISATION_ROWS = 8192
LOG_LINES = 50
#: Of the training log: where it stands, and means over the batches since the row before.
LOG_COLUMNS = ["step", "tokens", "loss", "gradient_norm", "nmse", "l0", "dead_fraction", "lambda"]


class Diverged(UserError):
    """A training whose loss or gradient is no longer finite."""


class Batches(Protocol):
    """Where training activations come from (`activation_store.ActivationStore`)."""

    def batches(self, batch_tokens: int, tokens: int, seed: int) -> Any:
        """An iterator of activations `[batch_tokens, d]`, `tokens` in all."""

    def sample(self, rows: int) -> Tensor:
        """Some activations `[rows, d]`."""


def train(
    name: str,
    store: Batches,
    n: int,
    l0: float,
    seed: int,
    settings: dict[str, Any],
    hyperparameters: dict[str, Any],
    base: Autoencoder | None = None,
) -> tuple[Autoencoder, pd.DataFrame, dict[str, Any]]:
    """Train one autoencoder, on the device where the store's activations are.

    Args:
        name: of the method, a key of `METHODS`.
        store: training activations.
        n: how many latents.
        l0: the L0 asked for: `k`, or what a penalty is steered to if it has no `lambda`.
        seed: of the initial directions and the order of the activations.
        settings: the configuration's `training` section.
        hyperparameters: `learning_rate` (at this n) and the method's own; `lambda`, if given, is
            the factor of the penalty, constant after its warm-up, in place of one that is steered
            to `l0`.
        base: the trained autoencoder that a method derives from.

    Returns:
        The autoencoder (averaged weights), the training log, and facts for its provenance.

    Raises:
        Diverged: says at which step and what to lower.
    """
    started = time.perf_counter()
    method = METHODS[name](l0, hyperparameters)
    generator = torch.Generator().manual_seed(seed)
    sample = store.sample(INITIALISATION_ROWS)
    if base is not None:
        method.base = base.to(sample.device)  # type: ignore[attr-defined]
    variance = (sample - sample.mean(0)).square().sum(1).mean().item()
    trainer = _Trainer(method, method.initialise(sample, n, generator), variance, settings)
    batch_tokens = settings["batch_tokens"]
    steps = max(1, settings["tokens"] // batch_tokens)
    controller = PenaltyController(l0, steps, method.l0_delay)
    log = _Log(steps, batch_tokens, f"{name} n={n} L0={l0:g} seed={seed}")
    peak = hyperparameters["learning_rate"]
    for step, x in enumerate(store.batches(batch_tokens, steps * batch_tokens, seed)):
        rate = peak * _schedule(step, steps, settings)
        factor = (
            hyperparameters["lambda"] * warm_up(step, steps)
            if "lambda" in hyperparameters
            else controller.value
        )
        facts = trainer.step(x, rate, factor)
        if not math.isfinite(facts["loss"]) or not math.isfinite(facts["gradient_norm"]):
            raise Diverged(
                f"{name} n={n} l0={l0:g} seed={seed}: the loss is no longer finite at step "
                f"{step} (learning rate {rate:.3g}); lower the learning rate"
            )
        facts["lambda"] = factor if trainer.penalised else math.nan
        controller.observe(facts["l0"])
        log.add(step, facts)
    averaged = {key: state.ema for key, state in trainer.states.items()}
    finish_batches = store.batches(batch_tokens, steps * batch_tokens, seed)
    autoencoder = method.finish(averaged, finish_batches)
    record = {
        "lambda": factor if trainer.penalised else None,
        "lambda_steered": "lambda" not in hyperparameters if trainer.penalised else None,
        "training_tokens": steps * batch_tokens,
        "training_steps": steps,
        "training_seconds": round(time.perf_counter() - started, 2),
        **{key: value for key, value in hyperparameters.items() if key != "lambda"},
    }
    return autoencoder, log.table(), record


def learning_rate(hyperparameters: dict[str, float], n: int, reference_n: int) -> float:
    """A method's learning rate, tuned at `reference_n` latents, at `n` of them.

    It falls as 1/sqrt(n) (Gao et al. 2024, Appendix A).
    """
    return hyperparameters["learning_rate"] * math.sqrt(reference_n / n)


def _schedule(step: int, steps: int, settings: dict[str, Any]) -> float:
    """Share of the peak learning rate: linear warm-up, constant, linear decay at the end."""
    warmup, decay = settings["warmup_steps"], settings["decay_share"] * steps
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    falling = min(1.0, (steps - step) / decay) if decay else 1.0
    return min(rising, falling)


def _squared_norm(x: Tensor) -> float:
    """A dot product: one pass over memory, twice as fast as `x.norm()`."""
    return x.flatten().dot(x.flatten()).item()


class _Trainer:
    """Parameters, optimiser state and dead-latent accounting of one run."""

    def __init__(
        self, method: Method, parameters: Parameters, variance: float, settings: dict[str, Any]
    ):
        self.method = method
        self.parameters = {k: p.detach().requires_grad_() for k, p in parameters.items()}
        self.states = {
            key: AdamState(torch.zeros_like(p), torch.zeros_like(p), p.detach().clone())
            for key, p in self.parameters.items()
        }
        self.variance = variance
        self.settings = settings
        self.penalised = False
        self.steps = 0
        self.silent_tokens: Tensor | None = None

    def step(self, x: Tensor, learning_rate: float, penalty_factor: float) -> dict[str, float]:
        """One optimiser step on a batch `x [rows, d]`; facts of it for the log."""
        scale = 1 / (len(x) * self.variance)
        loss = self.method.loss(self.parameters, x)
        total = scale * loss.objective
        if loss.penalty is not None:
            self.penalised = True
            total = total + penalty_factor / len(x) * loss.penalty
        error = (x - loss.reconstruction).detach()
        dead = self._dead_latents(loss.code.indices, loss.code.n, len(x))
        if self.method.auxk and len(dead):
            total = total + self.settings["aux_weight"] * self._auxk(x, error, dead)
        gradients = torch.autograd.grad(total, list(self.parameters.values()))
        norm = math.sqrt(sum(_squared_norm(g) for g in gradients))
        self._update(gradients, norm, learning_rate)
        return {
            "loss": total.item(),
            "gradient_norm": norm,
            "nmse": scale * _squared_norm(error),
            "l0": len(loss.code.indices) / len(x),
            "dead_fraction": len(dead) / loss.code.n,
        }

    def _update(self, gradients: tuple[Tensor, ...], norm: float, learning_rate: float) -> None:
        self.steps += 1
        clip = self.settings["clip_norm"]
        # The average follows quickly at first, so that it does not remember the initial weights.
        decay = min(self.settings["ema"], (1 + self.steps) / (10 + self.steps))
        for (key, parameter), gradient in zip(self.parameters.items(), gradients, strict=True):
            state = self.states[key]
            state.step = self.steps
            kernels.adam(
                parameter.detach(),
                gradient,
                state,
                learning_rate,
                min(1.0, clip / norm) if norm > 0 else 1.0,
                decay,
                unit_rows=key == "decoder",
            )

    def _dead_latents(self, active: Tensor, n: int, tokens: int) -> Tensor:
        """int64 indices of the latents that have been silent for `dead_after_tokens`."""
        if self.silent_tokens is None:
            self.silent_tokens = torch.zeros(n, dtype=torch.int64, device=active.device)
        self.silent_tokens += tokens
        self.silent_tokens.index_fill_(0, active.long(), 0)
        return (self.silent_tokens >= self.settings["dead_after_tokens"]).nonzero()[:, 0]

    def _auxk(self, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """`||e - e^||^2 / ||e||^2` with e^ from the top `aux_k` dead latents (Appendix A.2)."""
        p = self.parameters
        encoder, decoder = p["encoder"][dead], p["decoder"][dead]
        code = kernels.encode_top_k(x, p["pre_bias"].detach(), encoder, self.settings["aux_k"])
        missed = (error - kernels.decode(code, decoder)).square().sum()
        return (missed / error.square().sum()).nan_to_num()


class _Log:
    """A table of the training with `LOG_LINES` rows, each the mean since the last; progress."""

    def __init__(self, steps: int, batch_tokens: int, title: str):
        self.steps, self.batch_tokens, self.title = steps, batch_tokens, title
        self.every = max(1, steps // LOG_LINES)
        self.rows: list[dict[str, float]] = []
        self.pending: list[dict[str, float]] = []
        self.started = time.perf_counter()

    def add(self, step: int, facts: dict[str, float]) -> None:
        self.pending.append(facts)
        done = step + 1
        if done % self.every and done != self.steps:
            return
        mean = pd.DataFrame(self.pending).mean().to_dict()
        self.pending.clear()
        self.rows.append({"step": done, "tokens": done * self.batch_tokens, **mean})
        if len(self.rows) % 5 == 0 or done == self.steps:
            elapsed = time.perf_counter() - self.started
            print(
                f"{self.title}: step {done}/{self.steps}  nMSE {mean['nmse']:.4f}  "
                f"L0 {mean['l0']:.1f}  dead {mean['dead_fraction']:.1%}  "
                f"{done * self.batch_tokens / elapsed:,.0f} tokens/s  "
                f"{elapsed / done * (self.steps - done):.0f} s left",
                flush=True,
            )

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=LOG_COLUMNS)
