"""Sparse code operations in plain PyTorch: any device, any float type.

The definition that the compiled kernels are tested against, and the fallback where there is no
compiler. Simple rather than fast: products go through the dense code.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from operator import add
from typing import Any

import torch
from torch import Tensor

from l0plane.code import ByLatent, Code

#: Adam's constants (Gao et al. 2024, Appendix A.3).
BETAS = (0.9, 0.999)
EPS = 6.25e-10


@dataclass
class AdamState:
    """What Adam and the average of the weights remember of one parameter, each of its shape."""

    mean: Tensor
    square: Tensor
    ema: Tensor


#: Three numbers, or a tensor of them: a GPU reads them there, and need not be told.
Rates = Sequence[float] | Tensor


def adam_rates(step: int, learning_rate: float, ema_decay: float) -> tuple[float, float, float]:
    """What `adam` takes: how they change from step to step.

    Args:
        step: how many there were, this one included.
        learning_rate: of this step.
        ema_decay: `ema = decay ema + (1 - decay) parameter`.

    Returns:
        The learning rate over Adam's correction of the mean; one over the root of that of the
        square; the decay.
    """
    mean, square = (1 - beta**step for beta in BETAS)
    return learning_rate / mean, 1 / math.sqrt(square), ema_decay


def centred(x: Tensor, pre_bias: Tensor) -> Tensor:
    """`x - b_pre`, as the products of a backend take it."""
    return x - pre_bias


def preactivations(x: Tensor, encoder: Tensor, bias: Tensor | None) -> Tensor:
    """`x encoder^T + bias`, `[rows, n]`; `x` already has b_pre subtracted."""
    a = x @ encoder.T
    return a if bias is None else a + bias


def select_above(
    x: Tensor, encoder: Tensor, bias: Tensor | None, threshold: Tensor | float
) -> Code:
    """The pre-activations greater than `threshold` (a number, or one per latent `[n]`)."""
    a = preactivations(x, encoder, bias)
    return _code_where(a, a > threshold)


def whole_code(a: Tensor, threshold: Tensor | float) -> Code:
    """Of pre-activations `a [rows, n]` those above a threshold of at least 0.

    Each row is padded to all latents.
    """
    rows, n = a.shape
    indptr = n * torch.arange(rows + 1, dtype=torch.int32, device=a.device)
    indices = torch.arange(n, dtype=torch.int32, device=a.device).repeat(rows)
    live = a > threshold
    values = torch.where(live, a, 0.0)
    return Code(indptr, indices, values.flatten(), n, live.flatten(), whole=True)


def select_top_k(x: Tensor, encoder: Tensor, bias: Tensor | None, k: int) -> Code:
    """The `k` largest pre-activations of each row, of those that are positive.

    Of equal values the lower latent comes first, so that exactly `k` are kept.
    """
    a = preactivations(x, encoder, bias)
    order = torch.sort(a.nan_to_num(nan=-torch.inf), dim=1, descending=True, stable=True).indices
    kept = torch.zeros_like(a, dtype=torch.bool).scatter_(1, order[:, :k], True)
    return _code_where(a, kept & (a > 0))


def top_k_mask(code: Code, k: int) -> Tensor:
    """bool `[nnz]`: which triples of a positive code are among the `k` largest of their row.

    Of equal values the lower latent comes first, so that exactly `k` are kept.
    """
    order = torch.sort(code.indices, stable=True).indices
    order = order[torch.sort(code.values.detach()[order], descending=True, stable=True).indices]
    order = order[torch.sort(code.rows[order], stable=True).indices]
    mask = torch.zeros_like(code.indices, dtype=torch.bool)
    place = torch.arange(len(order), device=order.device) - code.indptr[code.rows]
    mask[order[place < k]] = True
    return mask


def places(code: Code, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of a code where `mask`, bool `[nnz]`, is true.

    Returns:
        int32 `[rows + 1]`, where each row's triples then start, and int32 `[kept]`, their
        positions among the triples of `code`.
    """
    before = torch.zeros(len(mask) + 1, dtype=torch.int32, device=mask.device)
    torch.cumsum(mask, 0, dtype=torch.int32, out=before[1:])
    return before[code.indptr.long()], mask.nonzero()[:, 0].int()


def parted(code: Code, mask: Tensor) -> Code:
    """The code in which row `2 r` has the triples of row r where `mask`, bool `[nnz]`, is true.

    Row `2 r + 1` has its others; both in the order that they had.
    """
    starts = code.indptr[:-1].long()
    before = torch.zeros(len(mask) + 1, dtype=torch.int64, device=mask.device)
    torch.cumsum(mask, 0, out=before[1:])
    counts = before[code.indptr[1:].long()] - before[starts]
    rows, triples = code.rows, torch.arange(len(mask), device=mask.device)
    among = before[:-1] - before[starts[rows]]  # how many of the row's earlier ones are true
    places = torch.where(mask, starts[rows] + among, counts[rows] + triples - among)
    halves = torch.stack([starts, starts + counts], 1).flatten().int()
    indices, values = torch.empty_like(code.indices), torch.empty_like(code.values)
    indices[places], values[places] = code.indices, code.values
    return Code(torch.cat([halves, code.indptr[-1:]]), indices, values, code.n)


