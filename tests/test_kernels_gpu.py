"""The Triton kernels against the reference: on a GPU if there is one, else interpreted.

The interpreter takes some milliseconds for each program of a kernel, so the sizes are small; what
it cannot tell, whether the kernels compile for a GPU, the last test says without one.
"""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from l0plane import kernels
from l0plane.code import Code
from l0plane.files import UserError
from l0plane.kernels import AdamState, reference

pytest.importorskip("triton", reason="no Triton, which CUDA builds of PyTorch bring: make test-gpu")
gpu = importlib.import_module("l0plane.kernels.gpu")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def same(code, expected):
    """The same triples in the same order, values to rounding."""
    assert torch.equal(code.indptr, expected.indptr)
    assert torch.equal(code.indices, expected.indices)
    torch.testing.assert_close(code.values, expected.values, rtol=1e-5, atol=1e-6)
    assert code.shape == expected.shape


def random_code(rows, n, share=0.3):
    mask = draw(rows, n, seed=5) < torch.tensor(share).logit()
    mask[0] = False
    indptr = torch.cat([mask.new_zeros(1), mask.sum(1).cumsum(0)]).int()
    return Code(indptr, mask.nonzero()[:, 1].int(), draw(rows, n, seed=6)[mask], n)


@pytest.fixture(autouse=True)
def pieces(request, monkeypatch):
    """Pieces so small that these sizes have several of them, but where a test says otherwise."""
    if "full_size" not in request.node.name:
        monkeypatch.setattr(gpu, "SEGMENT", 32)
        monkeypatch.setattr(gpu, "TILE_FLOATS", 140)
        monkeypatch.setattr(gpu, "GATHERED", 32)
        monkeypatch.setattr(gpu, "COLUMNS", 8)
        monkeypatch.setattr(gpu, "DENSE_SHARE", 1.0)


@pytest.mark.parametrize(
    ("n", "k", "with_bias"), [(20, 5, False), (70, 1, True), (70, 9, False), (70, 200, True)]
)
def test_top_k(n, k, with_bias):
    x, encoder, bias = draw(3, 12), draw(n, 12, seed=1), draw(n, seed=3) if with_bias else None
    same(gpu.select_top_k(x, encoder, bias, k), reference.select_top_k(x, encoder, bias, k))


@pytest.mark.parametrize("threshold", [1.5, draw(70, seed=2)], ids=["one", "each"])
def test_above(threshold):
    x, encoder, bias = draw(3, 12), draw(70, 12, seed=1), draw(70, seed=3)
    found = gpu.select_above(x, encoder, bias, threshold)
    same(found, reference.select_above(x, encoder, bias, threshold))


def test_more_active_latents_than_can_be_counted_are_refused(monkeypatch):
    x, encoder = torch.ones(3, 12, device=DEVICE), torch.ones(20, 12, device=DEVICE)
    monkeypatch.setattr(gpu, "MOST_TRIPLES", 60)
    assert len(gpu.select_above(x, encoder, None, 0.0).indices) == 60
    monkeypatch.setattr(gpu, "MOST_TRIPLES", 59)
    with pytest.raises(UserError, match=r"in a batch of 3 .* lower training\.batch_tokens"):
        gpu.select_above(x, encoder, None, 0.0)


@pytest.mark.parametrize("k", [3, 8])
def test_of_equal_values_the_lower_latents_are_kept(k):
    levels = torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0, -1.0, 1.0, 0.0], device=DEVICE).repeat(6)
    x = torch.eye(2, device=DEVICE)
    encoder = torch.stack([levels, levels.flip(0)], 1)
    same(gpu.select_top_k(x, encoder, None, k), reference.select_top_k(x, encoder, None, k))


@pytest.mark.parametrize("k", [2, 48])
def test_values_that_are_not_finite(k):
    values = draw(2, 48)
    values[0, [3, 20, 21]] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=DEVICE)
    values[1] = torch.nan
    selected = gpu.select_top_k(torch.eye(2, device=DEVICE), values.T.contiguous(), None, k)
    # The product spreads NaN over both rows, which is why the kernel is looked at by itself.
    assert len(selected.indices) == selected.indptr[-1]
    indices, kept, counts = gpu._largest(values, None, k)
    a = values.nan_to_num(nan=-1.0, posinf=torch.inf, neginf=-torch.inf)
    expected = (a > 0).sum(1).clamp(max=k)
    assert torch.equal(counts, expected.int())
    top = a[0].topk(int(expected[0]))
    order = top.indices.sort()
    assert torch.equal(indices[0, : counts[0]], order.values.int())
    assert torch.equal(kept[0, : counts[0]], top.values[order.indices])


def test_rows_without_positive_values_and_empty_codes():
    encoder = torch.ones(50, 4, device=DEVICE)
    x = torch.stack([-encoder[0], encoder[0], -encoder[0]])
    same(gpu.select_top_k(x, encoder, None, 3), reference.select_top_k(x, encoder, None, 3))
    nothing = gpu.select_above(-x[1:2], encoder, None, 0.0)
    same(nothing, reference.select_above(-x[1:2], encoder, None, 0.0))
    assert gpu.product(nothing, encoder).abs().sum() == 0
    assert gpu.transposed_product(nothing, x[:1]).abs().sum() == 0
    assert gpu.latent_sums(nothing).abs().sum() == 0
    assert gpu.sampled_product(nothing, x[:1], encoder).shape == (0,)


