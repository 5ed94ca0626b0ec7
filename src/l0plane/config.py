"""The configuration of a run: checked as a whole before any job starts.

`config/default.yaml` has every key; a run's own file says only what differs. What a single value
may be stands in `workflow/schemas/`; what values must be to each other is checked here.
"""

from __future__ import annotations

import copy
import csv
import importlib.metadata
import re
from pathlib import Path
from typing import Any

from l0plane import model_directory
from l0plane.files import UserError, in_home, matching_files, read_json
from l0plane.formats import HUB, local_files, published_latents
from l0plane.hub import named
from l0plane.method_folders import NO_VALUES, check_distinct, check_learning_rate
from l0plane.plan import FACTOR, Config, levels, whole_keys
from l0plane.schemas import is_whole, read_numbers, validate

#: `language_model.path` that stands for the model trained by the run itself.
TRAINED = "trained"

#: `tuning.table`, `lambdas`: no earlier table; this run makes its own.
MEASURE = "measure"
#: `lambdas`: no search; lambda is steered in each training.
STEER = "steer"
#: The folder of `results` and `figures` that no run writes to.
COMMITTED = "reference"
#: A folder (or file) on the hub; no part of it leads back up.
_HUB_PLACE = HUB + r"[\w.-]+/[\w.-]+(@[\w.-]+)?(/(?!\.\.?(/|$))[^/]+)*"
#: Keys of the section `corpus` that only one source reads; the first of each source it must have.
_CORPUS_KEYS = {
    "docstrings": ("packages", "expected_sha256"),
    "files": ("paths", "column"),
    "hub": ("dataset", "documents", "revision", "subset", "split", "column"),
}
_CORPUS_REQUIRED = {
    "docstrings": ("packages",),
    "files": ("paths",),
    "hub": ("dataset", "documents"),
}


def load(config: Config, schema: Path, methods: dict[str, Config], repository: Path) -> Config:
    """Return `config` checked and completed: `all` written out, paths found.

    A relative `language_model.path` or `corpus.dataset` that the working directory lacks is looked
    for in `repository`.

    The methods that refinement, progressive codes and tuning look at are among the run's methods.

    Raises:
        UserError: names the key and what was expected.
    """
    config = copy.deepcopy(config)
    read_numbers(config, schema)
    validate(config, schema, "")
    if config["run"] == COMMITTED:
        raise UserError(
            f"run: {COMMITTED} is where the committed tables and figures are; expected another name"
        )
    config["corpus"] = _check_corpus(config["corpus"], repository)
    config["methods"] = _expand_methods(config["methods"], methods, "methods")
    external = config["external"]
    for section in ("refinement", "progressive", "tuning"):
        known = methods if section == "tuning" else methods | external
        asked = _expand_methods(config[section]["methods"], known, f"{section}.methods")
        measured = [*config["methods"], *external]
        config[section]["methods"] = [name for name in measured if name in asked]
    _check_levels(config)
    _check_budgets(config)
    _check_hyperparameters(config["hyperparameters"], methods)
    for values in config["hyperparameters"].values():  # on the command line keys are text
        values.update({name: whole_keys(value) for name, value in values.items()})
    _check_language_model(config, repository)
    _check_external(config, methods)
    if config["tuning"]["table"] != MEASURE:
        table = config["tuning"]["table"]
        config["tuning"]["table"] = _find(
            "tuning.table",
            table,
            f"{MEASURE}, or an earlier run's tuning.csv",
            (
                *("method", "n", "l0_target", "learning_rate", "nmse"),
                *("diverged", "off_target", "chosen", "corpus_sha256", "model_sha256"),
            ),
            repository,
        )
    if config["lambdas"] not in (MEASURE, STEER):
        table = config["lambdas"]
        config["lambdas"] = _find(
            "lambdas",
            table,
            f"{MEASURE}, {STEER}, or an earlier run's lambdas.csv",
            (
                *("method", "n", "l0_target", "seed", "lambda", "setting"),
                *("training_tokens", "learning_rate", "corpus_sha256", "model_sha256"),
            ),
            repository,
        )
    if config["published"] is not None:
        config["published"] = _find(
            "published",
            config["published"],
            "null, or the path of a table",
            ("method", "l0", "mse", "delta_ce"),
            repository,
        )
        published_latents(config["published"])
    return config


