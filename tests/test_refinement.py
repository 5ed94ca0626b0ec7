from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import autoencoder
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch.nn.functional import normalize as unit

from l0plane.autoencoder import Autoencoder, ReLU, TopK
from l0plane.code import Code
from l0plane.evaluation.refinement import HISTOGRAM_EDGES, refine, solve


def problem(rows: int, d: int, n: int, k: int, seed: int = 0):
    """Activations, a TopK code of them, decoder and pre-bias."""
    generator = torch.Generator().manual_seed(seed)
    decoder = unit(torch.randn(n, d, generator=generator), dim=1)
    x = unit(torch.randn(rows, d, generator=generator), dim=1)
    pre_bias = torch.randn(d, generator=generator) * 0.02
    code = Autoencoder(decoder, decoder, pre_bias, torch.zeros(n), TopK(k)).encode(x)
    return x, code, decoder, pre_bias


def each_row(x, code, decoder, pre_bias, refined):
    for r in range(len(x)):
        part = slice(code.indptr[r], code.indptr[r + 1])
        directions = decoder[code.indices[part].long()].double().numpy()
        yield r, directions, (x[r] - pre_bias).double().numpy(), refined[part].numpy()


@pytest.mark.parametrize("k", [1, 2, 7, 16, 64])
def test_equals_scipy_and_meets_the_optimality_conditions(k):
    given_problem = problem(40, 48, 128, k)
    refined, before, after = solve(*given_problem)
    assert (refined >= 0).all()
    assert (after <= before).all()
    for r, directions, target, z in each_row(*given_problem, refined):
        expected, norm = nnls(directions.T, target)
        assert after[r].item() == pytest.approx(norm**2, abs=1e-10)
        slope = directions @ (target - z @ directions)
        assert np.abs(slope[z > 0]).max(initial=0) < 1e-7
        assert slope[z == 0].max(initial=-1) < 1e-7
        if len(directions) <= 16:  # more need not be independent
            np.testing.assert_allclose(z, expected, atol=1e-6)


def test_some_of_those_problems_hold_latents_at_zero():
    assert (solve(*problem(40, 48, 128, 64))[0] == 0).any()
    assert (solve(*problem(40, 48, 128, 16))[0] == 0).any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 6), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 1.0])
)
def test_any_start_ends_no_worse_than_it_began_and_optimal(d, m, seed, spread):
    generator = np.random.default_rng(seed)
    # Directions from nearly the same to anything, more of them than dimensions, exact duplicates.
    decoder = generator.normal(size=d) + spread * generator.normal(size=(m, d))
    decoder[generator.integers(m)] = decoder[0]
    x = generator.normal(size=(1, d))
    values = generator.exponential(size=m) * (generator.random(m) < 0.8)
    arrays = (x, [0, m], np.arange(m), values, decoder)
    kinds = (np.float32, np.int32, np.int32, np.float32, np.float32)
    x, indptr, indices, values, decoder = (
        torch.from_numpy(np.asarray(a, dtype=kind)) for a, kind in zip(arrays, kinds, strict=True)
    )
    code = Code(indptr, indices, values, m)
    refined, before, after = solve(x, code, decoder, torch.zeros(d))
    _, norm = nnls(decoder.double().numpy().T, x[0].double().numpy())
    assert after[0] <= before[0]
    assert after[0].item() == pytest.approx(norm**2, abs=1e-6)
    assert (refined >= 0).all()


def test_duplicate_directions_share_what_they_had():
    decoder = torch.eye(4)[[0, 0, 1]]
    code = Code(torch.tensor([0, 3]).int(), torch.arange(3).int(), torch.tensor([0.2, 0.4, 1]), 3)
    x = torch.tensor([[1.0, 0.5, 0, 0]])
    refined, _, after = solve(x, code, decoder, torch.zeros(4))
    np.testing.assert_allclose(refined, [0.4, 0.6, 0.5], atol=1e-6)
    assert after.item() == pytest.approx(0, abs=1e-12)


def test_rows_without_active_latents():
    code = Code(torch.tensor([0, 0, 1, 1]).int(), torch.tensor([0]).int(), torch.tensor([0.5]), 2)
    x = torch.eye(3)
    refined, before, after = solve(x, code, torch.eye(3)[:2], torch.zeros(3))
    np.testing.assert_allclose(before, [1, 1.25, 1])
    np.testing.assert_allclose(after, [1, 1, 1])
    np.testing.assert_allclose(refined, [0], atol=1e-9)


def test_tables(held_out):
    trained = autoencoder("topk")
    row, contexts, histogram = refine(trained, held_out)
    code = trained.encode(held_out.x)
    refined, before, after = solve(held_out.x, code, trained.decoder, trained.pre_bias)
    shift = refined - code.values
    variance = (held_out.x - held_out.x.mean(0)).square().sum().item()
    assert row["nmse"] == pytest.approx(before.sum().item() / variance, rel=1e-5)
    assert row["nmse_refined"] == pytest.approx(after.sum().item() / variance, rel=1e-5)
    assert row["nmse_refined"] < row["nmse"]
    assert row["mean_shift"] == pytest.approx(shift.mean().item(), rel=1e-4)
    assert row["mean_absolute_shift"] == pytest.approx(shift.abs().mean().item(), rel=1e-4)
    assert row["mean_value"] == pytest.approx(code.values.mean().item(), rel=1e-4)
    assert row["fraction_up"] == pytest.approx((shift > 0).double().mean().item(), abs=0.01)
    assert row["l0"] == pytest.approx(contexts["l0"].mean())
    assert contexts["active"].sum() == len(shift) == histogram["count"].sum()
    assert contexts["shift_sum"].sum() == pytest.approx(shift.sum().item(), rel=1e-4)
    assert contexts["value_sum"].sum() == pytest.approx(code.values.sum().item(), rel=1e-4)
    per_context = after.reshape(len(held_out), -1).sum(1)
    np.testing.assert_allclose(contexts["squared_error_refined"], per_context, rtol=1e-5)
    middle = histogram.query("bin_left < 0 < bin_right")
    assert middle.index.tolist() == [len(histogram) // 2]
    small = shift.abs() < HISTOGRAM_EDGES[51]
    assert middle["count"].item() == small.sum()


def test_shrunken_values_are_shifted_up(held_out):
    d = held_out.x.shape[1]
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    shrunk = Autoencoder(both, both, torch.zeros(d), torch.full((2 * d,), -0.05), ReLU())
    row, _, _ = refine(shrunk, held_out)
    assert row["mean_shift"] == pytest.approx(0.05, abs=1e-5)
    assert row["fraction_up"] == 1
