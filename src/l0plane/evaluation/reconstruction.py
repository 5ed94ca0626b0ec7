"""Reconstruction in the L0-MSE plane (Figure 2) and its price downstream (Figure 5)."""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor

from l0plane.autoencoder import Autoencoder
from l0plane.evaluation import downstream
from l0plane.evaluation.held_out import HeldOut


def evaluate(autoencoder: Autoencoder, held_out: HeldOut) -> tuple[dict[str, float], pd.DataFrame]:
    """Measure one autoencoder on the held-out contexts.

    Returns:
        A row of autoencoders.csv without keys, lambda, training_seconds and provenance; and
        contexts.parquet without keys, one row per context. `dead_fraction` is the share of
        latents silent on all held-out rows; losses are in nats per predicted token.
    """
    bias = _Bias()
    used = torch.zeros(autoencoder.n, dtype=torch.bool, device=held_out.x.device)
    pieces = []
    for part in held_out.parts():
        x = held_out.rows(part)
        seen = held_out.seen(part, autoencoder.normalisation)
        code = autoencoder.encode(seen.x)
        x_hat = seen.at_unit_norm(autoencoder.decode(code))
        used[code.indices.long()] = True
        bias.add(x, x_hat)
        delta_ce, kl = downstream.compare(held_out, part, x_hat)
        squared_error = held_out.per_context((x - x_hat).square().sum(1))
        l0 = held_out.per_context(code.l0) / held_out.positions
        columns = torch.stack([squared_error, held_out.variance[part], l0, delta_ce, kl])
        pieces.append(columns.cpu())
    measured = torch.cat(pieces, 1)
    squared_error, variance, l0, delta_ce, kl = measured
    ce_original = held_out.loss.mean().item()
    ce_spliced = ce_original + delta_ce.mean().item()
    row = {
        "l0": l0.mean().item(),
        "l0_se": standard_error(l0),
        "nmse": (squared_error.sum() / variance.sum()).item(),
        "nmse_se": ratio_standard_error(squared_error, variance),
        "delta_ce": delta_ce.mean().item(),
        "delta_ce_se": standard_error(delta_ce),
        "kl": kl.mean().item(),
        "kl_se": standard_error(kl),
        "ce_original": ce_original,
        "loss_recovered_zero": _recovered(ce_original, ce_spliced, held_out.zero_ablated_loss),
        "loss_recovered_mean": _recovered(ce_original, ce_spliced, held_out.mean_ablated_loss),
        "dead_fraction": 1 - used.double().mean().item(),
        "relative_reconstruction_bias": bias.relative(),
        "evaluation_tokens": len(held_out.x),
    }
    names = ["squared_error", "variance", "l0", "delta_ce", "kl"]
    contexts = pd.DataFrame(measured.float().numpy().T, columns=names)
    contexts.insert(0, "context", range(len(held_out)))
    return row, contexts


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of `values [contexts]`; NaN for a single context."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


def ratio_standard_error(numerator: Tensor, denominator: Tensor) -> float:
    """Standard error of `sum(numerator) / sum(denominator)` over contexts, by the delta method."""
    ratio = numerator.sum() / denominator.sum()
    return standard_error(numerator - ratio * denominator) / denominator.mean().item()


def _recovered(original: float, spliced: float, ablated: float) -> float:
    """Fraction of loss recovered: 1 for the untouched model, 0 for the ablated one."""
    return 1 - (spliced - original) / (ablated - original)


class _Bias:
    """Relative reconstruction bias (Rajamanoharan et al. 2024a).

    `gamma = argmin_g E||x_hat / g - x||^2 = E||x_hat||^2 / E<x_hat, x>`, both without their means,
    so that it tells of the latents and not of the pre-bias; below 1 is shrinkage.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.sum = self.sum_hat = torch.zeros(())
        self.square = self.product = 0.0

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        self.rows += len(x)
        self.sum = self.sum + x.sum(0, dtype=torch.float64)
        self.sum_hat = self.sum_hat + x_hat.sum(0, dtype=torch.float64)
        self.square += x_hat.square().sum(dtype=torch.float64).item()
        self.product += (x_hat * x).sum(dtype=torch.float64).item()

    def relative(self) -> float:
        square = self.square - (self.sum_hat**2).sum().item() / self.rows
        product = self.product - (self.sum_hat * self.sum).sum().item() / self.rows
        return square / product if product else math.nan
