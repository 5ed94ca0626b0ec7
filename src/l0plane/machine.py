"""What numbers and times depend on beside the code: versions, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

#: Packages whose versions may move a number, or that make the text or the plan.
_PACKAGES = (
    "datasets",
    "llvmlite",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "scipy",
    "snakemake",
    "tokenizers",
    "torch",
    "transformer-lens",
    "transformers",
)


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on, by name."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def machine() -> dict[str, str | int | float]:
    """The processor, its cores, memory in GB, the operating system, and the GPU if there is one.

    Nothing in it names the machine or a person. `vectors` is what decides, on equal versions,
    whether two machines round alike.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Imported here, since whoever asks for versions should not wait for it.
    import torch

    from l0plane.device import bfloat16_is_faster

    vectors = torch.backends.cpu.get_cpu_capability()
    found: dict[str, str | int | float] = {
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "vectors": vectors + (", bfloat16" if bfloat16_is_faster() else ""),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}, {_distribution()}",
        "libc": " ".join(platform.libc_ver()),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """The processor's name as it gives it, or else its architecture."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "no distribution that says its name"
