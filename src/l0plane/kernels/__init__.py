"""Sparse code operations: one interface, each tested against `reference`.

The `encode` functions, `squared_error` and `gather` are differentiable; their gradients, too, run
on the active triples. In float32 compiled kernels do the work: on the CPU those of `cpu`, on a GPU
those of `gpu`. Anywhere else, and where numba or Triton is missing, the plain PyTorch of
`reference`.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from l0plane.code import ByLatent, Code
from l0plane.kernels import reference
from l0plane.kernels.reference import AdamState, Rates, adam_rates
from l0plane.memory import RECORDED

__all__ = [
    "AdamState",
    "Rates",
    "adam",
    "adam_rates",
    "decode",
    "encode_above",
    "encode_top_k",
    "encoded",
    "gather",
    "pads_whole",
    "parted",
    "places",
    "reset_active",
    "squared_error",
    "top_k_mask",
    "transpose",
]

try:
    from l0plane.kernels import cpu
except ImportError as error:  # numba is missing, or its compiler does not run here
    cpu = None  # type: ignore[assignment]
    warnings.warn(
        f"no compiled kernels ({error}): plain PyTorch trains, many times slower; refinement and "
        "test-time curves cannot be measured; `pip install -r requirements.lock` installs numba",
        stacklevel=2,
    )

gpu: ModuleType | None = None
if torch.cuda.is_available():
    with contextlib.suppress(ImportError):  # Triton is missing
        gpu = importlib.import_module("l0plane.kernels.gpu")


def _backend(x: Tensor) -> ModuleType:
    compiled = cpu if x.is_cpu else gpu if x.is_cuda else None
    return compiled if compiled is not None and x.dtype == torch.float32 else reference


def transpose(code: Code) -> ByLatent:
    """Order the triples of a code by latent."""
    return _backend(code.values).transpose(code)


def places(code: Code, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the triples are of which `mask` is true; see `reference.places`."""
    return _backend(code.values).places(code, mask)


def parted(code: Code, mask: Tensor) -> Code:
    """Each row of a code as two, the triples of `mask` and the others; see `reference.parted`."""
    return _backend(code.values).parted(code, mask)


def top_k_mask(code: Code, k: int) -> Tensor:
    """Which triples of a positive code are among the `k` largest of their row; exactly `k`.

    Of equal values the lower latent, on a GPU the one that comes first: in a selection, the same.
    """
    return _backend(code.values).top_k_mask(code, k)


# --- the encoder, at the places that a selection keeps


def pads_whole(x: Tensor, n: int) -> bool:
    """Whether a padded code above a threshold has all `n` latents: on a GPU, of a small batch.

    They are then less work than to find out which of them are active.
    """
    return hasattr(_backend(x), "whole_above") and len(x) * n <= RECORDED


def encode_above(
    x: Tensor,
    pre_bias: Tensor,
    encoder: Tensor,
    bias: Tensor | None = None,
    threshold: Tensor | float = 0.0,
    padded: bool = False,
) -> Code:
    """The pre-activations `encoder (x - pre_bias) + bias` that exceed `threshold`.

    Args:
        x: activations `[rows, d]`.
        pre_bias: `[d]`.
        encoder: `[n, d]`.
        bias: `[n]`, or none.
        threshold: a number, or one per latent `[n]`; no gradient flows to it.
        padded: whether the code may be padded, so that the host need not wait for a GPU to know
            how many there are: where `pads_whole` says so, it has all latents in each row. The
            threshold is then at least 0.

    Returns:
        Their code; the values are differentiable in `pre_bias`, `encoder` and `bias`.
    """
    with torch.no_grad():
        backend = _backend(x)
        whole = padded and pads_whole(x, len(encoder))
        centred = backend.centred(x, pre_bias)
        select = backend.whole_above if whole else backend.select_above
        code = select(centred, encoder, bias, threshold)
    return _encoded(code, centred, pre_bias, encoder, bias)


