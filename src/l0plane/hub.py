"""Names on the Hugging Face hub, and what to do where it cannot be reached."""

from __future__ import annotations

import re
from pathlib import Path

#: Per kind of repository: the key of the configuration, and the files that are read. Formats that
#: are pickles are left behind.
_KINDS = {
    "model": ("language_model.path", ("*.json", "*.safetensors", "*.txt", "*.model")),
    "dataset": ("corpus.dataset", ("*.parquet", "*.json", "*.jsonl", "README.md")),
}


#: A name and a revision (a branch, tag or commit) of it.
_AT_REVISION = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@([\w.-]+(?:/[\w.-]+)*)")


def named(place: str) -> tuple[str, str | None]:
    """Name and revision of `<name>@<revision>`; of all else, a folder here, the whole, and none."""
    found = None if Path(place).exists() else _AT_REVISION.fullmatch(place)
    return (found[1], found[2]) if found else (place, None)


def how_to_bring(name: str, kind: str, revision: str | None = None) -> str:
    """The commands that bring a `model` or `dataset` of the hub to a machine without network."""
    key, patterns = _KINDS[kind]
    section, last = key.split(".")
    include = " ".join(f"--include '{pattern}'" for pattern in patterns)
    directory = f"hub/{name.rsplit('/', 1)[-1]}"
    if revision:
        directory += f"-{revision.replace('/', '-')}"
    of = f"--repo-type {kind}" + (f" --revision {revision}" if revision else "")
    return (
        f"Without a network, download it elsewhere:\n"
        f"    hf download {name} {of} {include} --local-dir {directory}\n"
        f"copy the directory {directory} here, and say so: {key}: {directory} in the "
        f"configuration, or --config '{section}={{{last}: {directory}}}'"
    )
