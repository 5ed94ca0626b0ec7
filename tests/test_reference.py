"""What is committed as the reference belongs to the code and configuration that stand beside it."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_config import merged

from l0plane import config, method_folders, plan
from l0plane.lambdas import setting
from l0plane.tuning import neighbour, sides

REPOSITORY = Path(__file__).parents[1]
REFERENCE = REPOSITORY / "results/reference"
TUNING = pd.read_csv(REFERENCE / "tuning.csv")
LAMBDAS = pd.read_csv(REFERENCE / "lambdas.csv")
DEFAULT = yaml.safe_load((REPOSITORY / "config/default.yaml").read_text())
TUNED = TUNING[TUNING["n"] == DEFAULT["sparsity_panel"]["n"]]
SIZES = TUNING[TUNING["n"] != DEFAULT["sparsity_panel"]["n"]]
METHODS = method_folders.read_methods(
    REPOSITORY / "workflow/methods", REPOSITORY / "workflow/schemas/method.schema.yaml"
)
PENALISED = [name for name, facts in METHODS.items() if plan.penalised(facts)]


@pytest.mark.parametrize("method", TUNING["method"].unique())
def test_hyperparameters_are_those_that_tuning_chose(method):
    facts = yaml.safe_load((REPOSITORY / f"workflow/methods/{method}/method.yaml").read_text())
    n = DEFAULT["sparsity_panel"]["n"]
    for l0 in DEFAULT["tuning"]["l0"]:
        rows = TUNED[(TUNED["method"] == method) & (TUNED["l0_target"] == l0)]
        on_grid = rows["learning_rate"].isin(DEFAULT["tuning"]["learning_rates"])
        grid, beside = rows[on_grid], rows[~on_grid]
        assert sorted(grid["learning_rate"].unique()) == DEFAULT["tuning"]["learning_rates"]
        beside_best = sides(DEFAULT["tuning"]["learning_rates"])
        for side in beside_best:
            wanted = neighbour(grid, side)
            assert wanted["learning_rate"] in set(beside["learning_rate"]), (l0, side)
            if len(wanted) > 1:
                assert set(beside["value"]) == {*wanted.values()} - {wanted["learning_rate"]}
        assert len(beside) == len(beside_best)
        (chosen,) = rows[rows["chosen"]].to_dict("records")
        own = plan.at_level(facts["hyperparameters"], n, l0, n)
        assert own["learning_rate"] == chosen["learning_rate"]
        if isinstance(chosen["knob"], str):
            assert own[chosen["knob"]] == chosen["value"]


def test_what_was_tuned_is_what_was_trained():
    assert set(TUNED["l0_target"]) == set(DEFAULT["tuning"]["l0"])
    n = DEFAULT["sparsity_panel"]["n"]
    for row in pd.read_csv(REFERENCE / "autoencoders.csv").itertuples():
        own = plan.at_level(METHODS[row.method]["hyperparameters"], row.n, row.l0_target, n)
        assert row.learning_rate == pytest.approx(own["learning_rate"]), row
    for facts in METHODS.values():
        for name, value in facts["hyperparameters"].items():
            tuned = DEFAULT["tuning"]["n" if name == config.FACTOR else "l0"]
            assert not isinstance(value, dict) or set(value) <= set(tuned)
            assert name == config.FACTOR or not isinstance(value, dict) or list(value) == tuned


@pytest.mark.parametrize("method", TUNING["method"].unique())
def test_rates_of_other_sizes_are_those_that_tuning_chose(method):
    own, l0 = METHODS[method]["hyperparameters"], DEFAULT["size_panel"]["l0"]
    rows = SIZES[SIZES["method"] == method]
    assert set(rows["n"]) == set(DEFAULT["tuning"]["n"])
    assert set(rows["l0_target"]) == {l0}
    for n, found in rows.groupby("n"):
        level = (n, l0, DEFAULT["sparsity_panel"]["n"])
        rule = plan.at_size_by_rule(own, *level)["learning_rate"]
        assert (found["learning_rate"] / rule).round(2).isin([0.71, 1, 1.4]).sum() == 3
        (chosen,) = found.loc[found["chosen"], "learning_rate"]
        assert chosen == pytest.approx(plan.at_level(own, *level)["learning_rate"], rel=0.01)


def test_no_rate_chosen_is_at_the_end_of_those_tried():
    for level, rows in TUNING.groupby(["method", "n", "l0_target"]):
        (chosen,) = rows.loc[rows["chosen"], "learning_rate"]
        # All rates bring the fine-tuned scales to the same optimum.
        inside = rows["learning_rate"].min() < chosen < rows["learning_rate"].max()
        assert inside or level[0] == "relu_scaled", level


@pytest.mark.parametrize("table", [TUNING, LAMBDAS], ids=["tuning", "lambdas"])
def test_the_reference_is_about_the_embedded_text(table):
    assert set(table["corpus_sha256"]) == {DEFAULT["corpus"]["expected_sha256"]}


@pytest.mark.parametrize("method", PENALISED)
def test_every_autoencoder_of_the_default_run_has_its_lambda(method):
    rows = LAMBDAS[LAMBDAS["method"] == method].set_index(["n", "l0_target", "seed"])
    reference_n = DEFAULT["sparsity_panel"]["n"]
    for level in plan.levels(DEFAULT):
        row = rows.loc[level.n, level.l0, level.seed]
        own = plan.at_level(METHODS[method]["hyperparameters"], level.n, level.l0, reference_n)
        subject = setting(DEFAULT["language_model"], DEFAULT["training"], own)
        assert row["setting"] == subject
        assert row["training_tokens"] == DEFAULT["training"]["tokens"]
        assert row["learning_rate"] == pytest.approx(own["learning_rate"])


@pytest.mark.parametrize(("run", "folder"), [("six_seeds", "."), ("gpt2_embedded",) * 2])
def test_the_reference_run_was_made_with_this_configuration(run, folder):
    changes = yaml.safe_load((REPOSITORY / f"config/{run}.yaml").read_text())
    expected = merged(DEFAULT, changes)
    found = json.loads((REFERENCE / folder / "run.json").read_text())["config"]
    ignored = {"methods", "refinement", "progressive", "tuning", "language_model", "lambdas"}
    for key in set(expected) - ignored:  # those hold names written out and paths found
        assert found[key] == expected[key], key
    rows = pd.read_csv(REFERENCE / folder / "autoencoders.csv")
    levels = {(level.n, level.l0, level.seed) for level in plan.levels(expected)}
    for method, trained in rows.groupby("method"):
        assert {tuple(row) for row in trained[["n", "l0_target", "seed"]].values} == levels, method
