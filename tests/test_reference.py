"""What is committed as the reference belongs to the code and configuration that stand beside it."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
TUNING = pd.read_csv(REPOSITORY / "results/reference/tuning.csv")
DEFAULT = yaml.safe_load((REPOSITORY / "config/default.yaml").read_text())


@pytest.mark.parametrize("method", TUNING["method"].unique())
def test_hyperparameters_are_those_that_tuning_chose(method):
    facts = yaml.safe_load((REPOSITORY / f"workflow/methods/{method}/method.yaml").read_text())
    rows = TUNING[TUNING["method"] == method]
    chosen = rows[rows["chosen"]].iloc[0]
    assert sorted(rows["learning_rate"].unique()) == DEFAULT["tuning"]["learning_rates"]
    assert facts["hyperparameters"]["learning_rate"] == chosen["learning_rate"]
    if isinstance(chosen["knob"], str):
        assert facts["hyperparameters"][chosen["knob"]] == chosen["value"]


def test_the_reference_is_about_the_embedded_text():
    assert set(TUNING["corpus_sha256"]) == {DEFAULT["corpus"]["expected_sha256"]}
