"""Documents: where the text comes from, and which split each document belongs to.

A document is one module's docstrings, one line of a `.jsonl` file, one row of a table, one text
file. Whole documents are assigned to train, validation or test by a hash of their text, so that
no document stands in two splits and adding documents does not move the others. Documents share
paragraphs too: one that stands in train is taken out of validation and test, and one that stands
in validation out of test, so that nothing is evaluated on what was trained on.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.metadata
import json
import multiprocessing
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l0plane.files import UserError, matching_files, replacing, write_json
from l0plane.hub import how_to_bring

SPLITS = ("train", "validation", "test")
#: Docstrings shorter than this say little and repeat much ("Returns the value.").
MIN_DOCSTRING_CHARS = 80
#: What can have a docstring.
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
#: Where statements, and so documented definitions, stand in a node of a syntax tree.
BLOCKS = ("body", "handlers", "cases", "orelse", "finalbody")
#: A single document longer than this is cut into documents of this length at most.
MAX_DOCUMENT_CHARS = 1_000_000
#: A paragraph shorter than this may stand in two splits ("Parameters", "See the notes below.").
MIN_PARAGRAPH_CHARS = 60
#: Paragraphs end at blank lines. A line too long to be a wrapped one is a paragraph of its own.
PARAGRAPH_BREAK = re.compile(r"\n\s*\n|\n(?=[^\n]{200})|(?<=[^\n]{200})\n")


@dataclass(frozen=True)
class Document:
    """One text and where it came from (`package/module.py`, `file:line`, `dataset:row`)."""

    source: str
    text: str


def read_documents(spec: dict[str, Any], processes: int = 1) -> Iterator[Document]:
    """Yield the documents that the configuration's `corpus` section asks for.

    So many `processes` parse docstrings.

    Raises:
        UserError: a package is not installed, a file is missing, binary or of an unknown kind,
            a column is missing, or the hub cannot be reached.
    """
    if spec["source"] == "docstrings":
        yield from docstring_documents(spec["packages"], processes)
    elif spec["source"] == "files":
        yield from file_documents(spec["paths"], spec.get("column", "text"))
    else:
        yield from hub_documents(spec)


# --- docstrings of the installed packages


def docstring_documents(packages: Iterable[str], processes: int = 1) -> Iterator[Document]:
    """Yield one document per module of the installed `packages`: its docstrings in file order.

    The source is parsed, never imported. Packages and modules come in sorted order, so the same
    installed versions give the same documents everywhere. A docstring that stood in an earlier
    module is left out (wrappers repeat what they wrap), so none is in two documents.
    """
    modules: list[tuple[str, str]] = []
    for package in sorted(packages, key=str.lower):
        try:
            files = importlib.metadata.distribution(package).files or []
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"corpus.packages: {package!r} is not installed; "
                "install requirements.lock, or leave it out of the list"
            ) from None
        names = sorted(str(f) for f in files if f.suffix == ".py" and ".." not in f.parts)
        located = importlib.metadata.distribution(package)
        modules += [(f"{package}/{name}", str(located.locate_file(name))) for name in names]
    seen: set[str] = set()
    # fork: a spawned worker would import the caller's main script again. Trees have no cycles:
    # nothing is lost, and a fifth of the parsing saved, where no one looks for them.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, initializer=gc.disable) as pool:
        found = pool.map(_module_docstrings, (path for _, path in modules), chunksize=64)
        for (source, _), docstrings in zip(modules, found, strict=True):
            new = [text for text in dict.fromkeys(docstrings) if text not in seen]
            seen.update(new)
            if new:
                yield Document(source, "\n\n".join(new))


def _module_docstrings(path: str) -> list[str]:
    try:
        code = Path(path).read_bytes()
    except OSError:
        return []
    if b'"""' not in code and b"'''" not in code:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError):  # templates and test data that are not Python
        return []
    docstrings = map(ast.get_docstring, _documented(tree))
    return [text for text in docstrings if text and len(text) >= MIN_DOCSTRING_CHARS]


def _documented(tree: ast.Module) -> Iterator[Documented]:
    """The definitions in the order of `ast.walk`, which looks into all expressions as well."""
    left = deque[ast.AST]([tree])
    while left:
        node = left.popleft()
        if isinstance(node, Documented):
            yield node
        for name in node._fields:
            if name in BLOCKS:
                left.extend(getattr(node, name))


