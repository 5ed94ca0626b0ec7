"""Names and helper functions of all rules; the configuration is checked here, before any job."""

import os
from pathlib import Path
from typing import NamedTuple

from snakemake.exceptions import WorkflowError
from snakemake.io import contains_wildcard

from l0plane import config as l0config
from l0plane import method_folders, plan, sources
from l0plane.files import UserError
from l0plane.formats import local_files
from l0plane.penalty import SEARCH
from l0plane.schemas import read_yaml
from l0plane.tuning import CLIMB, sides

REPOSITORY = Path(workflow.basedir)
WORKFLOW = REPOSITORY / "workflow"

# Freed memory is kept instead of given back to the system: the many temporary arrays of a training
# step then cost no page faults, which makes it 1.5 times as fast. PyTorch and numba have a pool of
# threads each: one that spins on after its work would keep the other off the cores, one that does
# not spin at all takes long to wake up.
os.environ.update(
    GOMP_SPINCOUNT="30000",
    MALLOC_MMAP_MAX_="0",
    MALLOC_TRIM_THRESHOLD_="17179869184",
    MALLOC_TOP_PAD_="268435456",
    TOKENIZERS_PARALLELISM="false",
)

try:
    for path in map(Path, workflow.configfiles):
        if path.suffix != ".json":
            read_yaml(path)  # Snakemake passes over a key that stands there twice
    METHODS = method_folders.read_methods(
        WORKFLOW / "methods", WORKFLOW / "schemas/method.schema.yaml"
    )
    config = l0config.load(config, WORKFLOW / "schemas/config.schema.yaml", METHODS, REPOSITORY)
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{config['run']}"
FIGURES = f"figures/{config['run']}"
LOGS = f"logs/{config['run']}"

# What is measured, in figures a series each: the run's methods, and autoencoders trained elsewhere.
SERIES = {method: METHODS[method] for method in config["methods"]} | config["external"]

# The tables of a run: for each, its kind of file and the series that have it.
TABLES = {
    "autoencoders": ("csv", list(SERIES)),
    "contexts": ("parquet", list(SERIES)),
    "training": ("csv", config["methods"]),
    "refinement": ("csv", config["refinement"]["methods"]),
    "refinement_contexts": ("parquet", config["refinement"]["methods"]),
    "refinement_histogram": ("csv", config["refinement"]["methods"]),
    "curves": ("csv", config["progressive"]["methods"]),
    "curve_contexts": ("parquet", config["progressive"]["methods"]),
}
TABLES = {name: (kind, series) for name, (kind, series) in TABLES.items() if series}


wildcard_constraints:
    method="[A-Za-z0-9_]+",
    n=r"\d+",
    l0=r"\d+",
    seed=r"\d+",
    candidate=r"learning_rate.+",
    side="[a-z]+",


# --- the language model


def language_model_files():
    """The files of the language model that others depend on; none for a name on the hub."""
    path = config["language_model"]["path"]
    if path == l0config.TRAINED:
        names = ["config.json", "model.safetensors", "tokenizer.json"]
        return [f"{RESULTS}/language_model/{name}" for name in names]
    suffixes = (".json", ".safetensors", ".txt", ".model")
    return sorted(str(p) for p in Path(path).glob("*") if p.suffix in suffixes)


def language_model_path(wildcards):
    """Where the language model is loaded from: a folder, or a name on the hub."""
    path = config["language_model"]["path"]
    return f"{RESULTS}/language_model" if path == l0config.TRAINED else path


def tokenizer_files():
    """The files of its tokenizer; none for a name on the hub."""
    if config["language_model"]["path"] == l0config.TRAINED:
        return [f"{RESULTS}/tokenizer/{name}.json" for name in ("tokenizer", "tokenizer_config")]
    return [path for path in language_model_files() if not path.endswith(".safetensors")]


def tokenizer_path(wildcards):
    """Where the tokenizer is loaded from: a folder, or a name on the hub."""
    path = config["language_model"]["path"]
    return f"{RESULTS}/tokenizer" if path == l0config.TRAINED else path


# --- the autoencoders of a method


def autoencoder(method, *more):
    """What a method writes: a SAELens directory, and in it the files named in `more`."""
    directory = f"{RESULTS}/autoencoders/{method}/n{{n}}-l{{l0}}-s{{seed}}"
    names = ["cfg.json", "sae_weights.safetensors", *more]
    return {name.split(".")[0]: f"{directory}/{name}" for name in names}


