"""A stream gives every activation its turn, and trains many as stored shards train each."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CONTEXT, WIDTH
from safetensors.torch import load_file, save_file
from snakemake.iocontainers import Namedlist
from test_activation_store import in_order, match_rows

from l0plane import activation_store, activation_stream, training
from l0plane.activation_store import ActivationStore, write
from l0plane.activation_stream import ActivationStream
from l0plane.autoencoder import Autoencoder
from l0plane.checkpoint import Checkpoint
from l0plane.files import UserError, read_json
from l0plane.tokens import save_contexts
from l0plane.training import Training, train_together

PER_CONTEXT = CONTEXT - 1
BUFFER = 7 * PER_CONTEXT + 5  # seven contexts fit
SETTINGS = {
    "tokens": 60 * 32,
    "batch_tokens": 32,
    "warmup_steps": 2,
    "decay_share": 0.2,
    "ema": 0.9,
    "clip_norm": 1.0,
    "dead_after_tokens": 300,
    "aux_k": 4,
    "aux_weight": 1 / 32,
    "stream_buffer_tokens": BUFFER,
}
HYPERPARAMETERS = {"learning_rate": 5e-3}
LEVELS = [[24, 4, 0], [40, 2, 1], [40, 4, 0]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory, language_model, contexts):
    directory = tmp_path_factory.mktemp("sample") / "train"
    arguments = {"split": "train", "tokens": 99, "shard_tokens": 64, "seed": 0}
    facts = {"corpus_sha256": "c0"}
    write(directory, contexts, language_model, drop_first_position=True, facts=facts, **arguments)
    return ActivationStore(directory)


@pytest.fixture(scope="module")
def stream(sample, contexts, language_model):
    return ActivationStream(sample, contexts, language_model, BUFFER)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, stream):
    """What the stream gives, on disk, read in the order of the files."""
    directory = tmp_path_factory.mktemp("recorded")
    everything = torch.cat(list(stream.batches(32, SETTINGS["tokens"], 0)))
    for number, shard in enumerate(everything.split(500)):
        save_file({"activations": shard.contiguous()}, directory / f"{number:03d}.safetensors")

    def batches(batch_tokens, tokens, seed, start=0):
        shards = [load_file(path)["activations"] for path in sorted(directory.iterdir())]
        yield from torch.cat(shards)[:tokens].split(batch_tokens)[start:]

    return SimpleNamespace(batches=batches, sample=stream.sample, manifest={})


def test_rounding_is_the_trainings_alone(sample, language_model, contexts, monkeypatch):
    """What the model says is float32, also where a training's products are not."""
    seen = []

    def passes(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return activation_store.passes(*arguments)

    monkeypatch.setattr(activation_stream, "passes", passes)
    torch.set_float32_matmul_precision("medium")
    try:
        stream = ActivationStream(sample, contexts, language_model, 6 * PER_CONTEXT)
        next(iter(stream.batches(30, 30, 0)))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


def test_every_epoch_has_every_activation_once_and_neighbours_are_far_apart(
    sample, language_model, contexts
):
    stream = ActivationStream(sample, contexts, language_model, 6 * PER_CONTEXT)
    expected = in_order(language_model, contexts)
    epoch = len(expected)  # five buffers
    batches = list(stream.batches(30, 2 * epoch + 29, 3))
    assert len(batches) == 2 * epoch // 30
    assert all(batch.shape == (30, WIDTH) for batch in batches)
    orders = match_rows(torch.cat(batches), expected).reshape(2, epoch)
    for order in orders:
        assert sorted(order.tolist()) == list(range(epoch))
        assert (order.diff() == 1).float().mean() < 0.1
        origins = [place // PER_CONTEXT for place in order.tolist()]
        assert len(set(origins[: 6 * PER_CONTEXT])) == 6
        assert len(set(origins[:PER_CONTEXT])) > 2
    assert not torch.equal(*orders)
    other = match_rows(torch.cat(list(stream.batches(30, epoch, 4))), expected)
    assert (other == orders[0]).float().mean() < 0.2


@pytest.mark.parametrize("start", [1, 2, 3, 11, 25])
def test_batches_from_the_middle_are_those_of_the_whole(stream, start):
    whole, part = (list(stream.batches(32, 26 * 32, 0, skip)) for skip in (0, start))
    assert len(part) == 26 - start
    assert all(map(torch.equal, part, whole[start:]))


def test_a_sample_of_another_model_is_refused(sample, contexts, language_model):
    other = ActivationStore(sample.directory)
    other.manifest = other.manifest | {"model_sha256": "0"}
    with pytest.raises(UserError, match=r"of another language model.*rm -r "):
        ActivationStream(other, contexts, language_model, BUFFER)


@pytest.mark.parametrize("name", ["topk", "relu", "gated", "batch_topk"])
def test_many_on_a_stream_become_what_each_becomes_on_stored_shards(name, stream, recorded):
    arguments = [(n, l0, seed, SETTINGS, HYPERPARAMETERS) for n, l0, seed in LEVELS]
    trainings = [Training(name, stream.sample(50), *each) for each in arguments]
    for each, trained in zip(arguments, train_together(trainings, stream, 0), strict=True):
        (alone,) = train_together([Training(name, stream.sample(50), *each)], recorded, 0)
        assert trained.autoencoder.digest() == alone.autoencoder.digest()
        assert trained.log.equals(alone.log)


def test_a_killed_stream_goes_on_where_it_was(tmp_path, stream, monkeypatch):
    monkeypatch.setattr(training, "TURN_FLOATS", 1)  # a save may come after any step

    def trainings():
        return [
            Training("topk", stream.sample(50), *level, SETTINGS, HYPERPARAMETERS)
            for level in LEVELS
        ]

    class Killed(Checkpoint):
        def save_if_due(self, parts):
            if parts[0].done == 33:
                self.save(parts)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(train_together(trainings(), stream, 0, Killed(tmp_path, 0)))
    resumed, whole = trainings(), trainings()
    found = list(train_together(resumed, stream, 0, Checkpoint(tmp_path, 1000)))
    for trained, expected in zip(found, train_together(whole, stream, 0), strict=True):
        assert trained.autoencoder.digest() == expected.autoencoder.digest()


@pytest.fixture
def snakemake(tmp_path, sample, contexts, model_directory):
    """What Snakemake gives to the script that trains all levels of TopK."""
    save_contexts(tmp_path / "train.safetensors", contexts)
    directories = [tmp_path / f"n{n}-l{l0}-s{seed}" for n, l0, seed in LEVELS]
    inputs = {
        "activations": str(sample.directory),
        "contexts": str(tmp_path / "train.safetensors"),
        "lambdas": [],
    }
    params = {
        "run": "r",
        "method": "topk",
        "language_model": "gpt2",
        "language_model_path": str(model_directory("gpt2")),
        "settings": SETTINGS,
        "hyperparameters": HYPERPARAMETERS,
        "reference_n": 40,
    }
    return SimpleNamespace(
        input=Namedlist(fromdict=inputs),
        output=Namedlist(fromdict={"cfg": [str(d / "cfg.json") for d in directories]}),
        params=Namedlist(fromdict=params),
        config={"execution": {"checkpoint_minutes": 1e-9, "processes": 1, "shard_latents": False}},
        log=[str(tmp_path / "logs/stream.log")],
        rule="stream_topk",
        threads=1,
    )


def test_the_job_leaves_every_level(tmp_path, snakemake, recorded):
    script = Path(__file__).parents[1] / "workflow/scripts/train.py"
    runpy.run_path(str(script), {"snakemake": snakemake})
    for n, l0, seed in LEVELS:
        directory = tmp_path / f"n{n}-l{l0}-s{seed}"
        rate = HYPERPARAMETERS["learning_rate"] * (40 / n) ** 0.5
        sample = recorded.sample(10**6)
        training = Training("topk", sample, n, l0, seed, SETTINGS, {"learning_rate": rate})
        (expected,) = train_together([training], recorded, 0)
        expected.autoencoder.save(tmp_path / "expected", {})
        found, alone = Autoencoder.load(directory), Autoencoder.load(tmp_path / "expected")
        assert found.digest() == alone.digest()
        provenance = read_json(directory / "provenance.json")
        assert provenance["training_tokens"] == SETTINGS["tokens"]
        assert (provenance["n"], provenance["l0_target"], provenance["seed"]) == (n, l0, seed)
        assert (directory / "training.csv").exists()
    left = {path.name for path in (tmp_path / "logs").iterdir()}
    assert left == {"stream.log", ".stream.log.lock"}
