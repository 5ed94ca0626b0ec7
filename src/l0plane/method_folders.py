"""The folders of `workflow/methods`: what each method says of itself, checked before any job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from l0plane import sources
from l0plane.files import UserError
from l0plane.plan import FACTOR, Config, Hyperparameters
from l0plane.schemas import read_numbers, read_yaml, suggest, validate

#: Names that a table would read as no value at all, in small letters.
NO_VALUES = ("na", "nan", "null", "none")


def read_methods(folder: Path, schema: Path) -> dict[str, Config]:
    """Read every `<folder>/<method>/method.yaml` into method -> its facts, in legend order.

    A folder whose name starts with an underscore or a dot is not a method.

    Raises:
        UserError: a folder's name cannot be a method's, it has no rule.smk or no method.yaml, or
            one that is not valid or derives from a method that is not there.
    """
    methods: dict[str, Config] = {}
    for path in sorted(folder.glob("[!_.]*/")):
        word = path.name.lower() in {"all", *NO_VALUES}
        if re.fullmatch("[A-Za-z0-9_]+", path.name) is None or word:
            raise UserError(
                f"{path}: {path.name!r} cannot be a method's name; expected letters, digits and "
                f"underscores (an underscore in front: no method), and not all, "
                f"{', '.join(NO_VALUES)}"
            )
        for name, what in (("method.yaml", "says what it is"), ("rule.smk", "trains it")):
            if not (path / name).is_file():
                raise UserError(f"{path}: no {name}, which {what}; copy that of _template")
        path = path / "method.yaml"
        facts = read_yaml(path)
        read_numbers(facts, schema)
        validate(facts, schema, f"{path}: ")
        facts.setdefault("hyperparameters", {})
        facts.setdefault("grid", {})
        unknown = sorted(set(facts["grid"]) - set(facts["hyperparameters"]))
        if unknown:
            raise UserError(f"{path}: grid: {unknown[0]!r} is not one of its hyperparameters")
        for name in {"learning_rate", FACTOR} & set(facts["grid"]):
            raise UserError(f"{path}: grid: {name} is tuned anyway, by tuning.learning_rates")
        if facts["knob"] == "lambda" and "lambda" in facts["hyperparameters"]:
            raise UserError(
                f"{path}: hyperparameters.lambda: expected none where knob is lambda: one is "
                "searched for that gives the L0 asked for"
            )
        check_learning_rate(f"{path}: hyperparameters", facts["hyperparameters"], {})
        methods[path.parent.name] = facts
    for name, facts in methods.items():
        base = facts.get("derived_from")
        others = [other for other in methods if "derived_from" not in methods[other]]
        if base is not None and base not in others:
            raise UserError(
                f"{folder / name / 'method.yaml'}: derived_from: {base!r} is not a method that "
                f"stands on its own; expected one of {', '.join(others)}"
            )
    check_distinct({str(folder / name / "method.yaml"): its for name, its in methods.items()})
    order = sorted(methods, key=lambda name: (methods[name].get("order", len(methods)), name))
    return {name: methods[name] for name in order}


def check_distinct(series: dict[str, Config]) -> None:
    """See that no two series of a figure are drawn alike: a copied folder is still to be edited.

    Args:
        series: facts by where they stand, which a message names.

    Raises:
        UserError: two have one label, or one colour and marker.
    """
    seen: dict[Any, str] = {}
    for place, facts in series.items():
        said = {"label": facts["label"]}
        if {"color", "marker"} <= set(facts):
            said["color and marker"] = f"{facts['color'].lower()} {facts['marker']}"
        for what, value in said.items():
            if (what, value) in seen:
                raise UserError(
                    f"{place}: {what}: {value} is that of {seen[what, value]}, too; no figure "
                    "could tell them apart"
                )
            seen[what, value] = place


def check_trained_here(folder: Path, facts: Config, said: str) -> None:
    """See that the workflow's own script can train the method of a folder, whose rule runs it.

    The rule's parameters name the method `said`.

    Raises:
        UserError: `l0plane.methods` has none of that name or not its class, the rule trains
            another one, or it has no learning rate.
    """
    rule = folder / "rule.smk"
    if said != folder.name:
        raise UserError(
            f"{rule}: params: training_params({said!r}); expected training_params({folder.name!r})"
        )
    known = sources.modules()
    if folder.name not in known:
        raise UserError(
            f"{rule}: its script is scripts/train.py, but METHODS in "
            f"src/l0plane/methods/__init__.py has no {folder.name!r}; "
            f"expected {suggest(folder.name, known)}"
        )
    if missing := sources.missing(folder.name):
        raise UserError(f"src/l0plane/methods/__init__.py: METHODS[{folder.name!r}]: {missing}")
    if "learning_rate" not in facts["hyperparameters"]:
        raise UserError(
            f"{folder / 'method.yaml'}: hyperparameters.learning_rate is missing; "
            "scripts/train.py, which its rule runs, needs one"
        )


def check_learning_rate(where: str, values: Hyperparameters, known: Hyperparameters) -> None:
    """See that a learning rate is above 0, and that a factor has one to change.

    Args:
        where: what a message names.
        values: hyperparameters that override those `known`.

    Raises:
        UserError: it is not.
    """
    if FACTOR in values and "learning_rate" not in {**known, **values}:
        raise UserError(f"{where}.{FACTOR}: there is no learning_rate that it could change")
    rate = values.get("learning_rate", 1)
    if not isinstance(rate, dict) and rate <= 0:
        raise UserError(
            f"{where}.learning_rate: {values['learning_rate']}; expected a number above 0"
        )
