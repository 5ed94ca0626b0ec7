"""A candidate of the tuning: its row, and what a killed job finds again."""

import math

import pytest
from test_docs import documented
from test_lambdas import Validation
from test_training import HYPERPARAMETERS, SETTINGS, STORE, N

from l0plane import candidates, lambdas
from l0plane.autoencoder import Failed
from l0plane.candidates import TunedLevel


class Store:
    """The synthetic activations, as if they were of a run."""

    manifest = STORE.manifest | {"corpus_sha256": "c", "model_sha256": "m"}
    sample, batches = STORE.sample, STORE.batches


def level(method, penalised):
    return TunedLevel("r", method, N, 5, SETTINGS, penalised, None, Store(), Validation(), 10)


def the_row_of(table):
    added = {"diverged", "off_target", "chosen"}
    assert list(table.columns) == [c for c in documented("tuning.csv") if c not in added]
    (row,) = table.to_dict("records")
    assert (row["learning_rate"], row["n"], row["l0_target"]) == (2e-3, N, 5)
    assert 0 < row["nmse"] < 1
    return row


def test_a_candidate_that_cannot_be_trained_is_a_row_without_measurements(tmp_path, monkeypatch):
    def fail(*_):
        raise Failed("exploded")

    monkeypatch.setattr(candidates, "train", fail)
    table = level("topk", False).candidate({}, {"learning_rate": 99.0, "width": 3}, tmp_path)
    assert math.isnan(table["nmse"].iloc[0])
    assert table[["knob", "value", "learning_rate"]].iloc[0].tolist() == ["width", 3, 99.0]


@pytest.mark.parametrize(("method", "penalised"), [("topk", False), ("relu", True)])
def test_a_candidate_that_ended_is_not_trained_again_by_a_job_that_was_killed_later(
    method, penalised, tmp_path, monkeypatch
):
    arguments = (HYPERPARAMETERS, {"learning_rate": 2e-3}, tmp_path / "place")
    before = level(method, penalised).candidate(*arguments)
    row = the_row_of(before)
    assert row["lambda"] > 0 if penalised else math.isnan(row["lambda"])
    for module in (lambdas, candidates):
        monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("trained again"))
    assert level(method, penalised).candidate(*arguments).equals(before)
    if not penalised:  # another rate is another training
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            level(method, penalised).candidate(HYPERPARAMETERS, {}, tmp_path / "place")
