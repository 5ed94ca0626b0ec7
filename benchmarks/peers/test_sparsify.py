"""What sparsify saves is read as sparsify reads it."""

import os

import torch
from conftest import relative

if not torch.cuda.is_available():
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"

from sparsify import SparseCoder, SparseCoderConfig

from l0plane import external


def test_same_codes_and_reconstructions(raw, tmp_path):
    torch.manual_seed(0)
    theirs = SparseCoder(raw.shape[1], SparseCoderConfig(num_latents=256, k=8))
    with torch.no_grad():
        for parameter in theirs.parameters():  # as if trained
            parameter += 0.05 * torch.randn(parameter.shape)
        theirs.b_dec += raw.mean(0)
        theirs.save_to_disk(tmp_path)
        read = SparseCoder.load_from_disk(tmp_path)
        encoded = read.encode(raw)
        x_hat = read(raw).sae_out
    z = torch.zeros(len(raw), 256).scatter(1, encoded.top_indices, encoded.top_acts)
    ours = external.read("sparsify", tmp_path).autoencoder
    code = ours.encode(raw)
    assert (z > 0).sum() > len(raw)
    assert relative(code.to_dense(), z) < 1e-5
    assert relative(ours.decode(code), x_hat) < 1e-5
