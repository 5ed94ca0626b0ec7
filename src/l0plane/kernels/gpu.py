"""Sparse code operations compiled for the GPU with Triton; float32.

Selections are in `gpu_selection`, products in `gpu_products`.

The encoder product is cuBLAS's, over tiles of rows; the largest of each group of pre-activations
then say in which groups a row's `k` largest are, so that they are read once. All other work is on
the active triples, by row or by latent, each sum in one program and in a fixed order, or dense,
where many latents are active or the batch is small: no atomics whose order could matter, so that
the same step gives the same bits.

The host waits for the device in one place, a selection of all that is above a threshold: it reads
how many triples there are, since the arrays that hold them have that length. A selection of the `k`
largest is padded to `k` in each row, and in a small batch one above a threshold to all latents.

Products are float32 (TF32 off) unless the caller asks PyTorch for less. With
`torch.set_float32_matmul_precision("medium")` activations, their gradients and weights are rounded
to bfloat16 where they enter a product; sums stay float32, as do the values of a code, parameters
and optimiser. Pre-activations among which the `k` largest are sought are then written in bfloat16,
half the bytes. Rounding keeps the order, so the `k` largest are among those that, rounded, are as
large as the k-th largest of the rounded ones. These few are computed again: what is selected is
what float32 sums would select, but for the order in which they are taken.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from l0plane.kernels.gpu_products import centred as centred
from l0plane.kernels.gpu_products import latent_sums as latent_sums
from l0plane.kernels.gpu_products import product as product
from l0plane.kernels.gpu_products import sampled_product as sampled_product
from l0plane.kernels.gpu_products import squared_error as squared_error
from l0plane.kernels.gpu_products import transpose as transpose
from l0plane.kernels.gpu_products import transposed_product as transposed_product
from l0plane.kernels.gpu_selection import select_above as select_above
from l0plane.kernels.gpu_selection import select_top_k as select_top_k
from l0plane.kernels.gpu_selection import top_k_mask as top_k_mask
from l0plane.kernels.gpu_selection import whole_above as whole_above
from l0plane.kernels.reference import BETAS, EPS, AdamState, Rates
from l0plane.kernels.reference import parted as parted
from l0plane.kernels.reference import places as places
from l0plane.kernels.reference import reset_active as reset_active

WARPS = 16


def adam(
    parameter: Tensor,
    gradient: Tensor,
    state: AdamState,
    rates: Rates,
    gradient_scale: Tensor,
    unit_rows: bool,
) -> None:
    """As `reference.adam`, in one pass over memory."""
    if not isinstance(rates, Tensor):
        rates = torch.tensor(rates, dtype=torch.float64, device=parameter.device)
    width = parameter.shape[-1] if unit_rows else 1024
    block = triton.next_power_of_2(width)
    _adam[(triton.cdiv(parameter.numel(), width),)](
        *(parameter, gradient.contiguous(), state.mean, state.square, state.ema),
        *(rates, gradient_scale, parameter.numel(), width),
        *(*BETAS, EPS, unit_rows, block),
        num_warps=min(WARPS, max(1, block // 256)),
    )


@triton.jit
def _adam(
    parameter,
    gradient,
    mean,
    square,
    ema,
    rates,
    scale,
    size,
    width,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * width + column
    inside = (column < width) & (place < size)
    w = tl.load(parameter + place, mask=inside, other=0.0)
    g = tl.load(gradient + place, mask=inside, other=0.0)
    if UNIT_ROWS:
        g -= tl.sum(g * w) * w
    g *= tl.load(scale).to(tl.float32)
    rate = tl.load(rates).to(tl.float32)
    root = tl.load(rates + 1).to(tl.float32)
    ema_decay = tl.load(rates + 2).to(tl.float32)
    m = BETA1 * tl.load(mean + place, mask=inside, other=0.0) + (1 - BETA1) * g
    v = BETA2 * tl.load(square + place, mask=inside, other=0.0) + (1 - BETA2) * g * g
    w -= rate * m / (tl.sqrt(v) * root + EPS)
    if UNIT_ROWS:
        w /= tl.sqrt(tl.sum(w * w))
    e = tl.load(ema + place, mask=inside, other=0.0)
    tl.store(mean + place, m, mask=inside)
    tl.store(square + place, v, mask=inside)
    tl.store(parameter + place, w, mask=inside)
    tl.store(ema + place, ema_decay * e + (1 - ema_decay) * w, mask=inside)
