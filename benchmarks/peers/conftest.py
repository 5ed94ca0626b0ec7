"""Real activations: those of the shipped language model on this repository's own pages."""

from pathlib import Path

import pytest
import torch

from l0plane.evaluation.held_out import HeldOut
from l0plane.language_model import LanguageModel
from l0plane.tokens import encode_contexts, load_tokenizer

REPOSITORY = Path(__file__).parents[2]
HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="session")
def held_out():
    """Contexts with every position seen, as the other libraries see them."""
    directory = REPOSITORY / "resources/lm"
    pages = [page.read_text() for page in sorted(REPOSITORY.glob("docs/*.md"))]
    contexts = encode_contexts(pages, load_tokenizer(directory), 64)[:64]
    return HeldOut(LanguageModel.load(directory, HOOK), contexts, drop_first_position=False)


@pytest.fixture(scope="session")
def raw(held_out):
    """Activations as the language model gives them, float32 `[rows, d]`, without the first."""
    x = held_out.residual[:, 1:]
    return x.reshape(-1, x.shape[-1])


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
