"""Whose results an edit of the source ends, and that nothing of it has to be imported to know."""

import shutil
import subprocess
import sys

import pytest

from l0plane import sources
from l0plane.files import UserError
from l0plane.methods import METHODS


@pytest.fixture
def hashes(tmp_path, monkeypatch):
    """A copy of the package; a function that gives the hash of every method's code in it."""
    shutil.copytree(sources.ROOT, tmp_path / "l0plane", ignore=shutil.ignore_patterns("*.so"))
    monkeypatch.setattr(sources, "ROOT", tmp_path / "l0plane")

    def found():
        sources.modules.cache_clear()
        sources.code_of.cache_clear()
        return {method: sources.code_of(home) for method, home in sources.modules().items()}

    yield found
    sources.modules.cache_clear()
    sources.code_of.cache_clear()


def test_the_names_and_modules_are_those_that_an_import_gives():
    assert sources.modules() == {name: its.__module__ for name, its in METHODS.items()}


@pytest.mark.parametrize(
    ("edited", "ended"),
    [
        ("methods/topk.py", {"topk", "multi_topk"}),
        ("methods/multi_topk.py", {"multi_topk"}),
        ("methods/base.py", set(METHODS)),
        ("trainer.py", set(METHODS)),
        ("activation_stream.py", set(METHODS)),
        ("methods/__init__.py", set()),
        ("tables.py", set()),
    ],
)
def test_an_edit_ends_the_results_of_what_runs_it(hashes, tmp_path, edited, ended):
    before = hashes()
    with (tmp_path / "l0plane" / edited).open("a") as file:
        file.write("# edited\n")
    after = hashes()
    assert {method for method in before if before[method] != after[method]} == ended


@pytest.mark.parametrize(
    "line",
    [
        "from l0plane.methods.shared import x",
        "import l0plane.methods.shared",
        "from l0plane.methods import shared",
        "from . import shared",
        "from .shared import x",
    ],
)
def test_what_a_method_imports_is_followed_however_it_is_written(hashes, tmp_path, line):
    folder = tmp_path / "l0plane/methods"
    (folder / "gated.py").write_text(f"{line}\n")
    (folder / "shared.py").write_text("x = 1\n")
    before = hashes()
    (folder / "shared.py").write_text("x = 2\n")
    after = hashes()
    assert {method for method in before if before[method] != after[method]} == {"gated"}


def test_torch_is_not_imported_for_it():
    command = "import sys; from l0plane import sources as s; s.code_of(s.modules()['topk'])"
    command += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_a_class_that_its_module_lacks_is_said_before_anything_is_imported(hashes, tmp_path):
    hashes()
    assert [*map(sources.missing, METHODS)] == [None] * len(METHODS)
    file = tmp_path / "l0plane/methods/topk.py"
    file.write_text(file.read_text().replace("class TopKMethod", "class TopkMethod"))
    hashes()
    assert sources.missing("topk") == "topk.py has no TopKMethod"
    assert sources.missing("relu") is None


def test_a_class_that_is_not_imported_is_said(hashes, tmp_path):
    hashes()
    package = tmp_path / "l0plane/methods/__init__.py"
    text = package.read_text()
    package.write_text(text.replace('"topk": TopKMethod', '"topk": TopKMethod, "mine": Mine'))
    hashes()
    assert sources.missing("mine") == "Mine is not imported"
    assert sources.missing("topk") is None
    for line in ("from l0plane.methods.relu import *", "Mine = ReLUMethod", "class Mine: pass"):
        package.write_text(package.read_text().replace("METHODS:", f"{line}\nMETHODS:"))
        hashes()
        assert sources.missing("mine") is None, line
        package.write_text(package.read_text().replace(f"{line}\n", ""))


def test_a_syntax_error_names_the_file_and_the_line(hashes, tmp_path):
    file = tmp_path / "l0plane/methods/topk.py"
    lines = len(file.read_text().splitlines())
    with file.open("a") as end:
        end.write("def x(:\n")
    with pytest.raises(UserError, match=rf"methods/topk.py:{lines + 1}: invalid syntax"):
        hashes()
