"""Training autoencoders, one or several at a time, on one course of batches.

The loop is the same for every method (Gao et al. 2024, Appendix A): Adam, clipped gradients, unit
decoder rows, a moving average of the weights that is what gets evaluated, dead latents counted in
tokens, AuxK where the method asks for it. All losses are in units of normalised MSE.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import pandas as pd
import torch
from torch import Tensor

from l0plane import __version__, sources
from l0plane.autoencoder import Autoencoder, Failed
from l0plane.checkpoint import Checkpoint, State
from l0plane.distributed import ALONE, REPLICATED, Ranks
from l0plane.files import UserError
from l0plane.methods import METHODS
from l0plane.methods.base import Parameters
from l0plane.penalty import PenaltyController, warm_up
from l0plane.tidy import MEASURED
from l0plane.trainer import Taken, Trainer

INITIALISATION_ROWS = 8192
LOG_LINES = 50
#: Floats of the batches that one training takes in a row before the next has its turn (2 MiB):
#: small ones find their parameters and moments still in the cache, which those of all do not fit.
TURN_FLOATS = 1 << 19
#: Of the training log: where it stands, and means over the batches since the row before.
LOG_COLUMNS = MEASURED["training"]
#: What is said of an autoencoder that uses none of its latents.
ALL_DEAD = "all latents are dead: L0 is 0; lower the learning rate"


class Batches(Protocol):
    """Where training activations come from: an `ActivationStore` or an `ActivationStream`."""

    manifest: dict[str, Any]
    """What they are."""

    def batches(self, batch_tokens: int, tokens: int, seed: int, start: int = 0) -> Any:
        """An iterator of activations `[batch_tokens, d]`, `tokens` in all, from batch `start` on.

        Which batch comes at which place depends on nothing but these numbers.
        """

    def sample(self, rows: int) -> Tensor:
        """Some activations `[rows, d]`."""


class Training:
    """One autoencoder on its way: give `step` its batches, then call `finish`.

    Args:
        name: of the method, a key of `METHODS`.
        sample: training activations `[rows, d]` to initialise from, on the device to train on.
        n: how many latents.
        l0: the L0 asked for: `k`, or what a penalty is steered to if it has no `lambda`.
        seed: of the initial directions; on stored activations of the order of the batches, too.
        settings: the configuration's `training` section.
        hyperparameters: `learning_rate` (at this n) and the method's own; `lambda`, if given, is
            the factor of the penalty, constant after its warm-up, in place of one that is steered
            to `l0`.
        base: the trained autoencoder that a method derives from.
        ranks: the processes that train it together; each makes a `Training` with the same
            arguments, and takes its steps with the same batches.

    Attributes:
        seed: see above.
        batch_tokens: activations in a batch.
        d: the width of an activation.
        steps: how many batches there are to be.
        seconds: what it took so far, its share of the waiting for batches included; on a GPU by
            the device's clock, from where it has the batch.
        subject: all that the result depends on beside the batches, for checkpoints.
        failed: why it goes no further, once it does not: known a step later, or once it was asked
            for its `state` or to `finish`.
    """

    def __init__(
        self,
        name: str,
        sample: Tensor,
        n: int,
        l0: float,
        seed: int,
        settings: dict[str, Any],
        hyperparameters: dict[str, Any],
        base: Autoencoder | None = None,
        ranks: Ranks = ALONE,
    ):
        started = time.perf_counter()
        self.title = f"{name} n={n} L0={l0:g} seed={seed}"
        self.seed, self.settings, self.hyperparameters = seed, settings, hyperparameters
        self.batch_tokens: int = settings["batch_tokens"]
        self.steps = max(1, settings["tokens"] // self.batch_tokens)
        self.subject = {
            "training": self.title,
            "settings": settings,
            "hyperparameters": hyperparameters,
            "base": None if base is None else base.digest(),
            "version": __version__,
            "code": code_of(name),
        }
        self._method = METHODS[name](l0, _Hyperparameters(name, hyperparameters))
        self._method.ranks = ranks
        if base is not None:
            base = base.each_latent(ranks.latents).to(sample.device)
            self._method.base = base  # type: ignore[attr-defined]
        self._sample = sample
        self.d = sample.shape[1]
        generator = torch.Generator().manual_seed(seed)
        variance = (sample - sample.mean(0)).square().sum(1).mean().item()
        parameters = self._method.initialise(sample, n, generator)
        if not self._method.estimates:  # a mistake there is known before the training, not after
            self._method.finish({key: value.clone() for key, value in parameters.items()})
        self._trainer = Trainer(self._method, parameters, variance, settings)
        self._controller = PenaltyController(l0, self.steps, self._method.l0_delay)
        self._log = _Log(self.steps, self.batch_tokens, self.title)
        self._factor = math.nan
        #: The last step, its penalty factor and its facts, until these were read.
        self._unread: tuple[int, float, Taken] | None = None
        self.failed: str | None = None
        self.seconds = time.perf_counter() - started

    @property
    def done(self) -> int:
        """How many steps were taken."""
        return self._trainer.steps

    def step(self, x: Tensor) -> None:
        """Take the next batch `x [batch_tokens, d]`; of one that has `failed`, pass it by."""
        if self.failed:
            return
        step = self.done
        rate = self.hyperparameters["learning_rate"] * _schedule(step, self.steps, self.settings)
        steered = "lambda" not in self.hyperparameters
        factor = (
            self._controller.value
            if steered
            else self.hyperparameters["lambda"] * warm_up(step, self.steps)
        )
        taken = self._trainer.step(x, rate, factor)
        self._read()  # the step before: a GPU, which is not to wait for the host, has the next
        self._unread = (step, factor, taken)
        if steered and self._trainer.penalised:  # the next factor depends on this step's L0
            self._read()

    def _read(self) -> None:
        """Take note of the facts of the last step, if that is still to be done."""
        if self._unread is None or self.failed:
            return
        (step, factor, taken), self._unread = self._unread, None
        facts = self._trainer.read(taken)
        if facts is None:
            self._trainer.steps = step  # what came since counts for nothing
            peak = self.hyperparameters["learning_rate"]
            self.failed = (
                f"the loss or its gradient exploded at step {step} of {self.steps} "
                f"(learning rate {peak:.3g}); lower the learning rate"
                if step
                else "the loss or its gradient is not finite before the first update: a mistake in "
                "the method's loss, or activations that are not what they should be"
            )
            return
        if step == 0 and self._trainer.penalised and "lambda" not in self.hyperparameters:
            print(
                f"{self.title}: its loss has a penalty, and no lambda is given: "
                f"steering lambda to L0 {self._method.l0:g}",
                flush=True,
            )
        self.seconds += facts.pop("seconds")
        facts["lambda"] = self._factor = factor if self._trainer.penalised else math.nan
        self._controller.observe(facts["l0"])
        self._log.add(step, facts)

    @property
    def estimates(self) -> int:
        """How many batches `estimate` is to be shown before `finish`."""
        self._read()
        return 0 if self.failed else self._method.estimates

    def estimate(self, x: Tensor) -> None:
        """Look at a batch `x [batch_tokens, d]` once more, with the averaged parameters."""
        started = time.perf_counter()
        self._method.estimate(self._averaged(), self._method.ranks.rows(x))
        self.seconds += time.perf_counter() - started

    def _averaged(self) -> Parameters:
        """The moving average of the parameters, with unit decoder rows as these have.

        The mean of unit vectors that turn is shorter, the more so the higher the learning rate.
        """
        averaged = {key: state.ema for key, state in self._trainer.states.items()}
        if "decoder" in averaged:
            averaged["decoder"] = torch.nn.functional.normalize(averaged["decoder"], dim=1)
        return averaged

    def finish(self) -> Trained:
        """The result, once all `estimates` were made.

        Where latents are shared, rank 0 has all of them, and the others have their own.
        """
        self._read()
        started = time.perf_counter()
        autoencoder = None
        if not self.failed:
            ranks = self._method.ranks
            autoencoder = self._method.finish(self._averaged())
            # Zero biases and thresholds are made on the CPU; the sample is encoded where it is.
            autoencoder = autoencoder.to(self._sample.device)
            if not ranks.over_latents(len(autoencoder.encode(self._sample).indices)):
                self.failed = ALL_DEAD
            autoencoder = autoencoder.each_latent(ranks.whole)
        self.seconds += time.perf_counter() - started
        penalised = self._trainer.penalised
        record = {
            "lambda": self._factor if penalised else None,
            "lambda_steered": "lambda" not in self.hyperparameters if penalised else None,
            "training_tokens": self.done * self.batch_tokens,
            "training_steps": self.done,
            "training_seconds": round(self.seconds, 2),
            **{key: value for key, value in self.hyperparameters.items() if key != "lambda"},
            **({"failed": self.failed} if self.failed else {}),
        }
        return Trained(autoencoder, self._log.table(), record)

    def state(self) -> State:
        """All that the next steps depend on; the order of the batches follows from `done`.

        Where latents are shared, rank 0 gets that of all, as one process would have it.
        """
        self._read()
        trainer, ranks = self._trainer, self._method.ranks
        tensors = {
            f"{key}.{name}": tensor if key == REPLICATED else ranks.whole(tensor)
            for key, state in trainer.states.items()
            for name, tensor in (
                ("parameter", trainer.parameters[key]),
                ("mean", state.mean),
                ("square", state.square),
                ("ema", state.ema),
            )
        }
        tensors["silent_tokens"] = ranks.whole(trainer.silent_tokens)
        facts = {
            "steps": trainer.steps,
            "penalised": trainer.penalised,
            "factor": self._factor,
            "memory": self._method.memory,
            "controller": vars(self._controller),
            "log": {"rows": self._log.rows, "pending": self._log.pending},
            "failed": self.failed,
            "seconds": self.seconds,
        }
        return tensors, facts

    def restore(self, state: State) -> None:
        """Go on from what `state` gave, of a training with the same arguments."""
        tensors, facts = state
        trainer, ranks = self._trainer, self._method.ranks
        for key, own in trainer.states.items():
            parts = {"parameter": trainer.parameters[key], **vars(own)}
            for name in ("parameter", "mean", "square", "ema"):
                saved = tensors[f"{key}.{name}"]
                parts[name].copy_(saved if key == REPLICATED else ranks.latents(saved))
        trainer.silent_tokens.copy_(ranks.latents(tensors["silent_tokens"]))
        trainer.steps, trainer.penalised = facts["steps"], facts["penalised"]
        self._factor = facts["factor"]
        self._method.memory = facts["memory"]
        vars(self._controller).update(facts["controller"])
        self._log.go_on(**facts["log"])
        self.failed = facts["failed"]
        self.seconds = facts["seconds"]


class Trained(NamedTuple):
    """What a training leaves."""

    autoencoder: Autoencoder | None
    """With the averaged weights; none where the training could not go on."""
    log: pd.DataFrame
    """A row every `LOG_LINES`-th part of the training, `LOG_COLUMNS`."""
    facts: dict[str, Any]
    """For its provenance; `failed` where it came to nothing."""

    @classmethod
    def nothing(cls, reason: str) -> Trained:
        """Of a training that could not begin."""
        facts = {"training_tokens": 0, "training_seconds": 0.0, "failed": reason}
        return cls(None, pd.DataFrame(columns=LOG_COLUMNS), facts)


def train_together(
    trainings: Sequence[Training],
    source: Batches,
    seed: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[Trained]:
    """Take all `trainings` through their batches, some at a time; then yield their results.

    Each becomes what it would have become alone; one that fails leaves the others alone. All have
    the same `training` settings.

    Args:
        trainings: none of them begun.
        source: of the batches.
        seed: of the order of the batches, for all; None: each has its own seed's, and those of one
            seed share a batch.
        checkpoint: where a killed job has left its state, if it has; it is written from now on.
            Its owner removes it when the results are safe.
    """
    first = trainings[0]
    sharing: dict[int, list[Training]] = {}
    for training in trainings:
        sharing.setdefault(training.seed if seed is None else seed, []).append(training)

    def batches(order: int, start: int = 0) -> Iterator[Tensor]:
        return source.batches(first.batch_tokens, first.steps * first.batch_tokens, order, start)

    if checkpoint is not None:
        subjects = [training.subject for training in trainings]
        checkpoint.restore(trainings, {"trainings": subjects, "data": source.manifest})
    # One that failed stays behind.
    done = max(training.done for training in trainings)
    if done:
        print(f"going on after step {done} of {first.steps}", flush=True)
    courses = {order: batches(order, done) for order in sharing}
    turn = max(1, TURN_FLOATS // (first.batch_tokens * first.d))
    while done < first.steps and not all(training.failed for training in trainings):
        for order, those in sharing.items():
            started = time.perf_counter()
            taken = list(islice(courses[order], turn))
            waited = time.perf_counter() - started
            for training in those:
                training.seconds += waited / len(those)
                for x in taken:
                    training.step(x)
        done += turn
        if checkpoint is not None:
            checkpoint.save_if_due(trainings)
    courses.clear()  # a stream's buffer is not to lie beside that of the estimates' batches
    for order, those in sharing.items():
        looking = [training for training in those if training.estimates]
        for x in islice(batches(order), max((its.estimates for its in looking), default=0)):
            for training in looking:
                training.estimate(x)
    for training in trainings:
        trained = training.finish()
        if training.failed:
            print(f"{training.title}: {training.failed}", flush=True)
        yield trained


def train(
    name: str,
    store: Batches,
    n: int,
    l0: float,
    seed: int,
    settings: dict[str, Any],
    hyperparameters: dict[str, Any],
    base: Autoencoder | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Autoencoder, pd.DataFrame, dict[str, Any]]:
    """Train one autoencoder on the device where the store's activations are.

    Arguments as for `Training` and `train_together`; `store` gives the sample, and the batches in
    the order of `seed`.

    Raises:
        Failed: it could not go on, or ended with all latents dead; says at which step (of the
            former), and what to lower.
    """
    sample = store.sample(INITIALISATION_ROWS)
    training = Training(name, sample, n, l0, seed, settings, hyperparameters, base)
    ((autoencoder, log, facts),) = train_together([training], store, checkpoint=checkpoint)
    if autoencoder is None:
        raise Failed(f"{training.title}: {training.failed}")
    return autoencoder, log, facts


def _schedule(step: int, steps: int, settings: dict[str, Any]) -> float:
    """Share of the peak learning rate: linear warm-up, constant, linear decay at the end."""
    warmup, decay = settings["warmup_steps"], settings["decay_share"] * steps
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    falling = min(1.0, (steps - step) / decay) if decay else 1.0
    return min(rising, falling)


def code_of(method: str) -> str:
    """SHA-256 of the source that it trains with: a checkpoint from before an edit is another's."""
    return sources.code_of(METHODS[method].__module__)


