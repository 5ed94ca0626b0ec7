"""What the run was asked for and does not have; what Snakemake says at its end."""

import sys

from l0plane.missing import Asked, Job, note


def asked():
    """Every autoencoder of the run, and the jobs that its row in the results needs."""
    first = [
        ("corpus", f"{RESULTS}/corpus/manifest.json", f"{LOGS}/corpus.log"),
        ("contexts", f"{RESULTS}/contexts/test.safetensors", f"{LOGS}/contexts.log"),
        ("activations", f"{RESULTS}/activations/train", f"{LOGS}/activations.log"),
    ]
    if config["language_model"]["path"] == l0config.TRAINED:
        model = f"{RESULTS}/language_model/model.safetensors"
        first.insert(1, ("train_language_model", model, f"{LOGS}/train_language_model.log"))
    found = []
    for method in config["methods"]:
        measure = f"{RESULTS}/measurements/{method}/autoencoders.csv"
        for level in l0config.levels(config):
            jobs = [*first]
            for each in filter(None, (METHODS[method].get("derived_from"), method)):
                if lambda_table(each) and config["lambdas"] == l0config.MEASURE:
                    searching = f"{LOGS}/lambdas/{each}/n{{n}}-l{{l0}}-s{{seed}}.log"
                    # Another seed's search starts from what that for seed 0 found.
                    for seed in sorted({0, level.seed}):
                        place = (lambda_table(each), searching)
                        place = (part.replace("{seed}", str(seed)) for part in place)
                        jobs.append(("search_lambda", *place))
                name, said = f"train_{each}", autoencoder_log(each, "log")
                for group in groups(each):
                    if level in group.levels:
                        name = group.name
                        said = f"{LOGS}/autoencoders/{each}/{group.stem}.log"
                jobs.append((name, autoencoder(each)["cfg"], said))
            jobs.append((f"evaluate_{method}", measure, f"{LOGS}/evaluate/{method}.log"))
            place = {"n": level.n, "l0": level.l0, "seed": level.seed}
            keys = {"run": config["run"], "method": method, "n": level.n, "l0_target": level.l0}
            named = [Job(*(part.format(**place) for part in job)) for job in jobs]
            found.append(Asked({**keys, "seed": level.seed}, named))
    return found


def note_missing():
    """Say what the run was asked for and does not have, and keep it as a table."""
    if said := note(asked(), f"{RESULTS}/missing.csv"):
        print(f"\n{said}\n", file=sys.stderr)


# What a run lacks is a table, and not a gap that nobody notices.
onerror:
    note_missing()


onsuccess:
    if Path(f"{RESULTS}/missing.csv").exists():
        note_missing()
