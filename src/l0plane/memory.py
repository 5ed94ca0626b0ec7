"""What a training step holds at a time; no PyTorch, so that the workflow can ask for the memory."""

#: Pre-activations that a step has in hand at most. At the start of a training half of them are
#: active: a large batch of a large autoencoder would fill any memory.
PIECE = 1 << 29
#: Pre-activations of the largest batch whose step a GPU is told once (`recording`). Its codes above
#: a threshold hold all of them, active or not.
RECORDED = 1 << 24
#: Bytes of all arrays that have a number for each active latent of each row (docs/scaling.md).
ACTIVE = 44
#: Bytes of a batch and of what a step makes of it, for each number in it, with Multi-TopK, which
#: decodes each row twice (docs/scaling.md).
BATCH = 44


def of_pre_activations(batch_tokens: int, n: int, processes: int = 1) -> int:
    """Bytes of a step at the start of a training with a penalty, beside parameters and batch.

    Processes share the work, and each has a piece of its own.
    """
    return ACTIVE * min(batch_tokens * n, processes * PIECE) // 2


def of_batch(batch_tokens: int, d: int) -> int:
    """Bytes of a batch `[batch_tokens, d]` and of the reconstructions and errors of a step."""
    return BATCH * batch_tokens * d
