"""Times and memory of whole training steps, beside the encoder product and beside other libraries.

    make benchmark
    python benchmarks/training_step.py --quick
    python benchmarks/training_step.py --profile

A step is everything a user pays for: reading a batch from the store, forward, backward, clipping,
Adam, unit decoder rows, the moving average, counting dead latents, AuxK where latents are dead.
Data and weights are random; biases and thresholds are such that the L0 asked for is the L0 there
is. The first command writes `results/reference/benchmark_*.csv` and the tables of
`docs/performance.md`, beside what was measured on other machines; the second prints a part,
measured shortly; the third prints where the time of a step goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

THREADS = 2
#: As the workflow sets it (`workflow/rules/common.smk`): threads spin a little, memory is kept.
WORKFLOW = {
    "GOMP_SPINCOUNT": "30000",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
#: For measuring memory: what is freed is given back at once.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
ENVIRONMENT = {"OMP_NUM_THREADS": str(THREADS), "NUMBA_NUM_THREADS": str(THREADS)}
if __name__ == "__main__" and not WORKFLOW.items() <= os.environ.items():
    # The allocator reads its variables when a process starts.
    environment = {**os.environ, **ENVIRONMENT, **WORKFLOW}
    sys.exit(subprocess.call([sys.executable, *sys.argv], env=environment))

# ruff: noqa: E402
import numba
import pandas as pd
import torch
from rounds import Case, activations, compare
from safetensors.torch import save_file
from torch import Tensor

from l0plane import tidy
from l0plane.activation_store import ActivationStore
from l0plane.files import sha256, write_json
from l0plane.machine import machine
from l0plane.methods import METHODS
from l0plane.trainer import Trainer

ROOT = Path(__file__).parents[1]
BATCHES = 16
LEARNING_RATE = 1e-5  # small: the L0 stays what it is
PENALTY_FACTOR = 1e-3
HYPERPARAMETERS = {"bandwidth": 0.03, "threshold": 0.03}
SETTINGS = {"aux_weight": 1 / 32, "clip_norm": 1.0, "ema": 0.99, "dead_after_tokens": 10_000_000}

SMALL, LARGE = (128, 2048), (768, 8192)
#: k, or the settled L0, of each method.
L0 = {"topk": 32, "multi_topk": 32, "batch_topk": 32, "relu": 48, "gated": 48, "prolu_relu": 48}
L0 |= {"prolu_ste": 48, "jumprelu": 48}


def step_cases() -> list[Case]:
    """Every method at both sizes; TopK with dead latents, and at the default run's batch, too."""
    cases = []
    for d, n in (SMALL, LARGE):
        cases += [Case(method, d, n, l0, 2048) for method, l0 in L0.items()]
        cases.append(Case("topk", d, n, 32, 2048, dead=n // 10))
    return [*cases, Case("topk", *SMALL, 32, 512)]


def scaling_cases() -> list[Case]:
    """TopK against n and against k."""
    by_n = [Case("topk", 768, 1024 << i, 32, 2048) for i in range(6)]
    return by_n + [Case("topk", *LARGE, k, 2048) for k in (8, 16, 64, 128)]


def memory_cases() -> list[Case]:
    """Both sizes, the largest n, and the methods with the largest codes."""
    topk = [Case("topk", *size, 32, 2048) for size in (SMALL, LARGE, (768, 32768))]
    return topk + [Case(method, *LARGE, L0[method], 2048) for method in ("multi_topk", "jumprelu")]


# --- our step


def settled(case: Case, sample: Tensor) -> Trainer:
    """A trainer whose parameters give the L0 asked for."""
    generator = torch.Generator().manual_seed(1)
    method = METHODS[case.method](case.k, HYPERPARAMETERS)
    p = method.initialise(sample[:64], case.n, generator)
    p["encoder"] = p["decoder"].clone()
    p["encoder"][: case.dead] *= 0.01
    a = (sample[:256] - p["pre_bias"]) @ p["encoder"].T
    threshold = a.flatten().topk(case.k * len(a)).values[-1].item()
    if case.method == "jumprelu":
        p["log_threshold"] = torch.full((case.n,), threshold).log()
    elif not method.auxk:
        p["gate_bias" if case.method == "gated" else "encoder_bias"] -= threshold
    variance = (sample - sample.mean(0)).square().sum(1).mean().item()
    trainer = Trainer(method, p, variance, {**SETTINGS, "aux_k": case.d // 2})
    trainer.silent_tokens = torch.zeros(case.n, dtype=torch.int64)
    trainer.silent_tokens[: case.dead] = SETTINGS["dead_after_tokens"]
    return trainer


def our_step(case: Case, batches: Iterator[Tensor]) -> Callable[[], dict[str, float] | None]:
    """One step of the project's own training, with the next batch."""
    trainer = settled(case, next(batches))
    return lambda: trainer.read(trainer.step(next(batches), LEARNING_RATE, PENALTY_FACTOR))


def stored(directory: Path, d: int, rows: int) -> Iterator[Tensor]:
    """Endless batches from a store of random activations."""
    x = activations(BATCHES * rows, d, seed=2)
    save_file({"activations": x}, directory / "shard.safetensors")
    shard = {"file": "shard.safetensors", "rows": len(x)}
    shard["sha256"] = sha256(directory / shard["file"])
    facts = {"d": d, "tokens": len(x), "mean": x.mean(0).tolist(), "shards": [shard]}
    write_json(directory / "manifest.json", facts)
    return ActivationStore(directory).batches(rows, sys.maxsize, 0)


def our_times(cases: list[Case], seconds: float) -> list[dict[str, object]]:
    """Rows of `rounds.compare`, with the L0 that there was."""
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as scratch:
            step = our_step(case, stored(Path(scratch), case.d, case.rows))
            l0 = step()["l0"]
            (row,) = compare(case, {"l0plane": step}, seconds)
        rows.append({**row, "l0": l0, "version": version("l0plane")})
        print(f"{row['ratio_of_least']:6.2f} x the product: {case}", flush=True)
    return rows


def profile() -> None:
    """Print where a step of the default run spends its time, on one thread as it has there."""
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    case, steps = Case("topk", *SMALL, 16, 512), 200
    with tempfile.TemporaryDirectory() as scratch:
        step = our_step(case, stored(Path(scratch), case.d, case.rows))
        print(pd.DataFrame(compare(case, {"l0plane": step}, 2.0)).to_string(index=False))
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(steps):
            step()
        profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(20)


# --- their steps


def their_times(python: Path, cases: list[Case], seconds: float) -> list[dict[str, object]]:
    """Rows of `peers/steps.py`, which runs in the peers' environment."""
    order = json.dumps({"threads": THREADS, "seconds": seconds, "cases": cases})
    script = ROOT / "benchmarks/peers/steps.py"
    done = subprocess.run(
        [python, script], input=order, stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# --- memory


def peak_memory(case: Case) -> dict[str, object]:
    """Most memory of a step over what there was before the parameters, in this new process."""
    torch.set_num_threads(THREADS)
    one_step(case._replace(n=256, rows=64, dead=0))  # compiles, starts threads
    gc.collect()
    before = memory("VmRSS")
    trainer = one_step(case)
    # The parameters, Adam's two moments of them, their average.
    held = sum(4 * p.nbytes for p in trainer.parameters.values())
    peak = memory("VmHWM") - before
    size = 4 * case.rows * case.n
    return {
        **case._asdict(),
        "peak_mb": peak / 1e6,
        "held_mb": held / 1e6,
        "preactivations_mb": size / 1e6,
        "multiple": (peak - held) / size,
    }


def one_step(case: Case) -> Trainer:
    """Two steps; only their own memory counts, not that of finding the parameters."""
    x = activations(case.rows, case.d)
    trainer = settled(case, x[:256])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    for _ in range(2):
        trainer.read(trainer.step(x, LEARNING_RATE, PENALTY_FACTOR))
    return trainer


def memory(field: str) -> int:
    """Bytes, from what Linux says of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1])


def memories(cases: list[Case]) -> list[dict[str, object]]:
    """Each case in a process of its own, whose allocator gives memory back."""
    for name in WORKFLOW:
        os.environ.pop(name, None)
    os.environ.update(RETURN_MEMORY)
    new = {"mp_context": get_context("spawn"), "max_workers": 1, "max_tasks_per_child": 1}
    with ProcessPoolExecutor(**new) as pool:
        return list(pool.map(peak_memory, cases))


# --- tables


def provenance() -> dict[str, str]:
    """What the times depend on beside the code."""
    facts = machine()
    return {
        "machine": f"{facts['cores']} x {facts['processor']} ({facts['vectors']})",
        "threads": str(THREADS),
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def beside_others(found: pd.DataFrame, output: Path) -> pd.DataFrame:
    """What was found here, and what the file has of other machines."""
    if not output.exists():
        return found
    earlier = tidy.read(output)
    others = earlier[~earlier["machine"].isin(found["machine"])]
    return pd.concat([found, others], ignore_index=True).sort_values("machine", kind="stable")


def markdown_tables(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """The tables of `docs/performance.md`, by the name in its markers: one for each machine."""
    whole: dict[str, list[str]] = {name: [] for name in tables}
    for place in tables["steps"]["machine"].unique():
        here = {name: table[table["machine"] == place] for name, table in tables.items()}
        facts = here["steps"].iloc[0]
        title = f"**{place}**, {facts['threads']} threads, torch {facts['torch']}, "
        for name, table in _of_one_machine(here).items():
            whole[name].append(f"{title}numba {facts['numba']}\n\n{table}")
    return {name: "\n\n".join(each) for name, each in whole.items()}


def _of_one_machine(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    rows = []
    for _, same in tables["steps"].groupby(list(Case._fields), sort=False):
        is_ours = same["implementation"] == "l0plane"
        own = same[is_ours].iloc[0]
        peers = same[~is_ours].sort_values("ratio_of_least").to_dict("records")
        listed = [f"{peer['implementation']} {peer['ratio_of_least']:.1f}" for peer in peers]
        ahead = [f"{peer['ratio_of_least'] / own['ratio_of_least']:.1f}" for peer in peers[:1]]
        rows.append(
            {
                "method": own["method"] + (" + AuxK" if own["dead"] else ""),
                "d, n, B": f"{own['d']}, {own['n']}, {own['rows']}",
                "L0": round(own["l0"]),
                "ms": round(own["least_ms"], 1),
                "times the product": round(own["ratio_of_least"], 2),
                "peers, times the product": ", ".join(listed),
                "ahead of the fastest, times": ", ".join(ahead),
            }
        )
    scaling = tables["scaling"].round({"ratio_of_least": 2, "least_ms": 0, "least_product_ms": 0})
    kept = {"n": "n", "k": "k", "least_product_ms": "product, ms", "least_ms": "step, ms"}
    kept |= {"ratio_of_least": "times the product"}
    memory = tables["memory"].round(1)
    names = {"method": "method", "d": "d", "n": "n", "rows": "B", "peak_mb": "peak, MB"}
    names |= {"held_mb": "parameters and optimiser, MB", "preactivations_mb": "[B, n] floats, MB"}
    names |= {"multiple": "the rest, in [B, n] floats"}
    return {
        "steps": _markdown(pd.DataFrame(rows)),
        "scaling": _markdown(scaling[list(kept)].rename(columns=kept)),
        "memory": _markdown(memory[list(names)].rename(columns=names)),
    }


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(page: Path, tables: dict[str, str]) -> None:
    """Put each table between its markers, `<!-- name -->` and `<!-- end -->`."""
    text = page.read_text()
    for name, table in tables.items():
        between = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        text = re.sub(between, lambda m, table=table: m[1] + table + m[2], text, flags=re.DOTALL)
    page.write_text(text)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part, shortly; writes nothing")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin/python")
    parser.add_argument("--profile", action="store_true", help="where the time of one step goes")
    quick, peers = (options := parser.parse_args()).quick, options.peers
    if options.profile:
        profile()
        return
    torch.set_num_threads(THREADS)
    cases = [Case("topk", *SMALL, 32, 512), Case("relu", *SMALL, 48, 512)]
    seconds = 1.0 if quick else 3.0
    cases = cases if quick else step_cases()
    steps = our_times(cases, seconds)
    if peers.exists():
        steps += their_times(peers, cases, seconds)
    else:
        print(f"{peers}: no such interpreter; make {peers.parts[0]}/installed makes it")
    if quick:
        print(pd.DataFrame(steps).to_string(index=False))
        return
    found = {
        "steps": pd.DataFrame(steps),
        "scaling": pd.DataFrame(our_times(scaling_cases(), seconds)),
        "memory": pd.DataFrame(memories(memory_cases())),
    }
    for name, table in found.items():
        output = ROOT / f"results/reference/benchmark_{name}.csv"
        found[name] = beside_others(tidy.arrange(table, {}, provenance()).round(4), output)
        tidy.write(found[name], output)
    fill(ROOT / "docs/performance.md", markdown_tables(found))


if __name__ == "__main__":
    main()
