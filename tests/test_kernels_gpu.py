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
from torch.utils._python_dispatch import TorchDispatchMode

from l0plane import kernels, recording
from l0plane.code import Code
from l0plane.files import UserError
from l0plane.kernels import AdamState, reference
from l0plane.methods import METHODS
from l0plane.trainer import Trainer

pytest.importorskip("triton", reason="no Triton, which CUDA builds of PyTorch bring: make test-gpu")
gpu, products, selection = (
    importlib.import_module(f"l0plane.kernels.{name}")
    for name in ("gpu", "gpu_products", "gpu_selection")
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def same(code, expected):
    """The same triples in the same order, values to rounding; what pads a code does not count."""
    if code.padded:
        assert len(set(code.l0.tolist())) == 1
        padding = code.values == 0
        assert not code.indices[padding].any()
        code = code.keep(~padding)
    assert torch.equal(code.indptr, expected.indptr)
    assert torch.equal(code.indices, expected.indices)
    torch.testing.assert_close(code.values, expected.values, rtol=1e-5, atol=1e-6)
    assert code.shape == expected.shape


def random_code(rows, n, share=0.3):
    mask = torch.rand(rows, n, generator=torch.Generator().manual_seed(5)).to(DEVICE) < share
    mask[0] = False
    indptr = torch.cat([mask.new_zeros(1), mask.sum(1).cumsum(0)]).int()
    return Code(indptr, mask.nonzero()[:, 1].int(), draw(rows, n, seed=6)[mask], n)


@pytest.fixture(autouse=True)
def pieces(request, monkeypatch):
    """Pieces so small that these sizes have several of them, but where a test says otherwise."""
    if "full_size" not in request.node.name:
        monkeypatch.setattr(selection, "SEGMENT", 32)
        monkeypatch.setattr(selection, "TILE_BYTES", 560)
        monkeypatch.setattr(selection, "GROUP", 4)
        monkeypatch.setattr(selection, "LEAST_GROUP", 2)
        monkeypatch.setattr(selection, "GROUPS_FOR_EACH", 2)
        monkeypatch.setattr(products, "GATHERED", 32)
        monkeypatch.setattr(products, "ROW_BYTES", 32)
        monkeypatch.setattr(selection, "MEMBERS", 16)
        monkeypatch.setattr(products, "PART", 2)
        monkeypatch.setattr(selection, "MARKED", 8)
        monkeypatch.setattr(products, "DENSE_SHARE", 1.0)


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
    monkeypatch.setattr(selection, "MOST_TRIPLES", 60)
    assert len(gpu.select_above(x, encoder, None, 0.0).indices) == 60
    monkeypatch.setattr(selection, "MOST_TRIPLES", 59)
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
    assert not selected.values.any()
    indices, kept = selection._largest(values, k)
    a = values.nan_to_num(nan=-1.0, posinf=torch.inf, neginf=-torch.inf)
    expected = (a > 0).sum(1).clamp(max=k)
    assert torch.equal((kept > 0).sum(1), expected)
    count = int(expected[0])
    top = a[0].topk(count)
    order = top.indices.sort()
    assert torch.equal(indices[0, :count], order.values.int())
    assert torch.equal(kept[0, :count], top.values[order.indices])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [3, 7])
