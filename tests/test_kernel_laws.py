"""Laws of the sparse operations, for any shape and for values that are awkward.

Everything here is a small whole number, so that sums are exact in any order: ties are many, and the
compiled kernels have to agree with the reference to the last bit.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import BACKENDS, sizes

from l0plane.code import Code
from l0plane.kernels import cpu, reference

FEW = settings(max_examples=25, deadline=None)
backends = pytest.mark.parametrize("backend", BACKENDS, ids=["reference", "cpu"])


def whole(seed, *shape, low=-3, high=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).float()


def a_code(rows, n, seed, share, low=-3):
    """A code of whole numbers; of each entry, active or not is drawn with probability `share`."""
    mask = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed)) < share
    indptr = torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).int()
    values = whole(seed + 1, rows, n, low=low)[mask]
    return Code(indptr, mask.nonzero()[:, 1].int(), values, n)


def triples(code):
    """The triples in the order of row and latent."""
    order = torch.argsort(code.rows * code.n + code.indices, stable=True)
    return code.rows[order].tolist(), code.indices[order].tolist(), code.values[order].tolist()


shares = st.sampled_from([0.0, 0.05, 0.3, 1.0])


@given(sizes, st.integers(1, 90), st.booleans())
@FEW
def test_both_select_the_same_top_k(size, k, with_nan):
    rows, n, d, seed = size
    x, encoder, bias = whole(seed, rows, d), whole(seed + 1, n, d), whole(seed + 2, n)
    if with_nan:
        encoder[seed % n] = torch.nan  # one latent
        x[seed % rows] = torch.nan  # and one row
    ours, theirs = (backend.select_top_k(x, encoder, bias, k) for backend in (cpu, reference))
    assert triples(ours) == triples(theirs)
    a = x @ encoder.T + bias
    assert ours.l0.tolist() == (a > 0).sum(1).clamp(max=k).tolist()
    assert torch.equal(ours.values, a[ours.rows, ours.indices.long()])
    dropped = a.index_put((ours.rows, ours.indices.long()), torch.tensor(-torch.inf))
    for row in range(rows):
        if 0 < ours.l0[row] == k:
            least = ours.values[ours.rows == row].min()
            assert least >= dropped[row].nan_to_num(nan=-torch.inf).max()


@given(sizes, st.booleans())
@FEW
def test_both_select_the_same_above_a_threshold_that_values_may_equal(size, one_for_all):
    rows, n, d, seed = size
    x, encoder, bias = whole(seed, rows, d), whole(seed + 1, n, d), whole(seed + 2, n)
    threshold = 1.0 if one_for_all else whole(seed + 3, n)
    ours, theirs = (b.select_above(x, encoder, bias, threshold) for b in (cpu, reference))
    assert triples(ours) == triples(theirs)
    assert len(ours.indices) == int((x @ encoder.T + bias > threshold).sum())


@given(sizes, st.integers(1, 90), shares)
@FEW
def test_both_cut_a_code_alike_and_to_exactly_k(size, k, share):
    rows, n, _, seed = size
    code = a_code(rows, n, seed, share, low=1)
    ours, theirs = (backend.top_k_mask(code, k) for backend in (cpu, reference))
    assert ours.tolist() == theirs.tolist()
    kept = code.keep(ours)
    assert kept.l0.tolist() == code.l0.clamp(max=k).tolist()
    assert kept.keep(cpu.top_k_mask(kept, k)).indices.tolist() == kept.indices.tolist()


@backends
@given(sizes, shares)
@FEW
def test_the_transpose_of_the_transpose_is_the_code(backend, size, share):
    rows, n, _, seed = size
    code = a_code(rows, n, seed, share)
    by_latent = backend.transpose(code)
    order = by_latent.order.long()
    assert sorted(order.tolist()) == list(range(len(code.indices)))
    transposed = Code(by_latent.indptr, by_latent.rows, code.values[order], rows)
    assert torch.equal(transposed.to_dense(), code.to_dense().T)
    back = backend.transpose(transposed)
    assert torch.equal(back.indptr, code.indptr)
    assert torch.equal(back.rows, code.indices)
    assert torch.equal(transposed.values[back.order.long()], code.values)


@backends
@given(sizes, shares, st.integers(-3, 3), st.integers(-3, 3))
@FEW
def test_decoding_is_linear_in_the_values_and_in_the_active_set(backend, size, share, s, t):
    rows, n, d, seed = size
    one, decoder = a_code(rows, n, seed, share), whole(seed + 5, n, d)
    other = one.with_values(whole(seed + 6, len(one.values)))
    mixed = one.with_values(s * one.values + t * other.values)
    decoded = [backend.product(code, decoder) for code in (one, other, mixed)]
    assert torch.equal(decoded[2], s * decoded[0] + t * decoded[1])
    mask = whole(seed + 7, len(one.values)) > 0
    parts = [backend.product(one.keep(m), decoder) for m in (mask, ~mask)]
    assert torch.equal(parts[0] + parts[1], decoded[0])


@backends
@given(sizes, shares)
@FEW
def test_each_gradient_is_the_adjoint_of_its_product(backend, size, share):
    rows, n, d, seed = size
    code, decoder = a_code(rows, n, seed, share), whole(seed + 5, n, d)
    gradient, vector = whole(seed + 6, rows, d), whole(seed + 7, n)
    decoded = (backend.product(code, decoder) * gradient).sum()
    assert decoded == (backend.sampled_product(code, gradient, decoder) * code.values).sum()
    assert decoded == (backend.transposed_product(code, gradient) * decoder).sum()
    at_places = (vector[code.indices.long()] * code.values).sum()
    assert at_places == (backend.latent_sums(code) * vector).sum()
