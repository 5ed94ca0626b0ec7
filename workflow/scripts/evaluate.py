"""Everything that is measured on a method's autoencoders with the language model at hand.

Reads the autoencoders, the language model and the test contexts; writes reconstruction and
downstream loss (Figures 2 and 5), where the configuration asks for them refined codes (Figure 9)
and test-time curves (Figure 10), each also per context, which is what every paired comparison
rests on; and the training logs. An autoencoder whose training failed, or that uses no latent, has
a row without measurements that says why. One job a method, since the language model takes longer
to load than to use on one autoencoder.
"""

import math
from collections import defaultdict

import pandas as pd

from l0plane import tidy
from l0plane.config import check_split
from l0plane.device import available_device
from l0plane.evaluation.held_out import HeldOut
from l0plane.evaluation.progressive import progressive
from l0plane.evaluation.reconstruction import evaluate
from l0plane.evaluation.refinement import refine
from l0plane.external import subjects as external_subjects
from l0plane.files import read_json
from l0plane.jobs import job
from l0plane.language_model import LanguageModel
from l0plane.measuring import subjects
from l0plane.tidy import MEASURED, together
from l0plane.tokens import load_contexts
from l0plane.training import ALL_DEAD, LOG_COLUMNS

with job(snakemake):
    params = snakemake.params
    tables = defaultdict(list)
    model = params.language_model
    language_model = LanguageModel.load(
        params.language_model_path, model["hook"], available_device()
    )
    contexts = load_contexts(snakemake.input.contexts)
    check_split("evaluation.contexts", params.contexts, len(contexts), "test")
    contexts = contexts[: params.contexts]
    held_out = HeldOut(language_model, contexts, model["drop_first_position"])
    corpus_sha256 = read_json(snakemake.input.manifest)["sha256"]
    measured_on = (corpus_sha256, language_model.sha256, language_model.d_model)
    if params.external:
        found = external_subjects(
            params.method, params.external, params.run, model["hook"], *measured_on
        )
    else:
        found = subjects(
            snakemake.input.cfg, params.run, params.method, params.levels, *measured_on
        )
    for autoencoder, directory, keys, provenance, facts, origin in found:
        # JSON knows no NaN: a method without a penalty has lambda null.
        penalty, seconds = (
            math.nan if facts.get(name) is None else facts[name]
            for name in ("lambda", "training_seconds")
        )
        row, failed = {}, facts.get("failed")
        if autoencoder is not None:
            autoencoder = autoencoder.to(language_model.device)
            row, contexts = evaluate(autoencoder, held_out)
            # Nobody asked an autoencoder trained elsewhere for an L0, unless it has a k.
            keys["l0_target"] = keys["l0_target"] or max(1, round(row["l0"]))
            if not row["l0"]:
                print(failed := ALL_DEAD)
                row = {}
        row |= {"lambda": penalty, "lambda_steered": facts.get("lambda_steered")}
        row |= {"training_seconds": seconds, **origin, "failed": failed}
        table = pd.DataFrame([row]).reindex(columns=MEASURED["autoencoders"])
        tables["autoencoders"].append(tidy.arrange(table, keys, provenance))
        if not params.external:
            log = directory / "training.csv"
            training = tidy.read(log) if log.exists() else pd.DataFrame()
            training = training.reindex(columns=LOG_COLUMNS)
            tables["training"].append(tidy.arrange(training, keys, provenance))
        if failed:
            continue
        tables["contexts"].append(tidy.arrange(contexts, keys, provenance))
        level = [keys["n"], keys["l0_target"], keys["seed"]]
        if params.refined_levels == "all" or level in params.refined_levels:
            row, contexts, histogram = refine(autoencoder, held_out)
            tables["refinement"].append(tidy.arrange(pd.DataFrame([row]), keys, provenance))
            tables["refinement_contexts"].append(tidy.arrange(contexts, keys, provenance))
            tables["refinement_histogram"].append(tidy.arrange(histogram, keys, provenance))
        if params.progressive_levels == "all" or level in params.progressive_levels:
            curve, contexts = progressive(
                autoencoder, held_out, params.points, params.delta_ce_contexts
            )
            tables["curves"].append(tidy.arrange(curve, keys, provenance))
            tables["curve_contexts"].append(tidy.arrange(contexts, keys, provenance))
    for name, path in snakemake.output.items():
        tidy.write(together(tables[name], name), path)
