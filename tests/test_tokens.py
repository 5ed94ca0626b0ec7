import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from transformers import ByT5Tokenizer

from l0plane.files import UserError
from l0plane.tokens import (
    encode_contexts,
    load_contexts,
    load_tokenizer,
    save_contexts,
    train_tokenizer,
)

TEXTS = ["the sum of the array", "the mean of the array along an axis", "an axis — 二"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 20, 280, directory)
    return load_tokenizer(directory)


def stream(texts, tokenizer):
    """The tokens of `texts`, one document after the other, as written down by hand."""
    tokens = []
    for text in texts:
        tokens += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return tokens


def test_a_trained_tokenizer_gives_back_any_text(tokenizer):
    text = "Never seen: naïve \U0001f600\n\ttabs, «quotes»"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer) == 280


def test_end_of_text_stands_after_each_document(tokenizer):
    contexts = encode_contexts(TEXTS, tokenizer, context=1)
    assert contexts[:, 0].tolist() == stream(TEXTS, tokenizer)
    assert (contexts == tokenizer.eos_token_id).sum() == len(TEXTS)
    assert contexts[-1] == tokenizer.eos_token_id


@settings(deadline=None)
@given(context=st.integers(1, 40), documents=st.integers(0, 6))
def test_contexts_are_the_stream_without_its_partial_end(tokenizer, context, documents):
    texts = (TEXTS * 2)[:documents]
    contexts = encode_contexts(texts, tokenizer, context)
    expected = stream(texts, tokenizer)
    whole = len(expected) // context
    assert contexts.shape == (whole, context)
    assert contexts.dtype == np.int32
    assert contexts.reshape(-1).tolist() == expected[: whole * context]


def test_documents_are_the_same_however_they_are_batched(tokenizer):
    texts = [f"{TEXTS[i % 3]} {i}" for i in range(600)]
    contexts = encode_contexts(texts, tokenizer, context=1)
    assert contexts[:, 0].tolist() == stream(texts, tokenizer)


def test_documents_are_whole_whatever_the_tokenizer_file_says(tokenizer, tmp_path):
    """Many files of the hub say where to cut, and to what length to fill up."""
    tokenizer.save_pretrained(tmp_path)
    cutting = load_tokenizer(tmp_path)
    cutting.backend_tokenizer.enable_truncation(2)
    cutting.backend_tokenizer.enable_padding(length=50)
    contexts = encode_contexts(TEXTS, cutting, context=1)
    assert contexts[:, 0].tolist() == stream(TEXTS, tokenizer)


def test_a_tokenizer_in_python_alone_will_do():
    letters = ByT5Tokenizer()
    contexts = encode_contexts(["ab", "c"], letters, context=1)
    assert contexts[:, 0].tolist() == [*(3 + ord(c) for c in "ab"), 1, 3 + ord("c"), 1]


def test_contexts_survive_saving(tmp_path):
    contexts = np.arange(24, dtype=np.int32).reshape(4, 6)[:, ::2]
    save_contexts(tmp_path / "c.safetensors", contexts)
    loaded = load_contexts(tmp_path / "c.safetensors")
    assert loaded.dtype == np.int32
    np.testing.assert_array_equal(loaded, contexts)


def test_damaged_contexts_are_named_wherever_they_are_damaged(tmp_path):
    path = tmp_path / "contexts/test.safetensors"
    save_contexts(path, np.arange(6, dtype=np.int32).reshape(2, 3))
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    short = [whole[:i] + whole[i + 1 :] for i in range(len(whole))]
    for damaged in (*flipped, *short, whole[:-4], b""):
        path.write_bytes(damaged)
        said = rf"test\.safetensors: not .*to rebuild it: rm -r {path.parent}, then the same"
        with pytest.raises(UserError, match=said):
            load_contexts(path)
    path.unlink()
    with pytest.raises(UserError, match=r"test\.safetensors: no such file; to rebuild it"):
        load_contexts(path)


def test_contexts_of_somebody_else_have_no_hash(tmp_path):
    contexts = np.arange(6, dtype=np.int32).reshape(2, 3)
    save_file({"tokens": contexts}, tmp_path / "c.safetensors")
    np.testing.assert_array_equal(load_contexts(tmp_path / "c.safetensors"), contexts)


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"language_model\.path: no tokenizer at .*empty"):
        load_tokenizer(tmp_path / "empty")
