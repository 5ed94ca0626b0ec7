"""A product of rounded factors rules latents out, never one that belongs to the result."""

import numpy as np
import pytest
import torch
from test_kernel_laws import triples, whole

from l0plane.device import has
from l0plane.kernels import arrays, cpu, selection
from l0plane.kernels.arrays import array, tiles
from l0plane.kernels.screening import Screen

pytestmark = pytest.mark.skipif(
    not (has("avx512_bf16") or has("amx_bf16")), reason="needs a CPU with bfloat16 products"
)
ROWS, N, D, K = 40, 700, 64, 12


def problem(seed, n=N, d=D):
    """Activations and encoder rows of very different norms."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, d, generator=generator)
    encoder = torch.randn(n, d, generator=generator)
    return x * torch.logspace(-3, 4, ROWS)[:, None], encoder * torch.logspace(-1, 1, n)[:, None]


def whole_product(monkeypatch, select, *inputs):
    """What is selected without a screening."""
    with monkeypatch.context() as patch:
        patch.setattr(selection, "SCREENS", False)
        return select(*inputs)


@pytest.fixture
def screenings(monkeypatch):
    """Screen, also where it takes longer; how many tiles were screened to the end."""
    monkeypatch.setattr(selection, "SCREENS", True)
    done = []
    sampled = selection.sampled
    monkeypatch.setattr(selection, "sampled", lambda *a: (done.append(1), sampled(*a)))
    return done


def kinds(seed, d):
    """Rows that rounding moves in different ways."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(8, d, generator=generator)
    # Just below the middle between two bfloat16 numbers, all to the same side.
    one_sided = torch.full((1, d), 1 + 2.0**-8 - 2.0**-20)
    alternating = one_sided * torch.tensor([1.0, -1.0]).repeat(d)[:d]
    heavy = normal[:2] ** 5
    tiny = torch.cat([normal[:1] * 1e-20, normal[1:2] * 1e-38])
    return torch.cat([normal, one_sided, alternating, heavy, tiny, torch.zeros(1, d)])


@pytest.mark.parametrize("d", [1, 2, 33, 768, 4096])
def test_no_pre_activation_is_farther_off_than_its_margin(d):
    x, encoder = kinds(1, d), kinds(2, d)
    n, none = len(encoder), np.zeros(len(encoder), np.float32)
    screen = Screen.of(x, encoder, none, none)
    ((part, tile),) = tiles(len(x), n)
    bits, margin = screen.product(part, tile)
    exact = x.double().numpy() @ encoder.double().numpy().T
    for row in range(len(x)):
        seen = np.empty(n, np.float32)
        off = selection._read(array(tile), bits, none, margin, row, seen)
        assert (np.abs(seen - exact[row]) <= off).all()
        # The margin is of use: a fraction of what the row could have at most.
        most = np.linalg.norm(x[row].double()) * encoder.double().norm(dim=1).max()
        assert off < 0.02 * most + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_values_that_bfloat16_cannot_tell_apart_are_told_apart(seed, screenings):
    x, encoder = problem(seed)
    # Of sixty latents all have the same rounded pre-activation, and the largest.
    close = encoder.abs()[:1] + 1e-4 * encoder[:60].abs().sort(0).values / encoder[:60].norm()
    encoder[300:360] = 20 * close[torch.randperm(60, generator=torch.Generator().manual_seed(seed))]
    x = x.abs()
    code = cpu.select_top_k(x, encoder, None, K)
    assert screenings
    a = x.double() @ encoder.double().T
    top = a.topk(K + 1)
    for row in range(ROWS):
        found = code.indices[code.rows == row].tolist()
        if top.values[row, K - 1] > top.values[row, K] * (1 + 1e-6):
            assert set(found) == set(top.indices[row, :K].tolist())
    got = torch.gather(a, 1, code.indices.view(ROWS, K).long())
    torch.testing.assert_close(code.values.view(ROWS, K).double(), got, rtol=1e-5, atol=0)


