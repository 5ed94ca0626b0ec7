"""A training that is killed and started again ends as if nothing had happened, bit for bit."""

import errno
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_training import HYPERPARAMETERS, SETTINGS, STORE, N

from l0plane import training
from l0plane.activation_store import ActivationStore
from l0plane.checkpoint import Checkpoint
from l0plane.files import read_json, sha256, write_json
from l0plane.training import Training, train_together

STEPS = 60
TOGETHER = SETTINGS | {"tokens": STEPS * 256, "dead_after_tokens": 1000}
METHODS = ("topk", "batch_topk", "relu")


@pytest.fixture(autouse=True)
def step_by_step(monkeypatch):
    """A save may come after any step."""
    monkeypatch.setattr(training, "TURN_FLOATS", 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of several shards, which the training goes through twice."""
    directory = tmp_path_factory.mktemp("store")
    shards = []
    for number, part in enumerate(STORE.x.split(3000)):
        path = directory / f"{number}.safetensors"
        save_file({"activations": part.contiguous()}, path)
        shards.append({"file": path.name, "rows": len(part), "sha256": sha256(path)})
    facts = {"d": STORE.x.shape[1], "tokens": len(STORE.x), "mean": STORE.x.mean(0).tolist()}
    write_json(directory / "manifest.json", {**facts, "shards": shards})
    return ActivationStore(directory)


def trainings(store, **changes):
    sample, settings = store.sample(512), TOGETHER | changes
    return [Training(name, sample, N, 3, 0, settings, HYPERPARAMETERS) for name in METHODS]


def run(store, checkpoint, **changes):
    return list(train_together(trainings(store, **changes), store, 1, checkpoint))


def test_killed_and_started_again(tmp_path, store):
    undisturbed = run(store, None)
    step = random.randrange(2, STEPS)
    child = subprocess.Popen(
        [sys.executable, __file__, store.directory, tmp_path / "checkpoint"],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in child.stdout:
        if line == f"step {step}\n":
            child.kill()
    assert child.wait() == -9
    steps = read_json(tmp_path / "checkpoint/state.json")["facts"][0]["steps"]
    assert step - 1 <= steps < STEPS
    checkpoint = Checkpoint(tmp_path / "checkpoint", 1000)
    resumed = run(store, checkpoint)
    for expected, found in zip(undisturbed, resumed, strict=True):
        assert found.autoencoder.digest() == expected.autoencoder.digest(), f"killed at {step}"
        assert found.log.equals(expected.log)
        for facts in (expected.facts, found.facts):
            assert facts.pop("training_seconds") > 0
        assert found.facts == expected.facts
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def interrupted(store, directory, steps=20, **changes):
    """Trainings that stopped after a save."""

    class Enough(Exception):
        pass

    class Stopping(Checkpoint):
        def save_if_due(self, parts):
            if parts[0].done == steps:
                self.save(parts)
                raise Enough

    parts = trainings(store, **changes)
    with pytest.raises(Enough):
        list(train_together(parts, store, 1, Stopping(directory, 0)))
    return parts


def test_a_save_replaces_the_last_and_leaves_nothing_else(tmp_path, store):
    parts = interrupted(store, tmp_path / "checkpoint")
    names = set((tmp_path / "checkpoint").iterdir())
    (tmp_path / "checkpoint/.77.part.state.json").touch()  # of a save that was killed
    again = Checkpoint(tmp_path / "checkpoint", 1000)
    again.restore(parts, {})
    again.save(parts)
    assert len(list((tmp_path / "checkpoint").iterdir())) == len(names) == len(METHODS) + 1


def test_a_file_system_that_cannot_sync_a_folder_costs_no_checkpoint(tmp_path, store, monkeypatch):
    sync = os.fsync

    def refused(opened):
        if stat.S_ISDIR(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(opened)

    monkeypatch.setattr(os, "fsync", refused)
    interrupted(store, tmp_path / "checkpoint")
    named = read_json(tmp_path / "checkpoint/state.json")["files"]
    assert {path.name for path in (tmp_path / "checkpoint").glob("*.safetensors")} == {*named}


def test_an_old_file_that_cannot_be_removed_costs_no_checkpoint(tmp_path, store, monkeypatch):
    parts = interrupted(store, tmp_path / "checkpoint")
    again = Checkpoint(tmp_path / "checkpoint", 1000)
    again.restore(parts, {})
    again.save(parts)
    old = {path.name for path in (tmp_path / "checkpoint").glob("*.safetensors")}

    unlink = Path.unlink

    def refused(path, missing_ok=False):
        if path.name in old:
            raise PermissionError(path)
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        again.save(parts)
    named = read_json(tmp_path / "checkpoint/state.json")["files"]
    there = {path.name for path in (tmp_path / "checkpoint").glob("*.safetensors")}
    assert there == {*named} | old and not {*named} & old
    again.save(parts)  # which makes room
    assert len(list((tmp_path / "checkpoint").iterdir())) == len(METHODS) + 1


@pytest.mark.parametrize(("settings", "data"), [({}, {}), ({"ema": 0.5}, {}), ({}, {"seed": 1})])
def test_only_a_checkpoint_of_the_same_training_is_used(tmp_path, store, capsys, settings, data):
    interrupted(store, tmp_path)
    parts = trainings(store, **settings)
    subject = {"trainings": [part.subject for part in parts], "data": store.manifest | data}
    Checkpoint(tmp_path, 0).restore(parts, subject)
    same = not settings and not data
    assert [part.done for part in parts] == [20 if same else 0] * len(METHODS)
    assert ("of another training" in capsys.readouterr().out) == (not same)


@pytest.mark.parametrize("name", ["*-000.safetensors", "state.json"])
def test_a_broken_checkpoint_is_not_used(tmp_path, store, capsys, name):
    interrupted(store, tmp_path)
    (path,) = tmp_path.glob(name)
    content = path.read_bytes()
    if name == "state.json":
        assert content.count(b'"steps": 20') == len(METHODS)
        path.write_bytes(content.replace(b'"steps": 20', b'"steps": 21', 1))
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run(store, Checkpoint(tmp_path, 1000))
    said = capsys.readouterr().out
    assert "not what was written); starting from the beginning" in said


def test_a_short_training_writes_none(tmp_path, store):
    run(store, Checkpoint(tmp_path / "checkpoint", 10))
    assert not (tmp_path / "checkpoint").exists()


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path, store, capsys):
    (tmp_path / "file").touch()
    trained = run(store, Checkpoint(tmp_path / "file/checkpoint", 0))
    assert "no checkpoint written" in capsys.readouterr().out
    assert trained[0].autoencoder.digest() == run(store, None)[0].autoencoder.digest()


def test_a_save_for_which_the_disk_was_too_full_leaves_the_last_one_and_no_more(
    tmp_path, store, monkeypatch
):
    parts = interrupted(store, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    written = []

    def full(tensors, path):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        save_file(tensors, path)

    monkeypatch.setattr("l0plane.checkpoint.save_file", full)
    again = Checkpoint(tmp_path, 0)
    again.saves = 1  # as the one that was interrupted
    again.save(parts)
    assert written
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("skip", [0, 1, 7, 13, 32, 50])
def test_batches_from_the_middle_are_those_of_the_whole(store, skip):
    whole = list(store.batches(300, 60 * 300, 4))
    part = list(store.batches(300, 60 * 300, 4, start=skip))
    assert len(part) == 60 - skip
    assert all(map(torch.equal, part, whole[skip:]))


def test_a_checkpoint_from_before_an_edit_of_the_method_is_not_taken(store, monkeypatch):
    before = trainings(store)[0].subject
    assert trainings(store)[0].subject == before
    monkeypatch.setattr("l0plane.sources.code_of", lambda module: f"{module} edited")
    assert trainings(store)[0].subject != before


def main(directory, checkpoint):
    """The training that is killed: it saves after every step and says so."""
    training.TURN_FLOATS = 1
    store = ActivationStore(directory)
    parts = trainings(store)

    class Aloud(Checkpoint):
        def save_if_due(self, parts):
            print(f"step {parts[0].done}", flush=True)
            self.save(parts)

    list(train_together(parts, store, 1, Aloud(checkpoint, 0)))


if __name__ == "__main__":
    main(*sys.argv[1:])