def test_candidates_hold_the_largest_wherever_they_lie(k, dtype):
    spread, together, many, ties, odd, few = draw(6, 80, seed=4)
    together[8:24] += 10  # all in a few groups
    many[8:40] += 10  # more than there is room for
    ties[:] = ties.sign()
    odd[[3, 20, 21, 40]] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0], device=DEVICE)
    few = torch.where(few > 2, few, -1.0)
    a = torch.stack([spread, together, many, ties, odd, few]).to(dtype)
    found, counts, values = selection._candidates(a, k, 4)
    for row, places, count, kept in zip(a.float(), found, counts, values, strict=True):
        row = row.nan_to_num(nan=-1.0, posinf=torch.inf)
        order = torch.sort(row, descending=True, stable=True).indices[:k]
        wanted = order[row[order] > 0]
        assert torch.equal(kept[:count], row[places[:count].long()])
        places = places[:count].tolist()
        assert places == sorted(set(places))
        assert set(wanted.tolist()) <= set(places)
    assert counts.max() <= 16


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("k", [2, 3])
def test_neighbours_that_are_all_large(k, precision, request):
    """More of them than there is room for candidates: these are sought in another way."""
    if precision == "medium":
        request.getfixturevalue("rounded")
    values = draw(3, 70, seed=4)
    values[1:, 4:40] += 10
    x, encoder = torch.eye(3, device=DEVICE), values.bfloat16().float().T.contiguous()
    same(gpu.select_top_k(x, encoder, None, k), reference.select_top_k(x, encoder, None, k))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_k_largest_of_a_code(k):
    x, encoder = draw(5, 12), draw(70, 12, seed=1)
    x[1] = 0
    code = reference.select_above(x, encoder, None, 1.0)
    ties = code.with_values(code.values.round())
    places = torch.arange(len(code.values), dtype=torch.int32, device=DEVICE)
    single = Code(code.indptr[[0, -1]], places, ties.values, 999)
    for each in (code, ties, single):
        assert torch.equal(gpu.top_k_mask(each, k), reference.top_k_mask(each, k))


def test_rows_without_positive_values_and_empty_codes():
    encoder = torch.ones(50, 4, device=DEVICE)
    x = torch.stack([-encoder[0], encoder[0], -encoder[0]])
    same(gpu.select_top_k(x, encoder, None, 3), reference.select_top_k(x, encoder, None, 3))
    no_latents = Code(torch.zeros(40, device=DEVICE).int(), draw(0).int(), draw(0), 0)
    assert gpu.transposed_product(no_latents, draw(39, 4)).shape == (0, 4)
    nothing = gpu.select_above(-x[1:2], encoder, None, 0.0)
    same(nothing, reference.select_above(-x[1:2], encoder, None, 0.0))
    assert gpu.product(nothing, encoder).abs().sum() == 0
    assert gpu.transposed_product(nothing, x[:1]).abs().sum() == 0
    assert gpu.latent_sums(nothing).abs().sum() == 0
    assert gpu.sampled_product(nothing, x[:1], encoder).shape == (0,)


def test_a_code_is_padded_only_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(kernels, "_backend", lambda tensor: gpu)
    encoder = torch.ones(50, 4, device=DEVICE)
    x = torch.stack([-encoder[0], encoder[0]])
    for padded, counts in ((True, [3, 3]), (False, [0, 3])):
        code = kernels.encode_top_k(x, 0 * encoder[0], encoder, 3, padded=padded)
        assert code.padded == padded
        assert code.l0.tolist() == counts
        assert gpu.product(code, encoder).tolist() == [[0.0] * 4, [12.0] * 4]
        assert code.to_dense().sum(1).tolist() == [0.0, 12.0]


def test_what_pads_a_code_is_summed_for_no_latent(monkeypatch):
    """It may be most of what there is: AuxK's k stays as it is when few latents are dead."""
    monkeypatch.setattr(kernels, "_backend", lambda tensor: gpu)
    encoder = torch.ones(50, 4, device=DEVICE)
    x = torch.stack([-encoder[0], encoder[0]])
    code = kernels.encode_top_k(x, 0 * encoder[0], encoder, 3, padded=True)
    assert code.by_latent.indptr[[0, -1]].tolist() == [0, 3]
    for half in code.parted(code.values > 0):
        assert half.by_latent.indptr[[0, -1]].tolist() == [0, 3]


