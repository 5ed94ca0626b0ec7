"""The search for lambda, and the choice of hyperparameters at equal L0."""

import numpy as np
import pandas as pd
import pytest
from test_training import HYPERPARAMETERS, SETTINGS, STORE, N

from l0plane import lambdas
from l0plane.autoencoder import Failed
from l0plane.files import UserError
from l0plane.lambdas import (
    CLOSE,
    Progress,
    error_at,
    following,
    next_lambda,
    read_lambda,
    search_lambda,
    setting,
    unanswered,
)
from l0plane.penalty import PenaltyController
from l0plane.tuning import choose


@pytest.mark.parametrize("power", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("start", [1e-4, 1e-2, 1.0])
def test_the_search_finds_the_lambda_of_a_power_law(power, start):
    def l0(factor):
        return 0.3 * factor**-power

    trials = [(start, l0(start))]
    while abs(trials[-1][1] / 16 - 1) > CLOSE and len(trials) < 20:
        factor = next_lambda(trials, 16)
        trials.append((factor, l0(factor)))
    assert trials[-1][1] == pytest.approx(16, rel=CLOSE)
    assert len(trials) <= 9


def test_the_search_stays_inside_its_bracket():
    trials = [(1e-3, 40.0), (1e-1, 3.0), (2e-3, 30.0)]
    assert 2e-3 < next_lambda(trials, 16) < 1e-1


@pytest.mark.parametrize("power", [-1.0, -0.5, 1.0])
def test_the_bracket_narrows_where_l0_falls_with_lambda_and_where_it_rises(power):
    def l0(factor):
        x = np.log(factor / 0.13)
        return 8 * np.exp(-power * (x + 2 * x**3))

    trials = [(0.05, l0(0.05)), (0.2, l0(0.2))]
    while abs(trials[-1][1] / 8 - 1) > CLOSE:
        factor = next_lambda(trials, 8)
        assert all(abs(factor / tried - 1) > 0.01 for tried, _ in trials)
        trials.append((factor, l0(factor)))
    assert len(trials) <= 8


def test_an_l0_that_does_not_answer_moves_lambda_by_a_limited_factor():
    assert next_lambda([(1e-3, 0.0), (1e-4, 0.0)], 16) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("l0", "hopeless"),
    [
        ([20.0, 20.5, 21.7], True),
        ([8.0, 7.0, 7.5], True),
        ([20.0, 20.5], False),  # once may be chance
        ([20.0, 21.0, 19.0], False),
        ([30.0, 12.0, 11.0, 40.0], False),  # a bracket goes on narrowing
    ],
)
def test_a_search_whose_l0_does_not_answer_ends(l0, hopeless):
    assert unanswered([{"l0": value} for value in l0], 16) == hopeless


def test_where_l0_rises_with_lambda_the_search_steps_to_the_other_side():
    assert next_lambda([(0.154, 8.53), (0.165, 8.8)], 8) < 0.154
    assert next_lambda([(0.165, 7.0), (0.154, 6.7)], 8) > 0.165
    assert next_lambda([(0.154, 8.5), (0.165, 8.52)], 8) > 0.165  # hardly: noise


class Validation:
    """The synthetic activations as a validation store."""

    tokens = 2048

    def __init__(self):
        self.manifest = {"validation": True}

    def sample(self, rows):
        return STORE.sample(rows)


def test_a_penalty_too_small_to_be_felt_is_not_the_end_of_a_search():
    def trials(*pairs):
        return [{"lambda": factor, "l0": l0} for factor, l0 in pairs]

    felt = PenaltyController.START
    silent = trials((3e-8, 68.4), (3e-7, 68.4), (3e-6, 68.41))
    assert following(silent, 4, around=True) == felt
    assert following([*silent, *trials((felt, 66.0))], 4, around=True) > felt
    assert following(trials((0.3, 68.4), (3.0, 68.4), (30.0, 68.41)), 4, around=True) is None
    assert following(trials((3e-6, 2.0), (3e-7, 1.9), (3e-8, 1.8)), 4, around=True) is None


