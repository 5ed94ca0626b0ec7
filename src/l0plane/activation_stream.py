"""Preprocessed activations straight from the language model, shuffled in a buffer of bounded size.

For trainings on more activations than a disk holds. Contexts come in a random order, another one in
each epoch; the activations of as many of them as fit into the buffer are shuffled and given out;
then the next ones are computed. So every batch depends on its place alone: a training that was
killed computes one buffer again, and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0plane.activation_store import ActivationStore, batched, contexts_in_a_pass, passes
from l0plane.device import full_precision
from l0plane.distributed import ALONE, Ranks
from l0plane.files import Broken, rebuilt_by_the_run
from l0plane.language_model import LanguageModel


class ActivationStream:
    """In the place of an `ActivationStore`: the same batches for all who ask with the same seed.

    Attributes:
        manifest: that of the stored sample, and what the stream adds to it.
        tokens: how many activations there are in an epoch.
    """

    def __init__(
        self,
        sample: ActivationStore,
        contexts: np.ndarray,
        language_model: LanguageModel,
        buffer_tokens: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """Stream what the model says of the contexts.

        Args:
            sample: stored activations of the same model and text, from which trainings are
                initialised.
            contexts: int `[contexts, context]`, all that there are to train on.
            language_model: gives the activations at its hook.
            buffer_tokens: how many activations are shuffled at a time; rounded down to whole
                contexts. The buffer takes `4 buffer_tokens d` bytes on the model's device.
            ranks: the processes that share the language model's work; each has the whole buffer.

        Raises:
            UserError: the sample is of another language model.
        """
        if sample.manifest["model_sha256"] != language_model.sha256:
            with rebuilt_by_the_run(sample.directory):
                raise Broken(f"{sample.directory}: activations of another language model")
        self.stored = sample
        self.contexts = contexts
        self.language_model = language_model
        self.ranks = ranks
        self.first = int(sample.manifest["drop_first_position"])
        self.per_context = contexts.shape[1] - self.first
        self.tokens = len(contexts) * self.per_context
        self.buffer_contexts = max(1, buffer_tokens // self.per_context)
        self.manifest: dict[str, Any] = {
            **sample.manifest,
            "stream": {"contexts": len(contexts), "buffer_contexts": self.buffer_contexts},
        }

    def sample(self, rows: int) -> Tensor:
        """Some stored activations, `[rows, d]`."""
        return self.stored.sample(rows)

    def batches(
        self, batch_tokens: int, tokens: int, seed: int, start: int = 0
    ) -> Iterator[Tensor]:
        """Yield whole batches, float32 `[batch_tokens, d]`, of `tokens` activations at most.

        Every epoch visits each context once. The first `start` batches are left out, and so is
        the language model's work on buffers that only they need.
        """
        pieces = self._pieces(batch_tokens, seed, start * batch_tokens)
        return batched(pieces, batch_tokens, tokens // batch_tokens - start)

    def _pieces(self, size: int, seed: int, skip: int) -> Iterator[Tensor]:
        """Endless activations, `size` at a time, after the first `skip`."""
        rows = self.buffer_contexts * self.per_context
        shape = (rows, self.language_model.d_model)
        buffer = torch.empty(shape, device=self.language_model.device)
        first, skip = divmod(skip, rows)
        for number in count(first):
            self._fill(buffer, seed, number)
            order = np.random.default_rng([seed, number, 1]).permutation(rows)[skip:]
            for places in torch.from_numpy(order).to(buffer.device).split(size):
                yield buffer[places]
            skip = 0

    def _fill(self, buffer: Tensor, seed: int, number: int) -> None:
        """Compute the activations that come in the `number`-th buffer, in the contexts' order."""
        contexts = self._contexts(seed, number)
        # Whole passes, so that they are those of one process.
        step = contexts_in_a_pass(contexts, self.language_model)
        buffer.zero_()
        for start in range(self.ranks.rank * step, len(contexts), self.ranks.size * step):
            some = contexts[start : start + step]
            with full_precision():
                for _, x in passes(some, self.language_model, self.first):
                    buffer[start * self.per_context :][: len(x)] = x
        self.ranks.sum(buffer)

    def _contexts(self, seed: int, number: int) -> np.ndarray:
        """int `[buffer_contexts, context]`: those of one buffer; it may span epochs."""
        places = np.arange(self.buffer_contexts) + number * self.buffer_contexts
        epochs, places = np.divmod(places, len(self.contexts))
        chosen = [
            np.random.default_rng([seed, epoch]).permutation(len(self.contexts))[
                places[epochs == epoch]
            ]
            for epoch in np.unique(epochs)
        ]
        return self.contexts[np.concatenate(chosen)]