# --- what is known of model and text


def residual_width(config: Config) -> int | None:
    """The width of the activations in the residual stream, where something says it.

    The model's own file does, or for one on the hub the configuration.
    """
    model = config["language_model"]
    if "resid" not in model["hook"]:
        return None
    if model["path"] == TRAINED:
        return config["language_model_training"]["width"]
    file = Path(model["path"], model_directory.CONFIG_FILE)
    facts = read_json(file) if file.exists() else {}
    return _count(model, facts, "n_embd", "hidden_size") or model.get("width")


def check_token_supply(config: Config, contexts: dict[str, int]) -> None:
    """Compare what the run asks for with the text's `contexts` in each split.

    Raises:
        UserError: a split is too short.
    """
    model = config["language_model"]
    per_context = model["context"] - model["drop_first_position"]
    activations = config["activations"]
    needs = {
        "train": ("activations.train_tokens", activations["train_tokens"], per_context),
        "validation": (
            "activations.validation_tokens",
            activations["validation_tokens"],
            per_context,
        ),
        "test": ("evaluation.contexts", config["evaluation"]["contexts"], 1),
    }
    for split, (key, needed, unit) in needs.items():
        check_split(key, needed, contexts[split] * unit, split)


def check_split(key: str, needed: int, found: int, split: str) -> None:
    """UserError where what `key` asks of a split is more than the text has."""
    if needed > found:
        raise UserError(
            f"{key} is {needed}; expected at most {found}, "
            f"which is all that the corpus has in its {split} split"
        )


# --- checks


def _check_corpus(corpus: Config, repository: Path) -> Config:
    source = corpus["source"]
    for key in _CORPUS_REQUIRED[source]:
        if key not in corpus:
            raise UserError(f"corpus.{key} is missing; source {source} needs it")
    allowed = {"source", "validation", "test", *_CORPUS_KEYS[source]}
    # The default's own keys stay when a run's own file names another source.
    extra = sorted(set(corpus) - allowed - set(_CORPUS_KEYS["docstrings"]))
    if extra:
        raise UserError(f"corpus.{extra[0]}: source {source} does not read it; take it out")
    if corpus["validation"] + corpus["test"] >= 1:
        raise UserError("corpus.validation and corpus.test: expected a sum below 1")
    if source == "docstrings":
        for package in corpus["packages"]:
            try:
                importlib.metadata.distribution(package)
            except importlib.metadata.PackageNotFoundError:
                raise UserError(
                    f"corpus.packages: {package!r} is not installed; "
                    "install requirements.lock, or leave it out of the list"
                ) from None
    if source == "files":
        corpus = {**corpus, "paths": [in_home(pattern) for pattern in corpus["paths"]]}
        for pattern in corpus["paths"]:
            matching_files(pattern)
    if source == "hub":
        expected = "a folder in the hub's layout, or a data set's name on the hub"
        place = _folder_or_name("corpus.dataset", corpus["dataset"], expected, repository)
        if named(place)[1] is not None:
            raise UserError(
                f"corpus.dataset: {place!r}; expected a name without a revision, "
                "which goes into corpus.revision"
            )
        corpus = {**corpus, "dataset": place}
    return {key: value for key, value in corpus.items() if key in allowed}


def _expand_methods(asked: Any, methods: dict[str, Config], key: str) -> list[str]:
    if asked == "all":
        return list(methods)
    for name in asked:
        if name not in methods:
            raise UserError(
                f"{key}: {name!r} is not a method; expected all, or some of {', '.join(methods)}"
            )
    return [name for name in methods if name in asked]