def test_a_step_with_fewer_dead_latents_than_auxk_takes_is_that_of_the_reference(monkeypatch):
    x = draw(6, 12)
    method = METHODS["topk"](1, {})
    settings = {"clip_norm": 1.0, "ema": 0.9, "dead_after_tokens": 1, "aux_k": 15, "aux_weight": 1}
    found = []
    for backend in (gpu, reference):
        monkeypatch.setattr(kernels, "_backend", lambda tensor, backend=backend: backend)
        parameters = method.initialise(x, 20, torch.Generator().manual_seed(0))
        trainer = Trainer(method, parameters, 1.0, settings)
        facts = trainer.read(trainer.step(x, 0.01, 0.0))
        facts.pop("seconds")
        found.append((facts, trainer.states["encoder"].mean, trainer.states["decoder"].mean))
    assert 0 < found[0][0]["dead_fraction"] < 1
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("d", "rows"), [(1, 3), (12, 3), (12, 17)])
def test_products(d, rows):
    code = random_code(rows, 20)
    decoder, gradient = draw(20, d, seed=1), draw(rows, d, seed=2)
    found, expected = (b.product(code, decoder, draw(d, seed=9)) for b in (gpu, reference))
    torch.testing.assert_close(found, expected, **CLOSE)
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


@pytest.mark.parametrize("nested", [(), (0.125,), (0.125, 2.0)])
@pytest.mark.parametrize("d", [1, 12, 40])
def test_squared_errors(nested, d):
    code = random_code(3 * (1 + len(nested)), 20)
    for bias in (draw(d, seed=9), None):
        operands = (draw(3, d, seed=2), code, draw(20, d, seed=1), bias, nested, None)
        found, expected = (b.squared_error(*operands) for b in (gpu, reference))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("shape", [(5, 6), (3000,)], ids=["decoder", "bias"])
def test_adam(shape):
    ours, theirs = draw(*shape), draw(*shape)
    states = [
        AdamState(torch.zeros_like(ours), torch.zeros_like(ours), ours.clone()) for _ in range(2)
    ]
    half = torch.tensor(0.5, dtype=torch.float64, device=DEVICE)
    for step in range(1, 4):
        gradient = draw(*shape, seed=step)
        for backend, parameter, state in zip((gpu, reference), (ours, theirs), states, strict=True):
            rates = kernels.adam_rates(step, 0.01, 0.9)
            backend.adam(parameter, gradient, state, rates, half, unit_rows=len(shape) == 2)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for name in ("mean", "square", "ema"):
        pair = [getattr(state, name) for state in states]
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)


RECORDED = [name for name in METHODS if METHODS[name].recorded]
HYPERPARAMETERS = {"threshold": 0.5, "bandwidth": 0.5}


@pytest.mark.parametrize("name", RECORDED)
def test_a_loss_takes_these_kernels_and_has_the_gradients_of_the_reference(monkeypatch, name):
    parameters = {"pre_bias": draw(12), "encoder": draw(20, 12, seed=1)}
    parameters["decoder"] = draw(20, 12, seed=2)
    # No latent of the second row is positive, and of the third one.
    x = draw(3, 12, seed=3)
    x[1:] = parameters["pre_bias"]
    x[2] += 1
    parameters["encoder"][1:] -= parameters["encoder"][1:].sum(1, keepdim=True).clamp(min=0)
    parameters["encoder"][0] += 1
    method = METHODS[name](3, HYPERPARAMETERS)
    parameters |= {key: p.to(DEVICE) for key, p in method.extra_parameters(20).items()}
    found = []
    for backend in (gpu, reference):
        monkeypatch.setattr(kernels, "_backend", lambda tensor, backend=backend: backend)
        own = {key: p.clone().requires_grad_() for key, p in parameters.items()}
        loss = METHODS[name](3, HYPERPARAMETERS).loss(own, x)
        total = loss.objective if loss.penalty is None else loss.objective + 0.7 * loss.penalty
        found.append([total.detach(), *torch.autograd.grad(total, list(own.values()))])
        assert loss.code.padded == (backend is gpu)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


