"""Autoencoders trained elsewhere: each library's files, read into an `Autoencoder`.

A reader puts what it finds into the terms of a SAELens directory, which says all that there is to
say (architecture, centring, normalisation), and `autoencoder.from_saelens` makes of it what this
benchmark measures. Nothing is unpickled: `.pt` files are read with `weights_only`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l0plane.autoencoder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Autoencoder,
    TopK,
    checked_tensors,
    from_saelens,
    positive,
    read_safetensors,
)
from l0plane.files import UserError, read_json
from l0plane.formats import FILES, HUB
from l0plane.hub import named
from l0plane.measuring import Subject, subject


class External(NamedTuple):
    """An autoencoder trained elsewhere."""

    autoencoder: Autoencoder
    weights: Path
    """The file that holds its parameters."""
    hook: str | None = None
    """Where its maker says that it was trained, as TransformerLens names it."""


class _Layout(NamedTuple):
    """How a library's state is laid out: SAELens' name of each tensor -> its own."""

    architecture: str
    tensors: dict[str, str]
    centred: bool = True
    """Whether the encoder sees the activation minus the decoder's bias."""


_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
_GATED = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
_DICTIONARIES = {
    "AutoEncoder": _Layout("standard", _LINEAR | {"b_dec": "bias"}),
    "AutoEncoderNew": _Layout("standard", _LINEAR | {"b_dec": "decoder.bias"}, centred=False),
    "GatedAutoEncoder": _Layout(
        "gated",
        {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias", **_GATED},
    ),
    "AutoEncoderTopK": _Layout("topk", _LINEAR | {"b_dec": "b_dec"}),
    "BatchTopKSAE": _Layout("jumprelu", _LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": _Layout("jumprelu", _PLAIN),
    "JumpReluAutoEncoder": _Layout("jumprelu", _PLAIN, centred=False),
}
_SPARSIFY = _Layout(
    "topk",
    {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"},
)
_OPENAI = {
    "W_enc": "encoder.weight",
    "b_enc": "latent_bias",
    "W_dec": "decoder.weight",
    "b_dec": "pre_bias",
}


def read(kind: str, path: str | Path) -> External:
    """Read an autoencoder trained elsewhere.

    Args:
        kind: `saelens`, `dictionary_learning`, `sparsify` (directories) or `openai` (a `.pt`).
        path: where it is.

    Raises:
        UserError: a file or tensor is missing or broken, or it is of a sort that is not an
            autoencoder with one of the activation functions known here.
    """
    return _READERS[kind](Path(path))


def locate(kind: str, path: str) -> Path:
    """Where an autoencoder is on this machine, fetched if `path` is `hub:<owner>/<name>/<path>`.

    A `<name>@<revision>` is a branch, tag or commit of the repository, without a slash.

    Raises:
        UserError: the hub cannot be reached, or has no such thing.
    """
    if not path.startswith(HUB):
        return Path(path)
    owner, last, *inside = path.removeprefix(HUB).split("/")
    name, revision = named(last)
    folder = "/".join(inside)
    files = [f"{folder}/{file}".strip("/") for file in FILES[kind] or [""]]
    from huggingface_hub import snapshot_download

    # As for language models: errors of many types, mended in the same way.
    try:
        found = Path(snapshot_download(f"{owner}/{name}", revision=revision, allow_patterns=files))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"external: {path} cannot be had from the Hugging Face hub ({reason}).\n"
            f"Download {' and '.join(files)} of {owner}/{last} and give the path here."
        ) from None
    return found / folder


def subjects(
    method: str,
    entry: dict[str, Any],
    run: str,
    hook: str,
    corpus_sha256: str,
    model_sha256: str,
    d: int,
) -> Iterator[Subject]:
    """Load the autoencoders of an entry of the configuration's `external` one by one.

    Their `seed` is their place in the list; their `l0_target` is the entry's `l0`, else their k,
    else 0 (not known before it is measured). A hook other than `hook` is worth a warning.

    Raises:
        UserError: as `read`, or d is not that of the language model.
    """
    for place, path in enumerate(entry["paths"]):
        print(f"{method}: {path}", flush=True)
        found = read(entry["format"], locate(entry["format"], path))
        autoencoder, function = found.autoencoder, found.autoencoder.activation_function
        if autoencoder.d != d:
            raise UserError(
                f"external.{method}: {path} is for activations of width {autoencoder.d}; "
                f"those at {hook} have {d}"
            )
        if found.hook not in (None, hook):
            print(f"warning: {path} was trained at {found.hook}, and is measured at {hook}")
        l0 = entry.get("l0") or (function.k if isinstance(function, TopK) else 0)
        keys = {
            "run": run,
            "method": method,
            "n": autoencoder.n,
            "l0_target": l0,
            "seed": place,
        }
        source = f"{entry['format']} {path}"
        yield subject(autoencoder, found.weights, keys, source, corpus_sha256, model_sha256)


def _saelens(directory: Path) -> External:
    autoencoder = Autoencoder.load(directory)
    config = read_json(directory / CONFIG_FILE)
    if config.get("normalize_activations") == "expected_average_only_in":
        print(f"warning: {directory}: its activation scale is taken to be in the weights")
    # Before version 6 there was no section for metadata.
    metadata = config.get("metadata")
    facts = config | (metadata if isinstance(metadata, dict) else {})
    hook = facts.get("hook_name", facts.get("hook_point"))
    return External(autoencoder, directory / WEIGHTS_FILE, hook)


def _dictionary_learning(directory: Path) -> External:
    config_file, path = (directory / name for name in FILES["dictionary_learning"])
    config = read_json(config_file)
    trainer = config.get("trainer") if isinstance(config, dict) else None
    trainer = trainer if isinstance(trainer, dict) else {}
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or kind not in _DICTIONARIES:
        raise UserError(
            f"{config_file}: trainer.dict_class is {kind!r}; "
            f"expected one of {', '.join(_DICTIONARIES)}"
        )
    layout, more = _DICTIONARIES[kind], {}
    if layout.architecture == "topk":
        more["k"] = positive(trainer, "k", config_file)
    config, weights = _in_saelens_terms(_state(path), layout, more, path)
    if kind == "AutoEncoder":  # as its from_pretrained does
        norm = weights["W_dec"].norm(dim=1)
        norm[norm == 0] = 1.0
        weights["W_dec"] = weights["W_dec"] / norm[:, None]
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norm, weights["b_enc"] * norm
    return External(from_saelens(config, weights, directory), path)


def _sparsify(directory: Path) -> External:
    config_file, path = (directory / name for name in FILES["sparsify"])
    config = read_json(config_file)
    if not isinstance(config, dict):
        raise UserError(f"{config_file}: expected a configuration of sparsify")
    known = {"activation": "topk", "transcode": False, "skip_connection": False, "signed": False}
    for key, value in known.items():
        if config.get(key, value) != value:
            raise UserError(f"{config_file}: {key} is {config[key]!r}; expected {value!r}")
    more = {"k": positive(config, "k", config_file)}
    config, weights = _in_saelens_terms(read_safetensors(path), _SPARSIFY, more, path)
    return External(from_saelens(config, weights, directory), path)


def _openai(path: Path) -> External:
    """A release of github.com/openai/sparse_autoencoder; the TopK ones want layer norm."""
    state = _state(path)
    name, details = state.get("activation", "ReLU"), state.get("activation_state_dict") or {}
    known = name in ("ReLU", "TopK") and isinstance(details, dict)
    if not known or details.get("postact_fn", "ReLU") != "ReLU":
        raise UserError(
            f"{path}: activation is {name!r} with {details}; expected 'ReLU', or 'TopK' with ReLU"
        )
    more: dict[str, Any] = {}
    if name == "TopK":
        more = {"k": positive(details, "k", path), "normalize_activations": "layer_norm"}
    layout = _Layout("topk" if name == "TopK" else "standard", _OPENAI)
    config, weights = _in_saelens_terms(state, layout, more, path)
    return External(from_saelens(config, weights, path.parent), path)


_READERS: dict[str, Callable[[Path], External]] = {
    "saelens": _saelens,
    "dictionary_learning": _dictionary_learning,
    "sparsify": _sparsify,
    "openai": _openai,
}


def _state(path: Path) -> dict[str, Any]:
    """A state dictionary: tensors and plain values only."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except MemoryError:
        raise
    # What is no pickle is read as commands that make no sense, which fail in every way.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: not a state dictionary that can be read without running code ({reason})"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}; expected a state dictionary")
    return state


def _in_saelens_terms(
    state: dict[str, Any], layout: _Layout, more: dict[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the SAELens directory that means the same as `state`.

    A `<module>.weight` is that of `nn.Linear`, [out, in]; SAELens' matrices are [in, out]. A
    threshold may be one number for all latents.
    """
    encoder = state.get(layout.tensors["W_enc"])
    linear = layout.tensors["W_enc"].endswith(".weight")
    if not isinstance(encoder, Tensor) or encoder.ndim != 2:
        raise UserError(f"{path}: tensor {layout.tensors['W_enc']} is missing or is no matrix")
    n, d = encoder.shape if linear else encoder.shape[::-1]
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,)}
    threshold = state.get("threshold")
    if isinstance(threshold, Tensor) and threshold.ndim == 0:
        state = {**state, "threshold": threshold.expand(n)}
    own = {}
    for name, theirs in layout.tensors.items():
        shape = shapes.get(name, (n,))
        own[theirs] = shape[::-1] if theirs.endswith(".weight") else shape
    tensors = checked_tensors(state, own, path, layout.architecture)
    weights = {
        name: tensors[theirs].T if theirs.endswith(".weight") else tensors[theirs]
        for name, theirs in layout.tensors.items()
    }
    config = {
        "architecture": layout.architecture,
        "d_in": d,
        "d_sae": n,
        "apply_b_dec_to_input": layout.centred,
        **more,
    }
    return config, weights
