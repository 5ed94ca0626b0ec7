"""Compile the CPU kernels for this processor, once: `python -m l0plane.compile`.

numba keeps what it compiles beside the modules. Without this the first trainings of a run wait for
the compiler, each on its own.
"""

from __future__ import annotations

import io
import time
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor

from l0plane.autoencoder import Autoencoder
from l0plane.evaluation import progressive, refinement
from l0plane.methods import METHODS
from l0plane.training import Training, train_together

ROWS, D, N, L0 = 256, 16, 128, 4
SETTINGS: dict[str, Any] = {
    "tokens": 60 * ROWS,
    "batch_tokens": ROWS,
    "warmup_steps": 0,
    "decay_share": 0.0,
    "ema": 0.9,
    "clip_norm": 1.0,
    "dead_after_tokens": 4 * ROWS,
    "aux_k": 4,
    "aux_weight": 0.03125,
}
#: Strong enough that codes which begin dense end sparse: there is a kernel for each.
HYPERPARAMETERS = {"learning_rate": 0.03, "lambda": 1.0, "bandwidth": 0.1, "threshold": 0.1}


class _Noise:
    """Training activations that are noise."""

    def __init__(self) -> None:
        self.manifest: dict[str, Any] = {}

    def batches(self, batch_tokens: int, tokens: int, seed: int, start: int = 0) -> Any:
        for step in range(start, tokens // batch_tokens):
            yield self.sample(batch_tokens, step)

    def sample(self, rows: int, seed: int = 0) -> Tensor:
        return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def main() -> None:
    """Train every method that starts from nothing a little, and measure what came of it."""
    started, noise = time.perf_counter(), _Noise()
    print("compiling the kernels for this processor", flush=True)
    x = noise.sample(2 * ROWS)
    trained: dict[str, Autoencoder | None] = {}
    with redirect_stdout(io.StringIO()):
        for name in METHODS:
            base = trained.get("relu")
            training = Training(name, x, N, L0, 0, SETTINGS, HYPERPARAMETERS, base)
            (result,) = train_together([training], noise)
            trained[name] = result.autoencoder
    topk = trained["topk"]
    assert topk is not None
    code = progressive.descending(topk.positive_code(x))
    progressive.prefix_errors(x, code, topk.decoder)
    progressive.above(code, 0.5)
    refinement.solve(x, topk.encode(x), topk.decoder, topk.pre_bias)
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
