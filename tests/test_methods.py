"""Each method's loss and gradient in float64 against its formula written out on dense tensors.

Where the paper puts a pseudo-derivative in place of a derivative, the formula here is a surrogate
with the same value and that derivative, so that autograd does the rest.
"""

from types import SimpleNamespace

import pytest
import torch

from l0plane import kernels
from l0plane.autoencoder import Autoencoder, ReLU
from l0plane.files import UserError
from l0plane.methods import METHODS
from l0plane.methods.base import geometric_median
from l0plane.methods.topk import TopKMethod

ROWS, N, D, L0 = 30, 40, 12, 4
HYPERPARAMETERS = {"jumprelu": {"bandwidth": 0.4, "threshold": 0.3}}


def with_derivative(value, surrogate):
    """`value`, with the derivative of `surrogate`."""
    return value.detach() + surrogate - surrogate.detach()


def recon(z, p):
    return z @ p["decoder"] + p["pre_bias"]


def error(x, reconstruction):
    return ((x - reconstruction) ** 2).sum()


def pre(x, p):
    return (x - p["pre_bias"]) @ p["encoder"].T


def keep_top(a, k):
    return torch.where(a >= a.topk(k, dim=1).values[:, -1:], a, 0.0).clamp(min=0.0)


def dense_relu(x, p):
    z = (pre(x, p) + p["encoder_bias"]).clamp(min=0.0)
    return error(x, recon(z, p)), z.sum(), z


def dense_topk(x, p):
    z = keep_top(pre(x, p), L0)
    return error(x, recon(z, p)), None, z


def dense_multi_topk(x, p):
    z, wide = keep_top(pre(x, p), L0), keep_top(pre(x, p), 4 * L0)
    return error(x, recon(z, p)) + error(x, recon(wide, p)) / 8, None, z


def dense_batch_topk(x, p):
    a = pre(x, p)
    z = torch.where(a >= a.flatten().topk(L0 * len(x)).values[-1], a, 0.0)
    return error(x, recon(z, p)), None, z


def dense_gated(x, p):
    a = pre(x, p)
    pi = a + p["gate_bias"]
    gate = (pi > 0).double()
    z = gate * (p["log_scale"].exp() * a + p["magnitude_bias"]).clamp(min=0.0)
    frozen = pi.clamp(min=0.0) @ p["decoder"].detach() + p["pre_bias"].detach()
    return error(x, recon(z, p)) + error(x, frozen), pi.clamp(min=0.0).sum(), z


def dense_prolu(x, p, surrogate):
    m, b = pre(x, p), p["encoder_bias"]
    gate = ((m + b > 0) & (m > 0)).double()
    z = with_derivative(gate * m, gate * surrogate(m, b))
    return error(x, recon(z, p)), z.sum(), z


def dense_prolu_relu(x, p):
    return dense_prolu(x, p, lambda m, b: m + b)


def dense_prolu_ste(x, p):
    return dense_prolu(x, p, lambda m, b: m + m**2 / 2 + m.detach() * b)


def dense_jumprelu(x, p):
    eps = HYPERPARAMETERS["jumprelu"]["bandwidth"]
    v = pre(x, p) + p["encoder_bias"]
    theta = p["log_threshold"].exp()
    kernel = (((v - theta) / eps).abs() < 0.5).double().detach()
    active = (v > theta).double()
    z = with_derivative(v * active, v * active - theta.detach() / eps * kernel * theta)
    count = with_derivative(active, -kernel / eps * theta)
    return error(x, recon(z, p)), count.sum(), z


def problem(name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, D, generator=generator, dtype=torch.float64)
    method = METHODS[name](L0, HYPERPARAMETERS.get(name, {}))
    p = {
        "encoder": torch.randn(N, D, generator=generator),
        "decoder": torch.randn(N, D, generator=generator),
        "pre_bias": torch.randn(D, generator=generator),
    }
    p |= {
        key: value + 0.3 * torch.randn(value.shape, generator=generator)
        for key, value in method.extra_parameters(N).items()
    }
    return method, {k: v.double().requires_grad_() for k, v in p.items()}, x


TRAINED = [name for name in METHODS if name != "relu_scaled"]


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_gradient_follow_the_formula(name):
    method, p, x = problem(name)
    objective, penalty, z = globals()[f"dense_{name}"](x, p)
    loss = method.loss(p, x)
    torch.testing.assert_close(loss.objective, objective)
    torch.testing.assert_close(loss.code.to_dense(), z)
    torch.testing.assert_close(loss.error, x - recon(z, p))
    total, expected = loss.objective, objective
    if penalty is not None:
        torch.testing.assert_close(loss.penalty, penalty)
        total, expected = total + 0.7 * loss.penalty, expected + 0.7 * penalty
    ours = torch.autograd.grad(total, list(p.values()))
    theirs = torch.autograd.grad(expected, list(p.values()))
    for key, a, b in zip(p, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, key=key: f"{key}: {text}")
        assert b.abs().max() > 0, f"{key} has no gradient in this test"