def files_of(method, levels, *more):
    """The same files of some levels: lists, by name."""
    return {
        name: [path.format(**vars(level)) for level in levels]
        for name, path in autoencoder(method, *more).items()
    }


def autoencoder_log(method, suffix):
    """Log or benchmark file of a method's training."""
    return f"{LOGS}/autoencoders/{method}/n{{n}}-l{{l0}}-s{{seed}}.{suffix}"


def code_params(method):
    """The hash of the code that trains a method: once it is edited, results of it are no longer its.

    Snakemake compares it, and does not look into modules that a script imports. Nothing for a
    method that `l0plane.methods` does not have.
    """
    try:
        home = sources.modules().get(method)
        return {"code": sources.code_of(home)} if home else {}
    except UserError as error:
        raise WorkflowError(str(error)) from None


def training_params(method):
    """What `scripts/train.py` needs to know, the same for every built-in method."""
    return {
        **code_params(method),
        "run": config["run"],
        "method": method,
        "language_model": config["language_model"]["path"],
        "settings": config["training"],
        "hyperparameters": plan.hyperparameters(config, method, METHODS[method]),
        "reference_n": config["sparsity_panel"]["n"],
    }


def hyperparameters_at(method, n, l0):
    """A method's hyperparameters at a level, each a number."""
    own = plan.hyperparameters(config, method, METHODS[method])
    return plan.at_level(own, int(n), int(l0), config["sparsity_panel"]["n"])


def searched_lambda(method):
    """Where a search writes the constant lambda that it found."""
    return f"{RESULTS}/lambdas/{method}/n{{n}}-l{{l0}}-s{{seed}}.csv"


def lambda_table(method):
    """Where a method's constant lambda is read; nothing if it has none or steers it."""
    if not plan.penalised(METHODS[method]) or config["lambdas"] == l0config.STEER:
        return []
    measured = config["lambdas"] == l0config.MEASURE
    return searched_lambda(method) if measured else config["lambdas"]


def seed_0_lambda(wildcards):
    """Where the search for another seed's lambda starts from."""
    if wildcards.seed == "0":
        return []
    return searched_lambda(wildcards.method).format(**{**wildcards, "seed": 0})


class Group(NamedTuple):
    """The job that trains all levels of a method together."""

    name: str
    stem: str
    levels: list
    streamed: bool


def own_rule(method):
    """The rule of a method's folder that trains one autoencoder."""
    return next((its for its in workflow.rules if its.name == f"train_{method}"), None)


def trained_here(method):
    """Whether a method's rule runs the workflow's script, as those of `l0plane.methods` do."""
    its = own_rule(method)
    return its is not None and its.script == "../../scripts/train.py"


def group_of(method):
    """The job in which a method's levels are trained; None if each has its own, by its rule.

    A stream feeds all levels; on stored activations they go together where `execution.together`
    says so. But not if the method's rule runs a script of its own, or if what goes in cannot be
    written out for each level: an unnamed input, a function, a parameter with wildcards.
    """
    its, levels = own_rule(method), plan.levels(config)
    if not trained_here(method) or any(map(callable, [*its.input, *its.params])):
        return None
    params = [item for own in its.params for item in (own if isinstance(own, list) else [own])]
    if any(isinstance(item, str) and contains_wildcard(item) for item in params):
        return None
    if len(its.input) > sum(map(len, named_inputs(its).values())):
        return None
    # What derives from another method's result reads the disk.
    if config["training"]["stream_buffer_tokens"] and "derived_from" not in METHODS[method]:
        return Group(f"stream_{method}", "stream", levels, True)
    if config["execution"]["together"]:
        return Group(f"together_{method}", "together", levels, False)
    return None


# The jobs that train all levels of a method, of the methods that have one; together.smk fills it.
GROUPS = {}


def named_inputs(its):
    """Lists of the inputs of a rule by their names; those without one are left out."""
    found = {name: its.input[name] for name in its.input.keys()}
    return {name: [own] if isinstance(own, str) else [*own] for name, own in found.items()}


def group_inputs(method, group):
    """What the method's own rule needs for the levels of a group, and what a stream needs beside."""
    found = {}
    for name, paths in named_inputs(own_rule(method)).items():
        each = [path.format(**vars(level)) for level in group.levels for path in paths]
        found[name] = each if len(set(each)) > 1 else each[0] if each else []
    if group.streamed:
        found["contexts"] = rules.contexts.output.train
        found["language_model"] = language_model_files()
    return found


