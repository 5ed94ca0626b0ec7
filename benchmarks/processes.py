"""How fast one TopK autoencoder trains on several processes, against one, in both ways to share.

    python benchmarks/processes.py                                           # two on a CPU
    python benchmarks/processes.py --processes 8 --n 32768 --batch 131072    # GPUs, where there are

Each process has a GPU, or one thread. A step is forward, backward, sums over processes, clipping,
Adam, decoder normalisation, dead-latent accounting; no latent is dead for long enough for AuxK.
Prints the median of a step, and the processor time that a process had in it: on a machine that is
busy with other things only the second means something, and it leaves out waiting.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numba
import torch

from l0plane.distributed import joined
from l0plane.methods import METHODS
from l0plane.processes import launch, launched
from l0plane.trainer import Trainer

SETTINGS = {
    "clip_norm": 1.0,
    "ema": 0.999,
    "dead_after_tokens": 10**9,
    "aux_k": 512,
    "aux_weight": 1 / 32,
}
WARM_UP, STEPS = 3, 20


def measure(sizes: argparse.Namespace) -> None:
    """In each process: time its steps; the first writes what it took to `sizes.output`."""
    numba.set_num_threads(torch.get_num_threads())  # PyTorch follows OMP_NUM_THREADS by itself
    with joined(shard_latents=False) as ranks:
        ranks = replace(ranks, shard_latents=sizes.way == "latents")
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(sizes.batch, sizes.d, generator=generator).to(ranks.device)
        x /= x.norm(dim=1, keepdim=True)
        method = METHODS["topk"](sizes.k, {})
        method.ranks = ranks
        parameters = method.initialise(x[:4096], sizes.n, generator)
        trainer = Trainer(method, parameters, 1.0, SETTINGS)
        taken: list[tuple[float, float]] = []
        for _ in range(WARM_UP + STEPS):
            started = time.perf_counter(), time.process_time()
            trainer.read(trainer.step(x, 1e-4, 0.0))
            ranks.over_all(0)
            taken.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        wall, cpu = (1e3 * median(column) for column in zip(*taken[WARM_UP:], strict=True))
        if ranks.rank == 0:
            sizes.output.write_text(json.dumps([wall, cpu]), encoding="utf-8")


def main() -> None:
    """Launch one process, then several in each way; print a row of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--way", default="rows", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    sizes = parser.parse_args()
    if launched():
        measure(sizes)
        return
    print("processes  share    ms of a step  of one  ms of processor  of one")
    one = None
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "taken.json"
        for processes, way in (
            (1, "rows"),
            (sizes.processes, "rows"),
            (sizes.processes, "latents"),
        ):
            more = ["--way", way, "--output", str(output)]
            launch(processes, processes, __file__, *sys.argv[1:], *more)
            wall, cpu = json.loads(output.read_text(encoding="utf-8"))
            one = one or (wall, cpu)
            print(
                f"{processes:9}  {way:7}  {wall:12.1f}  {wall / one[0]:6.2f}  {cpu:15.1f}  "
                f"{cpu / one[1]:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
