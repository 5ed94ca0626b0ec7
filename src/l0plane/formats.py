"""What autoencoders trained elsewhere consist of, known without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l0plane.files import UserError

#: How a path starts that is a place on the Hugging Face hub: hub:owner/name[@revision]/folder.
HUB = "hub:"

#: The files in a directory of each format; of none, a path is one file itself.
FILES: dict[str, tuple[str, ...]] = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "openai": (),
}


def local_files(entry: dict[str, Any]) -> list[str]:
    """The files on this machine that an entry of `external` is read from; none for the hub."""
    local = [path for path in entry["paths"] if not path.startswith(HUB)]
    names = FILES[entry["format"]]
    return [str(Path(path, name)) for path in local for name in names] if names else local


def published_latents(path: str | Path) -> int:
    """How many latents the autoencoders of a published table have, which its name says.

    Raises:
        UserError: it does not.
    """
    sizes = Path(path).stem.rpartition("_n")[2]
    if not sizes.isdigit():
        raise UserError(f"{path}: the name should end in _n<number of latents>.csv")
    return int(sizes)
