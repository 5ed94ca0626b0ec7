"""The built-in methods by the name of their folder under `workflow/methods/`."""

from __future__ import annotations

from l0plane.methods.base import Loss, Method, Parameters
from l0plane.methods.batch_topk import BatchTopKMethod
from l0plane.methods.gated import GatedMethod
from l0plane.methods.jumprelu import JumpReLUMethod
from l0plane.methods.multi_topk import MultiTopKMethod
from l0plane.methods.prolu import ProLUReLU, ProLUSTE
from l0plane.methods.relu import ReLUMethod
from l0plane.methods.relu_scaled import ScaledReLUMethod
from l0plane.methods.topk import TopKMethod

METHODS: dict[str, type[Method]] = {
    "relu": ReLUMethod,
    "topk": TopKMethod,
    "gated": GatedMethod,
    "prolu_relu": ProLUReLU,
    "prolu_ste": ProLUSTE,
    "relu_scaled": ScaledReLUMethod,
    "multi_topk": MultiTopKMethod,
    "batch_topk": BatchTopKMethod,
    "jumprelu": JumpReLUMethod,
}

__all__ = ["METHODS", "Loss", "Method", "Parameters"]
