"""Work that a GPU was told once, and is told again by one launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

#: Calls before a recording: they compile kernels, and libraries take the memory that they keep.
WARM_UP = 3


class Recording:
    """A function of one tensor, as a CUDA graph.

    Every call runs the same kernels on the same memory: what the function read from the host is
    what it was at the recording. Whatever it works on beside its argument stays where it is.

    Args:
        work: the function; has run `WARM_UP` times. Waits nowhere for the GPU.
        x: an argument; all others are of its shape.

    Raises:
        RuntimeError: it waits for the GPU, or does something else that no graph can hold.
    """

    def __init__(self, work: Callable[[Tensor], Tensor], x: Tensor):
        self._x = x.clone()
        self._graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        try:
            # Of this thread alone: that of the backward pass takes memory meanwhile.
            with torch.cuda.graph(self._graph, pool=_pool(), capture_error_mode="thread_local"):
                self._result = work(self._x)
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # which PyTorch leaves at that of the recording
            # The first error, not that the recording could not be ended for it.
            raise RuntimeError(str(error.__context__ or error)) from error

    def __call__(self, x: Tensor) -> Tensor:
        """The result, which the next call of any recording overwrites."""
        self._x.copy_(x)
        self._graph.replay()
        return self._result


@cache
def _pool() -> Any:
    """Memory that all recordings share, as each result is read before the next call."""
    return _keeper().pool()


@cache
def _keeper() -> torch.cuda.CUDAGraph:
    """A recording that never ends: memory is gone with the last one that has it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        torch.zeros(1, device="cuda")
    return graph
