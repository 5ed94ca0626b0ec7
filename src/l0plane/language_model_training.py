"""Training the embedded language model: a small GPT-2 on the embedded text."""

from __future__ import annotations

import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from l0plane.device import available_device
from l0plane.files import replacing, sha256, write_json
from l0plane.tokens import load_tokenizer

CLIP_NORM = 1.0
WARMUP_STEPS = 200
FINAL_LEARNING_RATE_SHARE = 0.05
VALIDATION_CONTEXTS = 2048


def train(
    contexts: np.ndarray,
    validation: np.ndarray,
    spec: dict[str, Any],
    tokenizer_directory: str | Path,
    directory: str | Path,
    seed: int,
    facts: dict[str, Any],
) -> None:
    """Train a GPT-2 architecture and save it, its tokenizer and its model card.

    Args:
        contexts: training contexts, int32 `[contexts, context]`.
        validation: held-out contexts, int32 `[contexts, context]`.
        spec: `layers`, `width`, `heads`, `tokens` (to train on, over as many epochs as that
            takes), `batch_contexts`, `learning_rate` (peak; linear warm-up, cosine decay).
        tokenizer_directory: where the tokenizer is.
        directory: where the model goes, in Hugging Face layout.
        seed: of the initialisation and the order of contexts.
        facts: what the model card says of the data.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    device = available_device()
    on_gpu = device.type == "cuda"
    tokenizer = load_tokenizer(tokenizer_directory)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=contexts.shape[1],
            n_embd=spec["width"],
            n_layer=spec["layers"],
            n_head=spec["heads"],
            # The same function in one kernel instead of eight.
            activation_function="gelu_pytorch_tanh" if on_gpu else "gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).to(device)  # type: ignore[arg-type]
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=spec["learning_rate"],
        betas=(0.9, 0.95),
        fused=True,
    )
    batch = spec["batch_contexts"]
    steps = max(1, spec["tokens"] // (batch * contexts.shape[1]))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    order = np.random.default_rng(seed)
    queue = np.zeros(0, dtype=np.int64)
    started = time.time()
    report_every = max(1, steps // 40)
    losses: list[float] = []
    for step in range(steps):
        while len(queue) < batch:
            queue = np.concatenate([queue, order.permutation(len(contexts))])
        rows, queue = queue[:batch], queue[batch:]
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            loss = next_token_loss(model, torch.from_numpy(contexts[rows].astype(np.int64)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % report_every == 0 or step + 1 == steps:
            elapsed = time.time() - started
            print(
                f"step {step + 1}/{steps}  loss {np.mean(losses):.3f}  "
                f"{(step + 1) * batch * contexts.shape[1] / elapsed:,.0f} tokens/s  "
                f"{elapsed / (step + 1) * (steps - step - 1) / 60:.1f} min left",
                flush=True,
            )
            losses.clear()
    seconds = time.time() - started
    validation_loss = evaluate(model, validation[:VALIDATION_CONTEXTS])
    with replacing(directory) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        card = {
            **facts,
            "layers": spec["layers"],
            "width": spec["width"],
            "heads": spec["heads"],
            "context": contexts.shape[1],
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_tokens": steps * batch * contexts.shape[1],
            "distinct_training_tokens": contexts.size,
            "peak_learning_rate": spec["learning_rate"],
            "batch_tokens": batch * contexts.shape[1],
            "seed": seed,
            "seconds": round(seconds),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            "torch": torch.__version__,
            "validation_loss_nats_per_token": round(validation_loss, 4),
            "weights_sha256": sha256(part / "model.safetensors"),
        }
        write_json(part / "training.json", card)
        (part / "README.md").write_text(_model_card(card), encoding="utf-8")


def _rate(step: int, steps: int) -> float:
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * cosine


def next_token_loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats of `tokens`, int64 `[contexts, context]`."""
    tokens = tokens.to(next(model.parameters()).device)
    logits = model(tokens).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


@torch.no_grad()
def evaluate(model: torch.nn.Module, contexts: np.ndarray, batch: int = 128) -> float:
    """Mean next-token cross-entropy in nats per token over all `contexts`."""
    model.eval()
    total = 0.0
    for start in range(0, len(contexts), batch):
        tokens = torch.from_numpy(contexts[start : start + batch].astype(np.int64))
        total += next_token_loss(model, tokens).item() * len(tokens)
    return total / len(contexts)


def _model_card(card: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in card.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# A small language model of l0plane

A GPT-2 architecture trained by l0plane on {card["data"]}. It is a subject for sparse autoencoders,
not a useful model of language: it knows that text and nothing else.

| | |
| --- | --- |
{rows}

With `language_model.path: trained` the workflow trains it again from the same text and seed.
"""