@pytest.mark.parametrize("d", [1, 12])
def test_products(d):
    code = random_code(3, 20)
    decoder, gradient = draw(20, d, seed=1), draw(3, d, seed=2)
    for name, operands in {
        "product": (decoder,),
        "transposed_product": (gradient,),
        "sampled_product": (gradient, decoder),
        "latent_sums": (),
    }.items():
        found, expected = (getattr(b, name)(code, *operands) for b in (gpu, reference))
        torch.testing.assert_close(found, expected, **CLOSE)
        assert torch.equal(getattr(gpu, name)(code, *operands), found)
    for found, expected in zip(gpu.transpose(code), reference.transpose(code), strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


@pytest.mark.parametrize("shape", [(5, 6), (3000,)], ids=["decoder", "bias"])
def test_adam(shape):
    ours, theirs = draw(*shape), draw(*shape)
    states = [
        AdamState(torch.zeros_like(ours), torch.zeros_like(ours), ours.clone()) for _ in range(2)
    ]
    for step in range(1, 4):
        gradient = draw(*shape, seed=step)
        for backend, parameter, state in zip((gpu, reference), (ours, theirs), states, strict=True):
            state.step = step
            backend.adam(parameter, gradient, state, 0.01, 0.5, 0.9, unit_rows=len(shape) == 2)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for name in ("mean", "square", "ema"):
        pair = [getattr(state, name) for state in states]
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)


def test_a_step_of_training_takes_these_kernels_and_has_the_gradients_of_the_reference(monkeypatch):
    parameters = [draw(12), draw(20, 12, seed=1), draw(20, 12, seed=2)]
    found = []
    for backend in (gpu, reference):
        monkeypatch.setattr(kernels, "_backend", lambda tensor, backend=backend: backend)
        pre_bias, encoder, decoder = (p.clone().requires_grad_() for p in parameters)
        x = draw(3, 12, seed=3)
        code = kernels.encode_top_k(x, pre_bias, encoder, 3)
        loss = (x - kernels.decode(code, decoder, pre_bias)).square().sum()
        found.append(torch.autograd.grad(loss, [pre_bias, encoder, decoder]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter would take hours")
@pytest.mark.parametrize(("n", "k"), [(32768, 32), (70_000, 5000), (4096, 4096)])
def test_full_size(n, k):
    x, encoder = draw(64, 128), draw(n, 128, seed=1)
    same(gpu.select_top_k(x, encoder, None, k), reference.select_top_k(x, encoder, None, k))
    code = gpu.select_above(x, encoder, None, 20.0)
    same(code, reference.select_above(x, encoder, None, 20.0))
    torch.testing.assert_close(gpu.product(code, encoder), reference.product(code, encoder))
    found, expected = (b.transposed_product(code, x) for b in (gpu, reference))
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.skipif(DEVICE == "cpu", reason="bfloat16 products with float32 sums need a GPU")
def test_medium_precision_rounds_the_inputs_of_the_encoder_product_and_nothing_else():
    x, encoder = draw(64, 256), draw(512, 256, seed=1)
    torch.set_float32_matmul_precision("medium")
    try:
        code = gpu.select_top_k(x, encoder, None, 8)
    finally:
        torch.set_float32_matmul_precision("highest")
    exact = x.bfloat16().double() @ encoder.bfloat16().double().T
    values = exact[code.rows, code.indices.long()].float()
    torch.testing.assert_close(code.values, values, rtol=1e-5, atol=1e-4)


COMPILE = """
from importlib import import_module

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
gpu = import_module("l0plane.kernels.gpu")

INTEGERS = {"indices", "latents", "counts", "ends", "indptr", "rows"}
SCALARS = {"n": "i32", "width": "i32", "k": "i32", "d": "i32", "size": "i32"}
SCALARS |= dict.fromkeys(["rate", "root", "scale", "ema_decay"], "fp32")
CONSTANTS = {"BLOCK": 256, "TRIPLES": 8, "COLUMNS": 32, "UNIT_ROWS": True}
CONSTANTS |= {"BETA1": 0.9, "BETA2": 0.999, "EPS": 1e-9}


def compile(kernel, **constants):
    constants = {n: v for n, v in CONSTANTS.items() if n in kernel.arg_names} | constants
    signature = {
        name: "constexpr"
        if name in constants
        else SCALARS.get(name, "*i32" if name in INTEGERS else "*fp32")
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]


for name in ("_count_above", "_keep_above", "_top_k", "_sum_gathered", "_sampled_product", "_adam"):
    compile(getattr(gpu, name))
compile(gpu._top_k, latents=None)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    (tmp_path / "compile_kernels.py").write_text(COMPILE)
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, tmp_path / "compile_kernels.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
