from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import autoencoder

from l0plane.autoencoder import JumpReLU, TopK
from l0plane.evaluation.progressive import descending, grids, prefix_errors, progressive
from l0plane.evaluation.reconstruction import evaluate

KINDS = ["relu", "topk", "jumprelu", "gated"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_is_the_autoencoder_with_that_activation_function(held_out, kind):
    trained = autoencoder(kind)
    curve, contexts = progressive(trained, held_out, points=5, delta_ce_contexts=30)
    assert set(curve["selection"]) == {"topk", "jumprelu"}
    for point in curve.itertuples():
        # A theta is some latent's value, which another order of sums may move by its last bit.
        theta = point.value * (1 + 1e-6)
        chosen = TopK(int(point.value)) if point.selection == "topk" else JumpReLU(theta)
        code = trained.encode(held_out.x, chosen)
        x_hat = trained.decode(code)
        error = (held_out.x - x_hat).square().sum().item() / held_out.variance.sum().item()
        assert point.l0 == pytest.approx(code.l0.double().mean().item())
        assert point.nmse == pytest.approx(error, rel=1e-5)
        mine = contexts[(contexts.selection == point.selection) & (contexts.value == point.value)]
        assert mine["context"].tolist() == list(range(30))
        ratio = mine["squared_error"].sum() / mine["variance"].sum()
        assert ratio == pytest.approx(point.nmse, rel=1e-5)
        assert mine["l0"].mean() == pytest.approx(point.l0, rel=1e-5)


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_at_the_trained_activation_function_it_is_the_evaluation(held_out, kind):
    trained = autoencoder(kind)
    row, table = evaluate(trained, held_out)
    curve, contexts = progressive(trained, held_out, points=4, delta_ce_contexts=30)
    selection, value = ("topk", 4) if kind == "topk" else ("jumprelu", 0)
    point = curve[(curve["selection"] == selection) & (curve["value"] == value)].iloc[0]
    for name in ("l0", "nmse", "delta_ce"):
        assert point[name] == pytest.approx(row[name], rel=1e-4, abs=1e-5)
    mine = contexts[(contexts["selection"] == selection) & (contexts["value"] == value)]
    np.testing.assert_allclose(mine["delta_ce"], table["delta_ce"], atol=1e-5)
    np.testing.assert_allclose(mine["squared_error"], table["squared_error"], rtol=1e-4)


@pytest.mark.parametrize("spliced", [0, 7])
def test_delta_cross_entropy_on_the_first_contexts_only(held_out, spliced):
    trained = autoencoder("topk")
    curve, contexts = progressive(trained, held_out, points=3, delta_ce_contexts=spliced)
    measured = contexts["delta_ce"].notna()
    assert (measured == (contexts["context"] < spliced)).all()
    everywhere, _ = progressive(trained, held_out, points=3, delta_ce_contexts=10**6)
    assert (curve["nmse"] == everywhere["nmse"]).all()
    assert everywhere["delta_ce"].notna().all()
    means = contexts.groupby(["selection", "value"])["delta_ce"].mean()
    found = curve.set_index(["selection", "value"])["delta_ce"].sort_index()
    np.testing.assert_allclose(found, means.sort_index(), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_grids(held_out, kind):
    trained = autoencoder(kind)
    ks, thetas = grids(trained, held_out.x, points=6)
    code = trained.positive_code(held_out.x)
    assert (ks[0], ks[-1]) == (1, code.l0.max())
    assert round(trained.encode(held_out.x).l0.double().mean().item()) in ks
    assert ks == sorted(set(ks))
    assert thetas[-1] == 0
    below = [k for k in ks if k * len(held_out.x) < len(code.values)]
    reached = [(code.values > theta).sum().item() / len(held_out.x) for theta in thetas]
    assert reached[: len(below)] == pytest.approx(below, rel=0.01)


def test_prefix_errors_are_those_of_each_prefix(held_out):
    trained = autoencoder("relu")
    x = held_out.x[:6]
    code = descending(trained.positive_code(x))
    errors = prefix_errors(x - trained.pre_bias, code, trained.decoder)
    assert len(errors) == len(code.values) + 6
    place = 0
    for row in range(6):
        values = code.values[code.indptr[row] : code.indptr[row + 1]]
        assert (values.diff() <= 0).all()
        for k in range(len(values) + 1):
            x_hat = trained.pre_bias
            if k:
                x_hat = trained.decode(trained.encode(x[row : row + 1], TopK(k)))
            expected = (x[row] - x_hat).square().sum()
            assert errors[place].item() == pytest.approx(expected.item(), rel=1e-5)
            place += 1
    assert place == len(errors)


def test_pieces_do_not_change_the_curves(held_out, monkeypatch):
    own = autoencoder("topk")
    whole = progressive(own, held_out, 4, 3)
    monkeypatch.setattr("l0plane.evaluation.held_out.CODE_FLOATS", 2 * held_out.positions * own.n)
    assert {part.stop - part.start for part in held_out.parts(n=own.n)} <= {1, 2}
    for pieces, table in zip(progressive(own, held_out, 4, 3), whole, strict=True):
        pd.testing.assert_frame_equal(pieces, table, rtol=1e-4)


def test_an_autoencoder_without_positive_latents(held_out):
    silent = autoencoder("topk")
    silent.encoder_bias.fill_(-9)
    curve, _ = progressive(silent, held_out, points=3, delta_ce_contexts=2)
    assert curve["l0"].tolist() == [0] * len(curve)
    assert torch.tensor(curve["nmse"].to_numpy()).isfinite().all()
