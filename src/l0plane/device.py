"""Where tensors are computed, and how exactly: the one place that decides it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch

from l0plane.files import UserError

#: The locks by which this process holds its GPUs.
_claims: list[TextIO] = []


def available_device() -> torch.device:
    """A GPU that this process sees (CUDA_VISIBLE_DEVICES says which), else the CPU.

    Of several it is the first that no other job on this machine has; if all are taken, the first.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Of the ranks of one training each knows its own of those that their job has claimed.
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        _choose()
    return torch.device("cuda")


@cache
def _choose() -> None:
    """Once in a process: a free GPU is its own, if there is one."""
    for index in _claim(1):
        torch.cuda.set_device(index)


def claim_for_ranks(count: int) -> None:
    """Let the processes that this one starts see `count` GPUs only, free ones if there are.

    Raises:
        UserError: this process sees fewer.
    """
    seen = torch.cuda.device_count()
    if seen < count:
        raise UserError(
            f"execution.processes: {count}; each needs a GPU, and PyTorch sees {seen} here"
        )
    free = _claim(count)
    chosen = [*free, *(index for index in range(seen) if index not in free)][:count]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(f"GPU-{_uuid(index)}" for index in chosen)


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)


def _claim(count: int) -> list[int]:
    """Claim free GPUs, `count` at most; which. A claim is a file lock, until the process ends."""
    claimed: list[int] = []
    for index in range(torch.cuda.device_count()):
        if len(claimed) == count:
            break
        path = Path(tempfile.gettempdir(), f"l0plane-{os.getuid()}-{_uuid(index)}.lock")
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _claims.append(lock)
        claimed.append(index)
    return claimed


def bfloat16_is_faster() -> bool:
    """Whether products of bfloat16 numbers take this CPU less time than those of float32.

    Where AMX is missing, or hidden from a virtual machine, Intel's processors take twice as long.
    """
    return has("amx_bf16") or (has("avx512_bf16") and not _is_intel())


def has(instructions: str) -> bool:
    """Whether this CPU has them, by PyTorch's names; false where PyTorch does not say."""
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get(instructions))


def _is_intel() -> bool:
    path = Path("/proc/cpuinfo")
    return path.exists() and b"GenuineIntel" in path.read_bytes()


def use_precision(settings: dict[str, Any]) -> None:
    """On a GPU, round the inputs of matrix products to bfloat16 if the training settings say so.

    Sums, parameters, gradients and optimiser stay float32 (`kernels.gpu`).
    """
    if torch.cuda.is_available() and settings.get("precision") == "bfloat16":
        torch.set_float32_matmul_precision("medium")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute matrix products in float32 meanwhile, whatever `use_precision` has said.

    For what a training takes as given, and what is measured: its rounding is the training's alone.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
