"""What a killed training goes on from: tensors as safetensors, all else as JSON, in one directory.

A save writes new files first; `state.json`, renamed into its place, then names them, and only when
all are on the disk the old ones go. So whenever a job is killed, or its machine fails, what
`state.json` names is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from l0plane.files import Broken, UserError, read_sealed, sealed, sha256, to_disk, write_json

STATE_FILE = "state.json"

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and what goes into JSON."""


def subject_hash(subject: dict[str, Any]) -> str:
    """A name for what a saved state is of."""
    text = json.dumps(subject, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Resumable(Protocol):
    """Something whose state a checkpoint holds."""

    def state(self) -> State:
        """All that the next steps depend on."""

    def restore(self, state: State) -> None:
        """Become what `state` describes."""


class Checkpoint:
    """The state of the trainings of one job, written every now and then.

    Args:
        directory: where it lies; nothing else may be there.
        minutes: least time between the end of one save and the start of the next, so that a short
            job never writes.
    """

    def __init__(self, directory: str | Path, minutes: float):
        self.directory = Path(directory)
        self.seconds = 60 * minutes
        self.saved = time.monotonic()
        self.saves = 0
        self.subject = ""

    def restore(self, parts: Sequence[Resumable], subject: dict[str, Any]) -> None:
        """Bring `parts` to where the last save left them, if it was of the same subject.

        Args:
            parts: what to restore, in the order in which it was saved.
            subject: of what the state is: settings, hyperparameters, data. A save of another
                subject, or one that is broken, is left alone and the next save replaces it.
        """
        self.subject = subject_hash(subject)
        if not (self.directory / STATE_FILE).exists():
            return
        try:
            saved = read_sealed(self.directory / STATE_FILE)
            if saved["subject"] != self.subject:
                print(f"{self.directory}: of another training; starting from the beginning")
                return
            for name, digest in saved["files"].items():
                if sha256(self.directory / name) != digest:
                    raise Broken(f"{name} is not what was written")
            states = list(zip(saved["files"], saved["facts"], strict=True))
        except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            print(f"{self.directory}: cannot be used ({error}); starting from the beginning")
            return
        for part, (name, facts) in zip(parts, states, strict=True):
            part.restore((load_file(self.directory / name), facts))
        self.saves = saved["saves"]

    def save_if_due(self, parts: Sequence[Resumable]) -> None:
        """Save if the last save, or the start, was long enough ago."""
        if self.is_due():
            self.save(parts)

    def is_due(self) -> bool:
        """Whether it was."""
        return time.monotonic() - self.saved >= self.seconds

    def save(self, parts: Iterable[Resumable]) -> None:
        """Write the state of `parts`, in the place of the last.

        One after another, so that no more than one part's copy is in memory. A full disk costs the
        checkpoint, not the training.
        """
        self.saves += 1
        files, facts = {}, []
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for number, part in enumerate(parts):
                tensors, rest = part.state()
                path = self.directory / f"{self.saves:06d}-{number:03d}.safetensors"
                save_file({key: t.detach().contiguous() for key, t in tensors.items()}, path)
                to_disk(path)
                files[path.name] = sha256(path)
                facts.append(rest)
            state = {"subject": self.subject, "saves": self.saves, "files": files, "facts": facts}
            write_json(self.directory / STATE_FILE, sealed(state))
            with suppress(OSError):  # not every file system can say it of a directory
                to_disk(self.directory)
        except (OSError, SafetensorError) as error:
            print(f"{self.directory}: no checkpoint written ({error})", flush=True)
            with suppress(OSError):  # the disk may be full: leave it no fuller than it was
                for path in self.directory.glob(f"*{self.saves:06d}-*"):
                    path.unlink()
        else:
            with suppress(OSError):  # the next save tries again
                for old in self.directory.iterdir():
                    if old.name not in {STATE_FILE, *files}:
                        old.unlink()
        self.saved = time.monotonic()

    def remove(self) -> None:
        """Forget it: the training is finished and its result is written."""
        shutil.rmtree(self.directory, ignore_errors=True)
