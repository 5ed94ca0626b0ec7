"""The language model under study: activations at a hook, and the rest of the pass from there."""

from __future__ import annotations

import difflib
import gc
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l0plane import model_directory
from l0plane.files import UserError, sha256
from l0plane.hub import how_to_bring, named

#: How far the shorter pass of `log_probabilities` may lie from the whole one, in logits.
TOLERANCE = 1e-5


class _Reached(Exception):
    """Ends a forward pass at the hook; carries the activations."""


class LanguageModel:
    """A causal language model and one hook, through TransformerLens.

    Attributes:
        hook: the name of the hook, as TransformerLens spells it.
        d_model: width of the activations at the hook.
        context_limit: the longest context that the model takes, in tokens.
        vocabulary: how many tokens it knows.
        device: where it runs.
    """

    def __init__(self, bridge: Any, hook: str, directory: Path, device: str | torch.device) -> None:
        """Use `load`."""
        self._bridge = bridge
        self._directory = directory
        self.hook = hook
        self.device = torch.device(device)
        self.context_limit: int = bridge.cfg.n_ctx
        self.vocabulary: int = bridge.cfg.d_vocab
        probe = torch.zeros((2, min(4, self.context_limit)), dtype=torch.int64)
        residual = self.residual(probe)
        if residual.ndim != 3:
            raise UserError(
                f"language_model.hook: {hook} has shape {tuple(residual.shape)}; "
                "expected [contexts, context, width], as at blocks.<layer>.hook_resid_post"
            )
        if not torch.isfinite(residual).all():
            raise UserError(
                f"language_model.path: activations at {hook} are not finite; are the weights whole?"
            )
        self.d_model: int = residual.shape[-1]
        self._skipped_blocks = 0
        self._skipped_blocks = self._blocks_to_skip(probe, residual)

    @classmethod
    def load(
        cls, name_or_directory: str | Path, hook: str, device: str | torch.device = "cpu"
    ) -> LanguageModel:
        """Load a model from a directory in Hugging Face layout, or by its `named` place on the hub.

        Raises:
            UserError: there is no such model, its weights are not safetensors or are not those
                that its configuration asks for, it comes with code of its own, TransformerLens
                does not know the architecture, or the model has no such hook.
        """
        directory = Path(name_or_directory)
        if not directory.exists():
            directory = _fetch(str(name_or_directory))
        model_directory.check(directory)
        try:
            with _without_collection():
                bridge = _boot(directory, str(device))
        except UserError:
            raise
        # transformers, tokenizers and TransformerLens raise errors of many types over a directory
        # that they cannot make sense of, a bare Exception among them.
        except Exception as error:
            raise UserError(
                f"language_model.path: cannot load {name_or_directory}: "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from None
        bridge.eval().requires_grad_(False)
        if hook not in bridge.hook_dict:
            alike = difflib.get_close_matches(hook, bridge.hook_dict, n=3, cutoff=0.0)
            raise UserError(
                f"language_model.hook: {name_or_directory} has no {hook}; "
                f"the hooks most like it are {', '.join(alike)}"
            )
        return cls(bridge, hook, directory, device)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights file, or of its shards' SHA-256s in the order of their names."""
        hashes = [sha256(path) for path in sorted(self._directory.glob("*.safetensors"))]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )

    @torch.no_grad()
    def residual(self, tokens: Tensor) -> Tensor:
        """Activations at the hook, `[contexts, context, d_model]`; nothing after it is computed.

        Raises:
            UserError: `tokens`, int `[contexts, context]`, do not fit the model.
        """
        self._check(tokens)

        def stop(value: Tensor, hook: Any) -> None:
            raise _Reached(value)

        try:
            self._run(tokens, stop)
        except _Reached as reached:
            return reached.args[0]
        raise UserError(f"language_model.hook: a forward pass never comes to {self.hook}")

    @torch.no_grad()
    def log_probabilities(self, tokens: Tensor, residual: Tensor) -> Tensor:
        """Next-token log-probabilities (nats) with `residual` in the place of the activations.

        Args:
            tokens: int `[contexts, context]`.
            residual: `[contexts, context, d_model]`, put in at the hook.

        Returns:
            `[contexts, context - 1, vocabulary]`: of the token after each position but the last.
        """
        if self._skipped_blocks:
            with _skipping(self._bridge.blocks[: self._skipped_blocks], residual, self._as_tuple):
                logits = self._bridge(tokens.long().to(self.device))
        else:
            logits = self._run(tokens, lambda value, hook: residual)
        # Cut afterwards: of a slice of the logits it would take a copy first.
        return torch.log_softmax(logits, dim=-1)[:, :-1]

    def _run(self, tokens: Tensor, function: Callable[..., Any]) -> Tensor:
        return self._bridge.run_with_hooks(
            tokens.long().to(self.device), fwd_hooks=[(self.hook, function)]
        )

    def _check(self, tokens: Tensor) -> None:
        if tokens.shape[-1] > self.context_limit:
            raise UserError(
                f"language_model.context: {tokens.shape[-1]} tokens; "
                f"the language model takes at most {self.context_limit}"
            )
        if int(tokens.max()) >= self.vocabulary:
            raise UserError(
                f"language_model.path: the corpus holds token {int(tokens.max())}, but the model "
                f"knows {self.vocabulary}; encode the corpus with the tokenizer of this model"
            )

    def _blocks_to_skip(self, probe: Tensor, residual: Tensor) -> int:
        """How many first blocks do nothing once the residual stream after them is given.

        TransformerLens has no resuming in 3.9, and in 4.3 its resuming computes the earlier
        blocks and throws them away. Leaving them out is tried on `probe`, since not every
        architecture passes on nothing but the residual stream; 0 where it changes the result.
        """
        match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", self.hook)
        blocks = int(match[1]) + (match[2] == "post") if match else 0
        if not blocks:
            return 0
        outputs: list[Any] = []
        handle = self._bridge.blocks[0].register_forward_hook(
            lambda module, args, output: outputs.append(output)
        )
        try:
            replaced = residual.flip(0) * 0.9
            whole = self.log_probabilities(probe, replaced)
        finally:
            handle.remove()
        self._as_tuple = isinstance(outputs[0], tuple)
        self._skipped_blocks = blocks
        try:
            short = self.log_probabilities(probe, replaced)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
            return 0
        return blocks if torch.allclose(short, whole, rtol=0, atol=TOLERANCE) else 0


