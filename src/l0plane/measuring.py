"""What a result says of its autoencoder, and how a job comes to those that it measures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from l0plane import __version__
from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import WEIGHTS_FILE, Autoencoder, Failed, read_provenance
from l0plane.files import UserError, rebuilt_by_the_run, sha256

#: `source` of an autoencoder that a rule of the run made.
THIS_RUN = "this run"


class Subject(NamedTuple):
    """One autoencoder that a job measures."""

    autoencoder: Autoencoder | None
    """None where its training failed."""
    directory: Path
    keys: dict[str, Any]
    """First columns of its rows: run, method, n, l0_target, seed."""
    provenance: dict[str, Any]
    """Last columns: training_tokens, learning_rate, corpus_sha256, model_sha256, version."""
    facts: dict[str, Any]
    """All that its provenance.json says; empty where there is none."""
    origin: dict[str, str]
    """Which one it is: source, weights_sha256."""


def training_provenance(
    keys: dict[str, Any], facts: dict[str, Any], store: ActivationStore, model: str
) -> dict[str, Any]:
    """What `provenance.json` says of a trained autoencoder.

    Args:
        keys: run, method, n, l0_target, seed.
        facts: of the training (tokens, seconds, learning rate and the other hyperparameters).
        store: the activations that it was trained on.
        model: the language model's path or name.
    """
    activations = ("hook", "context", "corpus_sha256", "model_sha256")
    return {
        **keys,
        **facts,
        "model": model,
        **{name: store.manifest[name] for name in activations},
        "version": __version__,
    }


def subjects(
    paths: list[str],
    run: str,
    method: str,
    levels: list[list[int]],
    corpus_sha256: str,
    model_sha256: str,
    d: int,
) -> Iterator[Subject]:
    """Load the autoencoders of a method one by one.

    Args:
        paths: the `cfg.json` of each.
        run: name of the run.
        method: whose they are.
        levels: n, asked L0 and seed of each, in the order of `paths`.
        corpus_sha256: of the text that they are measured on.
        model_sha256: of the language model that they are measured on.
        d: the width of that model's activations.

    An autoencoder of somebody else's making needs no provenance.json: what that would say is then
    missing in the results. One whose training failed is None; its facts say why (`failed`).

    Raises:
        UserError: an autoencoder is broken, or has another n or d than it should.
    """
    for path, (n, l0, seed) in zip(paths, levels, strict=True):
        directory = Path(path).parent
        keys = {"run": run, "method": method, "n": n, "l0_target": l0, "seed": seed}
        print(f"{method}: {directory.name}", flush=True)
        with rebuilt_by_the_run(directory):
            try:
                autoencoder, failed = Autoencoder.load(directory), {}
            except Failed as error:
                print(error)
                autoencoder, failed = None, {"failed": str(error)}
        if autoencoder is not None and (autoencoder.n, autoencoder.d) != (n, d):
            raise UserError(
                f"{path}: d_sae is {autoencoder.n} and d_in is {autoencoder.d}; "
                f"expected {n} and {d}"
            )
        weights = directory / WEIGHTS_FILE
        found = subject(autoencoder, weights, keys, THIS_RUN, corpus_sha256, model_sha256)
        yield found._replace(facts={**failed, **found.facts})


def subject(
    autoencoder: Autoencoder | None,
    weights: Path,
    keys: dict[str, Any],
    source: str,
    corpus_sha256: str,
    model_sha256: str,
) -> Subject:
    """An autoencoder with what its rows say of it; `weights` is the file that it was read from."""
    facts = read_provenance(weights.parent)
    provenance = {
        "training_tokens": facts.get("training_tokens", math.nan),
        "learning_rate": facts.get("learning_rate", math.nan),
        "corpus_sha256": corpus_sha256,
        "model_sha256": model_sha256,
        "version": __version__,
    }
    origin = {"source": source, "weights_sha256": sha256(weights)}
    return Subject(autoencoder, weights.parent, keys, provenance, facts, origin)
