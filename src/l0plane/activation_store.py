"""Preprocessed activations on disk: shuffled once, then read by every training run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from l0plane.files import (
    Broken,
    UserError,
    read_sealed,
    rebuilt_by_the_run,
    replacing,
    sealed,
    sha256,
    write_json,
)
from l0plane.language_model import LanguageModel
from l0plane.preprocessing import normalise

MANIFEST = "manifest.json"
#: Tokens in one pass of the language model, by where it runs: enough to be quick there. Fixed,
#: since rounding depends on it.
PASS_TOKENS = {"cpu": 4096, "cuda": 32768}
PROGRESS_SECONDS = 10.0


def write(
    directory: str | Path,
    contexts: np.ndarray,
    language_model: LanguageModel,
    *,
    split: str,
    tokens: int,
    shard_tokens: int,
    seed: int,
    drop_first_position: bool,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write the preprocessed activations of a split, shuffled over the whole set.

    Two passes, so that memory holds one shard at most: the first sends every activation to a
    shard drawn at random, the second shuffles each shard.

    Args:
        directory: where shards and `manifest.json` go.
        contexts: int `[contexts, context]`; the first ones are used, as many as `tokens` needs.
        language_model: gives the activations at its hook.
        split: its name, for the message when it is too small.
        tokens: how many activations; rounded down to whole contexts.
        shard_tokens: activations in a shard; the last has fewer.
        seed: of the shuffle.
        drop_first_position: leave out position 0 of each context, whose activation is an outlier
            of many times the usual norm in most models.
        facts: goes into the manifest as it is (corpus hash and the like).

    Returns:
        The manifest. Its `mean` is that of the activations as stored; `raw_variance` is the mean
        ||x - mean||^2 of the language model's own, which errors published in that space are to be
        divided by.

    Raises:
        UserError: the split has too few contexts.
    """
    first = int(drop_first_position)
    per_context = contexts.shape[1] - first
    wanted = tokens // per_context
    if not 0 < wanted <= len(contexts):
        raise UserError(
            f"activations.{split}_tokens: {tokens} asks for {wanted} contexts; the {split} split "
            f"has {len(contexts)}: set it between {per_context} and {len(contexts) * per_context}"
        )
    rows = wanted * per_context
    generator = np.random.default_rng(seed)
    shard_of_row = generator.permutation(np.arange(rows, dtype=np.int64) // shard_tokens)
    with replacing(directory) as part:
        part.mkdir()
        names = [f"shard-{i:05d}.safetensors" for i in range(-(-rows // shard_tokens))]
        raw = [part / f"{name}.raw" for name in names]
        total, raw_total = torch.zeros(2, language_model.d_model, dtype=torch.float64)
        raw_squares = 0.0
        position = 0
        for original, x in _activations(contexts[:wanted], language_model, first):
            total += x.sum(0, dtype=torch.float64).cpu()
            raw_total += original.sum(0, dtype=torch.float64).cpu()
            raw_squares += original.square().sum(dtype=torch.float64).item()
            x = x.cpu()
            targets = shard_of_row[position : position + len(x)]
            position += len(x)
            for shard in np.unique(targets):
                with raw[shard].open("ab") as stream:
                    stream.write(x[torch.from_numpy(targets == shard)].numpy().tobytes())
        shards = []
        for name, unordered in zip(names, raw, strict=True):
            shard = np.fromfile(unordered, np.float32).reshape(-1, language_model.d_model)
            unordered.unlink()
            shard = shard[generator.permutation(len(shard))]
            save_file({"activations": torch.from_numpy(shard)}, part / name)
            shards.append({"file": name, "rows": len(shard), "sha256": sha256(part / name)})
        manifest = {
            "split": split,
            "tokens": rows,
            "contexts": wanted,
            "context": contexts.shape[1],
            "drop_first_position": drop_first_position,
            "d": language_model.d_model,
            "hook": language_model.hook,
            "model_sha256": language_model.sha256,
            "seed": seed,
            **facts,
            "mean": (total / rows).tolist(),
            "raw_variance": raw_squares / rows - (raw_total / rows).square().sum().item(),
            "shards": shards,
        }
        manifest = sealed(manifest)
        write_json(part / MANIFEST, manifest)
    return manifest


def _activations(
    contexts: np.ndarray, language_model: LanguageModel, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `passes` gives, with the progress that is made."""
    started = reported = time.perf_counter()
    done = 0
    for original, x in passes(contexts, language_model, first):
        yield original, x
        now = time.perf_counter()
        done += len(x) // (contexts.shape[1] - first)
        if now - reported > PROGRESS_SECONDS or done == len(contexts):
            reported, elapsed = now, now - started
            print(
                f"{done}/{len(contexts)} contexts  "
                f"{done * contexts.shape[1] / elapsed:,.0f} tokens/s  "
                f"{elapsed / done * (len(contexts) - done):.0f} s left",
                flush=True,
            )


def contexts_in_a_pass(contexts: np.ndarray, language_model: LanguageModel) -> int:
    """How many of the contexts `[contexts, context]` the language model takes at a time."""
    return max(1, PASS_TOKENS[language_model.device.type] // contexts.shape[1])


def passes(
    contexts: np.ndarray, language_model: LanguageModel, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Raw and preprocessed activations, float32 `[rows, d]` each, in the order of the contexts.

    Positions before `first` are left out of every context.
    """
    batch = contexts_in_a_pass(contexts, language_model)
    for start in range(0, len(contexts), batch):
        tokens = torch.from_numpy(contexts[start : start + batch])
        original = language_model.residual(tokens)[:, first:]
        x = normalise(original)[0]
        yield original.flatten(0, 1).float(), x.flatten(0, 1).float()


def batched(pieces: Iterator[Tensor], batch_tokens: int, batches: int) -> Iterator[Tensor]:
    """Cut `pieces`, each `[some, d]`, into so many batches `[batch_tokens, d]`."""
    pending: list[Tensor] = []
    while batches > 0:
        rows = next(pieces)
        while len(rows):
            missing = batch_tokens - sum(map(len, pending))
            pending.append(rows[:missing])
            rows = rows[missing:]
            if len(pending[-1]) == missing:
                yield pending[0] if len(pending) == 1 else torch.cat(pending)
                pending = []
                batches -= 1
                if not batches:
                    return


class ActivationStore:
    """Reads what `write` wrote; each shard's checksum is compared when it is first opened.

    Attributes:
        manifest: what `manifest.json` says.
        d: width of an activation.
        tokens: how many activations there are.
        mean: their mean `[d]`.
    """

    def __init__(self, directory: str | Path, device: str | torch.device = "cpu") -> None:
        """Open a store whose activations are given on `device`.

        Raises:
            UserError: the manifest is missing or not what was written.
        """
        self.directory = Path(directory)
        self.device = torch.device(device)
        path = self.directory / MANIFEST
        with rebuilt_by_the_run(self.directory):
            self.manifest = read_sealed(path)
            try:
                self.d: int = self.manifest["d"]
                self.tokens: int = self.manifest["tokens"]
                self.mean = torch.tensor(self.manifest["mean"], device=device)
                shards = self.manifest["shards"]
                self._shards = [(s["file"], s["rows"], s["sha256"]) for s in shards]
            except (KeyError, TypeError) as error:
                raise Broken(f"{path}: not the manifest of a store ({error})") from None
        self._checked: set[int] = set()

    def batches(
        self, batch_tokens: int, tokens: int, seed: int, start: int = 0
    ) -> Iterator[Tensor]:
        """Yield whole batches, float32 `[batch_tokens, d]`, of `tokens` activations at most.

        Every epoch visits each activation once, in an order of its own given by `seed`; a batch
        may span two epochs. Shards are mapped, not read whole. The first `start` batches are left
        out, unread.
        """
        pieces = self._pieces(batch_tokens, seed, start * batch_tokens)
        return batched(pieces, batch_tokens, tokens // batch_tokens - start)

    def sample(self, rows: int) -> Tensor:
        """The first `rows` activations (all, if there are fewer), `[rows, d]`: a random sample."""
        pieces, found = [], 0
        for index in range(len(self._shards)):
            pieces.append(self._shard(index)[: rows - found])
            found += len(pieces[-1])
            if found == rows:
                break
        return torch.cat(pieces)

    def _pieces(self, size: int, seed: int, skip: int) -> Iterator[Tensor]:
        """Endless activations, at most `size` at a time, after the first `skip`."""
        first, skip = divmod(skip, self.tokens)
        for epoch in count(first):
            order = np.random.default_rng([seed, epoch])
            for index in order.permutation(len(self._shards)):
                rows = order.permutation(self._shards[index][1])
                if skip < len(rows):
                    shard = self._shard(index)
                    places = torch.from_numpy(rows[skip:]).to(self.device)
                    for start in range(0, len(places), size):
                        yield shard.index_select(0, places[start : start + size])
                skip = max(0, skip - len(rows))

    def _shard(self, index: int) -> Tensor:
        name, rows, expected = self._shards[index]
        path = self.directory / name
        with rebuilt_by_the_run(self.directory):
            try:
                if index not in self._checked and sha256(path) != expected:
                    raise Broken(f"{path}: not the bytes that were written")
                shard = load_file(path)["activations"]
            except FileNotFoundError:
                raise Broken(f"{path}: no such file") from None
            except (SafetensorError, KeyError) as error:
                raise Broken(f"{path}: not a shard ({error})") from None
            if shard.shape != (rows, self.d):
                raise Broken(f"{path}: shape {tuple(shard.shape)}; expected ({rows}, {self.d})")
        self._checked.add(index)
        return shard.to(self.device)
