"""Small random subjects: language models of three architectures, contexts, autoencoders."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize as unit

from l0plane.autoencoder import Autoencoder, Gated, JumpReLU, ReLU, TopK
from l0plane.tokens import train_tokenizer

# Without a GPU Triton's kernels are interpreted; it asks before anything else imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

VOCABULARY = 260
CONTEXT = 12
WIDTH = 16
HOOK = "blocks.1.hook_resid_post"


def small_model(architecture: str, seed: int = 0):
    """A transformers model of three blocks; weights large enough that every block matters."""
    import transformers as hf

    common = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 0}
    common["eos_token_id"] = 0
    wide = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": CONTEXT,
    }
    torch.manual_seed(seed)
    match architecture:
        case "gpt2":
            config = hf.GPT2Config(n_positions=CONTEXT, n_embd=WIDTH, n_layer=3, n_head=2, **common)
            return hf.GPT2LMHeadModel(config).eval()
        case "gpt_neox":
            return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**wide, **common)).eval()
        case "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(**wide, **common)).eval()


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """A function that gives the directory of a small model of an architecture."""
    root = tmp_path_factory.mktemp("models")

    def directory(architecture: str):
        path = root / architecture
        if not path.exists():
            small_model(architecture).save_pretrained(path)
            train_tokenizer(["a b c d e"] * 9, VOCABULARY, path)
        return path

    return directory


@pytest.fixture(scope="session")
def language_model(model_directory):
    from l0plane.language_model import LanguageModel

    return LanguageModel.load(model_directory("gpt2"), HOOK)


@pytest.fixture(scope="session")
def contexts():
    return np.random.default_rng(0).integers(0, VOCABULARY, (30, CONTEXT), dtype=np.int32)


@pytest.fixture(scope="session", params=[True, False], ids=["first dropped", "first kept"])
def held_out(request, language_model, contexts):
    from l0plane.evaluation.held_out import HeldOut

    return HeldOut(language_model, contexts, drop_first_position=request.param)


def autoencoder(kind: str, d: int = WIDTH, n: int = 40, k: int = 4) -> Autoencoder:
    """A random autoencoder; every method's activation function occurs among the kinds."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    directions = unit(draw(n, d), dim=1)
    functions = {
        "relu": ReLU(),
        "topk": TopK(k),
        "jumprelu": JumpReLU(draw(n, scale=0.1).abs() + 0.1),
        "gated": Gated(draw(n, scale=0.1) - 0.2, draw(n, scale=0.1), draw(n, scale=0.1)),
    }
    bias = torch.zeros(n) if kind == "gated" else draw(n, scale=0.05) - 0.1
    encoder = unit(directions + draw(n, d, scale=0.05), dim=1)
    return Autoencoder(encoder, directions, draw(d, scale=0.05), bias, functions[kind])