def _code_where(a: Tensor, mask: Tensor) -> Code:
    indptr = torch.zeros(len(a) + 1, dtype=torch.int32, device=a.device)
    torch.cumsum(mask.sum(1), 0, dtype=torch.int32, out=indptr[1:])
    return Code(indptr, mask.nonzero()[:, 1].int(), a[mask], a.shape[1])


def transpose(code: Code) -> ByLatent:
    """Order the triples of a code by latent, and by row within a latent."""
    order = torch.sort(code.indices, stable=True).indices
    counts = torch.bincount(code.indices.long(), minlength=code.n)
    indptr = torch.zeros(code.n + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=indptr[1:])
    return ByLatent(indptr, code.rows[order].int(), order.int())


def product(code: Code, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Code times `matrix` `[n, d]`, plus `bias [d]` if there is one: `[rows, d]`."""
    out = code.to_dense() @ matrix
    return out if bias is None else out + bias


def transposed_product(code: Code, matrix: Tensor) -> Tensor:
    """Transposed code times `matrix` `[rows, d]`: `[n, d]`."""
    return code.to_dense().T @ matrix


def sampled_product(code: Code, left: Tensor, right: Tensor) -> Tensor:
    """`left [rows, d] right^T [d, n]` at the active places only: `[nnz]`."""
    if code.whole:
        return (left @ right.T).flatten()
    return (left @ right.T)[code.rows, code.indices.long()]


def squared_error(
    x: Tensor,
    code: Code,
    decoder: Tensor,
    pre_bias: Tensor | None,
    nested: Sequence[float],
    whole: Callable[[Tensor], Tensor] | None,
    backend: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `kernels.squared_error` needs, by the products of a `backend` (of this one).

    Returns:
        The sum `[]`; the errors of the first reconstructions `[rows, d]`; `pull`, of which -2 is
        the gradient by what each row of the code is decoded to, `[rows of the code, d]`; and
        `pull` times each active triple's row of the decoder, `[nnz]`.
    """
    backend = backend or sys.modules[__name__]
    decoded = backend.product(code, decoder)
    if whole is not None:
        decoded = whole(decoded)
    error = x if pre_bias is None else x - pre_bias
    errors = []
    for part in decoded.view(-1, 1 + len(nested), x.shape[1]).unbind(1):
        error = error - part
        errors.append(error)
    weighted = [errors[0], *(w * e for w, e in zip(nested, errors[1:], strict=True))]
    squares = [w.flatten().dot(e.flatten()) for w, e in zip(weighted, errors, strict=True)]
    # What a row is decoded to is in its own reconstruction and in all after it.
    pulls = list(accumulate(reversed(weighted), add))[::-1]
    pull = torch.stack(pulls, 1).flatten(0, 1) if nested else errors[0]
    return reduce(add, squares), errors[0], pull, backend.sampled_product(code, pull, decoder)


def latent_sums(code: Code) -> Tensor:
    """Sum of each latent's values over the batch, `[n]`."""
    if code.whole:
        return code.to_dense().sum(0)
    sums = code.values.new_zeros(code.n)
    return sums.index_add_(0, code.indices.long(), code.values)


def reset_active(silent: Tensor, code: Code) -> Tensor:
    """Set `silent`, int64 `[n]`, to 0 where a value is not; how many are not, int64 `[]`."""
    if code.whole:
        active = code.to_dense().detach() != 0
        silent.masked_fill_(active.any(0), 0)
        return active.sum()
    inactive = code.values.detach() == 0
    # No index of what is active, for which the host would wait: all others go to one place more.
    longer = torch.cat([silent, silent.new_zeros(1)])
    longer.index_fill_(0, code.indices.long().masked_fill_(inactive, len(silent)), 0)
    silent.copy_(longer[:-1])
    return len(inactive) - inactive.sum()


def adam(
    parameter: Tensor,
    gradient: Tensor,
    state: AdamState,
    rates: Rates,
    gradient_scale: Tensor,
    unit_rows: bool,
) -> None:
    """One Adam step in place, and the moving average of the weights after it.

    Args:
        parameter: what is trained, `[..., d]`.
        gradient: its gradient, multiplied by `gradient_scale` (clipping) before use.
        state: updated in place.
        rates: what `adam_rates` gives for this step.
        gradient_scale: see `gradient`; a number `[]` on the device, which the host need not know.
        unit_rows: remove the part of the gradient that is parallel to each row before the step,
            and scale each row to unit norm after it (the decoder; Appendix A.3).
    """
    g = gradient
    if unit_rows:
        g = g - (g * parameter).sum(-1, keepdim=True) * parameter
    g = g * gradient_scale
    state.mean.lerp_(g, 1 - BETAS[0])
    state.square.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
    rates = torch.as_tensor(rates, dtype=torch.float64)
    rate, root, renewed = torch.cat([rates[:2], 1 - rates[2:]]).to(parameter)
    parameter -= rate * state.mean / (state.square.sqrt() * root + EPS)
    if unit_rows:
        parameter /= parameter.norm(dim=-1, keepdim=True)
    state.ema.lerp_(parameter, renewed)
