"""How fast TopK trains on a GPU, against its own encoder product and sparsify; and GPT-2's passes.

    python benchmarks/gpu.py results/gpu.csv --sparsify .venv-peers/bin/python

One of the things that `make gpu` does on a machine with a GPU. sparsify needs an environment of its
own, with a CUDA build of PyTorch (`make .venv-peers/installed`); without `--sparsify` its row is
left out. A step is data on the device, forward, backward, clipping, Adam, decoder normalisation,
dead-latent accounting; ours has the moving average of the weights as well; no latent is dead for
long enough for AuxK. The encoder product alone, into memory that is kept, is what no exact method
can avoid. The row `language_model` is passes of a GPT-2 small with random weights up to layer 8, as
a stream of activations makes them. Rows of the way `small` are a step of an autoencoder so small
that to start kernels takes longer than they do: of most methods in one process, and of TopK in
several that share the GPU, with the tokens per second of all.

Writes one row for each way and precision of the encoder product (PyTorch's names for
`torch.set_float32_matmul_precision`; `medium`, which is `training.precision: bfloat16`, is bfloat16
inputs with float32 sums, which sparsify always takes): milliseconds of a step, tokens per second,
and the time relative to the product's.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D, N, K = 768, 32768, 32
BATCH = 65536
WARM_UP, STEPS = 5, 20
ORDER = [
    ("product", "highest"),
    ("l0plane", "highest"),
    ("product", "medium"),
    ("l0plane", "medium"),
    ("sparsify", "medium"),
    ("language_model", "highest"),
]
AUXK = {"dead_after_tokens": 10_000_000, "aux_k": 512, "aux_weight": 1 / 32}
SMALL = {"d": 128, "n": 2048, "k": 32, "batch_tokens": 2048}
AT_ONCE = [("topk", 1), ("topk", 8)]
AT_ONCE += [(m, 1) for m in ("multi_topk", "batch_topk", "relu", "gated", "jumprelu", "prolu_ste")]
HYPERPARAMETERS = {"threshold": 0.05, "bandwidth": 0.01}
SECONDS = 2.0
CONTEXT, LAYER = 64, 8
TOKENIZER = Path(__file__).parents[1] / "resources/lm/tokenizer.json"
COLUMNS = ["way", "method", "precision", "processes", "d", "n", "k", "batch_tokens", "milliseconds"]
COLUMNS += ["tokens_per_second"]


def milliseconds(step: Callable[[], object]) -> float:
    """The mean time of a step after a warm-up, which compiles what is compiled at first use."""
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    for _ in range(WARM_UP):
        step()
    wait()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    wait()
    return (time.perf_counter() - started) / STEPS * 1e3


def activations(rows: int, d: int) -> torch.Tensor:
    """Random activations of unit norm `[rows, d]`."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(rows, d, generator=generator, device=DEVICE)
    return x / x.norm(dim=1, keepdim=True)


def product(precision: str) -> float:
    """The encoder product alone."""
    dtype = torch.bfloat16 if precision == "medium" else torch.float32
    x = activations(BATCH, D).to(dtype)
    encoder = torch.randn(N, D, device=DEVICE, dtype=dtype)
    out = torch.empty(BATCH, N, device=DEVICE, dtype=dtype)
    return milliseconds(lambda: torch.mm(x, encoder.T, out=out))


def training_step(name: str, d: int, n: int, k: int, batch_tokens: int) -> Callable[[], object]:
    """What takes a training step of this project with the method `name`."""
    from l0plane.methods import METHODS
    from l0plane.trainer import Trainer

    x = activations(batch_tokens, d)
    method = METHODS[name](k, HYPERPARAMETERS)
    parameters = method.initialise(x[:8192], n, torch.Generator().manual_seed(0))
    trainer = Trainer(method, parameters, 1.0, {"clip_norm": 1.0, "ema": 0.999, **AUXK})
    unread = [trainer.step(x, 1e-4, 1e-3)]

    def step() -> None:
        unread.append(trainer.step(x, 1e-4, 1e-3))
        trainer.read(unread.pop(0))  # one late, as `Training` does

    return step


def l0plane(precision: str) -> float:
    """A training step of this project."""
    from l0plane.device import use_precision

    use_precision({"precision": "bfloat16" if precision == "medium" else "float32"})
    return milliseconds(training_step("topk", D, N, K, BATCH))


