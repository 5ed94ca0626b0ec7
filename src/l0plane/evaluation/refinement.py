"""Refinement (Figure 9): the best values for the active latents that the encoder chose."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numba import njit, prange
from torch import Tensor

from l0plane.autoencoder import Autoencoder
from l0plane.code import Code
from l0plane.evaluation.held_out import HeldOut

#: Pulls the solution to the values that the encoder gave, relative to the largest squared norm of a
#: decoder row: decides between equally good solutions where active directions are dependent.
#: Below what float32 parameters resolve.
PULL = 1e-10
#: How far a multiplier may be on the wrong side, relative to the largest product with the target.
TOLERANCE = 1e-9
#: Shifts beyond the last edge count in the end bins; zero is the middle of the middle bin.
HISTOGRAM_EDGES = (np.arange(102) - 50.5) * 0.005


def refine(
    autoencoder: Autoencoder, held_out: HeldOut
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame]:
    """Refine the codes of all held-out rows.

    Returns:
        A row of refinement.csv, refinement_contexts.parquet (one row per context) and
        refinement_histogram.csv (counts of refined minus original value per active latent, common
        edges), all without keys and provenance.
    """
    pieces, shifts, values = [], [], []
    for part in held_out.parts():
        seen = held_out.seen(part, autoencoder.normalisation)
        code = autoencoder.encode(seen.x)
        refined, before, after = solve(seen.x, code, autoencoder.decoder, autoencoder.pre_bias)
        rows, stretch = code.rows.cpu(), seen.stretch[:, 0].double().cpu()
        value = code.values.double().cpu() * stretch[rows]
        shift = refined * stretch[rows] - value
        before, after = before * stretch**2, after * stretch**2

        def row_sum(per_latent: Tensor, rows: Tensor = rows, length: int = len(before)) -> Tensor:
            return torch.zeros(length, dtype=torch.float64).index_add_(0, rows, per_latent)

        per_row = [before, after, row_sum(shift), row_sum(shift.abs()), row_sum(value), code.l0]
        pieces.append(torch.stack([held_out.per_context(v.cpu()) for v in per_row]))
        shifts.append(shift.numpy())
        values.append(value.numpy())
    table = pd.DataFrame(
        torch.cat(pieces, 1).numpy().T,
        columns=[
            "squared_error",
            "squared_error_refined",
            "shift_sum",
            "absolute_shift_sum",
            "value_sum",
            "active",
        ],
    )
    table["variance"] = held_out.variance.cpu().numpy()
    table["l0"] = table["active"] / held_out.positions
    shift_all = np.concatenate(shifts)
    total = table.sum()
    active = max(1, len(shift_all))
    mean_value = total["value_sum"] / active
    row = {
        "l0": total["active"] / len(held_out.x),
        "nmse": total["squared_error"] / total["variance"],
        "nmse_refined": total["squared_error_refined"] / total["variance"],
        "mean_shift": total["shift_sum"] / active,
        "mean_absolute_shift": total["absolute_shift_sum"] / active,
        "mean_value": mean_value,
        "fraction_up": (shift_all > 1e-6 * mean_value).sum() / active,
    }
    contexts = table.astype("float32").astype({"active": "int64"})
    contexts.insert(0, "context", range(len(table)))
    return {key: float(value) for key, value in row.items()}, contexts, _histogram(shift_all)


def _histogram(shift: np.ndarray) -> pd.DataFrame:
    edges = HISTOGRAM_EDGES
    inside = np.nextafter(edges[[0, -1]], 0.0)
    count, _ = np.histogram(shift.clip(*inside), edges)
    return pd.DataFrame({"bin_left": edges[:-1], "bin_right": edges[1:], "count": count})


def solve(
    x: Tensor, code: Code, decoder: Tensor, pre_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-negative least squares on each row's active set: `min_{z >= 0} ||x - b_pre - z W_S||^2`.

    The exact active-set method of Lawson and Hanson (1974), started from the values of the code,
    so that the error falls at every step and one factorisation settles most rows.

    Args:
        x: activations `[rows, d]`.
        code: their code; its active set stays as it is, though a refined value may be 0.
        decoder: `[n, d]`.
        pre_bias: `[d]`.

    Returns:
        Refined values `[nnz]` in the order of `code.values`, and the squared error of each row
        before and after `[rows]`; all float64, on the CPU.
    """
    arrays = (x - pre_bias, decoder, code.indptr, code.indices, code.values)
    refined, before, after = _solve_rows(*(a.detach().cpu().contiguous().numpy() for a in arrays))
    return torch.from_numpy(refined), torch.from_numpy(before), torch.from_numpy(after)