@contextmanager
def _skipping(blocks: Any, residual: Tensor, as_tuple: bool) -> Iterator[None]:
    """Let the first of `blocks` give `residual` whatever it gets, the others pass it on."""

    def give(*args: Any, **kwargs: Any) -> Any:
        return (residual,) if as_tuple else residual

    for block in blocks:
        vars(block)["forward"] = give
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Look for no garbage: what is imported and loaded stays, and looking takes a fifth as long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _boot(directory: Path, device: str) -> Any:
    """TransformerLens' bridge to the model in a directory, all of whose weights are from there."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Left to itself it draws what is missing at random and warns. Eager as TransformerLens has it.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model, found = loaded
    for name, there, expected in sorted(found["mismatched_keys"]):
        raise UserError(
            f"language_model.path: {directory}: tensor {name} has shape {tuple(there)}; "
            f"expected {tuple(expected)} by config.json"
        )
    for name in sorted(found["missing_keys"]):
        raise UserError(f"language_model.path: {directory}: tensor {name} is missing")
    return TransformerBridge.boot_transformers(
        str(directory), hf_model=model.to(device), device=device, trust_remote_code=False
    )


def _fetch(place: str) -> Path:
    from huggingface_hub import snapshot_download

    name, revision = named(place)
    # One level of the repository: below it are other formats of the same weights.
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    # The hub's errors have many types (network, authorisation, a name that cannot be one), and
    # the mending is the same.
    except Exception as error:
        raise UserError(
            f"language_model.path: {place} is not a directory and cannot be had from the Hugging "
            f"Face hub ({_first_line(error)}).\n{how_to_bring(name, 'model', revision)}"
        ) from None
    return Path(found)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
