"""What a job asks of a cluster beside its threads; on one machine nothing depends on it."""

import math

from l0plane import memory

# Where a model is on the hub, its width is not known before it is there: as wide as they get.
WIDTH = l0config.residual_width(config) or 4096
# Of the text in memory, about: a web page of OpenWebText has 5 kB. The embedded text has 30 MB.
TEXT_MB = config["corpus"].get("documents", 6000) * 5 // 1000
# Processes that train one autoencoder, and how many of them hold all of it.
PROCESSES = config["execution"]["processes"]
COPIES = 1 if config["execution"]["shard_latents"] else PROCESSES
# Bytes of a batch; processes that share latents have all of it each, others a part.
BATCH = memory.of_batch(config["training"]["batch_tokens"], WIDTH)


def minutes(products):
    """A run time limit that a slow machine keeps: half an hour, and so many multiplications."""
    per_minute = 60 * (5e12 if config["gpus"] else 5e9)
    return 30 + math.ceil(products / per_minute)


def held(sizes, processes):
    """Bytes of autoencoders with so many latents each that are trained together.

    Weights, gradients, Adam's two moments and the average are 40 n d; one at a time takes its step.
    """
    copies = COPIES if processes > 1 else 1
    batch = config["training"]["batch_tokens"]
    step = memory.of_pre_activations(batch, max(sizes), processes)
    return 40 * WIDTH * copies * sum(sizes) + processes // copies * BATCH + step


def training_resources(
    n=None, tokens=config["training"]["tokens"], trainings=1, processes=1, together=()
):
    """Memory (MB), run time (minutes) and GPUs of training with `n` latents, or wildcards.n.

    Or of the levels `together`. Two shards are mapped at once for each seed. A step costs less than
    three products of the encoder (docs/performance.md).
    """
    seeds = len({level.seed for level in together}) or 1
    shards = 8 * WIDTH * config["activations"]["shard_tokens"] * seeds
    products = 3 * trainings * tokens * WIDTH

    def sizes(wildcards):
        return [level.n for level in together] or [int(n or wildcards.n)]

    return {
        "mem_mb": lambda wildcards: 3000 * processes
        + (held(sizes(wildcards), processes) + shards) // 10**6,
        "runtime": lambda wildcards: minutes(products * sum(sizes(wildcards))),
        "gpu": config["gpus"] * processes,
    }


def language_model_resources(tokens, products=0):
    """The same of a job that runs the language model on `tokens`, and `products` beside."""
    weights = 144 * WIDTH**2  # of twelve layers
    return {
        "mem_mb": 4000 + 4 * weights // 10**6,
        "runtime": minutes(tokens * weights + products),
        "gpu": config["gpus"],
    }


def language_model_training_resources():
    """The same of training the embedded language model, whose operations are three passes'."""
    own = config["language_model_training"]
    weights = own["width"] * (12 * own["layers"] * own["width"] + own["vocabulary"])
    return {
        "mem_mb": 6000 + 16 * weights // 10**6,
        "runtime": minutes(3 * own["tokens"] * weights),
        "gpu": config["gpus"],
    }


def text_resources(minutes):
    """The same of a job that holds the text, or its tokens and copies of them, in memory."""
    return {"mem_mb": 4000 + 4 * TEXT_MB, "runtime": minutes}


def evaluation_resources(method):
    """The same of everything that is measured on one method's autoencoders."""
    levels = l0config.levels(config)
    passes = len(levels) + config["progressive"]["points"] * len(
        l0config.panel_levels(config, "progressive")
    )
    tokens = passes * config["evaluation"]["contexts"] * config["language_model"]["context"]
    n = max(level.n for level in levels)
    return language_model_resources(tokens, 2 * tokens * n * WIDTH)


def group_resources(group):
    """The same of a job that trains several levels of a method, on a stream or stored activations."""
    if not group.streamed:
        return training_resources(together=group.levels, processes=PROCESSES)
    sizes = [level.n for level in group.levels]
    settings = config["training"]
    products = 3 * settings["tokens"] * WIDTH * sum(sizes)
    of_model = language_model_resources(settings["tokens"], products)
    buffers = 4 * WIDTH * PROCESSES * settings["stream_buffer_tokens"]
    trainings = (buffers + held(sizes, PROCESSES)) // 10**6
    return {
        **of_model,
        "mem_mb": PROCESSES * (of_model["mem_mb"] + TEXT_MB) + trainings,
        "gpu": PROCESSES * of_model["gpu"],
    }
