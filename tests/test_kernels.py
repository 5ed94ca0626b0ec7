"""The sparse operations against dense float64 computations and autograd."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l0plane import kernels
from l0plane.code import Code
from l0plane.kernels import AdamState, arrays, cpu, reference
from l0plane.methods import METHODS

BACKENDS = [reference, cpu]
RTOL, ATOL = 1e-4, 1e-5

sizes = st.tuples(
    st.integers(1, 9), st.integers(1, 70), st.integers(1, 12), st.integers(0, 2**31 - 1)
)


def problem(rows, n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=generator)
    encoder = torch.randn(n, d, generator=generator)
    bias = torch.randn(n, generator=generator)
    return x, encoder, bias


def dense(code):
    """The code as a matrix, written without the project's own conversion."""
    out = np.zeros(code.shape)
    for row in range(code.shape[0]):
        for e in range(code.indptr[row], code.indptr[row + 1]):
            out[row, code.indices[e]] += float(code.values[e])
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@given(sizes)
@settings(max_examples=40, deadline=None)
def test_select_above_keeps_exactly_what_exceeds_the_threshold(backend, size):
    x, encoder, bias = problem(*size)
    threshold = bias.roll(1)
    code = backend.select_above(x, encoder, bias, threshold)
    a = (x @ encoder.T + bias).double().numpy()
    expected = np.where(a > threshold.double().numpy(), a, 0)
    far = np.abs(a - threshold.double().numpy()) > 1e-4
    np.testing.assert_allclose(dense(code)[far], expected[far], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("backend", BACKENDS)
@given(sizes, st.integers(1, 80), st.booleans())
@settings(max_examples=80, deadline=None)
def test_top_k_keeps_the_k_largest_positive_values(backend, size, k, with_bias):
    x, encoder, bias = problem(*size)
    bias = bias if with_bias else None
    code = backend.select_top_k(x, encoder, bias, k)
    a = reference.preactivations(x, encoder, bias).double().numpy()
    kept = dense(code)
    for row in range(len(x)):
        largest = np.sort(a[row])[::-1][: min(k, a.shape[1])]
        expected = largest[largest > 0]
        got = np.sort(kept[row][kept[row] != 0])[::-1]
        np.testing.assert_allclose(got, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n,k", [(64, 1), (64, 64), (2048, 32), (2048, 700), (33, 7)])
def test_top_k_at_its_edges(backend, n, k):
    x, encoder, _ = problem(20, n, 8, seed=n + k)
    code = backend.select_top_k(x, encoder, None, k)
    a = x @ encoder.T
    torch.testing.assert_close(code.l0, (a > 0).sum(1).clamp(max=k))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_keep_exactly_k_and_the_lower_latent_first(backend):
    encoder = torch.ones(200, 4)
    code = backend.select_top_k(torch.ones(3, 4), encoder, None, 5)
    assert code.indices.tolist() == [0, 1, 2, 3, 4] * 3
    encoder[[150, 160]] = 2.0
    code = backend.select_top_k(torch.ones(3, 4), encoder, None, 5)
    assert code.l0.tolist() == [5, 5, 5]
    assert sorted(code.indices[:5].tolist()) == [0, 1, 2, 150, 160]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_positive_values_and_empty_codes(backend):
    encoder = torch.ones(50, 4)
    x = torch.cat([-torch.ones(2, 4), torch.ones(1, 4)])
    code = backend.select_top_k(x, encoder, None, 3)
    assert code.l0.tolist() == [0, 0, 3]
    for no_rows in (
        backend.select_top_k(x[:0], encoder, None, 3),
        backend.select_above(x[:0], encoder, None, 0.0),
    ):
        assert no_rows.shape == (0, 50)
    nothing = backend.select_above(-torch.ones(2, 4), encoder, None, 0.0)
    assert len(nothing.indices) == 0
    assert backend.product(nothing, encoder).abs().sum() == 0
    assert backend.transposed_product(nothing, torch.ones(2, 4)).abs().sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_is_never_selected_and_hides_no_other_latent(backend):
    encoder = torch.eye(64)
    x = torch.arange(64.0).repeat(2, 1)
    x[0, 40] = torch.nan
    encoder_nan = encoder.clone()
    # One latent of NaN pre-activation, as after a diverged step of that latent alone.
    encoder_nan[40] = torch.nan
    code = backend.select_top_k(x[1:], encoder_nan, None, 3)
    assert sorted(code.indices.tolist()) == [61, 62, 63]


def random_code(rows, n, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, n, generator=generator) < 0.3
    values = torch.randn(rows, n, generator=generator)
    indptr = torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).int()
    return Code(indptr, mask.nonzero()[:, 1].int(), values[mask], n)


def random_mask(code, share, seed):
    return torch.rand(len(code.indices), generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("backend", BACKENDS)
@given(sizes)
@settings(max_examples=40, deadline=None)
def test_products_equal_dense_float64_products(backend, size):
    rows, n, d, seed = size
    code = random_code(rows, n, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    decoder = torch.randn(n, d, generator=generator)
    gradient = torch.randn(rows, d, generator=generator)
    z = dense(code)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(
        backend.product(code, decoder), z @ decoder.double().numpy(), **close
    )
    np.testing.assert_allclose(
        backend.transposed_product(code, gradient), z.T @ gradient.double().numpy(), **close
    )
    np.testing.assert_allclose(backend.latent_sums(code), z.sum(0), **close)
    sampled = backend.sampled_product(code, gradient, decoder)
    full = gradient.double().numpy() @ decoder.double().numpy().T
    np.testing.assert_allclose(sampled, full[code.rows, code.indices.long()], **close)
    by_latent = backend.transpose(code)
    np.testing.assert_array_equal(code.rows[by_latent.order.long()], by_latent.rows)
    assert (code.indices[by_latent.order.long()].diff() >= 0).all()


def padding(x, encoder, bias, k):
    """What is selected, padded to k triples a row, as on a GPU."""
    code = reference.select_top_k(x, encoder, bias, k)
    place = torch.arange(len(code.values)) - code.indptr[code.rows]
    indices, values = torch.zeros(len(x), k, dtype=torch.int32), x.new_zeros(len(x), k)
    indices[code.rows, place], values[code.rows, place] = code.indices, code.values
    indptr = k * torch.arange(len(x) + 1, dtype=torch.int32)
    values = values.flatten()
    return Code(indptr, indices.flatten(), values, code.n, live=values != 0)


def whole(x, encoder, bias, threshold):
    """What is selected, padded to all latents in each row, as of a small batch on a GPU."""
    return reference.whole_code(reference.preactivations(x, encoder, bias), threshold)


PADDED = SimpleNamespace(**vars(reference) | {"select_top_k": padding, "whole_above": whole})


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].recorded])
def test_what_pads_a_code_changes_neither_loss_nor_gradients(name, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, pre_bias = torch.randn(2, 6, 8, generator=generator, dtype=torch.float64)
    pre_bias = pre_bias[0]
    parameters = {"pre_bias": pre_bias, "encoder": torch.randn(9, 8, generator=generator).double()}
    parameters["decoder"] = torch.randn(9, 8, generator=generator).double()
    x[0] = pre_bias  # no latent is positive
    # So wide a bandwidth that without a mask what pads a row would be near its threshold.
    hyperparameters = {"threshold": 0.5, "bandwidth": 1.5}
    found = []
    for backend in (PADDED, reference):
        monkeypatch.setattr(kernels, "_backend", lambda tensor, backend=backend: backend)
        method = METHODS[name](3, hyperparameters)
        own = {key: p.clone() for key, p in parameters.items()}
        for key, p in method.extra_parameters(9).items():
            own[key] = p + torch.linspace(-0.3, 0.4, 9).double()
        own = {key: p.requires_grad_() for key, p in own.items()}
        loss = method.loss(own, x)
        silent = torch.ones(9, dtype=torch.int64)
        active = kernels.reset_active(silent, loss.code)
        penalty = 0.0 if loss.penalty is None else loss.penalty
        gradients = torch.autograd.grad(loss.objective + 0.7 * penalty, list(own.values()))
        found.append([loss.objective.detach(), penalty, active, silent, loss.error, *gradients])
        assert loss.code.padded == (backend is PADDED)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_code_is_padded_only_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(kernels, "_backend", lambda tensor: PADDED)
    encoder = torch.ones(5, 4)
    inputs = (torch.stack([-encoder[0], encoder[0]]), torch.zeros(4), encoder, 3)
    assert kernels.encode_top_k(*inputs, padded=True).l0.tolist() == [3, 3]
    assert kernels.encode_top_k(*inputs).l0.tolist() == [0, 3]
    # Nor where ranks that share latents agree on which are to stay.
    agreed = kernels.encode_top_k(*inputs, top_k_mask=lambda code, k: code.values >= 0, padded=True)
    assert agreed.l0.tolist() == [0, 3]
    assert not agreed.padded
    above = kernels.encode_above(*inputs[:3], padded=True)
    assert above.l0.tolist() == [5, 5]
    assert above.live.sum() == 5
    assert kernels.encode_above(*inputs[:3]).l0.tolist() == [0, 5]
    monkeypatch.setattr(kernels, "RECORDED", 9)
    assert not kernels.encode_above(*inputs[:3], padded=True).padded


@pytest.mark.parametrize("backend", BACKENDS)
def test_latents_with_a_value_are_silent_no_longer(backend):
    indices = torch.tensor([4, 1, 4, 2, 0], dtype=torch.int32)
    values = torch.tensor([0.0, 2.0, 1.0, 0.0, -1.0], requires_grad=True)
    code = Code(torch.tensor([0, 3, 5], dtype=torch.int32), indices, values, 6)
    silent = torch.tensor([7, 0, 5, 3, 9, 2])
    assert backend.reset_active(silent, code).item() == 3
    assert silent.tolist() == [0, 0, 5, 3, 0, 2]


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("select", ["above", "top_k"])
def test_gradients_equal_autograd_through_dense_tensors(dtype, tolerance, select):
    generator = torch.Generator().manual_seed(3)
    rows, n, d, k = 40, 96, 16, 4
    x = torch.randn(rows, d, generator=generator, dtype=dtype)
    shapes = {"pre_bias": (d,), "encoder": (n, d), "decoder": (n, d), "bias": (n,), "scale": (n,)}
    p = {key: torch.randn(s, generator=generator, dtype=dtype) for key, s in shapes.items()}
    p["bias"] -= 6  # sparse enough for the sparse products
    for tensor in p.values():
        tensor.requires_grad_()

    def sparse():
        encoded = (x, p["pre_bias"], p["encoder"])
        if select == "above":
            code = kernels.encode_above(*encoded, bias=p["bias"])
        else:
            code = kernels.encode_top_k(*encoded, k, bias=p["bias"])
        code = code.with_values(code.values.square() * kernels.gather(p["scale"], code))
        return kernels.squared_error(x, code, p["decoder"], p["pre_bias"])

    def plain():
        a = (x - p["pre_bias"]) @ p["encoder"].T + p["bias"]
        z = torch.relu(a)
        if select == "top_k":
            z = torch.zeros_like(z).scatter(1, z.topk(k).indices, z.topk(k).values)
        error = x - (z.square() * p["scale"]) @ p["decoder"] - p["pre_bias"]
        return error.square().sum(), error

    for ours, theirs in zip(sparse(), plain(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    # Of a part of a loss, the whole of which is scaled.
    ours, theirs = (torch.autograd.grad(0.3 * f()[0], list(p.values())) for f in (sparse, plain))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def nested_problem(backend_dtype, share, seed=5):
    """Two nested levels beside the first: x, a code of 3 rows for each row, decoder, bias."""
    generator = torch.Generator().manual_seed(seed)
    rows, n, d = 12, 60, 16

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=backend_dtype).requires_grad_()

    mask = torch.rand(3 * rows, n, generator=generator) < share
    mask[4] = False  # a level that adds nothing
    indptr = torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).int()
    values = draw(int(mask.sum()))
    code = Code(indptr, mask.nonzero()[:, 1].int(), values, n)
    return draw(rows, d).detach(), code, draw(n, d), draw(d), mask


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("share", [0.08, 0.5], ids=["sparse", "dense"])
@pytest.mark.parametrize("biased", [True, False])
def test_nested_squared_errors_equal_those_written_out(dtype, tolerance, share, biased):
    x, code, decoder, bias, mask = nested_problem(dtype, share)
    weights = (0.125, 2.0)
    ours, error = kernels.squared_error(x, code, decoder, bias if biased else None, weights)
    z = torch.zeros(mask.shape, dtype=dtype).index_put(tuple(mask.nonzero().T), code.values)
    decoded = (z @ decoder).view(len(x), 3, -1)
    wanted = [x - decoded[:, : level + 1].sum(1) - biased * bias for level in range(3)]
    parts = [w * e.square().sum() for w, e in zip((1.0, *weights), wanted, strict=True)]
    torch.testing.assert_close(ours, sum(parts), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(error, wanted[0], rtol=tolerance, atol=tolerance)
    leaves = [code.values, decoder, *([bias] if biased else [])]
    for a, b in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(sum(parts), leaves), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("nested", [(), (0.125, 2.0)])
@pytest.mark.parametrize("cut", [0, 25], ids=["none", "some"])
def test_squared_errors_of_two_parts_of_the_latents_are_those_of_all(nested, cut):
    levels = 1 + len(nested)
    code, (x, bias) = random_code(12 * levels, 60, 1), torch.randn(2, 12, 16)
    decoder, bias = torch.randn(60, 16), bias[0]
    expected = kernels.squared_error(x, code, decoder, bias, nested)
    low = code.indices < cut
    parts = [code.keep(low), code.keep(~low)]
    parts[1] = Code(parts[1].indptr, parts[1].indices - cut, parts[1].values, 60 - cut)
    parts[0] = Code(parts[0].indptr, parts[0].indices, parts[0].values, cut)
    decoders = decoder[:cut].requires_grad_(), decoder[cut:].clone().requires_grad_()
    for own, other in ((0, 1), (1, 0)):

        def whole(decoded, other=other):
            return decoded.add_(cpu.product(parts[other], decoders[other].detach()))

        found = kernels.squared_error(x, parts[own], decoders[own], bias, nested, whole)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=RTOL, atol=1e-4)


def test_several_tiles_give_what_one_gives(monkeypatch):
    x, encoder, bias = problem(40, 50, 8, seed=1)
    decoder, code = torch.randn(50, 8), random_code(40, 50, 1)
    assert len(code.indices) > cpu.DENSE_SHARE * 40 * 50  # dense products go through tiles, too
    monkeypatch.setattr(arrays, "TILE_ROWS", 16)
    close = {"rtol": RTOL, "atol": 1e-4}
    above = [b.select_above(x, encoder, bias, 0.5) for b in BACKENDS]
    top = [b.select_top_k(x, encoder, bias, 5) for b in BACKENDS]
    for ours, theirs in (above, top):
        np.testing.assert_allclose(dense(ours), dense(theirs), **close)
    for operation, *matrices in (
        ("product", decoder),
        ("transposed_product", x),
        ("sampled_product", x, decoder),
    ):
        ours, theirs = (getattr(b, operation)(code, *matrices) for b in (cpu, reference))
        torch.testing.assert_close(ours, theirs, **close)


def test_blocks_of_rows_give_what_one_gives(monkeypatch):
    code, gradient = random_code(40, 50, 1), torch.randn(40, 8)
    monkeypatch.setattr(cpu, "DENSE_SHARE", 1.0)
    whole = cpu.transposed_product(code, gradient)
    monkeypatch.setattr(cpu, "BLOCK_BYTES", gradient.nbytes // 3)
    monkeypatch.setattr(cpu, "BLOCK_TRIPLES", 1)
    blocks = cpu.transposed_product(code, gradient)
    torch.testing.assert_close(blocks, whole, rtol=RTOL, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@given(sizes, st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_top_k_mask_and_keep(backend, size, k):
    rows, n, _, seed = size
    code = random_code(rows, n, seed)
    code = code.with_values(code.values.abs())
    kept = code.keep(backend.top_k_mask(code, k))
    assert torch.equal(kept.l0, code.l0.clamp(max=k))
    full, cut = dense(code), dense(kept)
    for row in range(rows):
        values = np.sort(full[row][full[row] != 0])[::-1][:k]
        np.testing.assert_allclose(np.sort(cut[row][cut[row] != 0])[::-1], values)


@pytest.mark.parametrize("backend", BACKENDS)
@given(sizes, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_places_are_those_of_the_mask_and_rows_stay_apart(backend, size, share):
    rows, n, _, seed = size
    code = random_code(rows, n, seed)
    mask = random_mask(code, share, seed)
    indptr, places = backend.places(code, mask)
    assert places.tolist() == mask.nonzero()[:, 0].tolist()
    kept_rows = torch.bincount(code.rows[mask], minlength=rows)
    assert indptr.diff().tolist() == kept_rows.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@given(sizes, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_each_row_is_parted_into_those_of_the_mask_and_the_others(backend, size, share):
    rows, n, _, seed = size
    code = random_code(rows, n, seed)
    mask = random_mask(code, share, seed)
    halves = backend.parted(code, mask)
    first, others = code.keep(mask), code.keep(~mask)
    assert torch.equal(halves.l0, torch.stack([first.l0, others.l0], 1).flatten())
    for part, own in ((first, halves.rows % 2 == 0), (others, halves.rows % 2 == 1)):
        assert torch.equal(halves.indices[own], part.indices)
        assert torch.equal(halves.values[own], part.values)


@given(sizes, st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_a_parted_code_is_the_same_whole_and_in_halves(size, share):
    rows, n, _, seed = size
    code = random_code(rows, n, seed)
    mask = random_mask(code, share, seed)
    whole, halves = code.parted(mask)
    assert torch.equal(whole.to_dense(), code.to_dense())
    assert torch.equal(halves.to_dense()[::2], code.keep(mask).to_dense())
    assert torch.equal(halves.to_dense()[1::2], code.keep(~mask).to_dense())
    assert all(map(torch.equal, whole.by_latent, kernels.transpose(whole)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_top_k_mask_keeps_the_lower_latent_of_equal_values(backend):
    # Two rows, latents in no order; in the first the values of latents 8, 2 and 5 are equal.
    indices = torch.tensor([8, 2, 9, 5, 1, 0, 3], dtype=torch.int32)
    values = torch.tensor([2.0, 2.0, 3.0, 2.0, 1.0, 1.0, 1.0])
    code = Code(torch.tensor([0, 5, 7], dtype=torch.int32), indices, values, 10)
    assert code.keep(backend.top_k_mask(code, 3)).indices.tolist() == [2, 9, 5, 0, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_adam_follows_torch_adam_and_keeps_unit_rows(backend):
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.functional.normalize(torch.randn(20, 6, generator=generator))
    theirs = ours.clone().requires_grad_()
    state = AdamState(torch.zeros_like(ours), torch.zeros_like(ours), ours.clone())
    ema = ours.clone()
    torch_adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.999), eps=6.25e-10)
    for step in range(1, 30):
        gradient = torch.randn(20, 6, generator=generator)
        rates = kernels.adam_rates(step, 0.01, 0.9)
        with torch.no_grad():
            unit = theirs / theirs.norm(dim=1, keepdim=True)
            removed = gradient - (gradient * unit).sum(1, keepdim=True) * unit
        theirs.grad = 0.5 * removed
        torch_adam.step()
        with torch.no_grad():
            theirs /= theirs.norm(dim=1, keepdim=True)
        ema = 0.9 * ema + 0.1 * theirs.detach()
        backend.adam(ours, gradient, state, rates, torch.tensor(0.5), unit_rows=True)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.ema, ema, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(20))
