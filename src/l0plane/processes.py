"""The processes of a job that trains on several devices, and what becomes of their failures.

Knows nothing of what they do (`l0plane.distributed`); torch is imported only where it is needed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import uuid
from typing import Any

from l0plane.files import UserError


class Stopped(BaseException):
    """A signal has asked this process to end (SIGTERM), as a cluster's does at a time limit."""


def launched() -> bool:
    """Whether this process is one of those that `launch`, or torchrun, has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """Which of them it is; 0 if it is alone."""
    return int(os.environ["RANK"]) if launched() else 0


def launch(processes: int, threads: int, *arguments: str) -> None:
    """Run Python with `arguments` in so many processes, as `torchrun --standalone` does.

    They talk to each other on this machine's loopback interface. When one fails, all end.

    Args:
        processes: how many; where there are GPUs, one each.
        threads: of all of them together.
        arguments: for the interpreter.

    Raises:
        UserError: there are too few GPUs, or a process failed: what it has told, or else which.
        KeyboardInterrupt, Stopped: Ctrl-C, or a request to end, has stopped them.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from l0plane.device import claim_for_ranks

    if torch.cuda.is_available():
        claim_for_ranks(processes)
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise UserError(_cause(error.failures, processes)) from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise Stopped from None


def _cause(failures: dict[int, Any], processes: int) -> str:
    """Why the processes failed, of which one was first; the others fail for want of it."""
    told = [f.message for f in failures.values() if isinstance(f.message, dict)]
    if told:
        return told[0]["message"].split(": ", 1)[1]  # after the class

    def likely(number: int) -> tuple[bool, bool]:
        code = failures[number].exitcode
        return code == -signal.SIGTERM, code > 0  # stopped by torchrun; failed, not killed

    first = min(failures, key=likely)
    code = failures[first].exitcode
    how = f"exit code {code}" if code > 0 else failures[first].signal_name()
    return f"process {first} of {processes} (from 0) ended with {how}; the others were stopped"


def tell(error: UserError) -> None:
    """Leave the error to the process that has launched this one."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def end_with_parent() -> None:
    """Have this process killed when its parent is: none may write once its job has ended."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of Linux
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
