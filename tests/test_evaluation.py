from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CONTEXT, WIDTH, autoencoder, small_model

from l0plane.autoencoder import Autoencoder, ReLU
from l0plane.evaluation.held_out import HeldOut
from l0plane.evaluation.progressive import progressive
from l0plane.evaluation.reconstruction import evaluate, ratio_standard_error
from l0plane.evaluation.refinement import refine
from l0plane.preprocessing import normalise, restore


def mirror(scale: float = 1.0) -> Autoencoder:
    """Reconstructs `scale * x` exactly: one latent for each sign of each coordinate."""
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    return Autoencoder(both, scale * both, torch.zeros(WIDTH), torch.zeros(2 * WIDTH), ReLU())


def test_preprocessing_gives_unit_norm_and_back():
    x = torch.randn(7, 5, 64, generator=torch.Generator().manual_seed(0)) * 30 + 4
    x_unit, mean, scale = normalise(x)
    torch.testing.assert_close(x_unit.norm(dim=-1), torch.ones(7, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(x_unit.mean(-1), torch.zeros(7, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(restore(x_unit, mean, scale), x)


@torch.no_grad()
def independent_downstream(contexts, trained, drop_first_position):
    """Delta cross-entropy and KL of each context by transformers alone, one context at a time."""
    plain = small_model("gpt2").double()
    block = plain.transformer.h[1]
    first = int(drop_first_position)

    def splice(module, args, output):
        residual = (output[0] if isinstance(output, tuple) else output).clone()
        seen = residual[:, first:]
        mean = seen.mean(-1, keepdim=True)
        scale = (seen.std(-1, keepdim=True) + 1e-5) * math.sqrt(WIDTH - 1)
        x_hat = trained.decode(trained.encode(((seen - mean) / scale)[0].float()))
        residual[:, first:] = x_hat.double() * scale + mean
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    deltas, divergences = [], []
    for context in torch.from_numpy(contexts).long():
        original = plain(context[None]).logits[0, :-1].log_softmax(-1)
        handle = block.register_forward_hook(splice)
        spliced = plain(context[None]).logits[0, :-1].log_softmax(-1)
        handle.remove()
        change = (original - spliced)[torch.arange(CONTEXT - 1), context[1:]]
        deltas.append(change.mean().item())
        divergences.append((original.exp() * (original - spliced)).sum(-1).mean().item())
    return np.array(deltas), np.array(divergences)


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "gated"])
def test_downstream_agrees_with_plain_transformers(held_out, contexts, kind):
    row, table = evaluate(autoencoder(kind), held_out)
    dropped = held_out.positions < CONTEXT
    delta, kl = independent_downstream(contexts, autoencoder(kind), dropped)
    np.testing.assert_allclose(table["delta_ce"], delta, atol=2e-5)
    np.testing.assert_allclose(table["kl"], kl, atol=2e-5)
    assert row["delta_ce"] == pytest.approx(delta.mean(), abs=1e-5)
    assert row["delta_ce_se"] == pytest.approx(delta.std(ddof=1) / math.sqrt(30), rel=1e-3)
    assert np.abs(delta).max() > 0.01


def test_reconstruction_by_hand(held_out):
    trained = autoencoder("topk")
    row, table = evaluate(trained, held_out)
    x = held_out.x
    x_hat = trained.encode(x).to_dense() @ trained.decoder + trained.pre_bias
    squared = (x - x_hat).square().sum(1).reshape(30, -1).sum(1)
    variance = (x - x.mean(0)).square().sum(1).reshape(30, -1).sum(1)
    np.testing.assert_allclose(table["squared_error"], squared, rtol=1e-5)
    np.testing.assert_allclose(table["variance"], variance, rtol=1e-5)
    assert row["nmse"] == pytest.approx((squared.sum() / variance.sum()).item(), rel=1e-5)
    assert row["l0"] == pytest.approx(trained.encode(x).l0.double().mean().item())
    assert table["l0"].mean() == pytest.approx(row["l0"], rel=1e-6)
    assert row["evaluation_tokens"] == len(x) == 30 * held_out.positions
    centred, centred_hat = x - x.mean(0), x_hat - x_hat.mean(0)
    gamma = centred_hat.square().sum() / (centred * centred_hat).sum()
    assert row["relative_reconstruction_bias"] == pytest.approx(gamma.item(), rel=1e-4)


@pytest.mark.parametrize("how", ["none", "constant_norm"])
def test_errors_are_at_unit_norm_whatever_space_an_autoencoder_works_in(held_out, how):
    trained = replace(autoencoder("relu"), normalisation=how)
    row, table = evaluate(trained, held_out)
    raw = held_out.residual[:, -held_out.positions :].reshape(-1, WIDTH)
    factor = 1.0 if how == "none" else raw.norm(dim=1, keepdim=True) / WIDTH**0.5
    code = trained.encode(raw / factor)
    error = (raw - trained.decode(code) * factor).square().sum(1)
    error = error / (WIDTH - 1) / (raw.std(1) + 1e-5) ** 2
    expected = (error.sum() / held_out.variance.sum()).item()
    assert row["nmse"] == pytest.approx(expected, rel=1e-4)
    assert table["squared_error"].sum() == pytest.approx(error.sum().item(), rel=1e-4)
    assert row["l0"] == pytest.approx(code.l0.double().mean().item())
    refined, *_ = refine(trained, held_out)
    assert refined["nmse"] == pytest.approx(expected, rel=1e-4)
    curve, _ = progressive(trained, held_out, points=4, delta_ce_contexts=len(held_out))
    everything = curve[curve["l0"] == curve["l0"].max()].iloc[0]
    assert everything["nmse"] == pytest.approx(expected, rel=1e-4)
    assert everything["delta_ce"] == pytest.approx(row["delta_ce"], abs=1e-5)


@pytest.mark.parametrize("how", ["none", "constant_norm"])
def test_a_perfect_autoencoder_of_raw_activations_costs_nothing(held_out, how):
    row, _ = evaluate(replace(mirror(), normalisation=how), held_out)
    assert row["nmse"] == pytest.approx(0, abs=1e-10)
    assert row["delta_ce"] == pytest.approx(0, abs=1e-5)


def test_a_perfect_autoencoder_costs_nothing(held_out):
    row, _ = evaluate(mirror(), held_out)
    assert row["nmse"] == pytest.approx(0, abs=1e-10)
    assert row["delta_ce"] == pytest.approx(0, abs=1e-5)
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["loss_recovered_zero"] == pytest.approx(1, abs=1e-4)
    assert row["loss_recovered_mean"] == pytest.approx(1, abs=1e-4)
    assert row["relative_reconstruction_bias"] == pytest.approx(1, abs=1e-5)


def test_shrinkage_shows_in_the_relative_reconstruction_bias(held_out):
    row, _ = evaluate(mirror(0.5), held_out)
    assert row["relative_reconstruction_bias"] == pytest.approx(0.5, abs=1e-5)


def test_predicting_the_mean_has_nmse_one_and_no_latent(held_out):
    silent = replace(mirror(0.0), pre_bias=held_out.x_mean, encoder_bias=torch.full((32,), -9.0))
    row, _ = evaluate(silent, held_out)
    assert row["nmse"] == pytest.approx(1, abs=1e-6)
    assert (row["l0"], row["dead_fraction"]) == (0, 1)


def test_dead_latents_are_counted(held_out):
    bias = torch.zeros(2 * WIDTH)
    bias[:8] = -9
    row, _ = evaluate(replace(mirror(), encoder_bias=bias), held_out)
    assert row["dead_fraction"] == 8 / 32


def test_ablations_by_transformers_alone(held_out, contexts):
    plain = small_model("gpt2")
    first = CONTEXT - held_out.positions
    tokens = torch.from_numpy(contexts).long()

    def loss(ablation) -> float:
        def splice(module, args, output):
            residual = (output[0] if isinstance(output, tuple) else output).clone()
            residual[:, first:] = ablation(residual[:, first:])
            return (residual, *output[1:]) if isinstance(output, tuple) else residual

        handle = plain.transformer.h[1].register_forward_hook(splice)
        with torch.no_grad():
            value = plain(tokens, labels=tokens).loss.item()
        handle.remove()
        return value

    assert held_out.loss.mean().item() == pytest.approx(loss(lambda r: r), abs=1e-5)
    assert held_out.zero_ablated_loss == pytest.approx(loss(lambda r: 0.0), abs=1e-5)
    mean = loss(lambda r: r.mean((0, 1)))
    assert held_out.mean_ablated_loss == pytest.approx(mean, abs=1e-5)


def test_parts_do_not_change_the_measurement(language_model, contexts, monkeypatch):
    whole = evaluate(autoencoder("relu"), HeldOut(language_model, contexts, True))[0]
    floats = {"cpu": 7 * CONTEXT * 260}
    monkeypatch.setattr("l0plane.evaluation.held_out.LOGIT_FLOATS", floats)
    in_parts = HeldOut(language_model, contexts, True)
    assert len(list(in_parts.parts())) == 5
    assert evaluate(autoencoder("relu"), in_parts)[0] == pytest.approx(whole, rel=1e-4)


def test_ratio_standard_error_agrees_with_the_bootstrap():
    generator = np.random.default_rng(0)
    denominator = generator.gamma(20, size=400)
    numerator = 0.1 * denominator + generator.normal(0, 0.3, 400)
    draws = generator.integers(0, 400, (4000, 400))
    bootstrap = (numerator[draws].sum(1) / denominator[draws].sum(1)).std()
    estimate = ratio_standard_error(torch.from_numpy(numerator), torch.from_numpy(denominator))
    assert estimate == pytest.approx(bootstrap, rel=0.06)
