"""Token contexts: documents encoded, joined by the end-of-text token, cut into equal pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from l0plane.files import SEAL, Broken, UserError, rebuilt_by_the_run, replacing
from l0plane.hub import how_to_bring, named

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int, directory: str | Path) -> None:
    """Train a byte-level BPE tokenizer of `vocabulary` tokens; save it in Hugging Face layout."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocabulary, special_tokens=[END_OF_TEXT], show_progress=False
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
    ).save_pretrained(directory)


def load_tokenizer(name_or_directory: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model given by directory or `named` place on the hub.

    Raises:
        UserError: there is none at that place, it is broken or would need code of its own.
    """
    from transformers import AutoTokenizer

    name, revision = named(str(name_or_directory))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, revision=revision or "main"
        )
    # Of many types: tokenizers raises a bare Exception over a broken file.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "" if Path(name).is_dir() else f".\n{how_to_bring(name, 'model', revision)}"
        raise UserError(
            f"language_model.path: no tokenizer at {name_or_directory} ({reason}){remedy}"
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"language_model.path: the tokenizer at {name_or_directory} has no eos")
    return tokenizer


def encode_contexts(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> np.ndarray:
    """Encode `texts` into contexts, int32 `[contexts, context]`.

    Each document is followed by the end-of-text token; documents run on from one context to the
    next; a last, partial context is dropped. An end-of-text token spelled out in a text counts as
    one.
    """
    pieces: list[np.ndarray] = []
    batch: list[str] = []
    ids_of = _to_ids(tokenizer)

    def flush() -> None:
        for ids in ids_of(batch):
            pieces.append(np.array([*ids, tokenizer.eos_token_id], dtype=np.int32))
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == 256:
            flush()
    if batch:
        flush()
    stream = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    contexts = len(stream) // context
    return stream[: contexts * context].reshape(contexts, context)


def _to_ids(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """How to encode texts: whole, and without special tokens."""
    if not tokenizer.is_fast:
        return lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    # Around it transformers makes offsets and masks, and takes half as long again.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()

    def ids_of(texts: list[str]) -> list[list[int]]:
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    return ids_of


def save_contexts(path: str | Path, contexts: np.ndarray) -> None:
    """Write contexts, int32 `[contexts, context]`, as safetensors with their own hash."""
    contexts = np.ascontiguousarray(contexts)
    with replacing(path) as part:
        save_file({"tokens": contexts}, part, metadata={SEAL: _digest(contexts)})


def load_contexts(path: str | Path) -> np.ndarray:
    """Read contexts, int32 `[contexts, context]`.

    A file without metadata was written by somebody else and is taken as it is.

    Raises:
        UserError: the file is missing, or not what was written.
    """
    path = Path(path)
    with rebuilt_by_the_run(path.parent):
        try:
            with safe_open(path, "numpy") as file:
                contexts, metadata = file.get_tensor("tokens"), file.metadata()
        except FileNotFoundError:
            raise Broken(f"{path}: no such file") from None
        except (SafetensorError, OSError) as error:
            raise Broken(f"{path}: not a whole safetensors file ({error})") from None
        if metadata and metadata.get(SEAL) != _digest(contexts):
            raise Broken(f"{path}: not the bytes that were written")
    return contexts


def _digest(contexts: np.ndarray) -> str:
    """SHA-256 of type, shape and tokens."""
    digest = hashlib.sha256(f"{contexts.dtype} {contexts.shape}".encode())
    digest.update(contexts.data)
    return digest.hexdigest()
