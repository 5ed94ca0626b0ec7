"""What every script of the workflow does around its work."""

from __future__ import annotations

import errno
import gc
import io
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from l0plane import __version__
from l0plane.files import UserError, locked
from l0plane.processes import Stopped, launched, rank, tell

AGAIN = "then give the same command again, which goes on from here"
#: What is said of a job that Ctrl-C has ended, and of one that was asked to end.
INTERRUPTED = "interrupted; the same command goes on from here"
STOPPED = "asked to end (SIGTERM), as at a time limit; the same command goes on from here"
#: Set in the environment, lets jobs that ask for a GPU do without one.
WITHOUT_GPU = "L0PLANE_WITHOUT_GPU"
#: How the log's last entry begins where all went well.
DONE = "done in "
#: What the machine may refuse: error numbers, words of libraries that give none, what to do.
_REFUSALS = [
    (
        {errno.ENOSPC, errno.EDQUOT, errno.EFBIG},
        ("no space left", "quota exceeded", "file too large"),
        f"no space left on the disk; free some, or work in a folder on another one, {AGAIN}",
    ),
    (
        {errno.EACCES, errno.EPERM, errno.EROFS},
        ("permission denied", "read-only file system"),
        f"no permission; make the file readable and its folder writable for you, {AGAIN}",
    ),
    (
        {errno.ENOMEM},
        ("allocate memory", "out of memory", "bad_alloc"),
        f"out of memory; free some, or let fewer jobs run at a time (--cores), {AGAIN}",
    ),
]


class _Tee:
    """Text written here goes to the terminal and to the log."""

    def __init__(self, terminal: TextIO, log: TextIO | None):
        self.terminal, self.log = terminal, log

    def write(self, text: str) -> int:
        if self.log is not None:
            with suppress(OSError):  # a full disk costs the log, not the job
                self.log.write(text)
        return self.terminal.write(text)

    def flush(self) -> None:
        if self.log is not None:
            with suppress(OSError):
                self.log.flush()
        self.terminal.flush()

    def __getattr__(self, name: str) -> Any:  # isatty, fileno, encoding
        return getattr(self.terminal, name)


def refusal(error: Exception) -> str | None:
    """What to do about an error that is none of the program: of disk, rights or memory.

    The file comes first where the error names one. None for any other error.
    """
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    for numbers, words, remedy in _REFUSALS:
        if isinstance(error, OSError) and error.errno is not None:
            refused = error.errno in numbers
        else:
            memory = errno.ENOMEM in numbers and isinstance(error, MemoryError)
            refused = memory or any(word in str(error).lower() for word in words)
        if refused:
            file = getattr(error, "filename", None)
            return f"{file}: {remedy}" if file else f"{remedy} ({said[:200]})"
    return None


