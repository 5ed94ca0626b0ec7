"""Every method's directory opens in SAELens and gives the same codes and reconstructions there."""

import math

import pytest
import torch
from sae_lens import SAE

from l0plane.autoencoder import Autoencoder
from l0plane.methods import METHODS

D, N, ROWS = 32, 128, 400
HYPERPARAMETERS = {"bandwidth": 0.05, "threshold": 0.05}


def raw_activations():
    """Activations as a language model gives them: any mean, any scale."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, D, generator=generator) @ torch.randn(D, D, generator=generator)
    return x * (1 + 9 * torch.rand(ROWS, 1, generator=generator)) + 3


@pytest.mark.parametrize("name", METHODS)
def test_same_codes_and_reconstructions(name, tmp_path):
    raw = raw_activations()
    mean = raw.mean(1, keepdim=True)
    scale = (raw.std(1, keepdim=True) + 1e-5) * math.sqrt(D - 1)
    x = (raw - mean) / scale
    generator = torch.Generator().manual_seed(1)
    method = METHODS[name](6, HYPERPARAMETERS)
    if name == "relu_scaled":
        relu = METHODS["relu"](6, {})
        method.base = relu.finish(relu.initialise(x, N, generator), [])
    parameters = method.initialise(x, N, generator)
    for key in parameters:  # as if trained: nothing is zero or tied any more
        noise = torch.randn(parameters[key].shape, generator=generator)
        parameters[key] = parameters[key] + 0.05 * noise
    autoencoder = method.finish(parameters, [x])
    autoencoder.save(tmp_path, {"method": name})
    ours = Autoencoder.load(tmp_path)
    code = ours.encode(x)
    theirs = SAE.load_from_disk(str(tmp_path))
    z = theirs.encode(raw)
    assert (code.to_dense() > 0).sum() > ROWS
    torch.testing.assert_close(code.to_dense(), z, rtol=1e-5, atol=1e-5)
    restored = ours.decode(code) * scale + mean
    error = (restored - theirs.decode(z)).abs().max() / raw.abs().max()
    assert error < 1e-5
