"""Every command in the documents is accounted for: run, planned, or checked as far as it can be.

Bash runs the documents' commands in a copy of the repository, where the programs that cost time or
change the machine only note how they were called. What they noted is then checked by `CHECKS`, a
function a program. A program that is neither there nor among `TOOLS` is not found, and the test
fails until somebody says here how its calls are to be checked.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser
from test_docs import PAGES
from test_environment import LOCK, TEST_LOCK, make
from test_new_method import EXAMPLES, snakemake

ROOT = Path(__file__).parents[1]
#: What of the repository the copy leaves out: what runs make, and what has a dot in front.
LEFT_OUT = ("results", "figures", "logs", "report.html")
#: What blocks run for real; there is nothing but the copy that they could change.
TOOLS = ("cat", "cp", "du", "head", "id", "ls", "mkdir", "mv", "rm", "sed", "tail", "touch")
#: How the first line of an indented block shows that it is a formula, a sum or a picture.
NO_COMMAND = re.compile(r"[\w)|] += |─►|/ 1e9 |^METHODS =")
#: Languages of fenced blocks that are no commands. Code is tested where it belongs.
OTHER_LANGUAGES = ("", "json", "python", "text", "yaml")
#: The table of methods with that of the example, as the document has it.
NAMED = """
from l0plane.methods.log_penalty import LogPenalty