def _mistake(error: Exception) -> str:
    """What Python says of an error, in one line, and where in l0plane or a script it came up."""
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)[1:]  # not of this file
    here = (str(Path(__file__).parent), str(Path(".snakemake/scripts").resolve()))
    place = ([frame for frame in frames if frame.filename.startswith(here)] or frames)[-1]
    return f"{said[:300]} ({os.path.relpath(place.filename)}:{place.lineno})"


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run a rule's work: what it prints also goes to the rule's log; one message if it cannot.

    A UserError, a refusal of the machine, Ctrl-C and SIGTERM end the job with one line,
    `<rule>: <message>`, the last of the log. While it runs, no other process can run it. The log,
    and only it, also says when and with which version the rule started, how long it took and what
    it wrote. `snakemake` is the object that Snakemake gives to a
    script.
    Torch follows OMP_NUM_THREADS, which Snakemake sets to the rule's threads; numba has to be told.

    A job that launches further processes runs this in each of them too: only the first prints, and
    the message goes to the job, which says it once.
    """
    # Modules are here to stay: the garbage collector need not walk them at every turn (3% of a
    # training).
    gc.freeze()
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        own = int(os.environ.get("OMP_NUM_THREADS", snakemake.threads))
        numba.set_num_threads(min(own, numba.config.NUMBA_NUM_THREADS))
    log, path = None, Path(snakemake.log[0])
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    alone = None if launched() else _alone(snakemake.rule, path)
    with suppress(OSError):
        if not launched():
            path.write_bytes(b"")
        # Each line goes to the end, behind what launched processes wrote meanwhile.
        log = path.open("a", encoding="utf-8", buffering=1)

    def note(*lines: str) -> None:
        if log is not None and not launched():
            with suppress(OSError):
                print(*lines, sep="\n", file=log)

    started = time.perf_counter()
    threads = f"{snakemake.threads} thread{'s' * (snakemake.threads > 1)}"
    note(f"{time.ctime()}: {snakemake.rule}, l0plane {__version__}, {threads}")
    out, err = _Tee(sys.stdout, log), _Tee(sys.stderr, log)
    # Launched processes end as torchrun ends them: one that waits for another runs no handler.
    handlers = {} if launched() else _end_on_request()
    try:
        with redirect_stdout(io.StringIO() if rank() else out), redirect_stderr(err):  # type: ignore
            try:
                _find_gpu(getattr(snakemake, "resources", {}).get("gpu"))
                yield
            except Exception as error:
                message = str(error) if isinstance(error, UserError) else refusal(error)
                if message is None:
                    traceback.print_exc()
                    message = f"{_mistake(error)}; a mistake of the program, or of a method's code"
                elif launched():
                    tell(UserError(message))
                if not launched():
                    print(f"{snakemake.rule}: {message}", file=sys.stderr)
                sys.exit(1)
            except (KeyboardInterrupt, Stopped) as ended:
                asked = isinstance(ended, Stopped)
                if not launched():
                    print(f"{snakemake.rule}: {STOPPED if asked else INTERRUPTED}", file=sys.stderr)
                sys.exit(128 + (signal.SIGTERM if asked else signal.SIGINT))
        seconds = time.perf_counter() - started
        note(f"{DONE}{seconds:.1f} s; wrote", *(f"  {path}" for path in snakemake.output))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for file in filter(None, (log, alone)):
            with suppress(OSError):
                file.close()


def _alone(rule: str, log: Path) -> TextIO | None:
    """The lock of a job, beside its log: ends this process where another has it.

    A cluster's jobs go on when the Snakemake that has sent them is gone, and a second one of the
    same training would remove the first one's checkpoint. The log itself will not do: before a job
    Snakemake removes it.
    """
    taken = (
        f"{log}: another job is at work on this, of an earlier snakemake, say; wait for it or stop "
        f"it (on a cluster: squeue --me, scancel), {AGAIN}"
    )
    # A file system of several machines holds the lock of one that failed for a minute or two.
    patience = 180 if "SLURM_RESTART_COUNT" in os.environ else 0
    try:
        return locked(log.with_name(f".{log.name}.lock"), taken, patience)
    except UserError as error:  # the log is the other's
        print(f"{rule}: {error}", file=sys.stderr)
        sys.exit(1)


def _end_on_request() -> dict[int, Any]:
    """Have SIGTERM raise `Stopped`; the handlers that were there before."""

    def stop(*_: object) -> None:
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}


def _find_gpu(asked: int | None) -> None:
    """See that there is the GPU that a job asks for, so that none spends its time on a CPU.

    Raises:
        UserError: PyTorch sees none, and nobody has said that it may.
    """
    torch = sys.modules.get("torch")
    if not asked or torch is None or torch.cuda.is_available():
        return
    if not os.environ.get(WITHOUT_GPU):
        raise UserError(
            f"gpus: {asked}, but PyTorch sees none on {platform.node()}: its driver, or a PyTorch "
            f"built without CUDA? To do without: gpus: 0, or {WITHOUT_GPU}=1 in the environment"
        )
    print(f"gpus: {asked}, but PyTorch sees none here: this job runs on the CPU")
