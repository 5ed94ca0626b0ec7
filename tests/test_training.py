"""The training loop on a small synthetic dictionary that it ought to find."""

import gc
import math

import pytest
import torch

from l0plane import kernels, recording, training
from l0plane.autoencoder import Failed
from l0plane.checkpoint import Checkpoint
from l0plane.files import UserError
from l0plane.methods import METHODS, Method
from l0plane.penalty import PenaltyController
from l0plane.trainer import Trainer
from l0plane.training import (
    ALL_DEAD,
    Training,
    _schedule,
    train,
    train_together,
)

D, N = 16, 48
SETTINGS = {
    "tokens": 60_000,
    "batch_tokens": 256,
    "warmup_steps": 10,
    "decay_share": 0.2,
    "ema": 0.99,
    "clip_norm": 1.0,
    "dead_after_tokens": 5_000,
    "aux_k": 8,
    "aux_weight": 1 / 32,
}
HYPERPARAMETERS = {"learning_rate": 5e-3, "bandwidth": 0.02, "threshold": 0.1}


class Sparse:
    """Activations that are sums of three of 32 directions, seen through the store's interface."""

    def __init__(self, rows=8192):
        generator = torch.Generator().manual_seed(0)
        atoms = torch.nn.functional.normalize(torch.randn(32, D, generator=generator))
        chosen = torch.rand(rows, 32, generator=generator).topk(3).indices
        x = (atoms[chosen] * (0.5 + torch.rand(rows, 3, 1, generator=generator))).sum(1)
        self.x = torch.nn.functional.normalize(x)
        self.manifest = {"rows": rows}

    def sample(self, rows):
        return self.x[:rows]

    def batches(self, batch_tokens, tokens, seed, start=0):
        generator = torch.Generator().manual_seed(seed)
        for number in range(tokens // batch_tokens):
            rows = torch.randint(len(self.x), (batch_tokens,), generator=generator)
            if number >= start:
                yield self.x[rows]


STORE = Sparse()


def run(name, l0=3, seed=0, **changes):
    return train(name, STORE, N, l0, seed, SETTINGS | changes, HYPERPARAMETERS)


def nmse(autoencoder, x):
    reconstruction = autoencoder.decode(autoencoder.encode(x))
    return ((x - reconstruction) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


@pytest.mark.parametrize("name", [m for m in METHODS if m != "relu_scaled"])
def test_every_method_learns_and_reaches_the_l0_asked_for(name):
    autoencoder, log, facts = run(name, l0=4, tokens=120_000)
    l0 = autoencoder.encode(STORE.x).l0.float().mean().item()
    assert nmse(autoencoder, STORE.x) < 0.45
    # JumpReLU moves its thresholds slowly: in so short a run it is still on its way.
    assert l0 == pytest.approx(4, rel=0.5 if name == "jumprelu" else 0.1)
    assert log["step"].iloc[-1] == facts["training_steps"] == 120_000 // 256
    # Unit rows average to shorter ones.
    torch.testing.assert_close(autoencoder.decoder.norm(dim=1), torch.ones(N))


def test_the_same_seed_gives_the_same_autoencoder_and_another_seed_another():
    first, second, other = run("topk")[0], run("topk")[0], run("topk", seed=1)[0]
    assert torch.equal(first.encoder, second.encoder)
    assert not torch.equal(first.encoder, other.encoder)


class WithGain(METHODS["topk"]):
    """A method of somebody's own with one parameter more."""

    def extra_parameters(self, n):
        return {"gain": torch.ones(n)}


class WithGainLeftOut(WithGain):
    def finish(self, parameters):
        return super().finish({key: p for key, p in parameters.items() if key != "gain"})


def test_a_mistake_in_finish_is_known_before_the_training(monkeypatch):
    monkeypatch.setitem(METHODS, "gain", WithGain)
    monkeypatch.setattr(training, "train_together", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'gain'"):
        run("gain")


def test_a_parameter_that_the_loss_does_not_depend_on_is_named(monkeypatch):
    monkeypatch.setitem(METHODS, "gain", WithGainLeftOut)
    with pytest.raises(UserError, match=r"WithGainLeftOut: its loss does not depend on .* gain"):
        run("gain")


@pytest.mark.parametrize("name", ["topk", "multi_topk", "relu", "gated", "jumprelu"])
def test_the_compiled_kernels_end_where_the_reference_does(name, monkeypatch):
    """Rounding grows during a training, but in 100 steps to less than what seeds differ by."""
    errors = []
    for compiled in (kernels.cpu, None):
        monkeypatch.setattr(kernels, "cpu", compiled)
        errors.append(nmse(run(name, tokens=100 * 256)[0], STORE.x).item())
    assert errors[0] == pytest.approx(errors[1], rel=0.03)


def test_scales_lower_the_error_of_a_shrunk_autoencoder():
    base, _, _ = run("relu")
    scaled, _, _ = train(
        "relu_scaled", STORE, N, 3, 0, SETTINGS, {"learning_rate": 1e-2}, base=base
    )
    assert nmse(scaled, STORE.x) < 0.95 * nmse(base, STORE.x)
    assert torch.equal(scaled.encode(STORE.x).l0, base.encode(STORE.x).l0)
    # The error is quadratic in the scales: its least is known from the normal equations.
    z, w = base.encode(STORE.x).to_dense(), base.decoder
    target = ((STORE.x - base.pre_bias) @ w.T * z).sum(0)
    best = torch.linalg.lstsq((z.T @ z) * (w @ w.T), target[:, None], driver="gelsd").solution
    exact = ((STORE.x - base.pre_bias - (z * best[:, 0]) @ w) ** 2).sum()
    least = exact / ((STORE.x - STORE.x.mean(0)) ** 2).sum()
    assert nmse(scaled, STORE.x) == pytest.approx(least.item(), rel=0.02)


def test_a_given_lambda_rises_in_a_tenth_of_the_training_and_stays():
    fixed = HYPERPARAMETERS | {"lambda": 0.3}
    _, log, facts = train("relu", STORE, N, 3, 0, SETTINGS | {"tokens": 10_000}, fixed)
    values = log["lambda"].to_numpy()
    assert values[0] == pytest.approx(0.3 / 3.9)
    assert set(values[4:]) == {0.3}
    assert facts["lambda"] == 0.3
    assert not facts["lambda_steered"]


def test_a_penalty_beside_a_k_is_steered_and_says_so_or_has_a_fixed_weight(capsys, monkeypatch):
    class Penalised(METHODS["topk"]):
        def loss(self, parameters, x):
            loss = super().loss(parameters, x)
            return loss._replace(penalty=loss.code.values.square().sum())

    monkeypatch.setitem(METHODS, "penalised", Penalised)
    said = "penalised n=48 L0=3 seed=0: its loss has a penalty, and no lambda is given: steering"
    for given, steered in [({}, True), ({"lambda": 0.3}, False)]:
        own = HYPERPARAMETERS | given
        _, _, facts = train("penalised", STORE, N, 3, 0, SETTINGS | {"tokens": 10_000}, own)
        assert facts["lambda_steered"] == steered
        assert capsys.readouterr().out.count(said) == steered
    assert facts["lambda"] == 0.3


def test_a_diverging_run_stops_and_says_what_to_lower():
    class Broken(Sparse):
        def batches(self, *arguments, **more):
            for number, x in enumerate(super().batches(*arguments, **more)):
                yield x if number < 5 else x * math.nan

    with pytest.raises(Failed, match=r"topk n=48 L0=3 seed=0: .* at step 5 .* lower the learn"):
        train("topk", Broken(), N, 3, 0, SETTINGS, HYPERPARAMETERS)


def test_a_hyperparameter_that_is_read_and_not_there_is_named(monkeypatch):
    class Wide(METHODS["topk"]):
        def loss(self, parameters, x):
            return super().loss(parameters, x / self.hyperparameters["width"])

    monkeypatch.setitem(METHODS, "wide", Wide)
    said = "methods/wide/method.yaml: hyperparameters.width is missing; Wide reads it"
    with pytest.raises(UserError, match=said):
        train("wide", STORE, 48, 4, 0, SETTINGS, {"learning_rate": 1e-3})


@pytest.mark.parametrize("name", [m for m in METHODS if m != "relu_scaled"])
@pytest.mark.parametrize("rate", [1e6, 1e38])
def test_a_training_with_an_absurd_learning_rate_fails(name, rate):
    with pytest.raises(Failed, match=f"{name} n=48.*exploded at step .* lower the learning rate"):
        train(name, STORE, N, 3, 0, SETTINGS, HYPERPARAMETERS | {"learning_rate": rate})


def test_one_that_fails_leaves_the_others_of_its_stream_as_they_would_be_alone(tmp_path):
    def trainings():
        rates = [5e-3, 1e9, 2e-3]
        settings = SETTINGS | {"tokens": 5120}
        sample = STORE.sample(512)
        return [
            Training("topk", sample, N, 3, 0, settings, HYPERPARAMETERS | {"learning_rate": rate})
            for rate in rates
        ]

    together = trainings()
    results = list(train_together(together, STORE, 0))
    assert results[1].autoencoder is None
    assert "exploded at step" in results[1].facts["failed"]
    assert results[0].facts["training_steps"] == 20
    assert f"at step {results[1].facts['training_steps']} of 20" in results[1].facts["failed"]
    for place in (0, 2):
        (alone,) = train_together(trainings()[place : place + 1], STORE, 0)
        assert results[place].autoencoder.digest() == alone.autoencoder.digest()
    # A killed one that goes on remembers which failed.
    checkpoint = Checkpoint(tmp_path, 0)
    checkpoint.restore([], {})
    checkpoint.save(together)
    again = trainings()
    Checkpoint(tmp_path, 0).restore(again, {})
    assert [bool(t.failed) for t in again] == [False, True, False]


def test_seeds_that_are_trained_together_have_their_own_batches_each(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "TURN_FLOATS", 1 << 13)  # some batches, not all
    settings = SETTINGS | {"tokens": 5120}

    def trainings(*seeds):
        sample = STORE.sample(512)
        return [Training("topk", sample, N, 3, s, settings, HYPERPARAMETERS) for s in seeds]

    class Stopping(Checkpoint):
        def save_if_due(self, parts):
            if parts[0].done == 8:
                self.save(parts)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(train_together(trainings(0, 1, 0), STORE, None, Stopping(tmp_path, 0)))
    resumed = train_together(trainings(0, 1, 0), STORE, None, Checkpoint(tmp_path, 1000))
    found = [result.autoencoder.digest() for result in resumed]
    alone = []
    for seed in (0, 1):
        (result,) = train_together(trainings(seed), STORE, seed)
        alone.append(result.autoencoder.digest())
    assert found == [alone[0], alone[1], alone[0]]
    # The order matters, and is not the seed of the weights alone.
    ((other, _, _),) = train_together(trainings(1), STORE, 0)
    assert other.digest() not in alone


def test_latents_that_all_die_are_told():
    settings, fixed = SETTINGS | {"tokens": 40_000}, HYPERPARAMETERS | {"lambda": 1e3}
    training = Training("relu", STORE.sample(512), N, 3, 0, settings, fixed)
    (result,) = train_together([training], STORE, 0)
    assert result.facts["failed"] == ALL_DEAD
    assert not len(result.autoencoder.encode(STORE.sample(512)).indices)


def test_a_threshold_is_estimated_for_all_levels_in_one_pass(monkeypatch):
    """A stream would have to compute its activations again for every other one."""
    asked, settings = [], SETTINGS | {"tokens": 20 * 256}
    batches = STORE.batches
    monkeypatch.setattr(
        type(STORE), "batches", lambda self, *a: (asked.append(a[2]), batches(*a))[1]
    )

    def levels(*l0s):
        facts = (0, settings, HYPERPARAMETERS)
        return [Training("batch_topk", STORE.sample(512), N, l0, *facts) for l0 in l0s]

    together = [result.autoencoder.digest() for result in train_together(levels(2, 3, 5), STORE, 7)]
    assert asked == [7, 7]  # to train on, to look at
    alone = [next(train_together(levels(l0), STORE, 7)).autoencoder.digest() for l0 in (2, 3, 5)]
    assert together == alone


def trainer(name="topk", **changes):
    method = METHODS[name](3, HYPERPARAMETERS)
    parameters = method.initialise(STORE.sample(512), N, torch.Generator().manual_seed(0))
    return Trainer(method, parameters, 1.0, SETTINGS | changes)


def test_an_explosion_in_the_last_step_or_before_a_checkpoint_is_not_overlooked():
    x, settings = STORE.x[:256], SETTINGS | {"tokens": 3 * 256}

    def before_the_last():
        training = Training("topk", STORE.sample(512), N, 3, 0, settings, HYPERPARAMETERS)
        for batch in (x, x):
            training.step(batch)
        return training

    training = before_the_last()
    training.step(x * math.nan)
    facts = training.finish().facts
    assert "at step 2 of 3" in facts["failed"] and facts["training_steps"] == 2
    training = before_the_last()
    training.step(x * math.nan)
    _, saved = training.state()
    assert saved["failed"] and saved["steps"] == 2
    at_once = Training("topk", STORE.sample(512), N, 3, 0, settings, HYPERPARAMETERS)
    at_once.step(x * math.nan)
    assert "before the first update" in at_once.finish().facts["failed"]


@pytest.mark.parametrize("name", [m for m in METHODS if m != "relu_scaled"])
def test_a_step_leaves_nothing_that_waits_for_the_garbage_collector(name):
    """A GPU's memory would fill up before Python, which does not see it, thinks of collecting."""
    t = trainer(name)
    step(t, STORE.x[:32], 1e-3, 1e-3)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            step(t, STORE.x[:32], 1e-3, 1e-3)
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [m for m in METHODS if METHODS[m].recorded])
def test_a_step_that_repeats_is_that_of_one_that_asks_which_latents_are_dead(name, monkeypatch):
    ends = []
    for repeats in (False, True):
        monkeypatch.setattr(Method, "repeats", lambda method, x, n, answer=repeats: answer)
        monkeypatch.setattr(recording, "Recording", lambda work, x: work)
        t = trainer(name, dead_after_tokens=24, aux_weight=0.5)
        facts = [step(t, STORE.x[4 * i : 4 * i + 4], 1e-2, 1e-3) for i in range(16)]
        assert len(t._recordings) == repeats * (1 + t.method.auxk)
        ends.append(([each["loss"] for each in facts], t.parameters))
    assert facts[-1]["dead_fraction"] > 0 or not t.method.auxk
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


def test_a_step_that_cannot_be_recorded_is_launched_instead_and_that_is_said(monkeypatch, capsys):
    tried = []

    def fail(work, x):
        tried.append(x)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    plain, t = trainer(), trainer()
    expected = [step(plain, STORE.x[:32], 1e-2, 0.0)["loss"] for _ in range(8)]
    monkeypatch.setattr(Method, "repeats", lambda method, x, n: True)
    monkeypatch.setattr(recording, "Recording", fail)
    assert [step(t, STORE.x[:32], 1e-2, 0.0)["loss"] for _ in range(8)] == expected
    assert len(tried) == 1
    assert capsys.readouterr().out == "steps are not recorded: operation not permitted\n"


def test_what_is_known_of_dead_latents_holds_though_it_is_known_late():
    t = trainer(dead_after_tokens=10**9)
    batches = [STORE.x[:200] * scale for scale in (1, 0, 0, 1)]
    unread = [t.step(batches[0], 0.0, 0.0)]
    for x in batches[1:]:
        unread.append(t.step(x, 0.0, 0.0))
        t.read(unread.pop(0))
        assert t._tokens - t._all_active >= t.silent_tokens.max()


def step(trainer, *arguments):
    """The facts of one step."""
    return trainer.read(trainer.step(*arguments))


@pytest.mark.parametrize("name", [m for m in METHODS if m != "relu_scaled"])
def test_active_latents_are_those_with_a_value(name):
    x, t = STORE.x[:2], trainer(name)
    with torch.no_grad():
        if name == "gated":
            t.parameters["magnitude_bias"] -= 0.02  # magnitudes of open gates end at 0
        code = t.method.loss(t.parameters, x).code
        assert (code.values == 0).any() == (name in ("gated", "jumprelu", "multi_topk"))
        active = code.to_dense() != 0
    assert step(t, x, 0.0, 0.0)["l0"] == active.sum().item() / 2
    assert t.silent_tokens.tolist() == [0 if used else 2 for used in active.any(0)]
    assert 0 < active.any(0).sum() < N


def test_dead_latents_are_counted_in_tokens_and_auxk_reaches_only_them():
    x = STORE.x[:500]
    means = []
    for weight in (0.5, 0.0):
        t = trainer(dead_after_tokens=1000, aux_weight=weight, clip_norm=1e9)
        with torch.no_grad():
            t.parameters["encoder"][:5] = -t.parameters["pre_bias"]  # hardly ever positive
            t.parameters["encoder"][:5] *= 1e-6
        assert step(t, x, 0.0, 0.0)["dead_fraction"] == 0
        assert step(t, x, 0.0, 0.0)["dead_fraction"] >= 5 / N
        means.append({key: state.mean for key, state in t.states.items()})
    alive = t.silent_tokens < 1000
    for key, mean in means[0].items():
        if key == "pre_bias":
            assert torch.equal(mean, means[1][key])
        else:
            assert torch.equal(mean[alive], means[1][key][alive])
    assert means[1]["decoder"][:5].abs().sum() == 0
    # Of dead latents: that of the loss written out, in float64, beside what they get without it.
    p = {key: parameter.detach().double() for key, parameter in t.parameters.items()}
    dead = (~alive).nonzero()[:, 0]
    with torch.no_grad():
        error = t.method.loss(t.parameters, x).error.double()
    rows = {key: p[key][dead].requires_grad_() for key in ("encoder", "decoder")}
    a = torch.relu((x.double() - p["pre_bias"]) @ rows["encoder"].T)
    top = a.topk(min(SETTINGS["aux_k"], len(dead)))
    z = torch.zeros_like(a).scatter(1, top.indices, top.values)
    missed = (error - z @ rows["decoder"]).square().sum() / error.square().sum()
    for key, gradient in zip(
        rows, torch.autograd.grad(0.5 * missed, [*rows.values()]), strict=True
    ):
        if key == "decoder":  # whose rows stay unit
            gradient = gradient - (gradient * rows[key]).sum(1, keepdim=True) * rows[key]
        found = (means[0][key] - means[1][key])[dead].double()
        torch.testing.assert_close(found, 0.1 * gradient, rtol=1e-3, atol=1e-8)


def test_gradients_are_clipped_by_their_common_norm():
    x = STORE.x[:256]
    free, clipped = trainer("relu", clip_norm=1e9), trainer("relu", clip_norm=1e-3)
    norm = step(free, x, 0.0, 0.1)["gradient_norm"]
    clipped.step(x, 0.0, 0.1)
    for key, state in free.states.items():
        expected = state.mean * 1e-3 / norm
        torch.testing.assert_close(clipped.states[key].mean, expected, rtol=1e-4, atol=1e-9)


def test_the_loss_is_error_by_variance_plus_penalty_plus_auxk():
    x = STORE.x[:8]  # so few that most latents are silent
    t = trainer("topk", dead_after_tokens=1, aux_weight=0.5)
    t.variance = 0.8
    with torch.no_grad():
        loss = t.method.loss(t.parameters, x)
        error = loss.error
        used = set(loss.code.indices.tolist())
        dead = torch.tensor([i for i in range(N) if i not in used])
        assert len(dead) > SETTINGS["aux_k"]
        a = (x - t.parameters["pre_bias"]) @ t.parameters["encoder"][dead].T
        top = a.topk(SETTINGS["aux_k"])
        z = torch.zeros_like(a).scatter(1, top.indices, top.values.relu())
        missed = error - z @ t.parameters["decoder"][dead]
        auxk = missed.square().sum() / error.square().sum()
        expected = error.square().sum() / (8 * 0.8) + 0.5 * auxk
    assert step(t, x, 0.0, 0.0)["loss"] == pytest.approx(expected.item(), rel=1e-4)
    t = trainer("relu")
    loss = t.method.loss(t.parameters, x)
    expected = (loss.objective + 0.3 * loss.penalty) / 8
    assert step(t, x, 0.0, 0.3)["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_decoder_rows_stay_unit():
    t = trainer("relu")
    for _ in range(5):
        t.step(STORE.x[:256], 1e-2, 0.1)
    torch.testing.assert_close(t.parameters["decoder"].norm(dim=1), torch.ones(N))


def test_the_schedule_warms_up_and_decays():
    settings = {"warmup_steps": 4, "decay_share": 0.5}
    shares = [_schedule(step, 20, settings) for step in range(20)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[10] == 1.0
    assert shares[15] == pytest.approx(0.5)
    assert 0 < shares[-1] <= 0.1
    assert {_schedule(s, 20, {"warmup_steps": 0, "decay_share": 0}) for s in range(20)} == {1.0}


def test_lambda_stays_finite_when_l0_does_not_answer():
    controller = PenaltyController(16, steps=100, delay=0.02)
    for _ in range(5000):
        controller.observe(1000.0)
    assert controller.value == PenaltyController.MOST


def test_the_penalty_settles_where_the_asked_l0_is():
    # A method whose L0 answers lambda as a power law, with a delay.
    controller, l0 = PenaltyController(16, steps=3000, delay=0.02), 1000.0
    for _ in range(3000):
        l0 += 0.02 * (0.5 * controller.value**-0.8 - l0)
        controller.observe(l0)
    assert l0 == pytest.approx(16, rel=0.02)
    assert controller.value == pytest.approx((0.5 / 16) ** (1 / 0.8), rel=0.1)