def _check_levels(config: Config) -> None:
    sparsity, size, tuning = config["sparsity_panel"], config["size_panel"], config["tuning"]
    _at_most("sparsity_panel.l0", max(sparsity["l0"]), "sparsity_panel.n", sparsity["n"])
    _at_most("size_panel.l0", size["l0"], "the smallest of size_panel.n", min(size["n"]))
    _at_most("tuning.l0", max(tuning["l0"]), "sparsity_panel.n", sparsity["n"])
    subsets = [
        ("sparsity_panel.replicated", sparsity["replicated"], "sparsity_panel.l0", sparsity["l0"]),
        ("size_panel.replicated", size["replicated"], "size_panel.n", size["n"]),
        ("refinement.l0", config["refinement"]["l0"], "sparsity_panel.l0", sparsity["l0"]),
        ("progressive.l0", config["progressive"]["l0"], "sparsity_panel.l0", sparsity["l0"]),
    ]
    for key, values, panel, all_values in subsets:
        for value in values:
            if value not in all_values:
                raise UserError(f"{key}: {value} is not among {panel}, {all_values}")
    _at_most(
        "progressive.delta_ce_contexts",
        config["progressive"]["delta_ce_contexts"],
        "evaluation.contexts",
        config["evaluation"]["contexts"],
    )


def _check_budgets(config: Config) -> None:
    """See that each number of tokens makes at least one of what it is cut into."""
    context, training = config["language_model"]["context"], config["training"]
    own = config["language_model_training"]
    batch = ("training.batch_tokens", training["batch_tokens"])
    for key, tokens, piece, size in [
        ("activations.train_tokens", config["activations"]["train_tokens"], "a context", context),
        (
            "activations.validation_tokens",
            config["activations"]["validation_tokens"],
            "a context",
            context,
        ),
        ("training.tokens", training["tokens"], *batch),
        ("tuning.tokens", config["tuning"]["tokens"], *batch),
        (
            "language_model_training.tokens",
            own["tokens"],
            "a batch of contexts",
            own["batch_contexts"] * context,
        ),
    ]:
        if tokens < size:
            raise UserError(f"{key}: {tokens} is too small; expected at least {piece}, {size}")
    budgets = {"training.tokens": training["tokens"]}
    if config["tuning"]["table"] == MEASURE:
        budgets["tuning.tokens"] = config["tuning"]["tokens"]
    for key, tokens in budgets.items():
        _at_most(
            "training.warmup_steps",
            training["warmup_steps"],
            f"{key} / training.batch_tokens",
            tokens // training["batch_tokens"],
        )
    if buffer := training["stream_buffer_tokens"]:
        _at_most(*batch, "training.stream_buffer_tokens", buffer)
    execution = config["execution"]
    _at_most("execution.processes", execution["processes"], *batch)
    if execution["shard_latents"]:
        for n in {level.n for level in levels(config)}:
            if n % execution["processes"]:
                raise UserError(
                    f"execution.processes: {execution['processes']} cannot share {n} latents "
                    "evenly; expected a number that every n of the panels is a multiple of"
                )


def _check_external(config: Config, methods: dict[str, Config]) -> None:
    """See that autoencoders trained elsewhere are where they are said to be, and fit the model."""
    width = residual_width(config)
    drawn = {f"method {name}": methods[name] for name in config["methods"]}
    check_distinct(drawn | {f"external.{name}": its for name, its in config["external"].items()})
    for name, entry in config["external"].items():
        key = f"external.{name}"
        if name in methods:
            raise UserError(f"{key}: there is a method of that name; choose another")
        if name.lower() in NO_VALUES:
            raise UserError(f"{key}: a table would read this name as no value; choose another")
        entry["paths"] = [in_home(path) for path in entry["paths"]]
        for path in entry["paths"]:
            if path.startswith(HUB) and re.fullmatch(_HUB_PLACE, path) is None:
                raise UserError(
                    f"{key}: {path!r}; expected {HUB}<owner>/<name>/<folder>, with "
                    "<name>@<revision> or without"
                )
        for file in local_files(entry):
            if not Path(file).is_file():
                raise UserError(f"{key}: no file {file}; format {entry['format']} needs it")
            if not file.endswith(".json"):
                continue
            try:
                facts = read_json(file)
            except UserError as error:
                raise UserError(f"{key}: {error}") from None
            if not isinstance(facts, dict):
                raise UserError(f"{key}: {file}: expected a JSON object")
            trainer = facts.get("trainer")
            facts = facts | (trainer if isinstance(trainer, dict) else {})
            d = facts.get("d_in", facts.get("activation_dim", width))
            if width is not None and d != width:
                raise UserError(
                    f"{key}: {file} is for activations of width {d}; "
                    f"those at {config['language_model']['hook']} have {width}"
                )