METHODS: dict[str, type[Method]] = {
    "log_penalty": LogPenalty,"""


def commands(text):
    """The scripts of a page: its blocks of commands, and each command in its prose and tables."""
    prose = []
    for number, part in enumerate(re.split(r"^```", text, flags=re.MULTILINE)):
        if number % 2 == 0:
            prose.append(part)
            continue
        language, _, script = part.partition("\n")
        if language in ("bash", "sh"):
            yield script
        else:
            assert language in OTHER_LANGUAGES, f"```{language}: are these commands?"
    for block in re.findall(r"(?<=\n\n)(?: {4}.*\n+)+", "\n".join(prose)):
        if not NO_COMMAND.search(block.partition("\n")[0]):
            yield re.sub(r"^ {4}", "", block, flags=re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", "\n".join(prose)):
        whole = not re.search(r"\.\.\.|…|<", code)
        if whole and re.match(rf"({'|'.join(CHECKS)}|source) ", code):
            yield code


# --- how the calls of each program are checked, in the copy, after all blocks have run


def check_snakemake(directory, calls):
    """Its own parser knows the options; one dry run plans all calls with one configuration."""
    parser = get_argument_parser()
    runs = defaultdict(lambda: (set(), set()))
    for _, *arguments in calls:
        asked = parser.parse_args(arguments)
        for profile in (*(asked.profile or ()), asked.workflow_profile):
            assert profile is None or (directory / profile / "config.yaml").is_file(), arguments
        files = ["--configfile", *map(str, asked.configfile)] if asked.configfile else []
        changes = ["--config", *asked.config] if asked.config else []
        targets, forced = runs[(*files, *changes)]
        targets |= {*(asked.targets or ["all"])}
        forced |= {*(asked.forcerun or ())}
    for configuration, (targets, forced) in runs.items():
        again = ["--forcerun", *sorted(forced)] if forced else []
        plan = ("--dry-run", "--quiet", "rules", *configuration, *again, "--", *targets)
        code, said = snakemake(directory, *plan, PYTHONPATH=f"{directory}/src")
        assert code == 0, f"snakemake {shlex.join(plan)}\n{said}"


def check_make(directory, calls):
    """There is such a target, and a plan to make it."""
    for _, *arguments in calls:
        done = make(directory, "--dry-run", *arguments)
        assert done.returncode == 0, f"make {shlex.join(arguments)}\n{done.stderr}"


def check_python(directory, calls):
    """The script is there and has the options; code on the command line runs."""
    for call in calls:
        if call[1] == "-m":
            module = directory / "src" / call[2].replace(".", "/")
            assert module.with_suffix(".py").is_file(), call
            continue
        if call[1] == "-c":
            done = subprocess.run([sys.executable, *call[1:]], cwd=directory, check=False)
            assert done.returncode == 0, call
            continue
        (place,) = (place for place, word in enumerate(call) if word.endswith(".py"))
        source = (directory / call[place]).read_text()
        for word in call[place + 1 :]:
            assert not word.startswith("-") or f'"{word.partition("=")[0]}"' in source, call


def check_torchrun(directory, calls):
    """It starts several processes of a program, which is the reader's own."""
    for _, *options, processes, program in calls:
        assert options == ["--standalone", "--nproc-per-node"]
        assert processes.isdigit()
        assert program.endswith(".py")


def check_pip(directory, calls):
    """The locks are there, and what is named has a lock's version."""
    versions = LOCK | TEST_LOCK
    for _, action, *words in calls:
        assert action == "install"
        for option, word in zip(["", *words], words, strict=False):
            if option == "-r":
                assert (directory / word).is_file(), word
            elif "==" in word:
                name, version = word.split("==")
                assert versions[name] == version
            else:
                assert word in ("-r", "-e", ".", "--no-deps"), word


def check_conda(directory, calls):
    """The environment's file and name are ours."""
    name = yaml.safe_load((directory / "environment.yml").read_text())["name"]
    for _, *words in calls:
        assert words in (["env", "create", "-f", "environment.yml"], ["activate", name])


def check_nothing(directory, calls):
    """Only noted: what they do is not ours, and cannot be done here."""


CHECKS = {
    "snakemake": check_snakemake,
    "make": check_make,
    "python": check_python,
    "torchrun": check_torchrun,
    "pip": check_pip,
    "conda": check_conda,
    "git": check_nothing,
    "apt-get": check_nothing,
    "sudo": check_nothing,
}


# --- running them


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository's copy with all example methods, after all blocks; calls; what failed."""
    directory, bench = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("programs")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for path in (*ROOT.iterdir(), ROOT / "results/reference"):
        if path.name.startswith(".") or path.name in LEFT_OUT:
            continue
        target = directory / path.relative_to(ROOT)
        if path.is_dir():
            shutil.copytree(path, target, ignore=ignore)
        else:
            shutil.copy(path, target)
    for path, text in EXAMPLES.items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(text)
    names = directory / "src/l0plane/methods/__init__.py"
    names.write_text(names.read_text().replace("METHODS: dict[str, type[Method]] = {", NAMED))
    (directory / ".venv/bin").mkdir(parents=True)
    (directory / ".venv/bin/activate").touch()
    (directory / "l0plane").symlink_to(directory)  # what `git clone` would have made
    note = bench / "note"
    note.write_text('#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" > "$NOTES/$$"\n')
    note.chmod(0o755)
    (bench / "bin").mkdir()
    (bench / "notes").mkdir()
    for program in CHECKS:
        (bench / "bin" / program).symlink_to(note)
    for program in TOOLS:
        (bench / "bin" / program).symlink_to(shutil.which(program))
    environment = {
        "PATH": str(bench / "bin"),
        "NOTES": str(bench / "notes"),
        "HOME": str(directory),
    }
    failures = []
    for page in PAGES:
        for script in commands(page.read_text()):
            done = subprocess.run(
                [shutil.which("bash"), "-euc", script],
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                failures.append(f"{page.relative_to(ROOT)}:\n{script}\n{done.stderr}")
    calls = defaultdict(set)
    for path in (bench / "notes").iterdir():
        call = tuple(path.read_text().split("\0")[:-1])
        calls[call[0]].add(call)
    return directory, calls, failures


def test_every_block_runs_with_programs_that_are_known(copy):
    _, _, failures = copy
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("program", CHECKS)
def test_the_calls_of(program, copy):
    directory, calls, _ = copy
    CHECKS[program](directory, calls[program])