@pytest.mark.parametrize("name", TRAINED)
def test_a_finished_autoencoder_gives_the_code_that_was_trained(name):
    method, p, x = problem(name)
    p = {key: value.detach().float() for key, value in p.items()}
    x = x.float()
    trained = method.loss(p, x)
    for _ in range(method.estimates):
        method.estimate(p, x)
    autoencoder = method.finish(dict(p))
    code = autoencoder.encode(x)
    if name == "batch_topk":  # its test-time threshold drops the smallest value of the one batch
        assert len(code.values) == len(trained.code.values) - 1
        return
    torch.testing.assert_close(code.to_dense(), trained.code.to_dense())
    torch.testing.assert_close(autoencoder.decode(code), x - trained.error)


def test_scales_change_values_and_not_the_active_set():
    _, p, x = problem("relu")
    base = Autoencoder(
        **{key: value.detach().float() for key, value in p.items()}, activation_function=ReLU()
    )
    x = x.float()
    method = METHODS["relu_scaled"](L0, {})
    method.base = base
    scale = torch.rand(N) + 0.5
    scaled = method.finish({"log_scale": scale.log()})
    before, after = base.encode(x).to_dense(), scaled.encode(x).to_dense()
    torch.testing.assert_close(after, before * scale)
    assert torch.equal(after > 0, before > 0)
    loss = method.loss({"log_scale": scale.log()}, x)
    again = scaled.decode(scaled.encode(x))
    torch.testing.assert_close(x - loss.error, again, rtol=1e-4, atol=1e-4)


def test_the_loss_and_gradient_of_scales_follow_the_formula():
    _, p, x = problem("relu")
    p = {key: value.detach() for key, value in p.items()}
    method = METHODS["relu_scaled"](L0, {})
    method.base = Autoencoder(**p, activation_function=ReLU())
    log_scale = torch.linspace(-0.5, 0.5, N, dtype=torch.float64).requires_grad_()
    z = (pre(x, p) + p["encoder_bias"]).clamp(min=0.0) * log_scale.exp()
    expected = error(x, recon(z, p))
    loss = method.loss({"log_scale": log_scale}, x)
    torch.testing.assert_close(loss.objective, expected)
    ours, theirs = (torch.autograd.grad(v, log_scale)[0] for v in (loss.objective, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", TRAINED)
def test_reconstructions_start_at_the_norm_of_the_data(name):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(500, 64, generator=generator) + 1
    sample /= sample.norm(dim=1, keepdim=True)
    method = METHODS[name](8, {"bandwidth": 0.1, "threshold": 0.03})
    p = method.initialise(sample, 1024, generator)
    with torch.no_grad():
        start = sample - method.loss(p, sample).error - p["pre_bias"]
    ratio = start.norm() / (sample - p["pre_bias"]).norm()
    assert ratio == pytest.approx(1.0, abs=0.05)
    cosine = torch.cosine_similarity(p["encoder"], p["decoder"])
    torch.testing.assert_close(cosine, torch.ones(1024))
    torch.testing.assert_close(p["decoder"].norm(dim=1), torch.ones(1024))


def test_a_start_at_which_nothing_is_active_is_refused():
    sample = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    values = {"bandwidth": 0.1, "threshold": 1e6}
    with pytest.raises(UserError, match=r"^hyperparameters\.jumprelu\.threshold: 1000000\.0; exp"):
        METHODS["jumprelu"](4, values).initialise(sample, N, torch.Generator())
    with pytest.raises(UserError, match="no latent is active before the first step"):
        METHODS["relu"](4, {}).initialise(torch.zeros(50, D), N, torch.Generator())


def test_what_a_method_says_of_its_steps_does_not_hold_for_a_loss_that_replaces_its_own(
    monkeypatch,
):
    class Annealed(TopKMethod):
        def loss(self, parameters, x):
            self.l0 -= 1
            return super().loss(parameters, x)

    class Renamed(TopKMethod):
        pass

    x = torch.zeros(64, D)
    assert not TopKMethod(4, {}).repeats(x, 1024)
    monkeypatch.setattr(kernels, "_backend", lambda x: SimpleNamespace(whole_above=None))
    assert TopKMethod(4, {}).repeats(x, 1024)
    assert Renamed(4, {}).repeats(x, 1024)
    assert not Annealed(4, {}).repeats(x, 1024)
    assert not TopKMethod(4, {}).repeats(x, 1 << 24)


def test_geometric_median_has_zero_sum_of_unit_vectors():
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).double() ** 3
    away = x - geometric_median(x, tolerance=1e-12, iterations=5000)
    assert (away / away.norm(dim=1, keepdim=True)).sum(0).norm() < 1e-6