def superseded_jobs():
    """Trainings of which there may be a benchmark file from before levels were grouped otherwise."""
    found = []
    for method in METHODS:
        group = GROUPS.get(method)
        alone = map(str, plan.levels(config)) if group else []
        stems = {"stream", "together", *alone} - {group.stem if group else ""}
        found += [f"autoencoders/{method}/{stem}" for stem in sorted(stems)]
    return found


# --- measurements and tuning


def plain(levels):
    """Levels as a script gets them: lists of n, asked L0 and seed."""
    return [[level.n, level.l0, level.seed] for level in levels]


def autoencoders_of(method):
    """The files of all autoencoders of a method, or of `external`."""
    if method in config["external"]:
        return {"elsewhere": local_files(config["external"][method])}
    return files_of(method, plan.levels(config))


def measurements(method):
    """The tables that a method's evaluation writes."""
    return {
        name: f"{RESULTS}/measurements/{method}/{name}.{suffix}"
        for name, (suffix, methods) in TABLES.items()
        if method in methods
    }


def measurement_params(method):
    """What `scripts/evaluate.py` needs to know; levels are `plain`, or all."""

    def asked_in(section):
        if method not in config[section]["methods"]:
            return []
        return "all" if external else plain(plan.panel_levels(config, section))

    external = config["external"].get(method)
    return {
        "run": config["run"],
        "method": method,
        "external": external,
        "levels": plain(plan.levels(config)),
        "refined_levels": asked_in("refinement"),
        "progressive_levels": asked_in("progressive"),
        "points": config["progressive"]["points"],
        "delta_ce_contexts": config["progressive"]["delta_ce_contexts"],
        "language_model": config["language_model"],
        "language_model_path": language_model_path,
        "contexts": config["evaluation"]["contexts"],
    }


def measurement_tables():
    """The files of all methods that go into each table of the run."""
    return {
        name: [measurements(method)[name] for method in methods]
        for name, (_, methods) in TABLES.items()
    }


def rows_measured():
    """How many autoencoders each method's measurements have."""
    own = dict.fromkeys(config["methods"], len(plan.levels(config)))
    return own | {name: len(entry["paths"]) for name, entry in config["external"].items()}


def tuning_table():
    """The tuning that claims and the figure are about: this run's own, or an earlier one's."""
    table = config["tuning"]["table"]
    return f"{RESULTS}/tuning.csv" if table == l0config.MEASURE else table


def figure_tables(names):
    """The files of the tables that a figure is drawn from."""
    places = {name: f"{RESULTS}/{name}.csv" for name in names}
    if "tuning" in names:
        places["tuning"] = tuning_table()
    if "published" in names:
        places["published"] = config["published"]
    return places


def published_scale(figure):
    """The store whose manifest turns published errors into normalised ones, where they are drawn."""
    drawn = "published" in FIGURE_TABLES[figure]
    return rules.activations.output.train if drawn else []


def tuned_methods():
    """The methods of the run that `tune` varies."""
    asked = config["tuning"]["methods"]
    return [m for m in asked if trained_here(m) and plan.tunable(METHODS[m])]


def tuning_candidates():
    """The tables of all candidates of all tuned methods, of the best one's neighbours, of sizes."""
    found = []
    for method in tuned_methods():
        names = [
            *plan.candidates(config, METHODS[method]),
            *sides(config["tuning"]["learning_rates"]),
        ]
        names = [f"l{l0}-{name}" for l0 in config["tuning"]["l0"] for name in names]
        names += [f"n{n}" for n in plan.tuned_sizes(config)]
        found += [f"{RESULTS}/tuning/{method}/{name}.csv" for name in names]
    return found


def tuned_level(wildcards):
    """Where a candidate is tried: the panels' common size at an L0, or another size at its L0."""
    n = wildcards.get("n", config["sparsity_panel"]["n"])
    return plan.Level(int(n), int(wildcards.get("l0", config["size_panel"]["l0"])), 0)


