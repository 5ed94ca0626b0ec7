"""Writing whole files or nothing, and noticing when a file is no longer what was written."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


class UserError(Exception):
    """Something that the person running the benchmark can mend; shown without a traceback."""


class Broken(UserError):
    """A file that is missing, or not what was written."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` only if the block succeeds.

    Works for a file and for a directory, so that a reader never meets half of either. What a
    killed process left half written is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".*.part.{glob.escape(path.name)}"):
        _remove(left)
    # The suffix stays, since some writers choose the format by it.
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield temporary
        if path.is_dir() and temporary.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def to_disk(path: str | Path) -> None:
    """Return once what was written to a file, or the names in a directory, outlive the machine."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")
        to_disk(part)


def locked(path: str | Path, taken: str, patience: float = 0) -> TextIO | None:
    """The file `path`, locked until it is closed or this process ends, whatever ends it.

    None on a file system without locks, or one that says more when it is written to.

    Raises:
        UserError: another process has it, for `patience` seconds; the message is `taken`.
    """
    try:
        lock = Path(path).open("a")  # noqa: SIM115  # open as long as it is held
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise UserError(taken) from None
                time.sleep(1)
    except OSError:
        return None


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raise Broken naming the file when it cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Broken(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    # Beside what is no JSON, numbers of too many digits and lists in lists without end.
    except (ValueError, RecursionError) as error:
        raise Broken(f"{path}: not valid JSON ({error})") from None


#: In sealed JSON: the hash of all its other entries.
SEAL = "checksum"


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The JSON object `value` with its own hash, which `read_sealed` compares."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return {**value, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def read_sealed(path: str | Path) -> Any:
    """Read JSON as `read_json`; Broken also if it has a seal and is not what was sealed.

    What has no seal was written by somebody else and is taken as it is.
    """
    value = read_json(path)
    if isinstance(value, dict) and SEAL in value:
        rest = {key: entry for key, entry in value.items() if key != SEAL}
        if value[SEAL] != sealed(rest)[SEAL]:
            raise Broken(f"{path}: not what was written")
    return value


@contextmanager
def rebuilt_by_the_run(directory: str | Path) -> Iterator[None]:
    """Where a file in `directory`, which the run makes, is broken: say how to make it again."""
    try:
        yield
    except Broken as error:
        raise UserError(
            f"{error}; to rebuild it: rm -r {directory}, then the same snakemake command again"
        ) from None


def in_home(path: str) -> str:
    """`path` with a leading ~ or ~name as that one's home; as it is where there is none."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


def matching_files(pattern: str) -> list[Path]:
    """The files that a path or glob of `corpus.paths` means, sorted.

    Raises:
        UserError: it is no pattern, there are none, or a folder is among them.
    """
    anchor = Path(pattern).anchor
    try:
        paths = sorted(Path(anchor).glob(str(Path(pattern).relative_to(anchor))))
    # pathlib's NotImplementedError: of a pattern that stays absolute without its anchor.
    except (ValueError, IndexError, NotImplementedError) as error:
        raise UserError(f"corpus.paths: {pattern!r} is not a path or glob ({error})") from None
    if not paths:
        raise UserError(f"corpus.paths: no file matches {pattern!r}")
    for path in paths:
        if path.is_dir():
            raise UserError(
                f"corpus.paths: {pattern!r} matches the folder {path}; expected files only "
                f"({path / '*.txt'}, say)"
            )
    return paths


def sha256(path: str | Path) -> str:
    """SHA-256 of one file's bytes, or of a directory's file names and bytes in sorted order."""
    path = Path(path)
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
