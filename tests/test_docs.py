"""Columns in docs/tables.md are those of the tables; links in the documents lead somewhere."""

import re
from pathlib import Path

import pandas as pd
import pytest
import tidy as example
from test_training import HYPERPARAMETERS, SETTINGS, STORE

from l0plane import tables
from l0plane.claims import Tables, judge
from l0plane.training import train
from l0plane.tuning import choose

ROOT = Path(__file__).parents[1]
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


def test_the_tuning():
    before = [c for c in documented("tuning.csv") if c not in ("diverged", "off_target", "chosen")]
    table = choose(pd.DataFrame([dict.fromkeys(before, 1.0)]))
    assert list(table.columns) == documented("tuning.csv")


def test_the_claims():
    assert list(judge(Tables()).columns) == documented("claims.csv")


def test_the_summary():
    found = tables.summary(example.autoencoders(), example.methods(), example.N, (8,))
    assert [c.replace("_at_8", "_at_<L0>") for c in found] == documented("tables/summary.csv")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