class _Hyperparameters(dict[str, Any]):
    """Those of a method; one that it reads and has not is the mistake of its file."""

    def __init__(self, method: str, values: dict[str, Any]):
        super().__init__(values)
        self.method = method

    def __missing__(self, name: str) -> Any:
        raise UserError(
            f"workflow/methods/{self.method}/method.yaml: hyperparameters.{name} is missing; "
            f"{METHODS[self.method].__name__} reads it"
        )


class _Log:
    """A table of the training with `LOG_LINES` rows, each the mean since the last; progress."""

    def __init__(self, steps: int, batch_tokens: int, title: str):
        self.steps, self.batch_tokens, self.title = steps, batch_tokens, title
        self.every = max(1, steps // LOG_LINES)
        self.rows: list[dict[str, float]] = []
        self.pending: list[dict[str, float]] = []
        self.started = time.perf_counter()
        self.first = 0

    def go_on(self, rows: list[dict[str, float]], pending: list[dict[str, float]]) -> None:
        """Continue a log that a killed job has begun."""
        self.rows, self.pending = rows, pending
        self.first = (int(rows[-1]["step"]) if rows else 0) + len(pending)

    def add(self, step: int, facts: dict[str, float]) -> None:
        self.pending.append(facts)
        done = step + 1
        if done % self.every and done != self.steps:
            return
        mean = pd.DataFrame(self.pending).mean().to_dict()
        self.pending.clear()
        self.rows.append({"step": done, "tokens": done * self.batch_tokens, **mean})
        if len(self.rows) % 5 == 0 or done == self.steps:
            per_step = (time.perf_counter() - self.started) / (done - self.first)
            print(
                f"{self.title}: step {done}/{self.steps}  nMSE {mean['nmse']:.4f}  "
                f"L0 {mean['l0']:.1f}  dead {mean['dead_fraction']:.1%}  "
                f"{self.batch_tokens / per_step:,.0f} tokens/s  "
                f"{per_step * (self.steps - done):.0f} s left",
                flush=True,
            )

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=LOG_COLUMNS)
