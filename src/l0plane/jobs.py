"""What every script of the workflow does around its work."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from l0plane.files import UserError


class _Tee:
    """Text written here goes to the terminal and to the log."""

    def __init__(self, terminal: TextIO, log: TextIO):
        self.terminal, self.log = terminal, log

    def write(self, text: str) -> int:
        self.log.write(text)
        return self.terminal.write(text)

    def flush(self) -> None:
        self.log.flush()
        self.terminal.flush()

    def __getattr__(self, name: str) -> Any:  # isatty, fileno, encoding
        return getattr(self.terminal, name)


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run a rule's work: what it prints also goes to the rule's log; a UserError is one message.

    `snakemake` is the object that Snakemake gives to a script. Torch follows OMP_NUM_THREADS, which
    Snakemake sets to the rule's threads; numba has to be told.
    """
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        numba.set_num_threads(min(snakemake.threads, numba.config.NUMBA_NUM_THREADS))
    path = Path(snakemake.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", buffering=1) as log:
        out, err = _Tee(sys.stdout, log), _Tee(sys.stderr, log)
        with redirect_stdout(out), redirect_stderr(err):  # type: ignore[type-var]
            try:
                yield
            except UserError as error:
                print(f"{snakemake.rule}: {error}", file=sys.stderr)
                sys.exit(1)
            except Exception:
                traceback.print_exc()
                sys.exit(1)
