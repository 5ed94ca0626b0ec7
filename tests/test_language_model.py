from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from conftest import CONTEXT, HOOK, VOCABULARY, WIDTH, small_model

from l0plane import files, language_model
from l0plane.files import UserError
from l0plane.language_model import LanguageModel

ARCHITECTURES = ["gpt2", "gpt_neox", "llama"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, model_directory):
    """A language model, and the plain transformers model with its list of blocks."""
    plain = small_model(request.param)
    blocks = {
        "gpt2": lambda: plain.transformer.h,
        "gpt_neox": lambda: plain.gpt_neox.layers,
        "llama": lambda: plain.model.layers,
    }[request.param]()
    return LanguageModel.load(model_directory(request.param), HOOK), plain, blocks


def first_tensor(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def plain_residual(plain, blocks, tokens):
    seen = []
    handle = blocks[1].register_forward_hook(lambda m, a, o: seen.append(first_tensor(o)))
    plain(tokens)
    handle.remove()
    return seen[0]


@torch.no_grad()
def plain_log_probabilities(plain, blocks, tokens, residual):
    def replace(module, args, output):
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    handle = blocks[1].register_forward_hook(replace)
    logits = plain(tokens).logits
    handle.remove()
    return logits[:, :-1].log_softmax(-1)


def test_facts_of_the_model(pair, model_directory):
    lm, plain, _ = pair
    assert (lm.d_model, lm.context_limit, lm.vocabulary) == (WIDTH, CONTEXT, VOCABULARY)
    weights = model_directory(plain.config.model_type) / "model.safetensors"
    assert lm.sha256 == files.sha256(weights)


def test_residual_is_that_of_transformers(pair, contexts):
    lm, plain, blocks = pair
    tokens = torch.from_numpy(contexts).long()
    expected = plain_residual(plain, blocks, tokens)
    torch.testing.assert_close(lm.residual(tokens), expected, atol=1e-5, rtol=0)


def test_log_probabilities_from_a_replaced_residual(pair, contexts):
    lm, plain, blocks = pair
    tokens = torch.from_numpy(contexts).long()
    residual = lm.residual(tokens).flip(0) * 1.1
    expected = plain_log_probabilities(plain, blocks, tokens, residual)
    got = lm.log_probabilities(tokens, residual)
    assert got.shape == (len(contexts), CONTEXT - 1, VOCABULARY)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    whole = plain_log_probabilities(plain, blocks, tokens, lm.residual(tokens))
    torch.testing.assert_close(
        lm.log_probabilities(tokens, lm.residual(tokens)), whole, atol=1e-5, rtol=0
    )


def test_only_the_needed_blocks_run(pair, contexts):
    lm, _, _ = pair
    ran = []
    handles = [
        block.mlp.register_forward_hook(lambda m, a, o, i=i: ran.append(i))
        for i, block in enumerate(lm._bridge.blocks)
    ]
    residual = lm.residual(torch.from_numpy(contexts))
    assert ran == [0, 1]
    ran.clear()
    lm.log_probabilities(torch.from_numpy(contexts), residual)
    assert ran == [2]
    for handle in handles:
        handle.remove()


def test_where_skipping_blocks_changes_the_result_nothing_is_skipped(
    model_directory, contexts, monkeypatch
):
    @contextmanager
    def useless(blocks, residual, as_tuple):
        yield

    monkeypatch.setattr(language_model, "_skipping", useless)
    lm = LanguageModel.load(model_directory("gpt2"), HOOK)
    plain = small_model("gpt2")
    tokens = torch.from_numpy(contexts).long()
    residual = lm.residual(tokens) * 0.5
    expected = plain_log_probabilities(plain, plain.transformer.h, tokens, residual)
    got = lm.log_probabilities(tokens, residual)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "hook", ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_post", "blocks.1.hook_mlp_out"]
)
def test_other_hooks(model_directory, contexts, hook):
    lm = LanguageModel.load(model_directory("gpt2"), hook)
    tokens = torch.from_numpy(contexts).long()
    with torch.no_grad():
        expected = small_model("gpt2")(tokens).logits[:, :-1].log_softmax(-1)
    got = lm.log_probabilities(tokens, lm.residual(tokens))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    changed = lm.log_probabilities(tokens, lm.residual(tokens) * 0)
    assert not torch.allclose(changed, expected, atol=1e-2)


def test_an_unknown_hook_is_answered_with_those_like_it(model_directory):
    with pytest.raises(UserError, match=r"language_model\.hook.*blocks\.2\.hook_resid_post"):
        LanguageModel.load(model_directory("gpt2"), "blocks.7.hook_resid_post")


def test_a_hook_without_one_vector_per_token_is_refused(model_directory):
    with pytest.raises(UserError, match=r"expected \[contexts, context, width\]"):
        LanguageModel.load(model_directory("gpt2"), "blocks.1.attn.hook_pattern")


def test_tokens_that_do_not_fit(language_model):
    with pytest.raises(UserError, match=f"at most {CONTEXT}"):
        language_model.residual(torch.zeros(1, CONTEXT + 1, dtype=torch.int64))
    with pytest.raises(UserError, match=f"holds token {VOCABULARY}"):
        language_model.residual(torch.full((1, 4), VOCABULARY))
