"""Two processes make the autoencoder that one makes, whichever way they share the work.

In double precision, so that a wrong sum cannot pass for rounding. All that needs two processes is
done by one pair of them (`main`), since they take seconds to start.
"""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import HYPERPARAMETERS, SETTINGS, STORE, N

from l0plane import memory
from l0plane.activation_store import ActivationStore
from l0plane.activation_stream import ActivationStream
from l0plane.autoencoder import Autoencoder, ReLU
from l0plane.checkpoint import Checkpoint
from l0plane.distributed import ALONE, Ranks, SharedCheckpoint, joined
from l0plane.files import UserError, read_json, sha256, write_json
from l0plane.methods import METHODS, base
from l0plane.processes import _cause, launch
from l0plane.training import Training, train, train_together

STEPS = 12
SHORT = SETTINGS | {"tokens": STEPS * 200, "batch_tokens": 200, "dead_after_tokens": 300}
WAYS = {"rows": False, "latents": True}
CASES = [f"{method}-{way}" for method in METHODS for way in WAYS]
PIECE = 60 * N
"""A batch has more than three times as many pre-activations, and each process half of them."""
IN_PIECES = ("relu", "jumprelu", "batch_topk")
CASES += [f"{method}-{way}-in pieces" for method in IN_PIECES for way in WAYS]
WEAK = 6
"""Latents, the last ones, that start too weak to be among the k: they are dead until AuxK."""


class Doubles:
    """The activations of test_training in double precision."""

    manifest = STORE.manifest

    def sample(self, rows):
        return STORE.sample(rows).double()

    def batches(self, *arguments, **more):
        return (x.double() for x in STORE.batches(*arguments, **more))


@contextmanager
def doubles():
    """Parameters are drawn in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def training(name, ranks=ALONE):
    """A training, not begun, of which rank 1 has all dead latents if latents are shared."""
    x = STORE.sample(64).double()
    base = Autoencoder(x[:N], x[:N].clone(), x.mean(0), torch.full((N,), -0.2), ReLU())
    base = base if name == "relu_scaled" else None
    made = Training(name, Doubles().sample(512), N, 3, 0, SHORT, HYPERPARAMETERS, base, ranks)
    if METHODS[name].auxk:
        scale = torch.ones(N, 1).index_fill(0, torch.arange(N - WEAK, N), 1e-4)
        made._trainer.parameters["encoder"].data.mul_(ranks.latents(scale))
    return made


def results(trained):
    """What a training gave, as tensors."""
    a = trained.autoencoder
    function = {k: v for k, v in vars(a.activation_function).items() if torch.is_tensor(v)}
    log = torch.tensor(trained.log.to_numpy(float)).nan_to_num(-1)
    weights = {"encoder": a.encoder, "decoder": a.decoder, "bias": a.encoder_bias}
    found = {"log": log, "pre_bias": a.pre_bias, **weights, **function}
    return {name: tensor.contiguous() for name, tensor in found.items()}


@doubles()
def run(name, ranks=ALONE, checkpoint=None, steps=None):
    """Results of a training; with `steps` it ends there with a checkpoint and has none."""
    made = training(name, ranks)
    if steps is None:
        (trained,) = train_together([made], Doubles(), 1, checkpoint)
        return results(trained)
    for x in Doubles().batches(200, steps * 200, 1):
        made.step(x)
    checkpoint.restore([], subject(made))
    checkpoint.save([made])
    return {}


def subject(made):
    return {"trainings": [made.subject], "data": Doubles.manifest}


# --- what is computed by one process, and by each of two


def whole_numbers():
    """Rows and an encoder with many equal products."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randint(-2, 3, shape, generator=generator).double()

    return draw(50, 8), draw(N, 8)


def selections(ranks):
    """Which latents are chosen of many equal ones: the code of this rank, as a matrix."""
    x, encoder = whole_numbers()
    mine = (ranks.rows(x), x.new_zeros(8), ranks.latents(encoder))
    wide = ranks.encode_top_k(*mine, 12)
    batch = METHODS["batch_topk"](3, {})
    batch.ranks = ranks
    parameters = dict(zip(("pre_bias", "encoder"), mine[1:], strict=True))
    return {
        "top 5": ranks.encode_top_k(*mine, 5).to_dense(),
        "top 12": wide.to_dense(),
        "top 3 of 12": wide.keep(ranks.top_k_mask(wide, 3)).to_dense(),
        "of the batch": batch._select(parameters, mine[0]).to_dense(),
    }


