"""The lock is the one place of versions; all that speaks of them agrees with it."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    """The `name==version` lines of a lock, by canonical name."""
    lines = (ROOT / name).read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    found = [line.split("==") for line in lines]
    versions = {canonicalize_name(package): version for package, version in found}
    assert len(versions) == len(lines), "a package is pinned twice"
    return versions


LOCK = pins("requirements.lock")
TEST_LOCK = pins("requirements-test.lock")


def needed_by(package):
    """The names that an installed package requires here, without its extras."""
    requirements = map(Requirement, importlib.metadata.requires(package) or [])
    return {
        canonicalize_name(requirement.name)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-test.lock"])
def test_installed_versions_are_the_locks(lock):
    different = []
    for package, version in pins(lock).items():
        try:
            # A local part says how a wheel was built (torch's +cpu), not which version it is.
            installed = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed != version:
            different.append(f"{package}: {installed}, {lock} says {version}")
    assert not different, "\n".join([*different, f"mend it with: pip install -r {lock}"])


def test_every_direct_dependency_is_pinned():
    assert set(map(canonicalize_name, PROJECT["dependencies"])) <= LOCK.keys()
    assert set(map(canonicalize_name, PROJECT["optional-dependencies"]["test"])) <= TEST_LOCK.keys()


def test_the_locks_are_complete_and_do_not_overlap():
    assert not LOCK.keys() & TEST_LOCK.keys()
    assert not pins("requirements-slurm.lock").keys() & (LOCK.keys() | TEST_LOCK.keys())
    # torch pins its own CUDA packages, which a CPU wheel does not have.
    needed = {name: needed_by(name) for name in (LOCK.keys() | TEST_LOCK.keys()) - {"torch"}}
    main = set().union(*(needed[name] for name in LOCK.keys() - {"torch"}))
    assert main <= LOCK.keys()
    assert set().union(*needed.values()) <= LOCK.keys() | TEST_LOCK.keys()


def test_every_import_is_a_declared_dependency():
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]
    modules = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(str(node.module).split(".")[0])
    distributions = importlib.metadata.packages_distributions()
    imported = {
        canonicalize_name(distribution)
        for module in modules - set(sys.stdlib_module_names) - {"triton"}  # comes with CUDA PyTorch
        for distribution in distributions.get(module, [module])
    }
    assert imported - {PROJECT["name"]} <= set(map(canonicalize_name, PROJECT["dependencies"]))


def test_the_conda_entry_takes_its_versions_from_the_lock():
    *packages, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pinned = {canonicalize_name(n): v for n, v in (line.split("==") for line in pip["pip"])}
    assert pinned == LOCK, "mend it with: make environment.yml"
    python, *others = packages
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert others == ["pip"]


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def make(directory, *arguments):
    """Run this project's Makefile in `directory`, away from any `make` that runs the tests."""
    shutil.copy(ROOT / "Makefile", directory)
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", *arguments], cwd=directory, env=environment, capture_output=True, text=True
    )


def test_an_interpreter_that_is_too_old_is_refused_with_the_way_out(tmp_path):
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.18 || exit 1\n')
    old.chmod(0o755)
    done = make(tmp_path, "reproduce", "PYTHON=./old-python")
    assert done.returncode != 0
    assert "l0plane needs Python 3.11 or 3.12; ./old-python is Python 3.8.18" in done.stderr
    assert "make reproduce PYTHON=python3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_alone_says_what_there_is(tmp_path):
    targets = re.findall(r"make ([a-z-]+) ", make(tmp_path).stdout)
    assert {"reproduce", "smoke", "language-model", "test", "clean"} <= set(targets)


def test_clean_keeps_what_is_committed(tmp_path):
    for folder in ("results/default", "results/reference", "figures/default", "figures/reference"):
        (tmp_path / folder).mkdir(parents=True)
    assert make(tmp_path, "clean").returncode == 0
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
    assert left == ["figures/reference", "results/reference"]


def test_the_container_starts_a_snakefile_of_the_repository():
    root = Path(__file__).parents[1]
    (named,) = re.findall(r'"/opt/l0plane/(\S+)"\]', (root / "Containerfile").read_text())
    assert (root / named).is_file()
    assert f"!{named}" in (root / ".dockerignore").read_text().splitlines()