class Waits(TorchDispatchMode):
    """Counts where the host asks for a number, or for how many there are: a GPU is waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
        )
        return function(*args, **(kwargs or {}))


def trainer_of(name, x, k=3, n=20, **settings):
    method = METHODS[name](k, HYPERPARAMETERS)
    parameters = method.initialise(x, n, torch.Generator().manual_seed(0))
    settings = {"dead_after_tokens": 1000, "aux_k": 4, "aux_weight": 0.5} | settings
    return Trainer(method, parameters, 1.0, settings | {"clip_norm": 1.0, "ema": 0.9})


@pytest.mark.parametrize("dead_after_tokens", [1000, 1])
@pytest.mark.parametrize("name", RECORDED)
def test_a_step_that_repeats_waits_for_nothing(monkeypatch, name, dead_after_tokens):
    monkeypatch.setattr(kernels, "_backend", lambda tensor: gpu)
    monkeypatch.setattr(METHODS[name], "repeats", lambda method, x, n: True)
    monkeypatch.setattr(recording, "WARM_UP", 1000)
    x = draw(6, 12)
    trainer = trainer_of(name, x, dead_after_tokens=dead_after_tokens)
    trainer.read(trainer.step(x, 0.01, 0.0))
    with Waits() as waits:
        steps = [trainer.step(x, 0.01, 0.0) for _ in range(3)]
    assert not waits.count
    assert trainer.read(steps[-1])["loss"] < trainer.read(steps[0])["loss"]


def test_a_step_of_any_size_waits_for_nothing_while_no_latent_is_dead(monkeypatch):
    monkeypatch.setattr(kernels, "_backend", lambda tensor: gpu)
    x = draw(6, 12)
    for name in ("topk", "multi_topk"):
        trainer = trainer_of(name, x)
        trainer.read(trainer.step(x, 0.01, 0.0))  # after which it knows that none is dead yet
        with Waits() as waits:
            trainer.step(x, 0.01, 0.0)
        assert not waits.count
    with Waits() as waits:
        kernels.encode_top_k(x, x[0], draw(20, 12), 3)
    assert waits.count


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU to record for")
@pytest.mark.parametrize(
    ("name", "rows", "n", "k"),
    [(name, 8, 100, 1) for name in RECORDED]
    + [(name, 1024, 16384, 32) for name in ("topk", "multi_topk")],
)
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_full_size_recorded_steps_have_the_bits_of_others(
    monkeypatch, name, rows, n, k, precision, request
):
    if precision == "medium":
        request.getfixturevalue("rounded")
    x = draw(8, rows, 64)
    results = []
    for warm_up in (2, 1000):
        monkeypatch.setattr(recording, "WARM_UP", warm_up)
        trainer = trainer_of(name, x[0], k=k, n=n, dead_after_tokens=7.5 * rows)
        taken = []
        for step in range(24):
            taken.append(trainer.step(x[step % 8], 0.01 / (1 + step), 0.1 * step))
            facts = trainer.read(taken[max(0, step - 1)])
        # A step without AuxK and, from when there were dead latents, one with it.
        assert len(trainer._recordings) == (0 if warm_up > 24 else 1 + trainer.method.auxk)
        facts.pop("seconds")
        tensors = [*trainer.parameters.values(), trainer.silent_tokens]
        for state in trainer.states.values():
            tensors += [state.mean, state.square, state.ema]
        results.append((facts, tensors))
    assert results[0][0] == results[1][0]
    assert results[0][0]["dead_fraction"] > 0 or not trainer.method.auxk
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter would take hours")
@pytest.mark.parametrize(("n", "k"), [(32768, 32), (70_000, 5000), (4096, 4096)])
def test_full_size(n, k):
    x, encoder = draw(64, 128), draw(n, 128, seed=1)
    same(gpu.select_top_k(x, encoder, None, k), reference.select_top_k(x, encoder, None, k))
    code = gpu.select_above(x, encoder, None, 20.0)
    same(code, reference.select_above(x, encoder, None, 20.0))
    near = {"rtol": 1e-4, "atol": 1e-3}
    found, expected = (b.product(code, encoder) for b in (gpu, reference))
    torch.testing.assert_close(found, expected, **near)
    found, expected = (b.transposed_product(code, x) for b in (gpu, reference))
    torch.testing.assert_close(found, expected, **near)


@pytest.fixture
def rounded():
    """Products whose inputs are rounded to bfloat16."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("rounded")