def encode_top_k(
    x: Tensor,
    pre_bias: Tensor,
    encoder: Tensor,
    k: int,
    bias: Tensor | None = None,
    top_k_mask: Callable[[Code, int], Tensor] | None = None,
    padded: bool = False,
) -> Code:
    """The `k` largest pre-activations of each row, of those that are positive (TopK, then ReLU).

    Arguments and result as for `encode_above`; of equal values the lower latent is kept. Where
    `encoder` is a part of all latents, `top_k_mask` says which of its `k` largest are to stay.

    To know how many positive values there are the host would have to wait for a GPU. It need not
    where the code may be `padded` with triples of value 0, which have no gradient here, but would
    count in whatever else is made of them than a sum of `z`.

    Raises:
        ValueError: `k` is less than 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    with torch.no_grad():
        backend = _backend(x) if len(encoder) else reference
        centred = backend.centred(x, pre_bias)
        code = backend.select_top_k(centred, encoder, bias, k)
        if code.padded and (top_k_mask is not None or not padded):
            code = code.keep(code.values > 0)
        if top_k_mask is not None:
            code = code.keep(top_k_mask(code, k))
    return _encoded(code, centred, pre_bias, encoder, bias)


def encoded(
    code: Code, x: Tensor, pre_bias: Tensor, encoder: Tensor, bias: Tensor | None = None
) -> Code:
    """A code of pre-activations, chosen in whatever way, with its gradients.

    Arguments and result as for `encode_above`; the values of `code` are those pre-activations.
    """
    with torch.no_grad():
        centred = _backend(x).centred(x, pre_bias)
    return _encoded(code, centred, pre_bias, encoder, bias)


def _encoded(
    code: Code, centred: Tensor, pre_bias: Tensor, encoder: Tensor, bias: Tensor | None
) -> Code:
    """As `encoded`, from what `centred` of a backend gave."""
    inputs = (pre_bias, encoder) if bias is None else (pre_bias, encoder, bias)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return code
    return code.with_values(_Encode.apply(code, centred, *inputs))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, code, centred, pre_bias, encoder, bias=None):
        ctx.code = code
        ctx.save_for_backward(centred, encoder)
        # Not the tensor that `ctx` has: it would hold itself, and all of the step, in memory.
        return code.values.detach()

    @staticmethod
    def backward(ctx, grad_values):
        centred, encoder = ctx.saved_tensors
        backend = _backend(grad_values)
        grad = ctx.code.with_values(grad_values.contiguous())
        grad_encoder = backend.transposed_product(grad, centred)
        sums = backend.latent_sums(grad)
        needs_bias = len(ctx.needs_input_grad) > 4
        return (None, None, -(sums @ encoder), grad_encoder, *([sums] if needs_bias else []))


# --- the decoder


def decode(code: Code, decoder: Tensor, pre_bias: Tensor) -> Tensor:
    """`x^ = z decoder + pre_bias`, `[rows, d]`, of a code and a decoder `[n, d]`; no gradient."""
    return _backend(decoder).product(code, decoder, pre_bias)


def squared_error(
    x: Tensor,
    code: Code,
    decoder: Tensor,
    pre_bias: Tensor | None = None,
    nested: Sequence[float] = (),
    whole: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`||x - x^||^2` summed over the batch, where `x^ = z decoder + pre_bias`; and `x - x^`.

    One pass over the active triples gives reconstructions, errors and the gradient at each triple,
    while the decoder's rows are at hand.

    Args:
        x: what is reconstructed, `[rows, d]`.
        code: of `rows` rows; with `nested` see there.
        decoder: `[n, d]`.
        pre_bias: `[d]`, or none.
        nested: weights of the squared errors of further reconstructions, which are added. Row `r`
            then has `1 + len(nested)` rows of the code, one after the other: the first is decoded
            to its first reconstruction, each other one to what the next has beyond the one before.
        whole: of what is decoded `[any, d]`, in place, the sum over all latents, where `code` and
            `decoder` have some of them.

    Returns:
        The sum `[]`, differentiable in the code's values, the decoder and the bias; and the errors
        of the first reconstructions `[rows, d]`, which have no gradient.
    """
    return _SquaredError.apply(x, code, code.values, decoder, pre_bias, nested, whole)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, code, values, decoder, pre_bias, nested, whole):
        backend = _backend(decoder)
        code = code.with_values(values.detach())
        total, error, pull, sampled = backend.squared_error(
            x, code, decoder, pre_bias, nested, whole
        )
        ctx.code, ctx.levels = code, 1 + len(nested)
        ctx.save_for_backward(pull, sampled)
        ctx.mark_non_differentiable(error)
        ctx.set_materialize_grads(False)  # none of zeros for the errors
        return total, error

    @staticmethod
    def backward(ctx, grad, _):
        pull, sampled = ctx.saved_tensors
        scale = -2 * grad
        grad_decoder = grad_bias = None
        if ctx.needs_input_grad[3]:
            # Values are fewer than errors, but for dense codes.
            grad_decoder = _backend(pull).transposed_product(
                ctx.code.with_values(ctx.code.values * scale), pull
            )
        if ctx.needs_input_grad[4]:
            grad_bias = pull[:: ctx.levels].sum(0) * scale
        return None, None, sampled * scale, grad_decoder, grad_bias, None, None


# --- one number per latent, at the active places


def gather(vector: Tensor, code: Code) -> Tensor:
    """`vector [n]` at each active triple's latent: `[nnz]`, differentiable in the vector."""
    return _Gather.apply(vector, code)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vector, code):
        ctx.code = code
        return vector.index_select(0, code.indices)

    @staticmethod
    def backward(ctx, grad_values):
        grad = ctx.code.with_values(grad_values.contiguous())
        return _backend(grad_values).latent_sums(grad), None


def reset_active(silent: Tensor, code: Code) -> Tensor:
    """Set `silent`, int64 `[n]`, to 0 at each active latent; how many triples are, int64 `[]`.

    A triple of value 0 is not active.
    """
    return _backend(code.values).reset_active(silent, code)


# --- the optimiser


def adam(
    parameter: Tensor,
    gradient: Tensor,
    state: AdamState,
    rates: Rates,
    gradient_scale: Tensor,
    unit_rows: bool,
) -> None:
    """One Adam step in place; see `reference.adam`."""
    _backend(parameter).adam(parameter, gradient, state, rates, gradient_scale, unit_rows)