def test_a_constant_lambda_is_found_that_gives_the_l0_asked_for():
    trials = search_lambda("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS)
    assert trials["l0"][0] == pytest.approx(5, rel=CLOSE)
    assert list(trials.columns) == ["lambda", "nmse", "nmse_se", "l0", "dead_fraction"]


def test_a_search_from_a_lambda_with_which_the_training_fails_begins_anew(monkeypatch):
    train = lambdas.train

    def failing(*arguments, **kept):
        if arguments[-1].get("lambda") == 123.0:
            raise Failed("exploded")
        return train(*arguments, **kept)

    monkeypatch.setattr(lambdas, "train", failing)
    arguments = ("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS)
    found = search_lambda(*arguments, start=123.0)
    pd.testing.assert_frame_equal(found, search_lambda(*arguments))


def test_a_killed_search_goes_on_after_the_trainings_that_ended(tmp_path, monkeypatch):
    arguments = ("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS)
    whole = search_lambda(*arguments)
    train, done = lambdas.train, []

    def killed(*arguments, **kept):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments[-1].get("lambda"))
        return train(*arguments, **kept)

    monkeypatch.setattr(lambdas, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        search_lambda(*arguments, progress=Progress(tmp_path / "search", 0))
    again = []
    monkeypatch.setattr(
        lambdas,
        "train",
        lambda *a, **kept: (again.append(a[-1].get("lambda")), train(*a, **kept))[1],
    )
    progress = Progress(tmp_path / "search", 0)
    pd.testing.assert_frame_equal(search_lambda(*arguments, progress=progress), whole)
    assert not {*done} & {*again}
    # Of another search nothing is taken.
    again.clear()
    other = search_lambda(*arguments[:4], 4, *arguments[5:], progress=progress)
    assert other["l0"][0] == pytest.approx(4, rel=CLOSE)
    assert None in again
    progress.remove()
    assert not (tmp_path / "search").exists()


def test_a_search_that_cannot_write_what_it_found_goes_on(tmp_path, capsys):
    arguments = ("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS)
    (tmp_path / "file").touch()
    found = search_lambda(*arguments, progress=Progress(tmp_path / "file/search", 1000))
    assert found["l0"][0] == pytest.approx(5, rel=CLOSE)
    assert "trials.json: not written" in capsys.readouterr().out


def test_what_a_killed_search_left_half_written_is_not_used(tmp_path):
    arguments = ("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS)
    progress = Progress(tmp_path, 0)
    whole = search_lambda(*arguments, progress=progress)
    text = (tmp_path / "trials.json").read_text()
    (tmp_path / "trials.json").write_text(text.replace("0.", "1.", 1))
    found = search_lambda(*arguments, progress=Progress(tmp_path, 0))
    pd.testing.assert_frame_equal(found, whole)


def test_a_search_that_starts_from_the_right_lambda_ends_with_it():
    first = search_lambda("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS)
    start = first["lambda"][0]
    again = search_lambda("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS, start=start)
    assert list(again["lambda"]) == [start]
    other = search_lambda("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS, 1, start)
    assert other["lambda"].iloc[0] == pytest.approx(start, rel=0.5)
    assert other["nmse"].iloc[0] != again["nmse"].iloc[0]


def test_a_steered_training_that_lost_its_way_says_nothing_about_lambda(monkeypatch):
    lost = pd.DataFrame({"lambda": [1e-3, 5.0, 5.0, 1e-6], "l0": [50.0, 9.0, 2.0, 2.0]})
    tried = []

    def trained(*arguments, **_):
        tried.append(arguments[-1].get("lambda"))
        return None, lost, {}

    monkeypatch.setattr(lambdas, "train", trained)
    reached = dict.fromkeys(lambdas.TRIED[1:], 0.1) | {"l0": 5.0}
    monkeypatch.setattr(lambdas, "validate", lambda *_: reached)
    search_lambda("relu", STORE, Validation(), N, 5, SETTINGS, HYPERPARAMETERS)
    assert tried[:2] == [None, PenaltyController.START]


#: What ProLU-STE does: L0 falls, rises and falls again with lambda.
WINDING = {0.005: 90.0, 0.01: 40.0, 0.02: 16.0, 0.03: 8.1, 0.05: 11.6, 0.095: 16.2}
WINDING |= {0.13: 18.0, 0.183: 16.0, 0.36: 8.1, 0.7: 3.0}


def winding(monkeypatch, steered, best=0.0):
    """`search_lambda` where L0 is `WINDING`, the error least at `best`; all lambdas tried."""
    tried = []

    def trained(*arguments, **_):
        tried.append(arguments[-1].get("lambda"))
        return tried[-1], pd.DataFrame({"lambda": [steered] * 2, "l0": [16.0] * 2}), {}

    def reached(factor, _):
        l0 = np.exp(np.interp(np.log(factor), np.log([*WINDING]), np.log([*WINDING.values()])))
        return dict.fromkeys(lambdas.TRIED[1:], 0.1) | {"l0": l0, "nmse": 0.1 + abs(factor - best)}

    monkeypatch.setattr(lambdas, "train", trained)
    monkeypatch.setattr(lambdas, "validate", reached)
    return tried


@pytest.mark.parametrize("start", [0.003, 0.03, 0.05, 0.1, 0.154, 0.3, 3.0])
@pytest.mark.parametrize("l0", [8, 12, 16])
@pytest.mark.parametrize("around", [True, False])
def test_where_l0_winds_one_is_found_and_none_tried_twice(monkeypatch, start, l0, around):
    tried = winding(monkeypatch, steered=start)
    starts = {} if around else {"start": start}
    arguments = ("relu", STORE, Validation(), N, l0, SETTINGS, HYPERPARAMETERS)
    found = search_lambda(*arguments, **starts)
    assert len({*tried}) == len(tried)
    assert abs(found["l0"][0] / l0 - 1) < CLOSE


@pytest.mark.parametrize("failing", [0.005, 0.04])
def test_beyond_a_lambda_whose_training_fails_none_is_tried_but_on_the_other_side(
    monkeypatch, failing
):
    monkeypatch.setitem(WINDING, 0.05, 7.0)
    for factor in [factor for factor in WINDING if factor > 0.05]:
        monkeypatch.setitem(WINDING, factor, 1 / factor)
    tried = winding(monkeypatch, steered=0.02)
    train = lambdas.train

    def sometimes(*arguments, **kept):
        trained = train(*arguments, **kept)
        if tried[-1] == pytest.approx(failing):
            raise Failed("all latents are dead")
        return trained

    monkeypatch.setattr(lambdas, "train", sometimes)
    found = search_lambda("relu", STORE, Validation(), N, 16, SETTINGS, HYPERPARAMETERS)
    assert tried[1:] == pytest.approx([0.02, 0.01, 0.005, 0.04])
    assert len(found) == 3


@pytest.mark.parametrize(
    ("steered", "best"),
    [(0.02, 0.02), (0.02, 0.183), (0.095, 0.02), (0.183, 0.02), (0.183, 0.095), (0.183, 0.183)],
)
def test_of_the_lambdas_that_give_an_l0_the_best_is_found(monkeypatch, steered, best):
    tried = winding(monkeypatch, steered, best)
    found = search_lambda("relu", STORE, Validation(), N, 16, SETTINGS, HYPERPARAMETERS)
    assert tried[1] == pytest.approx(steered)
    assert abs(found["l0"][0] / 16 - 1) < CLOSE
    assert found["lambda"][0] == pytest.approx(best, rel=0.1)
    assert found["nmse"][0] == found["nmse"][abs(found["l0"] / 16 - 1) < CLOSE].min()


def test_where_l0_falls_with_lambda_two_trainings_on_either_side_show_it(monkeypatch):
    monkeypatch.setitem(WINDING, 0.05, 7.0)
    for factor in [factor for factor in WINDING if factor > 0.05]:
        monkeypatch.setitem(WINDING, factor, 1 / factor)
    tried = winding(monkeypatch, steered=0.02)
    search_lambda("relu", STORE, Validation(), N, 16, SETTINGS, HYPERPARAMETERS)
    assert tried[1:] == pytest.approx([0.02, 0.01, 0.005, 0.04])


def test_the_search_for_another_seed_stays_where_it_begins(monkeypatch):
    tried = winding(monkeypatch, steered=None)
    search_lambda("relu", STORE, Validation(), N, 16, SETTINGS, HYPERPARAMETERS, 1, start=0.183)
    assert tried == [0.183]


def test_the_error_at_an_l0_lies_between_the_nearest_trials():
    trials = pd.DataFrame({"l0": [15.0, 17.0, 40.0], "nmse": [0.2, 0.18, 0.01]})
    assert 0.18 < error_at(trials, 16) < 0.2
    power = trials.assign(nmse=trials["l0"] ** -0.6)
    assert error_at(power, 16) == pytest.approx(16**-0.6)
    assert error_at(trials.head(1), 16) == 0.2
    assert error_at(trials, 30) == 0.2  # too far off to be moved
    # Two lambdas that give nearly one L0 with two errors, or none, do not say how to move one.
    for l0 in (15.7, 15.75, 15.8, 0.0):
        other = pd.DataFrame({"l0": [15.75, l0], "nmse": [0.19, 0.22]})
        assert error_at(other, 16) == 0.19


MANIFEST = {"hook": "h", "context": 64, "drop_first_position": True, "d": 128}
SETTING = setting(MANIFEST, SETTINGS, HYPERPARAMETERS)
LEVEL = {"method": "relu", "n": 8, "l0_target": 4, "corpus_sha256": "c", "model_sha256": "m"}
LEVEL["setting"] = SETTING
ROW = {**LEVEL, "seed": 0, "lambda": 0.5, "training_tokens": 100, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, 0.5),
        ({"n": 9}, None),
        ({"setting": "x"}, None),
        ({"model_sha256": "x"}, None),
        ({"training_tokens": 9}, None),
    ],
)
def test_a_lambda_is_taken_only_from_a_row_about_the_same_training(tmp_path, changed, found):
    pd.DataFrame([ROW | changed]).to_csv(tmp_path / "lambdas.csv", index=False)
    assert read_lambda([tmp_path / "lambdas.csv"], LEVEL, 0, {"tokens": 100}, 1e-3) == found
    assert read_lambda([tmp_path / "lambdas.csv"], LEVEL, 0, {"tokens": 100}, 2e-3) is None


def test_what_a_lambda_depends_on_names_its_setting():
    others = [
        setting(MANIFEST | {"hook": "other"}, SETTINGS, HYPERPARAMETERS),
        setting(MANIFEST, SETTINGS | {"batch_tokens": 7}, HYPERPARAMETERS),
        setting(MANIFEST, SETTINGS, HYPERPARAMETERS | {"bandwidth": 7}),
    ]
    assert len({SETTING, *others}) == 4
    assert SETTING[0] == "s"  # digits alone would be read back as a number
    assert setting(MANIFEST, SETTINGS | {"precision": "float32"}, HYPERPARAMETERS) == SETTING
    apart = SETTINGS | {"aux_k": 7, "tokens": 7}
    assert setting(MANIFEST | {"d": 7}, apart, HYPERPARAMETERS | {"learning_rate": 7}) == SETTING


def test_a_table_without_the_column_is_named(tmp_path):
    pd.DataFrame([ROW]).drop(columns="setting").to_csv(tmp_path / "lambdas.csv", index=False)
    with pytest.raises(UserError, match="no column setting"):
        read_lambda([tmp_path / "lambdas.csv"], LEVEL, 0, {"tokens": 100}, 1e-3)


def test_each_seed_has_its_own_lambda_and_one_that_was_not_searched_for_the_first_ones(tmp_path):
    paths = [tmp_path / f"{seed}.csv" for seed in (2, 0, 3)]
    rows = [ROW | {"seed": 2, "lambda": 2.5}, ROW, ROW | {"seed": 3, "lambda": None}]
    for path, row in zip(paths, rows, strict=True):
        pd.DataFrame([row]).to_csv(path, index=False)
    found = [read_lambda(paths, LEVEL, seed, {"tokens": 100}, 1e-3) for seed in range(4)]
    assert found == [0.5, 0.5, 2.5, None]  # the search for seed 3 failed


def test_the_best_of_those_that_settled_is_chosen():
    table = pd.DataFrame(
        {
            "method": "relu",
            "n": 64,
            "l0_target": 16,
            "l0": [16.0, 12.0, 16.1, 16.0],
            "nmse": [0.3, 0.1, 0.2, float("nan")],
            "training_tokens": 1,
        }
    )
    chosen = choose(table)
    assert list(chosen["chosen"]) == [False, False, True, False]
    assert list(chosen["off_target"]) == [False, True, False, False]
    assert list(chosen["diverged"]) == [False, False, False, True]
