"""What a job asks of a cluster beside its threads; on one machine nothing depends on it."""

import math
from pathlib import Path

from l0plane import memory
from l0plane.files import matching_files

# Where nothing says how wide a model is: as wide as they get.
WIDTH = l0config.residual_width(config) or 4096
# Processes that train one autoencoder, and how many of them hold all of it.
PROCESSES = config["execution"]["processes"]
COPIES = 1 if config["execution"]["shard_latents"] else PROCESSES
# Bytes of a batch; processes that share latents have all of it each, others a part.
BATCH = memory.of_batch(config["training"]["batch_tokens"], WIDTH)


def text_mb():
    """Megabytes of the text in memory, about.

    A web page of OpenWebText has 5 kB, the embedded text 30 MB; Parquet is compressed.
    """
    corpus = config["corpus"]
    if corpus["source"] != "files":
        return corpus.get("documents", 6000) * 5 // 1000
    found = [path for pattern in corpus["paths"] for path in matching_files(pattern)]
    return (
        sum(path.stat().st_size * (3 if path.suffix == ".parquet" else 1) for path in found)
        // 10**6
    )


TEXT_MB = text_mb()


def model_numbers():
    """How many weights the language model has; of one on the hub those of twelve such layers."""
    own, model = config["language_model_training"], config["language_model"]
    if model["path"] == l0config.TRAINED:
        return own["width"] * (12 * own["layers"] * own["width"] + own["vocabulary"])
    weights = sum(path.stat().st_size for path in Path(model["path"]).glob("*.safetensors"))
    # Two bytes each, or four.
    return weights // 2 or WIDTH * (144 * WIDTH + 50257)


MODEL = model_numbers()


def minutes(products, on_cpu=0):
    """A run time limit that a slow machine keeps: half an hour, and so many multiplications.

    Those `on_cpu` are done there even where there is a GPU.
    """
    cpu, gpu = 60 * 5e9, 60 * 5e12
    return 30 + math.ceil(products / (gpu if config["gpus"] else cpu) + on_cpu / cpu)


def retried(resources, *names):
    """The same, and of those named so many times as much as a job has been tried."""

    def times(value):
        return lambda wildcards, attempt=1: attempt * (
            value(wildcards) if callable(value) else value
        )

    return resources | {name: times(resources[name]) for name in names}


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
    one_node = {"nodes": 1} if config["gpus"] * processes else {}

    def sizes(wildcards):
        return [level.n for level in together] or [int(n or wildcards.n)]

    found = {
        "mem_mb": lambda wildcards: 3000 * processes
        + (held(sizes(wildcards), processes) + shards) // 10**6,
        "runtime": lambda wildcards: minutes(products * sum(sizes(wildcards))),
        "gpu": config["gpus"] * processes,
        **one_node,
    }
    # It goes on from its checkpoint: another try needs no more time.
    return retried(found, "mem_mb")


def language_model_resources(tokens, products=0, held=0, on_cpu=0):
    """The same of a job that runs the language model on `tokens`, and `products` beside.

    And holds so many bytes beside the model.
    """
    return {
        "mem_mb": 4000 + (8 * MODEL + held) // 10**6,
        "runtime": minutes(tokens * MODEL + products, on_cpu),
        "gpu": config["gpus"],
    }


def activations_resources():
    """The same of storing activations: all contexts, which shard each goes to, a shard twice."""
    own = config["activations"]
    tokens = own["train_tokens"] + own["validation_tokens"]
    held = 10**6 * TEXT_MB + 24 * tokens + 12 * WIDTH * own["shard_tokens"]
    return retried(language_model_resources(tokens, held=held), "mem_mb", "runtime")


def language_model_training_resources():
    """The same of training the embedded language model, whose operations are three passes'."""
    own = config["language_model_training"]
    weights = own["width"] * (12 * own["layers"] * own["width"] + own["vocabulary"])
    found = {
        "mem_mb": 6000 + 16 * weights // 10**6,
        "runtime": minutes(3 * own["tokens"] * weights),
        "gpu": config["gpus"],
    }
    return retried(found, "mem_mb", "runtime")


def text_resources(minutes):
    """The same of a job that holds the text, or its tokens and copies of them, in memory."""
    return retried({"mem_mb": 4000 + 4 * TEXT_MB, "runtime": minutes}, "mem_mb", "runtime")


def evaluation_resources():
    """The same of everything that is measured on one method's autoencoders.

    Codes are refined, and cut at each k', on the CPU: of a quarter of the latents, say, the
    products with the rows that are measured. Held are an autoencoder, these rows in a few forms,
    what the untouched model predicts and the codes that are cut (1 GiB each), and the values that
    are refined.
    """
    levels = plan.levels(config)
    cut = plan.panel_levels(config, "progressive")
    refined = plan.panel_levels(config, "refinement")
    rows = config["evaluation"]["contexts"] * config["language_model"]["context"]
    tokens = rows * (len(levels) + config["progressive"]["points"] * len(cut))
    n = max(level.n for level in levels)
    on_cpu = rows * n * WIDTH * (len(cut) + len(refined)) // 4
    active = max((level.l0 for level in refined), default=0)
    held = 2**31 + 8 * n * WIDTH + rows * (20 * WIDTH + 32 * active)
    found = language_model_resources(tokens, 2 * tokens * n * WIDTH, held, on_cpu)
    return retried(found, "mem_mb", "runtime")


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
    found = {
        **of_model,
        "mem_mb": PROCESSES * (of_model["mem_mb"] + TEXT_MB) + trainings,
        "gpu": PROCESSES * of_model["gpu"],
        **({"nodes": 1} if of_model["gpu"] else {}),
    }
    return retried(found, "mem_mb")