def small(name: str) -> None:
    """One of several processes with a small autoencoder: say when it is ready, begin when told.

    Prints how many steps it took in SECONDS.
    """
    step = training_step(name, **SMALL)
    milliseconds(step)
    print("ready", flush=True)
    sys.stdin.readline()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        step()  # which waits for the device, with the last one at most still to be done
        steps += 1
    print(steps, flush=True)


def at_once(name: str, processes: int) -> dict[str, object]:
    """The row of so many processes with a small autoencoder of a method each."""
    command = [sys.executable, __file__, "", "--small", name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(processes)]  # type: ignore
    for child in children:
        if child.stdout.readline() != "ready\n":
            sys.exit("benchmarks/gpu.py: a process with a small autoencoder ended; see above")
    for child in children:
        child.stdin.write("begin\n")
        child.stdin.flush()
    steps = sum(int(child.communicate()[0]) for child in children)
    taken = 1e3 * SECONDS * processes / steps
    tokens = SMALL["batch_tokens"] * steps / SECONDS
    row = ("small", name, "highest", processes, *SMALL.values(), round(taken, 3), round(tokens))
    return dict(zip(COLUMNS, row, strict=True))


def sparsify(precision: str) -> float:
    """A training step of sparsify, as its trainer does it."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D, SparseCoderConfig(num_latents=N, k=K), device=DEVICE)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=True)
    silent = torch.zeros(N, dtype=torch.long, device=DEVICE)
    x = activations(BATCH, D)

    def step() -> None:
        nonlocal silent
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=silent > AUXK["dead_after_tokens"])
        (out.fvu + AUXK["aux_weight"] * out.auxk_loss).backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent += BATCH
        silent[out.latent_indices.flatten()] = 0

    return milliseconds(step)


def language_model(precision: str) -> float:
    """BATCH tokens through a GPT-2 of width D, up to the hook."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from l0plane.activation_store import passes
    from l0plane.language_model import LanguageModel

    with tempfile.TemporaryDirectory() as directory:
        GPT2LMHeadModel(GPT2Config(n_embd=D)).save_pretrained(directory)
        shutil.copy(TOKENIZER, directory)
        model = LanguageModel.load(directory, f"blocks.{LAYER}.hook_resid_post", DEVICE)
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(model.vocabulary, (BATCH // CONTEXT, CONTEXT), generator=generator)
    return milliseconds(lambda: list(passes(contexts.numpy(), model, first=1)))


WAYS = {
    "product": product,
    "l0plane": l0plane,
    "sparsify": sparsify,
    "language_model": language_model,
}


def measure(way: str, precision: str) -> dict[str, object]:
    """One row of the table."""
    taken = WAYS[way](precision)
    method = "topk" if way in ("l0plane", "sparsify") else None
    sizes = (D, None, None) if way == "language_model" else (D, N, K)
    speed = (round(taken, 3), round(BATCH / taken * 1e3))
    row = (way, method, precision, 1, *sizes, BATCH, *speed)
    return dict(zip(COLUMNS, row, strict=True))


def main() -> None:
    """Measure each way in a process of its own, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--sparsify", metavar="PYTHON", help="of an environment that has sparsify")
    parser.add_argument("--only", nargs=2, metavar=("WAY", "PRECISION"), help=argparse.SUPPRESS)
    parser.add_argument("--small", metavar="METHOD", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.small:
        small(arguments.small)
        return
    if arguments.only:
        print(json.dumps(measure(*arguments.only)))
        return
    if DEVICE != "cuda":
        sys.exit("benchmarks/gpu.py: PyTorch sees no GPU here (torch.cuda.is_available() is False)")
    rows: list[dict[str, object]] = []
    limit = 0.0
    for way, precision in ORDER:
        python = arguments.sparsify if way == "sparsify" else sys.executable
        if python is None:
            continue
        command = [python, __file__, str(arguments.output), "--only", way, precision]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        limit = row["milliseconds"] if way == "product" else limit
        if way != "language_model":
            row["times_the_product"] = round(row["milliseconds"] / limit, 3)
        rows.append(row)
        print(row, flush=True)
    for name, processes in AT_ONCE:
        rows.append(at_once(name, processes))
        print(rows[-1], flush=True)
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", newline="", encoding="utf-8") as stream:
        columns = [*COLUMNS, "times_the_product", *facts]
        table = csv.DictWriter(stream, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(row | facts for row in rows)


if __name__ == "__main__":
    main()
