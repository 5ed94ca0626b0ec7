"""The source that a method's training runs, read and hashed without importing it.

The workflow asks when it is parsed, in the process of every job, where importing torch would cost
more than a second.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from l0plane.files import UserError

ROOT = Path(__file__).parent
#: Under which methods are, and what they have in common.
METHODS = "l0plane.methods"
#: What every training runs beside its method. Of the kernels not: they are all exact.
_SHARED = [
    f"l0plane.{name}"
    for name in (
        *("activation_store", "activation_stream", "distributed"),
        *("penalty", "trainer", "training"),
    )
]


@cache
def modules() -> dict[str, str]:
    """The module of each entry of `l0plane.methods.METHODS`, by its name there."""
    tree = _tree(METHODS)
    homes = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }
    # Of a class that is not imported by its name: the package, with all methods.
    return {method: homes.get(name, METHODS) for method, name in _entries().items()}


def _entries() -> dict[str, str]:
    """What `l0plane.methods.METHODS` has for each name, as it stands there."""
    found = {}
    for node in _tree(METHODS).body:
        assigned = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(name, ast.Name) and name.id == "METHODS" for name in assigned):
            continue
        entries = getattr(node, "value", None)
        if isinstance(entries, ast.Dict):
            for key, its in zip(entries.keys, entries.values, strict=True):
                if isinstance(key, ast.Constant):
                    found[str(key.value)] = ast.unparse(its)
    return found


def _bound(module: str) -> set[str]:
    """Names that a module imports, defines or assigns."""
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def missing(method: str) -> str | None:
    """What an import of the method's class would say that its module lacks; None if nothing."""
    module = modules()[method]
    if module == METHODS:
        name = _entries()[method]
        return None if {name.split(".")[0], "*"} & _bound(METHODS) else f"{name} is not imported"
    if not _file(module).is_file():
        return f"no module {module}"
    bound = _bound(module)
    for node in ast.walk(_tree(METHODS)):
        if isinstance(node, ast.ImportFrom) and node.module == module and not node.level:
            for alias in node.names:
                if not {alias.name, "*"} & bound:
                    return f"{_file(module).name} has no {alias.name}"
    return None


@cache
def code_of(module: str) -> str:
    """SHA-256 of the source that a method of this module runs: its own, and what is shared.

    Its own is the module, those under `l0plane.methods` that it imports, and what these import.
    """
    own: set[str] = set()
    following = [module]
    while following:
        name = following.pop()
        if name not in own and name.startswith("l0plane.") and _file(name).is_file():
            own.add(name)
            following += _imported(name)
    digest = hashlib.sha256()
    for name in [*sorted(own), *_SHARED]:
        digest.update(_file(name).read_bytes())
    return digest.hexdigest()


def _imported(module: str) -> list[str]:
    """The names under `l0plane.methods` that a module imports, be they modules or what is in one.

    Of the package itself only its modules: it knows all methods, and no method runs it.
    """
    found = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.startswith(f"{METHODS}.")]


def _tree(module: str) -> ast.Module:
    path = _file(module)
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from None


def _file(module: str) -> Path:
    """Where a module of this package is, if there is one of that name."""
    place = ROOT.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
