"""Columns in docs/tables.md are those of the tables; links lead somewhere; messages are there."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import tidy as example
import yaml
from test_training import HYPERPARAMETERS, SETTINGS, STORE

from l0plane import config as l0config
from l0plane import plan, tables
from l0plane import tidy as columns
from l0plane.claims import Tables, judge
from l0plane.missing import missing
from l0plane.penalty import SEARCH, TRIALS
from l0plane.training import train
from l0plane.tuning import choose

ROOT = Path(__file__).parents[1]
#: What a user reads.
PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = (ROOT / "docs/tables.md").read_text()
COLUMN = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
SHARED = COLUMN.findall(TEXT.split("\n## ")[1])
KEYS, PROVENANCE = SHARED[:5], SHARED[5:]


def documented(name):
    """The columns of a table, in order, as docs/tables.md has them under its name."""
    section = TEXT.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    introduction = section.split("\n| ")[0]
    keys = KEYS if "Keys" in introduction else []
    provenance = PROVENANCE if "rovenance" in introduction else []
    return [*keys, *COLUMN.findall(section), *provenance]


def test_the_training_log():
    settings = {**SETTINGS, "tokens": 1024}
    log = train("relu", STORE, 8, 3, 0, settings, HYPERPARAMETERS)[1]
    assert [*KEYS, *log.columns, *PROVENANCE] == documented("training.csv")


@pytest.mark.parametrize("name", columns.MEASURED)
def test_a_table_of_nothing_has_its_columns(name):
    files = [f"{name}.{suffix}" for suffix in ("csv", "parquet") if f"`{name}.{suffix}`" in TEXT]
    assert list(columns.together([], name).columns) == documented(files[0])


def test_what_is_missing():
    assert list(missing([]).columns) == documented("missing.csv")


def test_the_tuning():
    before = [c for c in documented("tuning.csv") if c not in ("diverged", "off_target", "chosen")]
    table = choose(pd.DataFrame([dict.fromkeys(before, 1.0)]))
    assert list(table.columns) == documented("tuning.csv")


def test_the_claims():
    assert list(judge(Tables()).columns) == documented("claims.csv")


def test_the_summary():
    found = tables.summary(example.autoencoders(), example.methods(), example.N, (8,))
    assert [c.replace("_at_8", "_at_<L0>") for c in found] == documented("tables/summary.csv")


def anchors(page):
    """The names by which links reach the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, heading = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not heading or heading in anchors(there), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    for page in PAGES:
        link = f"]({os.path.relpath(page, ROOT / 'docs')})"
        assert link in index or page == ROOT / "docs/README.md", page


def test_every_message_in_troubleshooting_is_one_of_the_code():
    quoted = re.findall(r"^> `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    known = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                text = "".join(part if isinstance(part, str) else "…" for part in parts)
                known.add(re.sub("…+", "…", text).replace("\n", " "))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                known.add(node.value)
    assert quoted
    for message in quoted:
        assert any(message in text for text in known), message


def test_what_gpt2_is_said_to_cost_is_what_the_command_prints():
    page = (ROOT / "docs/scaling.md").read_text()
    command, shown = re.search(
        r"^    python (benchmarks/cost\.py .*?)\n\n.*?^```\n(.*?)^```",
        page,
        re.DOTALL | re.MULTILINE,
    ).groups()
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == shown


@pytest.fixture(scope="module")
def cost():
    path = ROOT / "benchmarks/cost.py"
    spec = importlib.util.spec_from_file_location("cost", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cost_is_that_of_every_training(cost):
    config, methods = cost.read(ROOT / "config/smoke.yaml")
    found = cost.trainings(config, methods)
    # relu, which is penalised, and topk, each with two rates and two neighbours of the better one,
    # and three rates at another size; five penalties and two levels.
    assert len(found["tuning"]) == SEARCH * 7 + 7
    assert found["tuning"].count((8192, 64)) == SEARCH * 3 + 3
    assert len(found["search for lambda"]) == SEARCH * 2 * 5
    assert found["autoencoders"] == [(16384, 128)] * 2 * len(methods)
    # 18 autoencoders of 16,384 tokens at one token n d a second, and so on.
    rows = cost.table(config, methods, d=10, speed=1.0, model_speed=2.0).splitlines()
    hours = 2 * len(methods) * 16384 * 128 * 10 / 3600
    assert f"{hours:,.1f}" in rows[-2]
    config["sparsity_panel"]["replicated"], config["seeds"] = config["sparsity_panel"]["l0"], 2
    searches = cost.trainings(config, methods)["search for lambda"]
    assert len(searches) == (SEARCH + TRIALS) * 2 * 5  # a second seed starts from the first one's


def test_each_method_that_stands_on_its_own_pays_for_one_pass_of_the_language_model(cost):
    config, methods = cost.read(ROOT / "config/smoke.yaml")
    # One position in 64 is read and left out.
    stored = round((16384 + 2048) * 64 / 63)
    assert cost.passes(config, methods) == {"activations": [stored], "streams": []}
    config["training"]["stream_buffer_tokens"] = 4096
    streams = [round(16384 * 64 / 63)] * (len(methods) - 1)
    assert cost.passes(config, methods)["streams"] == streams
    row = cost.table(config, methods, d=10, speed=1.0, model_speed=0.5).splitlines()[2]
    assert row.split()[:3] == ["streams", "8", f"{sum(streams) / 0.5 / 3600:,.1f}"]


def test_what_gpt2_asks_of_a_cluster_fits_the_partitions_of_the_profile(cost):
    config, _ = cost.read(ROOT / "config/gpt2.yaml")
    rules = {"config": config, "l0config": l0config, "plan": plan}
    exec((ROOT / "workflow/rules/resources.smk").read_text(), rules)
    there = yaml.safe_load((ROOT / "profiles/slurm/partitions.yaml").read_text())["partitions"]
    levels = plan.levels(config)
    groups = [SimpleNamespace(streamed=streamed, levels=levels) for streamed in (True, False)]
    for asked in (
        rules["activations_resources"](),
        rules["evaluation_resources"](),
        *(rules["training_resources"](n=level.n, trainings=SEARCH) for level in levels),
        *map(rules["group_resources"], groups),
    ):
        found = {name: value(None) if callable(value) else value for name, value in asked.items()}
        assert found["runtime"] <= there["gpu"]["max_runtime"], found
        assert found["mem_mb"] <= there["gpu"]["max_mem_mb"], found
        assert found["gpu"] == found.get("nodes", 1) == 1
        assert asked["mem_mb"](None, attempt=3) == 3 * found["mem_mb"]
    # What has no checkpoint needs more time as well.
    asked = rules["evaluation_resources"]()["runtime"]
    assert asked(None, attempt=2) == 2 * asked(None)
