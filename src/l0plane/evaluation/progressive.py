"""Progressive codes (Figure 10): fewer or more latents at test time than in training."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numba import njit, prange
from torch import Tensor

from l0plane.autoencoder import Autoencoder
from l0plane.code import Code
from l0plane.evaluation.downstream import spliced_loss
from l0plane.evaluation.held_out import HeldOut

#: Rows whose positive values set the grids of k' and theta.
GRID_ROWS = 4096


def progressive(
    autoencoder: Autoencoder, held_out: HeldOut, points: int, delta_ce_contexts: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the test-time TopK(k') and JumpReLU(theta) curves of one autoencoder.

    Each row's positive values are ordered once; every k' and theta keeps a prefix of that order,
    so one walk along it gives the errors of all points.

    Args:
        autoencoder: the trained autoencoder.
        held_out: the contexts to measure on.
        points: about how many k' there are; see `grids`.
        delta_ce_contexts: on how many first contexts to measure delta cross-entropy, which takes
            a pass of the language model per point.

    Returns:
        curves.csv (one row per point) and curve_contexts.parquet (one per point and context; its
        delta_ce is NaN beyond `delta_ce_contexts`), both without keys and provenance.
    """
    first = slice(0, -(-GRID_ROWS // held_out.positions))
    sample = held_out.seen(first, autoencoder.normalisation).x[:GRID_ROWS]
    ks, thetas = grids(autoencoder, sample, points)
    grid = [("topk", float(k)) for k in ks] + [("jumprelu", float(theta)) for theta in thetas]
    spliced_contexts = min(delta_ce_contexts, len(held_out))
    squared_error = np.empty((len(grid), len(held_out)))
    l0 = np.empty((len(grid), len(held_out)))
    delta_ce = np.full((len(grid), len(held_out)), np.nan)
    n = autoencoder.n
    for part in [*held_out.parts(0, spliced_contexts, n), *held_out.parts(spliced_contexts, n=n)]:
        seen = held_out.seen(part, autoencoder.normalisation)
        code = descending(autoencoder.positive_code(seen.x))
        errors = prefix_errors(seen.x - autoencoder.pre_bias, code, autoencoder.decoder)
        unit = seen.stretch[:, 0].cpu() ** 2
        # A row with m values has m + 1 errors, the first of them with none kept.
        starts = code.indptr[:-1].long() + torch.arange(len(seen.x))
        for point, (selection, value) in enumerate(grid):
            kept = code.l0.clamp(max=int(value)) if selection == "topk" else above(code, value)
            squared_error[point, part] = held_out.per_context(unit * errors[starts + kept])
            l0[point, part] = held_out.per_context(kept) / held_out.positions
            if part.stop <= spliced_contexts:
                x_hat = autoencoder.decode(prefix(code, kept, seen.x.device))
                spliced = held_out.splice_reconstruction(part, seen.at_unit_norm(x_hat))
                delta = spliced_loss(held_out, part, spliced) - held_out.loss[part]
                delta_ce[point, part] = delta.cpu()
    variance = held_out.variance.cpu().numpy()
    selections, values = zip(*grid, strict=True)
    curve = pd.DataFrame(
        {
            "selection": selections,
            "value": values,
            "l0": l0.mean(1),
            "nmse": squared_error.sum(1) / variance.sum(),
            "delta_ce": delta_ce[:, :spliced_contexts].mean(1) if spliced_contexts else np.nan,
        }
    )
    contexts = pd.DataFrame(
        {
            "selection": np.repeat(selections, len(held_out)),
            "value": np.repeat(values, len(held_out)),
            "context": np.tile(np.arange(len(held_out)), len(grid)),
            "squared_error": squared_error.ravel().astype(np.float32),
            "variance": np.tile(variance, len(grid)).astype(np.float32),
            "l0": l0.ravel().astype(np.float32),
            "delta_ce": delta_ce.ravel().astype(np.float32),
        }
    )
    return curve, contexts


def grids(autoencoder: Autoencoder, x: Tensor, points: int) -> tuple[list[int], list[float]]:
    """The k' and theta of the curves.

    The k' are about `points` whole numbers from 1 to the most positive latents of a row of `x`,
    evenly in their logarithm, and the training L0. For each there is the theta that keeps as many
    latents per row on average, down to 0.
    """
    code = autoencoder.positive_code(x)
    most = max(1, int(code.l0.max()))
    trained = round(autoencoder.encode(x).l0.double().mean().item())
    ks = {round(k) for k in np.geomspace(1, most, points)} | {min(max(1, trained), most)}
    pooled = code.values.sort(descending=True).values
    places = [k * len(x) for k in ks]
    thetas = {pooled[place].item() if place < len(pooled) else 0.0 for place in places}
    return sorted(ks), sorted(thetas, reverse=True)


def descending(code: Code) -> Code:
    """The same code on the CPU, each row in descending order of value."""
    indptr, indices, values = (t.cpu().numpy() for t in (code.indptr, code.indices, code.values))
    indices, values = _descending(indptr, indices, values)
    return Code(code.indptr.cpu(), torch.from_numpy(indices), torch.from_numpy(values), code.n)


@njit(parallel=True, cache=True)
def _descending(indptr, indices, values):
    ordered_indices, ordered_values = np.empty_like(indices), np.empty_like(values)
    for r in prange(len(indptr) - 1):
        start, end = indptr[r], indptr[r + 1]
        order = np.argsort(-values[start:end])
        for i in range(end - start):
            ordered_indices[start + i] = indices[start + order[i]]
            ordered_values[start + i] = values[start + order[i]]
    return ordered_indices, ordered_values


def above(code: Code, theta: float) -> Tensor:
    """int64 `[rows]`: how many values of each row of a descending code exceed `theta`."""
    return torch.from_numpy(_above(code.indptr.numpy(), code.values.numpy(), np.float32(theta)))


@njit(parallel=True, cache=True)
def _above(indptr, values, theta):
    counts = np.empty(len(indptr) - 1, np.int64)
    for r in prange(len(counts)):
        low, high = indptr[r], indptr[r + 1]
        while low < high:
            middle = (low + high) // 2
            if values[middle] > theta:
                low = middle + 1
            else:
                high = middle
        counts[r] = low - indptr[r]
    return counts


def prefix(code: Code, kept: Tensor, device: torch.device) -> Code:
    """The first `kept [rows]` triples of each row of `code`, on `device`."""
    indptr = torch.zeros(len(kept) + 1, dtype=torch.int32)
    indptr[1:] = kept.cumsum(0)
    shift = code.indptr[:-1].long() - indptr[:-1].long()
    places = torch.arange(int(indptr[-1])) + shift.repeat_interleave(kept)
    indices, values = code.indices[places].to(device), code.values[places].to(device)
    return Code(indptr.to(device), indices, values, code.n)


def prefix_errors(target: Tensor, code: Code, decoder: Tensor) -> Tensor:
    """`||target - z decoder||^2` with none, one, two, ... of each row's triples, in their order.

    Args:
        target: `[rows, d]`.
        code: on the CPU, of the same rows.
        decoder: `[n, d]`.

    Returns:
        float32 `[nnz + rows]`: for a row of m triples the m + 1 errors, row after row.
    """
    arrays = (target, code.indptr, code.indices, code.values, decoder)
    return torch.from_numpy(_prefix_errors(*(a.cpu().contiguous().numpy() for a in arrays)))


@njit(parallel=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _prefix_errors(target, indptr, indices, values, decoder):
    rows, d = target.shape
    errors = np.empty(len(values) + rows, np.float32)
    for r in prange(rows):
        start, end = indptr[r], indptr[r + 1]
        rest = target[r].copy()
        square = np.float32(0.0)
        for c in range(d):
            square += rest[c] * rest[c]
        errors[start + r] = square
        for e in range(start, end):
            direction, value = decoder[indices[e]], values[e]
            square = np.float32(0.0)
            for c in range(d):
                rest[c] -= value * direction[c]
                square += rest[c] * rest[c]
            errors[e + r + 1] = square
    return errors