def _at_most(key: str, value: int, limit_key: str, limit: int) -> None:
    if value > limit:
        raise UserError(f"{key}: {value} is too large; expected at most {limit_key}, {limit}")


def _check_hyperparameters(overrides: Config, methods: dict[str, Config]) -> None:
    for method, values in overrides.items():
        if method not in methods:
            raise UserError(
                f"hyperparameters.{method}: not a method; expected some of {', '.join(methods)}"
            )
        known = methods[method]["hyperparameters"]
        check_learning_rate(f"hyperparameters.{method}", values, known)
        for key in values:
            if key not in known and key != FACTOR:
                raise UserError(
                    f"hyperparameters.{method}.{key}: {method} has no such hyperparameter; "
                    f"it has {', '.join(known) or 'none'}"
                )


def _check_language_model(config: Config, repository: Path) -> None:
    model, training = config["language_model"], config["language_model_training"]
    if training["width"] % training["heads"]:
        raise UserError(
            f"language_model_training.heads: {training['heads']} does not divide the width, "
            f"{training['width']}"
        )
    if model["path"] == TRAINED:
        _check_hook(model, {"n_layer": training["layers"]})
        return
    expected = f"a folder in Hugging Face layout, a model's name on the hub, or {TRAINED}"
    model["path"] = _folder_or_name("language_model.path", model["path"], expected, repository)
    if Path(model["path"]).exists():
        _check_hook(model, model_directory.check(Path(model["path"])))


def _folder_or_name(key: str, place: str, expected: str, repository: Path) -> str:
    """A folder, in the working directory or else in the repository, or what can be a hub's name.

    A name has at most one slash and does not start in a folder that is here.
    """
    place = in_home(place)
    if Path(place).exists():
        return place  # as it is written: `./json` is a folder, and `json` a reader of `datasets`
    if (repository / place).exists():
        return str(repository / place)
    parts = Path(named(place)[0]).parts
    names_a_folder = Path(place).is_absolute() or len(parts) > 2 or place.startswith(".")
    names_a_folder |= re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@.+)?", place) is None
    if len(parts) == 2:
        names_a_folder |= any(Path(root, parts[0]).is_dir() for root in (".", repository))
    if names_a_folder:
        raise UserError(f"{key}: no folder {place}; expected {expected}")
    return place


def _find(key: str, path: str, expected: str, columns: tuple[str, ...], repository: Path) -> str:
    """Find a table that has `columns`: in the working directory, then in the repository."""
    path = in_home(path)
    for place in (Path(path), repository / path):
        if not place.is_file():
            continue
        # As pandas reads it: quoted or not, with the mark that some programs put in front.
        with place.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            first = next(csv.reader([stream.readline(10_000)]), [])
        missing = [name for name in columns if name not in first]
        if missing:
            raise UserError(
                f"{key}: {place} has no column {', '.join(missing)}; expected {expected}"
            )
        return str(place)
    raise UserError(f"{key}: no file {path}; expected {expected}")


def _check_hook(model: Config, facts: Config) -> None:
    """Compare hook and context with what the model's configuration says, where it says it."""
    layers = _count(model, facts, "n_layer", "num_hidden_layers")
    positions = _count(model, facts, "n_positions", "max_position_embeddings")
    block = int(model["hook"].split(".")[1])
    if layers is not None and block >= layers:
        raise UserError(
            f"language_model.hook: {model['hook']} does not exist in {model['path']}; "
            f"it has {layers} layers, blocks.0 to blocks.{layers - 1}"
        )
    if positions is not None and model["context"] > positions:
        raise UserError(
            f"language_model.context: {model['context']} is too long for {model['path']}; "
            f"expected at most {positions}"
        )


def _count(model: Config, facts: Config, *names: str) -> int | None:
    """What the configuration of a language model gives under one of `names`, if it does."""
    for name in names:
        value = facts.get(name)
        if value is None:
            continue
        if not is_whole(value) or value < 1:
            raise UserError(
                f"language_model.path: {Path(model['path'])}: {name} in its config.json is "
                f"{value!r}; expected a positive whole number"
            )
        return value
    return None
