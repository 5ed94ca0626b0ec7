"""YAML held against a JSON schema, with messages that name the key and what was expected."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from l0plane.files import UserError


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


#: JSON knows no NaN or infinity, YAML does; and a 5.0 would stand in paths as it is.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: is_whole(value),
            "number": lambda _, value: _is_finite(value),
        }
    ),
)


def _refuse_twice(node: yaml.Node | None) -> None:
    """Refuse a key that stands in a mapping twice, of which YAML would drop the first."""
    nodes, visited = [node] if node else [], set()
    while nodes:
        node = nodes.pop()
        if id(node) in visited or not isinstance(node, yaml.CollectionNode):
            continue
        visited.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            nodes += node.value
            continue
        nodes += [part for pair in node.value for part in pair]
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen = set()
        for key in keys:
            if (key.tag, key.value) in seen and not key.tag.endswith(":merge"):
                problem = f"{key.value!r} stands there twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))


def read_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        UserError: it is not valid; names the file, and the line where that is known.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_twice(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: not valid YAML ({reason})") from None


def read_numbers(values: Any, schema: Path) -> None:
    """Replace text by the number or truth value that the schema wants there, where it is one.

    Snakemake reads everything inside a section given by --config as text, YAML 1.1 even 3e-3. A
    whole number may be written 1e6 or 5.0, too.
    """
    truth = {"true": True, "false": False}
    readers: dict[str, Callable[[Any], Any]] = {
        "integer": _whole,
        "number": float,
        "boolean": truth.__getitem__,
    }
    for error in _Validator(read_yaml(schema)).iter_errors(values):
        kinds = error.schema.get("type", "")
        reader = readers.get(kinds if isinstance(kinds, str) else kinds[0])
        # What is wrong with a key is said of all that holds it.
        if error.validator != "type" or reader is None or "propertyNames" in error.schema_path:
            continue
        if not isinstance(error.instance, (str, float)):
            continue
        *parents, last = error.absolute_path
        section = values
        for key in parents:
            section = section[key]
        with contextlib.suppress(ValueError, KeyError, OverflowError):
            section[last] = reader(error.instance)


def _whole(value: str | float) -> int:
    """The whole number that is meant; ValueError or OverflowError where there is none."""
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)
    number = float(value)
    if number != int(number):
        raise ValueError(f"{value} is not a whole number")
    return int(number)


def validate(values: Any, schema: Path, where: str) -> None:
    """Hold values against the JSON schema in the file `schema`.

    Raises:
        UserError: at the first value that it refuses, after the words `where`.
    """
    validator = _Validator(read_yaml(schema))
    errors = sorted(validator.iter_errors(values), key=lambda error: list(map(str, error.path)))
    if errors:
        raise UserError(where + _explain(errors[0]))


def _explain(error: jsonschema.ValidationError) -> str:
    """One line: the key, what it holds, what was expected (the schema's description)."""
    key = ".".join(str(part) for part in error.absolute_path)
    schema: Any = error.schema
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(schema["properties"])
        unknown = sorted(map(str, set(error.instance) - set(known)))[0]
        return f"{_join(key, unknown)}: unknown key; expected {suggest(unknown, known)}"
    if error.validator == "required" and isinstance(error.instance, dict):
        missing = next(name for name in schema["required"] if name not in error.instance)
        return f"{_join(key, missing)} is missing"
    value = json.dumps(error.instance, default=str)
    value = value if len(value) <= 60 else value[:57] + "..."
    expected = schema.get("description", error.message)
    return f"{key or 'the file'}: {value} is not what was expected: {expected}"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def suggest(unknown: str, known: Iterable[str]) -> str:
    """What was meant by an unknown name: the known one that is close to it, or all of them."""
    close = difflib.get_close_matches(unknown, list(known), n=1)
    return f"{close[0]}?" if close else f"one of {', '.join(known)}"