# --- the user's own files


def file_documents(patterns: Iterable[str], column: str = "text") -> Iterator[Document]:
    """Yield the documents of `.txt`, `.jsonl` and `.parquet` files given by path or glob.

    A `.txt` file is one document; a `.jsonl` file one a line and a `.parquet` file one a row,
    each in the field or column named `column`.
    """
    for pattern in patterns:
        for path in matching_files(pattern):
            reader = _READERS.get(path.suffix)
            if reader is None:
                raise UserError(f"{path}: expected a file ending in .txt, .jsonl or .parquet")
            try:
                yield from reader(path, column)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _text_file(path: Path, column: str) -> Iterator[Document]:
    yield Document(str(path), _decode(path.read_bytes(), str(path)))


def _decode(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise UserError(f"{where}: holds zero bytes; expected text, not a binary file")
    return text


def _jsonl_file(path: Path, column: str) -> Iterator[Document]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path}:{number}"
            if not raw.strip():
                continue
            try:
                row = json.loads(_decode(raw, where))
            # Beside what is no JSON, numbers of too many digits and lists in lists without end.
            except (ValueError, RecursionError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{where}: not valid JSON ({reason})") from None
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                raise UserError(f"{where}: expected an object with a string field {column!r}")
            text = row[column]
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(f"{where}: field {column!r} holds half a surrogate pair") from None
            yield Document(where, text)


def _parquet_file(path: Path, column: str) -> Iterator[Document]:
    row = 0
    try:
        table = pq.ParquetFile(path)
        if column not in table.schema_arrow.names:
            raise UserError(f"{path}: no column {column!r}; it has {table.schema_arrow.names}")
        for batch in table.iter_batches(columns=[column]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str):
                    raise UserError(f"{path}: row {row} of column {column!r} is not a string")
                yield Document(f"{path}:{row}", text)
                row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None


_READERS = {".txt": _text_file, ".jsonl": _jsonl_file, ".parquet": _parquet_file}


# --- a data set on the hub, or a directory in the hub's layout


def hub_documents(spec: dict[str, Any]) -> Iterator[Document]:
    """Stream up to `spec["documents"]` documents of a `datasets` hub id or local directory.

    File after file, and each only as far as it is needed.
    """
    import datasets

    name, column, revision = spec["dataset"], spec.get("column", "text"), spec.get("revision")
    try:
        rows = datasets.load_dataset(
            name,
            spec.get("subset"),
            split=spec.get("split", "train"),
            revision=revision,
            streaming=True,
        )
        number = -1
        for number, row in enumerate(rows):
            if number == spec["documents"]:
                return
            if not isinstance(row.get(column), str):
                there = "is not a text" if column in row else f"is not there; it has {sorted(row)}"
                raise UserError(f"corpus.column: {name}, row {number}: column {column!r} {there}")
            yield Document(f"{name}:{number}", row[column])
        if number + 1 < spec["documents"]:
            print(f"{name} has {number + 1:,} documents; corpus.documents: {spec['documents']:,}")
    # A RuntimeError is a loading script, which is not run.
    except (OSError, ValueError, RuntimeError) as error:
        remedy = "" if Path(name).is_dir() else f".\n{how_to_bring(name, 'dataset', revision)}"
        raise UserError(f"corpus.dataset: cannot read {name!r} ({error}){remedy}") from None


# --- splitting and storing


def split_of(text: str, validation: float, test: float) -> str:
    """The split of a document: a hash of its text, as a number in [0, 1), against the shares."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"


def paragraph_key(paragraph: str) -> bytes | None:
    """Eight bytes that name the paragraph's words; None if it is below `MIN_PARAGRAPH_CHARS`.

    Paragraphs that differ in white space only have one key.
    """
    normalised = " ".join(paragraph.split())
    if len(normalised) < MIN_PARAGRAPH_CHARS:
        return None
    return hashlib.blake2b(normalised.encode(), digest_size=8).digest()


def without_shared_paragraphs(splits: list[str], texts: list[str]) -> list[str]:
    """The texts, each without the paragraphs that stand in an earlier split than its own.

    The order of splits is that of `SPLITS`, so train texts come back as they are, and so does any
    text that shares nothing. What is left of the others is joined by blank lines, and may be empty.
    Only keys of held-out paragraphs are kept in memory, however large the train split is.
    """
    held_out = {
        key
        for split, text in zip(splits, texts, strict=True)
        if split != "train"
        for key in map(paragraph_key, PARAGRAPH_BREAK.split(text))
        if key is not None
    }
    kept_texts = list(texts)
    earlier: set[bytes | None] = set()
    for current in SPLITS:
        here: set[bytes | None] = set()
        for number, text in enumerate(texts):
            if splits[number] != current:
                continue
            paragraphs = PARAGRAPH_BREAK.split(text)
            keys = [paragraph_key(paragraph) for paragraph in paragraphs]
            here.update(held_out.intersection(keys))
            if not earlier.isdisjoint(keys):
                kept_texts[number] = "\n\n".join(
                    paragraph
                    for paragraph, key in zip(paragraphs, keys, strict=True)
                    if key not in earlier
                )
        earlier |= here
    return kept_texts


def build(
    spec: dict[str, Any],
    documents_path: str | Path,
    manifest_path: str | Path,
    processes: int = 1,
) -> None:
    """Read the documents, assign splits, drop what stands twice, and write both files.

    Dropped are exact duplicates of documents, and from held-out documents the paragraphs that
    `without_shared_paragraphs` finds. Writes a Parquet file with columns `source`, `split`, `text`,
    and a manifest with the counts, the package versions and the SHA-256 of all (split, text) pairs
    in order.

    Raises:
        UserError: a split is left without text, or a document cannot be read.
    """
    seen: set[bytes] = set()
    sources: list[str] = []
    splits: list[str] = []
    texts: list[str] = []
    duplicates = 0
    for document in read_documents(spec, processes):
        # By the whole document, so that its pieces stay together.
        split = split_of(document.text, spec["validation"], spec["test"])
        for start in range(0, len(document.text), MAX_DOCUMENT_CHARS):
            text = document.text[start : start + MAX_DOCUMENT_CHARS]
            if not text.strip():
                continue
            key = hashlib.sha256(text.encode()).digest()
            if key in seen:
                duplicates += 1
                continue
            seen.add(key)
            sources.append(document.source)
            splits.append(split)
            texts.append(text)
    rows: dict[str, list[str]] = {"source": [], "split": [], "text": []}
    digest = hashlib.sha256()
    characters = dict.fromkeys(SPLITS, 0)
    removed = dict.fromkeys(SPLITS[1:], 0)
    kept_texts = without_shared_paragraphs(splits, texts)
    for source, split, text, kept in zip(sources, splits, texts, kept_texts, strict=True):
        key = hashlib.sha256(kept.encode()).digest()
        if kept != text:
            removed[split] += len(text) - len(kept)
            if not kept.strip():
                continue
            if key in seen:  # as what is left of another document
                duplicates += 1
                continue
            seen.add(key)
        digest.update(split.encode() + key)
        characters[split] += len(kept)
        for name, value in zip(rows, (source, split, kept), strict=True):
            rows[name].append(value)
    empty = [split for split in SPLITS if not characters[split]]
    if empty:
        raise UserError(
            f"corpus: no document fell into {', '.join(empty)}: {len(texts)} distinct documents, "
            "less the paragraphs that they share, are too few to split; "
            "give more, or shorter, documents"
        )
    with replacing(documents_path) as part:
        pq.write_table(pa.table(rows), part, compression="zstd")
    write_json(
        manifest_path,
        {
            "source": spec["source"],
            "sha256": digest.hexdigest(),
            "documents": {s: rows["split"].count(s) for s in SPLITS},
            "characters": characters,
            "duplicates_removed": duplicates,
            "shared_characters_removed": removed,
            "packages": {
                package: importlib.metadata.version(package)
                for package in sorted(spec.get("packages", []), key=str.lower)
            },
        },
    )


def split_texts(documents_path: str | Path, split: str) -> Iterator[str]:
    """Yield the texts of one split, in order; a part of the file at a time is in memory."""
    for batch in pq.ParquetFile(documents_path).iter_batches(1024, columns=["split", "text"]):
        for at, text in zip(batch["split"].to_pylist(), batch["text"].to_pylist(), strict=True):
            if at == split:
                yield text
