"""dictionary-learning: the same losses and gradients; what it saves is read as it reads it."""

import json
import sys
import types

import pytest
import torch
from conftest import relative

# dictionary-learning imports nnsight for its activation buffer, which pulls torchvision and with it
# another torch. Its autoencoders and losses need neither.
sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=None))

# ruff: noqa: E402
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReLUFunction, StepFunction
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary

from l0plane import external
from l0plane.methods import METHODS

D, N, ROWS, K, LAMBDA = 16, 64, 200, 5, 0.3
BANDWIDTH = 0.4


def problem(name):
    """Our method, random parameters and a batch."""
    generator = torch.Generator().manual_seed(0)
    method = METHODS[name](K, {"bandwidth": BANDWIDTH, "threshold": 0.3})
    x = torch.randn(ROWS, D, generator=generator)
    p = {
        "encoder": torch.randn(N, D, generator=generator) / 4,
        "decoder": torch.nn.functional.normalize(torch.randn(N, D, generator=generator)),
        "pre_bias": 0.1 * torch.randn(D, generator=generator),
    }
    extra = method.extra_parameters(N)
    p |= {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in extra.items()}
    return method, {key: value.requires_grad_() for key, value in p.items()}, x


def ours(method, p, x):
    loss = method.loss(p, x)
    total = loss.objective / len(x)
    if loss.penalty is not None:
        total = total + LAMBDA * loss.penalty / len(x)
    gradients = dict(zip(p, torch.autograd.grad(total, list(p.values())), strict=True))
    return total.detach(), gradients, x - loss.error


def load(module, values):
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name).copy_(value.detach())


def compare(module, names, theirs, total, gradients):
    torch.testing.assert_close(total, theirs.detach(), rtol=1e-4, atol=1e-5)
    theirs.backward()
    for name, (key, transposed) in names.items():
        expected = module.get_parameter(name).grad
        expected = expected.T if transposed else expected
        torch.testing.assert_close(gradients[key], expected, rtol=1e-3, atol=1e-4)


NAMES = {
    "encoder.weight": ("encoder", False),
    "decoder.weight": ("decoder", True),
}


@pytest.mark.parametrize("name", ["relu", "gated"])
def test_loss_and_gradient_with_a_penalty(name):
    method, p, x = problem(name)
    if name == "relu":
        names = NAMES | {"bias": ("pre_bias", False), "encoder.bias": ("encoder_bias", False)}
        trainer_class = StandardTrainer
    else:
        names = NAMES | {
            "decoder_bias": ("pre_bias", False),
            "gate_bias": ("gate_bias", False),
            "mag_bias": ("magnitude_bias", False),
            "r_mag": ("log_scale", False),
        }
        trainer_class = GatedSAETrainer
    trainer = trainer_class(
        steps=10_000,
        activation_dim=D,
        dict_size=N,
        layer=0,
        lm_name="",
        l1_penalty=LAMBDA,
        sparsity_warmup_steps=None,
        device="cpu",
    )
    values = {theirs: p[key].T if t else p[key] for theirs, (key, t) in names.items()}
    load(trainer.ae, values)
    total, gradients, _ = ours(method, p, x)
    compare(trainer.ae, names, trainer.loss(x, step=0), total, gradients)


@pytest.mark.parametrize(
    ("name", "peer"), [("topk", AutoEncoderTopK), ("batch_topk", BatchTopKSAE)]
)
def test_loss_and_gradient_of_topk(name, peer):
    method, p, x = problem(name)
    module = peer(D, N, K)
    names = NAMES | {"b_dec": ("pre_bias", False)}
    load(module, {theirs: p[key].T if t else p[key] for theirs, (key, t) in names.items()})
    reconstruction = module.decode(module.encode(x, use_threshold=False))
    total, gradients, own = ours(method, p, x)
    torch.testing.assert_close(own, reconstruction.detach(), rtol=1e-4, atol=1e-5)
    compare(module, names, (x - reconstruction).square().sum(1).mean(), total, gradients)


def test_jumprelu_pseudo_derivatives():
    method, p, x = problem("jumprelu")
    total, gradients, _ = ours(method, p, x)
    q = {key: value.detach().clone().requires_grad_() for key, value in p.items()}
    v = torch.relu((x - q["pre_bias"]) @ q["encoder"].T + q["encoder_bias"])
    theta = q["log_threshold"].exp()
    z = JumpReLUFunction.apply(v, theta, BANDWIDTH)
    error = (x - z @ q["decoder"] - q["pre_bias"]).square().sum(1).mean()
    theirs = error + LAMBDA * StepFunction.apply(v, theta, BANDWIDTH).sum(1).mean()
    torch.testing.assert_close(total, theirs.detach(), rtol=1e-4, atol=1e-5)
    # Theirs counts every negative value as lying at zero; with these thresholds no kernel
    # reaches so far.
    assert theta.min() > BANDWIDTH / 2
    for key, gradient in zip(q, torch.autograd.grad(theirs, list(q.values())), strict=True):
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-3, atol=1e-4)


DICTIONARIES = {
    AutoEncoder: (),
    AutoEncoderNew: (),
    GatedAutoEncoder: (),
    JumpReluAutoEncoder: (),
    AutoEncoderTopK: (8,),
    BatchTopKSAE: (8,),
    MatryoshkaBatchTopKSAE: (8, [64, 192]),
}


@pytest.mark.parametrize("kind", DICTIONARIES, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_what_it_saves_is_read_as_it_reads_it(kind, raw, tmp_path):
    torch.manual_seed(0)
    module = kind(raw.shape[1], 256, *DICTIONARIES[kind])
    for parameter in module.parameters():  # as if trained
        parameter += 0.05 * torch.randn(parameter.shape)
    if "threshold" in dict(module.named_buffers()):
        module.threshold.fill_(1.0)
    torch.save(module.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": kind.__name__, "k": 8}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    theirs, _ = load_dictionary(str(tmp_path), "cpu")
    z = theirs.encode(raw)
    ours = external.read("dictionary_learning", tmp_path).autoencoder
    code = ours.encode(raw)
    assert (z > 0).sum() > len(raw)
    assert relative(code.to_dense(), z) < 1e-5
    assert relative(ours.decode(code), theirs.decode(z)) < 1e-5