@njit(parallel=True, cache=True)
def _solve_rows(target, decoder, indptr, indices, values):
    rows, d = target.shape
    refined = values.astype(np.float64)
    before = np.empty(rows)
    after = np.empty(rows)
    for r in prange(rows):
        start, end = indptr[r], indptr[r + 1]
        directions = np.empty((end - start, d))
        for i in range(end - start):
            for c in range(d):
                directions[i, c] = decoder[indices[start + i], c]
        y = target[r].astype(np.float64)
        z = refined[start:end]
        before[r] = _squared_error(y, z, directions)
        after[r] = before[r]
        if end > start:
            _descend(np.dot(directions, directions.T), np.dot(directions, y), z)
            after[r] = _squared_error(y, z, directions)
            if after[r] > before[r]:  # by rounding: the code was optimal already
                after[r] = before[r]
                for i in range(end - start):
                    z[i] = values[start + i]
    return refined, before, after


@njit(cache=True)
def _squared_error(y, z, directions):
    error = y.copy()
    for i in range(len(z)):
        for c in range(len(y)):
            error[c] -= z[i] * directions[i, c]
    return np.dot(error, error)


@njit(cache=True)
def _descend(gram, product, z):
    """Take `z >= 0` to the minimum of `z gram z - 2 z product` over `z >= 0`, in place."""
    m = len(z)
    pull = 0.0
    for i in range(m):
        pull = max(pull, PULL * gram[i, i])
    scale = 0.0
    for i in range(m):
        scale = max(scale, abs(product[i]))
        gram[i, i] += pull
        product[i] += pull * z[i]
    free = np.arange(m)
    count = m
    solution = np.empty(m)
    factor = np.empty((m, m))
    # Each turn lowers the objective, or frees one latent; the bound is only against rounding.
    for _ in range(5 * m + 20):
        _solve_free(gram, product, free[:count], factor, solution)
        step = 1.0
        for a in range(count):
            step = min(step, _way_to_zero(z[free[a]], solution[a]))
        kept = 0
        for a in range(count):
            i = free[a]
            if _way_to_zero(z[i], solution[a]) <= step < 1.0:
                z[i] = 0.0
            else:
                z[i] += step * (solution[a] - z[i])
                free[kept] = i
                kept += 1
        blocked = kept < count
        count = kept
        if blocked:
            continue
        best, chosen = TOLERANCE * scale, -1
        for i in range(m):
            if z[i] == 0.0:
                slope = product[i]
                for a in range(count):
                    slope -= gram[i, free[a]] * z[free[a]]
                if slope > best:
                    best, chosen = slope, i
        if chosen < 0:
            return
        free[count] = chosen
        count += 1


@njit(cache=True)
def _way_to_zero(value, solution):
    """Share of the way from `value >= 0` to `solution` at which zero is met; 1 if it is not."""
    if solution > 0.0:
        return 1.0
    return value / (value - solution) if value > 0.0 else 0.0


@njit(cache=True, fastmath={"reassoc", "contract"})
def _solve_free(gram, product, free, factor, solution):
    """Solve for the free latents by Cholesky; `gram` is positive definite."""
    for a in range(len(free)):
        for b in range(a + 1):
            total = 0.0
            for c in range(b):
                total += factor[a, c] * factor[b, c]
            rest = gram[free[a], free[b]] - total
            factor[a, b] = np.sqrt(rest) if a == b else rest / factor[b, b]
    for a in range(len(free)):
        total = 0.0
        for c in range(a):
            total += factor[a, c] * solution[c]
        solution[a] = (product[free[a]] - total) / factor[a, a]
    for a in range(len(free) - 1, -1, -1):
        solution[a] /= factor[a, a]
        for c in range(a):
            solution[c] -= factor[a, c] * solution[a]