def test_rounding_the_inputs_of_products_rounds_nothing_else():
    x, encoder, d = draw(4, 60), draw(70, 60, seed=1), 12
    near = {"rtol": 1e-5, "atol": 1e-4}
    exact = x.bfloat16().double() @ encoder.bfloat16().double().T
    code = gpu.select_top_k(x, encoder, None, 3)
    values, indices = exact.topk(3)
    assert torch.equal(code.indices.view(4, 3).long(), indices.sort().values)
    places = indices.sort().indices
    torch.testing.assert_close(code.values.view(4, 3), values.gather(1, places).float(), **near)
    decoder, gradient = draw(70, d, seed=1), draw(4, d, seed=2)
    dense, wide = code.to_dense().double(), gradient.bfloat16().double()
    torch.testing.assert_close(
        gpu.product(code, decoder), (dense @ decoder.bfloat16().double()).float(), **near
    )
    torch.testing.assert_close(
        gpu.transposed_product(code, gradient), (dense.T @ wide).float(), **near
    )
    expected = (wide @ decoder.bfloat16().double().T)[code.rows, code.indices.long()]
    torch.testing.assert_close(
        gpu.sampled_product(code, gradient, decoder), expected.float(), **near
    )


@pytest.mark.usefixtures("rounded")
@pytest.mark.skipif(DEVICE == "cpu", reason="bfloat16 products with float32 sums need a GPU")
def test_full_size_rounded_selections():
    x, encoder, bias = draw(64, 256), draw(16384, 256, seed=1), draw(16384, seed=2)
    exact = x.bfloat16().double() @ encoder.bfloat16().double().T
    for added, a in ((None, exact), (bias, exact + bias)):
        code = gpu.select_top_k(x, encoder, added, 40)
        values = a[code.rows, code.indices.long()].float()
        torch.testing.assert_close(code.values, values, rtol=1e-5, atol=1e-4)
        assert (code.indices.view(64, 40).diff() > 0).all()
        least = a.topk(40).values[:, -1:].float() - 1e-4
        assert (code.values.view(64, 40) >= least).all()
        code = gpu.select_above(x, encoder, added, 30.0)
        assert abs(len(code.values) - int((a > 30).sum())) <= 2


COMPILE = """
from importlib import import_module

import triton
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
gpu, products, selection = (
    import_module(f"l0plane.kernels.{name}")
    for name in ("gpu", "gpu_products", "gpu_selection")
)

INTEGERS = {"indices", "latents", "counts", "starts", "ends", "indptr", "rows"}
INTEGERS |= {"candidates", "chosen", "firsts", "lasts", "lengths"}
SCALARS = dict.fromkeys(["n", "width", "groups", "k", "d", "size", "capacity"], "i32")
SCALARS |= {"mask": "*i1", "scale": "*fp64", "rates": "*fp64"}
CONSTANTS = {"BLOCK": 256, "TRIPLES": 8, "COLUMNS": 32, "UNIT_ROWS": True}
CONSTANTS |= {"SHIFT": 12, "PADDED": 1024, "SIZE": 32}
CONSTANTS |= {"BETA1": 0.9, "BETA2": 0.999, "EPS": 1e-9}


def compile(kernel, rounded=(), **constants):
    constants = {n: v for n, v in CONSTANTS.items() if n in kernel.arg_names} | constants
    signature = {
        name: "constexpr"
        if name in constants
        else SCALARS.get(name, "*i32" if name in INTEGERS else "*fp32")
        if name not in rounded
        else "*bf16"
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]


everything = [value for module in (gpu, products, selection) for value in vars(module).values()]
kernels = [value for value in everything if isinstance(value, JITFunction)]
assert len(kernels) > 10
for kernel in kernels:
    # Those that others call, and are compiled with them, return something.
    if "return" not in kernel.src:
        compile(kernel)
compile(selection._top_k, latents=None, lengths=None)
compile(selection._group_maxima, rounded=["a", "maxima"])
compile(selection._narrow, rounded=["a", "maxima"], SHIFT=16)
compile(products._sum_gathered, rounded=["matrix"])
compile(products._sampled_product, rounded=["left", "right"])
compile(products._sum_gathered, bias=None, sums=None, firsts=None, lasts=None)
compile(selection._count_above, bias=None)
compile(selection._keep_above, bias=None)
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