def test_the_largest_is_found_where_rounding_is_as_unkind_as_it_can_be(monkeypatch, screenings):
    # Rounding takes 2^-8 from each entry of one latent, which is the largest and looks like 1.0
    # instead of 1.25; it adds as much to K others, which are at 1.246 and look like 1.49.
    # Each row is a tile, and has a margin of its own.
    monkeypatch.setattr(arrays, "TILE_ROWS", 1)
    x = torch.ones(3, 65) * torch.tensor([[0.125], [1.0], [8.0]])
    low, high = torch.full((65,), 1 + 2.0**-8), torch.full((65,), 1 + 2.0**-8 + 2.0**-20)
    high[0] = 1.0
    low[-1] = high[-1] = -63.0
    encoder = torch.zeros(N, 65)
    encoder[100 : 100 + K] = high
    encoder[200:205] = high  # looks only a little smaller, so that the bound is near 1.49
    encoder[200:205, 1] = 1 - 2.0**-7
    encoder[400] = low
    code = cpu.select_top_k(x, encoder, None, K)
    assert len(screenings) == 3
    for row in range(3):
        found = code.indices[code.rows == row].tolist()
        assert sorted(found) == [*range(100, 100 + K - 1), 400]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_k_largest_are_those_of_the_whole_product(seed, with_bias, monkeypatch, screenings):
    monkeypatch.setattr(arrays, "TILE_ROWS", 16)
    x, encoder = problem(seed)
    bias = torch.randn(N, generator=torch.Generator().manual_seed(seed)) if with_bias else None
    inputs = (x, encoder, bias, K)
    ours = cpu.select_top_k(*inputs)
    assert len(screenings) == 3
    theirs = whole_product(monkeypatch, cpu.select_top_k, *inputs)
    assert triples(ours)[:2] == triples(theirs)[:2]


@pytest.mark.parametrize("most_negative", [False, True])
@pytest.mark.parametrize("d", [7, 40])
@pytest.mark.parametrize("seed", range(5))
def test_ties_and_few_positive_values_are_treated_alike(
    seed, d, most_negative, monkeypatch, screenings
):
    x, encoder, bias = whole(seed, ROWS, d), whole(seed + 1, N, d), whole(seed + 2, N)
    if most_negative:
        bias -= 3 * d
    for number, (select, last) in enumerate(
        ((cpu.select_top_k, K), (cpu.select_above, 8.0 * d**0.5)), start=1
    ):
        ours = select(x, encoder, bias, last)
        assert len(screenings) == number
        assert triples(ours) == triples(whole_product(monkeypatch, select, x, encoder, bias, last))


def test_of_equal_latents_the_lower_are_kept_whatever_their_place(screenings):
    x, encoder = problem(0)
    x = x.abs()
    places = [3, 77, 130, 255, 256, 300, 511, 690, 699]  # more than are computed at a time
    encoder[places] = 500 * encoder[0].abs()
    code = cpu.select_top_k(x, encoder, None, 7)
    assert screenings
    for row in range(ROWS):
        assert sorted(code.indices[code.rows == row].tolist()) == places[:7]


@pytest.mark.parametrize("seed", range(3))
def test_what_exceeds_thresholds_is_that_of_the_whole_product(seed, monkeypatch, screenings):
    x, encoder = problem(seed)
    x, encoder = (t / t.norm(dim=1, keepdim=True) for t in (x, encoder))
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(N, generator=generator)
    # Thresholds within a rounding to bfloat16 of each latent's second largest value, on both sides
    # of it, and farther than the order of float32 sums moves it.
    near = (x @ encoder.T + bias).topk(2, dim=0).values[1]
    away = 1e-3 * torch.randn(N, generator=generator)
    threshold = near + away + 1e-5 * away.sign()
    monkeypatch.setattr(arrays, "TILE_ROWS", 16)
    inputs = (x, encoder, bias, threshold)
    ours = cpu.select_above(*inputs)
    assert len(screenings) == 3
    theirs = whole_product(monkeypatch, cpu.select_above, *inputs)
    assert triples(ours)[:2] == triples(theirs)[:2]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38, 1e25])
def test_numbers_without_a_margin_take_the_whole_product(value, monkeypatch, screenings):
    x, encoder = problem(0)
    x[7, 3] = value
    encoder[9, 4] = value
    ours = cpu.select_top_k(x, encoder, None, K)
    assert not screenings
    assert triples(ours) == triples(
        whole_product(monkeypatch, cpu.select_top_k, x, encoder, None, K)
    )


def test_many_candidates_take_the_whole_product_from_their_tile_on(monkeypatch, screenings):
    monkeypatch.setattr(arrays, "TILE_ROWS", 16)
    x, encoder = problem(0)
    x[:16] = 1e-3 * x[:16] / x[:16].norm(dim=1, keepdim=True)  # far below the threshold
    code = cpu.select_above(x, encoder, None, 0.1)
    assert len(screenings) == 1
    assert torch.equal(code.l0, (x @ encoder.T > 0.1).sum(1))
