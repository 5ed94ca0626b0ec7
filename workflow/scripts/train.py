"""Autoencoders of a built-in method: one, or several levels on the same batches.

Reads stored activations (and the autoencoders that the method derives from, and the lambdas that
were found for a penalty; for a stream, the contexts and the language model); writes, for each, a
SAELens directory, its provenance and the training log. While it runs, a checkpoint lies beside the
log; a job that was killed goes on from there. A training that fails is a result too: its provenance
says why, and nobody tries it again. With `execution.processes` above 1 the script starts itself
once more in so many processes, of which the first writes.
"""

import re
from pathlib import Path

from l0plane import tidy
from l0plane.activation_store import ActivationStore
from l0plane.activation_stream import ActivationStream
from l0plane.autoencoder import Autoencoder, Failed, read_provenance, save_failed
from l0plane.device import available_device, use_precision
from l0plane.distributed import SharedCheckpoint, joined
from l0plane.files import rebuilt_by_the_run
from l0plane.jobs import job
from l0plane.lambdas import read_lambda, setting
from l0plane.language_model import LanguageModel
from l0plane.measuring import training_provenance
from l0plane.plan import at_level
from l0plane.processes import launch, launched
from l0plane.tokens import load_contexts
from l0plane.training import (
    INITIALISATION_ROWS,
    Trained,
    Training,
    train_together,
)


def listed(files):
    """The files as a list, be they one, many or none."""
    return [files] if isinstance(files, str) else list(files or [])


def for_each(levels, found):
    """One of `found` for each level: its own, the one for all, or None."""
    return found if len(found) == len(levels) else (found or [None]) * len(levels)


def bases():
    """The autoencoders that the levels derive from; in place of one that failed, how it did."""
    for path in listed(snakemake.input.get("base")):
        try:
            with rebuilt_by_the_run(Path(path).parent):
                yield Autoencoder.load(Path(path).parent)
        except Failed as error:
            print(f"{snakemake.params.method} derives from what failed: {error}", flush=True)
            yield error


def hyperparameters_of(store, n, l0, seed):
    """Those of the method at one level, with its lambda if one was found."""
    params = snakemake.params
    found = at_level(params.hyperparameters, n, l0, params.reference_n)
    if tables := listed(snakemake.input.get("lambdas")):
        subject = {key: store.manifest[key] for key in ("corpus_sha256", "model_sha256")}
        subject["setting"] = setting(store.manifest, params.settings, found)
        level = {"method": params.method, "n": n, "l0_target": l0, **subject}
        factor = read_lambda(tables, level, seed, params.settings, found["learning_rate"])
        if factor is None:
            print(
                f"no lambda is known for n={n} L0={l0}, this text, model and training in "
                f"{', '.join(tables)}: steering it"
            )
        else:
            found["lambda"] = factor
    return found


def trained(store, levels, checkpoint, ranks):
    """The results of all levels, one by one."""
    params = snakemake.params
    use_precision(params.settings)
    source = store
    if contexts := snakemake.input.get("contexts"):
        language_model = LanguageModel.load(
            params.language_model_path, store.manifest["hook"], store.device
        )
        buffer_tokens = params.settings["stream_buffer_tokens"]
        source = ActivationStream(
            store, load_contexts(contexts), language_model, buffer_tokens, ranks
        )
        asked, there = params.settings["tokens"], source.tokens
        if not ranks.rank:
            print(f"{asked:,} activations of a text that has {there:,}: {asked / there:.2g} epochs")
    sample = store.sample(INITIALISATION_ROWS)
    trainings = {}
    found = for_each(levels, [*bases()])
    for level, base in zip(levels, found, strict=True):
        if not isinstance(base, Failed):
            own = hyperparameters_of(store, *level)
            trainings[level] = Training(
                params.method, sample, *level, params.settings, own, base=base, ranks=ranks
            )
    # A stream has one order for all; trainings on stored activations have their seed's.
    order = levels[0][2] if contexts else None
    results = iter(())
    if trainings:
        results = train_together([*trainings.values()], source, order, checkpoint)
    for level, base in zip(levels, found, strict=True):
        if level in trainings:
            yield next(results)
        else:
            yield Trained.nothing(f"derives from what failed: {base}")


def train(ranks):
    """Train as one of the `ranks`; the first writes."""
    params = snakemake.params
    places = [Path(path).parent for path in listed(snakemake.output.cfg)]
    # n, L0 and seed, of n1024-l16-s0.
    levels = [tuple(map(int, re.findall(r"\d+", place.name))) for place in places]
    store = ActivationStore(snakemake.input.activations, available_device())
    checkpoint = SharedCheckpoint(
        Path(snakemake.log[0]).with_suffix(".checkpoint"), execution["checkpoint_minutes"], ranks
    )
    results = trained(store, levels, checkpoint, ranks)
    origins = for_each(levels, listed(snakemake.input.get("base_provenance")))
    for (n, l0, seed), directory, origin, (autoencoder, log, facts) in zip(
        levels, places, origins, results, strict=True
    ):
        if ranks.rank:
            continue
        if origin:
            # What it cost includes what it started from.
            earlier = read_provenance(Path(origin).parent)
            for cost in ("training_tokens", "training_seconds"):
                facts[cost] += earlier.get(cost, 0)  # a rule of a user's may not say
        keys = {"run": params.run, "method": params.method, "n": n, "l0_target": l0, "seed": seed}
        provenance = training_provenance(keys, facts, store, params.language_model)
        if autoencoder is None:
            save_failed(directory, provenance)
        else:
            autoencoder.save(directory, provenance)
        tidy.write(tidy.arrange(log, keys), directory / "training.csv")
    if not ranks.rank:
        checkpoint.remove()


with job(snakemake):
    execution = snakemake.config["execution"]
    if execution["processes"] > 1 and not launched():
        launch(execution["processes"], snakemake.threads, __real_file__)
    else:
        with joined(execution["shard_latents"]) as ranks:
            train(ranks)