def tuning_params(climbs=False):
    """What `scripts/tune.py` needs to know."""

    def by_rule(wildcards):
        own = plan.hyperparameters(config, wildcards.method, METHODS[wildcards.method])
        level = tuned_level(wildcards)
        return plan.at_size_by_rule(own, level.n, level.l0, config["sparsity_panel"]["n"])

    return {
        "run": config["run"],
        "code": lambda wildcards: code_params(wildcards.method),
        "n": lambda wildcards: tuned_level(wildcards).n,
        "l0": lambda wildcards: tuned_level(wildcards).l0,
        "settings": {**config["training"], "tokens": config["tuning"]["tokens"]},
        "hyperparameters": by_rule,
        "penalised": lambda wildcards: plan.penalised(METHODS[wildcards.method]),
        "changed": {} if climbs else candidate_changes,
        "climbs": climbs,
    }


def grid_candidates(wildcards):
    """The tables of a method's candidates at one L0, of which the best one's neighbours are tried."""
    found = plan.candidates(config, METHODS[wildcards.method])
    return [f"{RESULTS}/tuning/{wildcards.method}/l{wildcards.l0}-{name}.csv" for name in found]


def searched_lambdas():
    """The tables of every lambda that the run's levels ask for."""
    return [
        searched_lambda(method).format(**vars(level))
        for method in config["methods"]
        if trained_here(method) and plan.penalised(METHODS[method])
        for level in plan.levels(config)
    ]


def candidate_base(wildcards):
    """The autoencoder that a candidate's method starts from, if it does."""
    base = METHODS[wildcards.method].get("derived_from")
    level = vars(tuned_level(wildcards))
    return [path.format(**level) for path in autoencoder(base).values()] if base else []


def candidate_changes(wildcards):
    """What a candidate of the grid changes in its method's hyperparameters.

    Of a neighbour, nothing that is known before the grid is.
    """
    found = plan.candidates(config, METHODS[wildcards.method])
    return found.get(wildcards.get("candidate"), {})


# --- figures, tables, claims

# The tables that each figure is drawn from. A figure whose tables this run has none of is left out.
FIGURE_TABLES = {
    "figure2": ("autoencoders", "methods"),
    "figure2a": ("autoencoders", "methods"),
    "figure2b": ("autoencoders", "methods"),
    "figure5": ("autoencoders", "methods"),
    "figure5a": ("autoencoders", "methods"),
    "figure5b": ("autoencoders", "methods"),
    "figure9": ("refinement", "refinement_histogram", "methods"),
    "figure10": ("curves", "autoencoders", "methods"),
    "tuning": ("tuning", "methods"),
    "tuning_sizes": ("tuning", "methods"),
    "claims": ("claims",),
    "comparisons": ("comparisons", "methods"),
    "timing": ("timing", "methods"),
}
if config["published"]:
    for figure in ("figure2", "figure2a", "figure5", "figure5a"):
        FIGURE_TABLES[figure] += ("published",)
FIGURE_TABLES = {
    figure: tables
    for figure, tables in FIGURE_TABLES.items()
    if all(
        table in {*TABLES, "methods", "tuning", "claims", "comparisons", "published", "timing"}
        for table in tables
    )
}


def refined_l0():
    """The level whose shifts Figure 9 shows: that of the size panel, or else the highest refined."""
    l0, refined = config["size_panel"]["l0"], config["refinement"]["l0"]
    return l0 if l0 in refined else max(refined)


def claim_tables():
    """The tables that claims are judged on."""
    names = ["autoencoders", "contexts", "curve_contexts", "refinement_contexts"]
    found = {name: f"{RESULTS}/{name}.{TABLES[name][0]}" for name in names if name in TABLES}
    return {**found, "tuning": tuning_table()}


def timed():
    """What there has to be before the time of the run is added up: all but the figure of it."""
    searches = config["lambdas"] == l0config.MEASURE and searched_lambdas()
    return [
        *(f"{FIGURES}/{name}.png" for name in FIGURE_TABLES if name != "timing"),
        *(f"{RESULTS}/tables/summary.{suffix}" for suffix in ("csv", "md", "tex")),
        f"{RESULTS}/claims.csv",
        f"{RESULTS}/comparisons.csv",
        f"{RESULTS}/pages/run.html",
        *([f"{RESULTS}/published_claims.csv"] if config["published"] else []),
        *([f"{RESULTS}/lambdas.csv"] if searches else []),
    ]


def everything():
    """What `snakemake` without a target makes: figures, tables and claims."""
    return [
        *timed(),
        *(f"{FIGURES}/{name}.{suffix}" for name in FIGURE_TABLES for suffix in ("pdf", "svg")),
        f"{FIGURES}/timing.png",
    ]
