"""Where tensors are computed: the one place that decides it."""

from __future__ import annotations

import torch


def available_device() -> torch.device:
    """The first GPU that this process sees (CUDA_VISIBLE_DEVICES says which), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