def stream(ranks):
    """Batches that come straight from a language model, here a table of vectors."""
    table = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    model = SimpleNamespace(
        sha256="", d_model=16, device=table.device, residual=lambda tokens: table[tokens.long()]
    )
    sample = SimpleNamespace(manifest={"model_sha256": "", "drop_first_position": True})
    contexts = np.random.default_rng(0).integers(0, 30, (40, 512))
    streamed = ActivationStream(sample, contexts, model, 13_000, ranks)
    return {"stream": torch.cat(list(streamed.batches(500, 40_000, 0)))}


# Of the methods with AuxK, BatchTopK alone does something in pieces.
@pytest.mark.parametrize("name", [m for m in METHODS if m not in ("topk", "multi_topk")])
def test_a_batch_in_pieces_trains_as_a_whole_one(name, monkeypatch):
    def trained(pieces):
        with doubles():
            made = training(name)
            assert made._method.pieces(SHORT["batch_tokens"], N) == pieces
            (result,) = train_together([made], Doubles(), 0)
        return results(result)

    whole = trained(1)
    monkeypatch.setattr(base, "PIECE", PIECE)
    for key, tensor in trained(4).items():
        torch.testing.assert_close(tensor, whole[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("shard_latents", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize(("rows", "n"), [(512, 2048), (131072, 16384), (131072, 32768)])
def test_a_cluster_is_asked_for_the_pieces_that_all_processes_have_in_hand(
    rows, n, size, shard_latents
):
    method = METHODS["relu"](3, HYPERPARAMETERS)
    method.ranks = Ranks(0, size, shard_latents)
    own_rows, own_n = (rows, n / size) if shard_latents else (rows / size, n)
    in_hand = size * own_rows * own_n / method.pieces(rows, own_n)
    asked = memory.of_pre_activations(rows, n, size)
    assert in_hand * memory.ACTIVE / 2 <= asked * (1 + 1e-9)
    assert asked <= min(rows * n, size * memory.PIECE) * memory.ACTIVE / 2


@pytest.fixture(scope="module")
def alone():
    """The results of each method in one process."""
    return {name: run(name) for name in METHODS}


@pytest.fixture(scope="module")
def together(tmp_path_factory, alone):
    """The directory in which two processes have left their results."""
    directory = tmp_path_factory.mktemp("together")
    run("topk", checkpoint=Checkpoint(directory / "of one", 1000), steps=5)
    launch(2, 2, __file__, str(directory))
    return directory


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_what_one_makes(alone, together, case):
    expected = alone[case.split("-")[0]]
    same(load_file(together / f"{case}.safetensors"), expected)
    if METHODS[case.split("-")[0]].auxk:
        dead = expected["log"][:, 6]
        assert dead[2] == WEAK / N, "AuxK had nothing to do"


@pytest.mark.parametrize("way", WAYS)
def test_of_equal_values_the_same_are_chosen(together, way):
    parts = [load_file(together / f"selections-{way}-{rank}.safetensors") for rank in (0, 1)]
    for name, expected in selections(ALONE).items():
        found = torch.cat([part[name] for part in parts], int(WAYS[way]))
        if (name, way) == ("of the batch", "latents"):  # as many, of the same sizes
            assert torch.equal(found.flatten().sort().values, expected.flatten().sort().values)
        else:
            assert torch.equal(found, expected), name


def test_a_checkpoint_is_the_same_whoever_writes_it(alone, together):
    for way in WAYS:
        same(load_file(together / f"resumed-{way}.safetensors"), alone["topk"])
        checkpoint = Checkpoint(together / f"of two-{way}", 1000)
        same(run("topk", checkpoint=checkpoint), alone["topk"])
        assert checkpoint.saves == 1
    assert read_json(together / "done.json") == {"full disk": "survived"}


def test_a_stream_is_shared_without_a_change(together):
    found = load_file(together / "stream.safetensors")
    assert torch.equal(found["stream"], stream(ALONE)["stream"])


def test_a_process_that_dies_ends_the_others():
    program = (
        "import os, time;os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(600)"
    )
    said = r"process 1 of 2 \(from 0\) ended with SIGKILL; the others were stopped"
    with pytest.raises(UserError, match=said):
        launch(2, 2, "-c", program)


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({0: (1, {"message": "Diverged: too: fast"}), 1: (-15, "")}, "too: fast"),
        ({0: (1, ""), 1: (-9, "")}, "process 1 of 2 (from 0) ended with signal -9"),
        ({0: (-15, ""), 1: (3, "")}, "process 1 of 2 (from 0) ended with exit code 3"),
    ],
)
def test_the_failure_that_is_reported_is_the_cause_of_the_others(failures, said):
    class Failure(NamedTuple):
        exitcode: int
        message: object

        def signal_name(self):
            return f"signal {self.exitcode}"

    found = _cause({number: Failure(*facts) for number, facts in failures.items()}, 2)
    assert found.removesuffix("; the others were stopped") == said


# --- the job


PREAMBLE = """
import json
from types import SimpleNamespace

class Named(dict):
    __getattr__ = dict.__getitem__

__real_file__ = __file__
facts = json.loads({facts!r})
for name in ("input", "output", "params"):
    facts[name] = Named(facts[name])
snakemake = SimpleNamespace(**facts)
"""


def job(directory):
    """Run `train.py` in two processes as Snakemake would; what became of it."""
    store = directory / "store"
    store.mkdir()
    save_file({"activations": STORE.x}, store / "0.safetensors")
    shard = {"file": "0.safetensors", "rows": len(STORE.x)}
    manifest = {"d": STORE.x.shape[1], "tokens": len(STORE.x), "mean": STORE.x.mean(0).tolist()}
    manifest |= dict.fromkeys(("hook", "context", "corpus_sha256", "model_sha256"), "")
    shards = [shard | {"sha256": sha256(store / "0.safetensors")}]
    write_json(store / "manifest.json", manifest | {"shards": shards})
    execution = {"checkpoint_minutes": 1e-9, "processes": 2, "shard_latents": True}
    facts = {
        "input": {"activations": str(store)},
        "output": {"cfg": str(directory / f"n{N}-l3-s0/cfg.json")},
        "params": {
            "run": "r",
            "method": "topk",
            "language_model": "m",
            "settings": SHORT,
            "hyperparameters": {"learning_rate": 5e-3},
            "reference_n": N,
        },
        "config": {"execution": execution},
        "log": [str(directory / "logs/job.log")],
        "rule": "train_topk",
        "threads": 2,
    }
    script = directory / "train.py"
    source = Path(__file__).parents[1] / "workflow/scripts/train.py"
    script.write_text(PREAMBLE.format(facts=json.dumps(facts)) + source.read_text())
    return subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)


