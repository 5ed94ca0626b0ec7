"""What the run was asked for and does not have; what Snakemake says at its end."""

import sys

from l0plane.missing import Asked, Job, hold, note


def asked():
    """Every autoencoder of the run, and the jobs that its row in the results needs."""
    first = [
        ("corpus", f"{RESULTS}/corpus/manifest.json", f"{LOGS}/corpus.log"),
        ("contexts", f"{RESULTS}/contexts/test.safetensors", f"{LOGS}/contexts.log"),
        ("activations", f"{RESULTS}/activations/train", f"{LOGS}/activations.log"),
    ]
    if config["language_model"]["path"] == l0config.TRAINED:
        model = f"{RESULTS}/language_model/model.safetensors"
        tokenizer = f"{RESULTS}/tokenizer/tokenizer.json"
        first[1:1] = [
            ("train_tokenizer", tokenizer, f"{LOGS}/train_tokenizer.log"),
            ("train_language_model", model, f"{LOGS}/train_language_model.log"),
        ]
    found = []
    for method in config["methods"]:
        measure = f"{RESULTS}/measurements/{method}/autoencoders.csv"
        for level in plan.levels(config):
            jobs = [*first]
            for each in filter(None, (METHODS[method].get("derived_from"), method)):
                group = GROUPS.get(each)
                if lambda_table(each) and config["lambdas"] == l0config.MEASURE:
                    # A group waits for the searches of all its levels, and another seed's search
                    # for what that for seed 0 found.
                    waits = group.levels if group else [level]
                    places = {(own.n, own.l0, seed) for own in waits for seed in (0, own.seed)}
                    for n, l0, seed in sorted(places):
                        searched = searched_lambda(each).format(n=n, l0=l0, seed=seed)
                        said = f"{LOGS}/lambdas/{each}/n{n}-l{l0}-s{seed}.log"
                        jobs.append(("search_lambda", searched, said))
                name, said = f"train_{each}", autoencoder_log(each, "log")
                if group:
                    name, said = group.name, f"{LOGS}/autoencoders/{each}/{group.stem}.log"
                jobs.append((name, autoencoder(each)["cfg"], said))
            jobs.append((f"evaluate_{method}", measure, f"{LOGS}/evaluate/{method}.log"))
            place = {"n": level.n, "l0": level.l0, "seed": level.seed}
            keys = {"run": config["run"], "method": method, "n": level.n, "l0_target": level.l0}
            named = [Job(*(part.format(**place) for part in job)) for job in jobs]
            found.append(Asked({**keys, "seed": level.seed}, named))
    # Those trained elsewhere; how many latents they have is not known before they are read.
    first = [Job(*job) for job in first if job[0] != "activations"]
    for name, entry in config["external"].items():
        measure = f"{RESULTS}/measurements/{name}/autoencoders.csv"
        jobs = [*first, Job(f"evaluate_{name}", measure, f"{LOGS}/evaluate/{name}.log")]
        keys = {"run": config["run"], "method": name, "n": None, "l0_target": entry.get("l0")}
        found += [Asked({**keys, "seed": seed}, jobs, 1) for seed in range(len(entry["paths"]))]
    return found


def note_missing():
    """Say what the run was asked for and does not have, and keep it as a table."""
    if said := note(asked(), f"{RESULTS}/missing.csv"):
        print(f"\n{said}\n", file=sys.stderr)


onstart:
    if workflow.is_main_process:
        try:
            hold(RESULTS, LOGS)
        except UserError as error:
            raise WorkflowError(str(error)) from None


# What a run lacks is a table, and not a gap that nobody notices.
onerror:
    note_missing()


onsuccess:
    if Path(f"{RESULTS}/missing.csv").exists():
        note_missing()
