"""Where tensors are computed, and how exactly: the one place that decides it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Any, TextIO

import torch

#: The lock by which this process holds its GPU.
_claims: list[TextIO] = []


def available_device() -> torch.device:
    """A GPU that this process sees (CUDA_VISIBLE_DEVICES says which), else the CPU.

    Of several it is the first that no other job on this machine has; if all are taken, the first.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # The ranks of one training know theirs.
    if torch.cuda.device_count() > 1 and not _claims and "LOCAL_RANK" not in os.environ:
        _claim()
    return torch.device("cuda")


def _claim() -> None:
    """Make a free GPU the current one. A claim is a lock on a file; it ends with the process."""
    for index in range(torch.cuda.device_count()):
        name = f"l0plane-{os.getuid()}-{torch.cuda.get_device_properties(index).uuid}.lock"
        lock = Path(tempfile.gettempdir(), name).open("w")  # noqa: SIM115  # until the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _claims.append(lock)
        torch.cuda.set_device(index)
        return


def use_precision(settings: dict[str, Any]) -> None:
    """On a GPU, round the inputs of matrix products to bfloat16 if the training settings say so.

    Sums, parameters, gradients and optimiser stay float32 (`kernels.gpu`).
    """
    if torch.cuda.is_available() and settings.get("precision") == "bfloat16":
        torch.set_float32_matmul_precision("medium")