def test_the_job_leaves_what_one_process_leaves(tmp_path):
    done = job(tmp_path)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "logs/job.log").read_text()
    assert all(line in log for line in done.stdout.splitlines())
    assert log.count(f"step {STEPS}/{STEPS}") == 1
    left = {path.name for path in (tmp_path / "logs").iterdir()}
    assert left == {"job.log", ".job.log.lock"}
    store = ActivationStore(tmp_path / "store")
    expected, table, _ = train("topk", store, N, 3, 0, SHORT, {"learning_rate": 5e-3})
    place = tmp_path / f"n{N}-l3-s0"
    found = Autoencoder.load(place)
    torch.testing.assert_close(found.decoder, expected.decoder, rtol=1e-3, atol=1e-4)
    rows = pd.read_csv(place / "training.csv")
    assert rows["nmse"].to_numpy() == pytest.approx(table["nmse"].to_numpy(), rel=1e-4)
    assert read_json(place / "provenance.json")["training_steps"] == STEPS


# --- the pair of processes


def main(task):
    with joined(shard_latents=False) as rows:
        for way, shard_latents in WAYS.items():
            ranks = replace(rows, shard_latents=shard_latents)

            def leave(name, tensors, all_ranks=False, ranks=ranks):
                if all_ranks or not ranks.rank:
                    save_file(tensors, f"{task}/{name}.safetensors")

            for name in METHODS:
                leave(f"{name}-{way}", run(name, ranks))
            whole, base.PIECE = base.PIECE, PIECE
            for name in IN_PIECES:
                leave(f"{name}-{way}-in pieces", run(name, ranks))
            base.PIECE = whole
            leave(f"selections-{way}-{ranks.rank}", selections(ranks), all_ranks=True)
            run("topk", ranks, SharedCheckpoint(f"{task}/of two-{way}", 1000, ranks), steps=7)
            checkpoint = SharedCheckpoint(f"{task}/of one", 1000, ranks)
            leave(f"resumed-{way}", run("topk", ranks, checkpoint))
            assert checkpoint.saves == 1
            run("topk", ranks, SharedCheckpoint(f"{__file__}/full", 0, ranks))
        leave("stream", stream(rows))
        if not rows.rank:
            write_json(f"{task}/done.json", {"full disk": "survived"})


if __name__ == "__main__":
    main(sys.argv[1])
