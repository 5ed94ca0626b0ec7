"""A language model's directory in Hugging Face layout, checked before any work is spent on it.

Only names, JSON and the headers of the weights are read, which takes milliseconds however large the
model is. Nothing in the directory is ever run or unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from l0plane.files import UserError, read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
#: Any one of these is a tokenizer.
TOKENIZERS = ("tokenizer.json", "vocab.json", "*.model")
#: Where a directory may ask for Python code of its own.
_WITH_CODE = (CONFIG_FILE, "tokenizer_config.json")
#: More than any model's header; a file of something else promises a longer one.
_LONGEST_HEADER = 100_000_000


def check(directory: Path) -> dict[str, Any]:
    """Return what `config.json` says, after a look at everything else that is needed.

    Raises:
        UserError: a file is missing, is not what its name says or is not whole, or the model is a
            pickle or comes with code of its own.
    """
    if not directory.is_dir():
        raise UserError(f"language_model.path: {directory} is a file; expected a folder")
    facts = _object(directory / CONFIG_FILE)
    for name in _WITH_CODE:
        if (directory / name).exists() and "auto_map" in _object(directory / name):
            raise UserError(
                f"language_model.path: {directory / name} has an auto_map: the model comes with "
                "code of its own, which is not run; expected an architecture that transformers "
                "knows (if it does, take auto_map out of the file)"
            )
    for file in weights_files(directory):
        _check_safetensors(file)
    if not any(any(directory.glob(pattern)) for pattern in TOKENIZERS):
        raise UserError(f"language_model.path: {directory} has no tokenizer.json")
    return facts


def weights_files(directory: Path) -> list[Path]:
    """The files that hold the weights: one, or the shards that the index names.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    index = directory / INDEX_FILE
    if not index.is_file():
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
        detail = f"; {pickles[0]} is a pickle and is not opened" if pickles else ""
        raise UserError(
            f"language_model.path: {directory} has no {WEIGHTS_FILE}{detail} "
            "(save_pretrained of transformers writes it)"
        )
    places = _object(index).get("weight_map")
    names = places.values() if isinstance(places, dict) and places else [None]
    shards = []
    for name in dict.fromkeys(map(str, names)):
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise UserError(
                f"language_model.path: {index}: weight_map names {name!r}; expected the names of "
                "safetensors files beside it"
            )
        if not (directory / name).is_file():
            raise UserError(
                f"language_model.path: {directory} has no {name}, a shard that {INDEX_FILE} names; "
                "bring it, too"
            )
        shards.append(directory / name)
    return sorted(shards)


def _object(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object."""
    try:
        facts = read_json(path)
    except UserError as error:
        raise UserError(f"language_model.path: {error}") from None
    if not isinstance(facts, dict):
        raise UserError(f"language_model.path: {path}: expected a JSON object")
    return facts


def _check_safetensors(path: Path) -> None:
    """See that a file has the length that its header promises; its tensors are not read."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length) if length <= _LONGEST_HEADER else b""
    try:
        header = json.loads(raw)
        tensors = [facts for name, facts in header.items() if name != "__metadata__"]
        promised = 8 + length + max((facts["data_offsets"][1] for facts in tensors), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise UserError(f"language_model.path: {path}: not a safetensors file") from None
    if path.stat().st_size != promised:
        raise UserError(
            f"language_model.path: {path} is not whole: it has {path.stat().st_size} bytes, and "
            f"its header promises {promised}; copy it again"
        )
