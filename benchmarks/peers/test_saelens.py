"""SAELens opens every method's directory; what it trains is measured here as it measures it."""

import types

import pytest
import torch
import yaml
from conftest import HOOK, REPOSITORY, relative
from sae_lens import (
    SAE,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer

from l0plane import external
from l0plane.autoencoder import Autoencoder
from l0plane.evaluation.reconstruction import evaluate
from l0plane.methods import METHODS
from l0plane.preprocessing import normalise, restore
from l0plane.training import train

N = 256
HYPERPARAMETERS = {"learning_rate": 2e-3, "bandwidth": 0.05, "threshold": 0.05}
DEFAULT = yaml.safe_load((REPOSITORY / "config/default.yaml").read_text())
SETTINGS = DEFAULT["training"] | {"tokens": 100 * 512, "warmup_steps": 10}


def trained_here(name, x):
    """An autoencoder of one of our methods after some steps of our own training."""
    generator = torch.Generator().manual_seed(1)

    def batches(batch_tokens, tokens, seed, start=0):
        for _ in range(start, tokens // batch_tokens):
            yield x[torch.randint(len(x), (batch_tokens,), generator=generator)]

    store = types.SimpleNamespace(manifest={}, sample=lambda rows: x[:rows], batches=batches)
    base = trained_here("relu", x) if name == "relu_scaled" else None
    return train(name, store, N, 6, 0, SETTINGS, HYPERPARAMETERS, base)[0]


@pytest.mark.parametrize("name", METHODS)
def test_same_codes_and_reconstructions(name, raw, tmp_path):
    x, mean, scale = normalise(raw)
    autoencoder = trained_here(name, x)
    autoencoder.save(tmp_path, {"method": name})
    ours = Autoencoder.load(tmp_path)
    code = ours.encode(x)
    theirs = SAE.load_from_disk(str(tmp_path))
    z = theirs.encode(raw)
    assert (z > 0).sum() > len(raw)
    assert relative(code.to_dense(), z) < 1e-5
    assert relative(restore(ours.decode(code), mean, scale), theirs.decode(z)) < 1e-5


def trained_by_saelens(kind, how, raw, directory):
    """A SAELens autoencoder after some steps of SAELens' own trainer, saved by it."""
    common = {"d_in": raw.shape[1], "d_sae": N, "normalize_activations": how}
    if kind == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=16, **common))
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=1.0, **common))
    sae.cfg.metadata.hook_name = HOOK
    generator = torch.Generator().manual_seed(0)

    def batches():
        while True:
            yield raw[torch.randint(len(raw), (512,), generator=generator)].clone()

    config = SAETrainerConfig(
        total_training_samples=512 * 100,
        train_batch_size_samples=512,
        lr=2e-3,
        lr_end=2e-4,
        n_batches_for_norm_estimate=10,
    )
    trained = SAETrainer(config, sae, batches()).fit()
    trained.save_inference_model(str(directory))
    return SAE.load_from_disk(str(directory))


@pytest.mark.parametrize(
    "kind,how",
    [
        ("standard", "expected_average_only_in"),
        ("topk", "none"),
        ("topk", "layer_norm"),
        ("topk", "constant_norm_rescale"),
    ],
)
def test_a_saelens_autoencoder_gives_saelens_own_numbers(kind, how, raw, held_out, tmp_path):
    theirs = trained_by_saelens(kind, how, raw, tmp_path)
    found = external.read("saelens", tmp_path)
    assert found.hook == HOOK
    ours = found.autoencoder
    row, _ = evaluate(ours, held_out)

    every = held_out.residual.reshape(-1, raw.shape[1])
    x, mean, scale = normalise(every, ours.normalisation)
    code = ours.encode(x)
    a_hat = restore(ours.decode(code), mean, scale)
    assert relative(code.to_dense(), theirs.encode(every)) < 1e-5
    assert relative(a_hat, theirs(every)) < 1e-5

    store = types.SimpleNamespace(
        store_batch_size_prompts=len(held_out),
        context_size=held_out.tokens.shape[1],
        get_batch_tokens=lambda size: held_out.tokens[:size],
        reset_input_dataset=lambda: None,
    )
    metrics, _ = run_evals(
        theirs,
        store,
        held_out.language_model._bridge,
        ActivationScaler(),
        EvalConfig(
            n_eval_reconstruction_batches=1,
            n_eval_sparsity_variance_batches=1,
            compute_ce_loss=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        ),
        exclude_special_tokens=False,
    )
    losses = metrics["model_performance_preservation"]
    assert row["l0"] == pytest.approx(metrics["sparsity"]["l0"], rel=1e-5)
    assert row["ce_original"] == pytest.approx(losses["ce_loss_without_sae"], abs=1e-5)
    spliced = row["ce_original"] + row["delta_ce"]
    assert spliced == pytest.approx(losses["ce_loss_with_sae"], abs=1e-4)
    assert row["loss_recovered_zero"] == pytest.approx(losses["ce_loss_score"], abs=1e-4)

    # Theirs is of raw activations; ours weighs each token by its scale at unit norm.
    errors = (every - a_hat).square().sum(1)
    quality = metrics["reconstruction_quality"]
    assert errors.mean().item() == pytest.approx(quality["mse"], rel=1e-4)
    unit = errors / normalise(every)[2][:, 0] ** 2
    assert row["nmse"] == pytest.approx((unit.sum() / held_out.variance.sum()).item(), rel=1e-4)
