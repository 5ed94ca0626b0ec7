"""A table in which one quantity moved is found out, and which, where and by how much is said."""

from pathlib import Path

import pandas as pd
import pytest

from l0plane import tidy, verify


def autoencoders():
    return pd.DataFrame(
        {
            "run": "smoke",
            "method": ["topk", "topk", "relu"],
            "n": 128,
            "l0_target": [4, 8, 4],
            "seed": 0,
            "lambda": [float("nan"), float("nan"), 0.01],
            "l0": [4.0, 8.0, 4.1],
            "nmse": [0.5, 0.4, 0.6],
            "delta_ce": [0.0, 0.2, 0.3],
            "evaluation_tokens": 2016,
            "training_seconds": [1.0, 2.0, 3.0],
            "corpus_sha256": "ab",
            "model_sha256": "cd",
        }
    )


def moved(**changes):
    """What is said about the second row with `changes`."""
    found = autoencoders()
    for column, value in changes.items():
        found.loc[1, column] = value
    return [str(change) for change in verify.compare("autoencoders", autoencoders(), found)[0]]


def test_nothing_moves_within_the_tolerance():
    assert moved() == []
    assert moved(nmse=0.4 * (1 + 0.9 * verify.RELATIVE)) == []
    found = autoencoders()
    found.loc[0, "delta_ce"] = 0.9 * verify.DIFFERENCE  # no share of nothing is anything
    assert not verify.compare("autoencoders", autoencoders(), found)[0]


def shares(table, expected, **changes):
    """How much of its tolerance each change uses, by column."""
    numbers = verify.compare(table, expected, expected.assign(**changes))[1]
    return numbers.groupby("column")["share"].max()[list(changes)]


def test_a_difference_may_move_by_a_share_of_what_it_is_the_difference_of():
    """Of a loss recovered, 1 - delta_ce / rise, by what moves its delta_ce by that much."""
    rise = 0.002
    small = autoencoders().assign(delta_ce=0.0005, loss_recovered_mean=1 - 0.0005 / rise)
    moved = 0.0005 + 0.9 * verify.DIFFERENCE
    used = shares("autoencoders", small, delta_ce=moved, loss_recovered_mean=1 - moved / rise)
    assert used.to_list() == pytest.approx([0.9, 0.9])
    shifts = autoencoders().assign(mean_shift=0.001, mean_absolute_shift=0.03)
    moved = 0.001 + 0.9 * 0.03 * verify.RELATIVE
    assert shares("refinement", shifts, mean_shift=moved).to_list() == pytest.approx([0.9])


def test_a_standard_error_and_a_few_dead_latents_may_move_by_more():
    rows = autoencoders().assign(nmse_se=0.002, dead_fraction=0.25)
    more = 0.25 + verify.DEAD / 128
    used = shares("autoencoders", rows, nmse_se=0.002 * 1.045, dead_fraction=more)
    assert used["nmse_se"] == pytest.approx(0.9)
    assert 0.99 < used["dead_fraction"] < 1
    assert shares("autoencoders", rows, dead_fraction=more + 1 / 128).item() > 1


def effects(effect, low, high, unit="% nMSE at equal L0"):
    columns = {"claim": ["C2"], "part": None, "effect": effect, "low": low, "high": high}
    return pd.DataFrame(columns | {"unit": unit})


@pytest.mark.parametrize(
    ("interval", "column", "value", "share"),
    [
        # 0.8 of an error with a narrow interval: two errors may be a percent apart.
        ((-20.0, -20.4, -19.6), "effect", -20 + 0.9 * 0.8, 0.9),
        ((-20.0, -20.4, -19.6), "low", -21.3, 1.13),
        # From a tenth to tenfold: a standard error is a factor of 10^(1/2).
        ((0.0, -90.0, 900.0), "high", 100 * 10**1.49 - 100, 0.97),
        ((0.0, -90.0, 900.0), "effect", 250.0, 1.16),
        # No interval.
        ((10.0, float("nan"), float("nan")), "effect", 12.2, 2.0),
    ],
)
def test_effects_are_ratios_known_to_a_standard_error(interval, column, value, share):
    used = shares("claims", effects(*interval), **{column: value})
    assert used.item() == pytest.approx(share, rel=0.01)


def test_effects_that_are_parts_of_something_are_known_to_parts_of_themselves():
    part = effects(90.0, 89.0, 91.0, unit="% of mean absolute shift")
    assert shares("claims", part, effect=90.8).item() == pytest.approx(0.8 / 0.9)
    slope = effects(0.5, 0.1, 0.9, unit="difference of slopes")
    assert shares("claims", slope, effect=0.6).item() == pytest.approx(0.5)
    # No width is known of an interval without an end.
    open_ended = effects(-20.0, -21.0, float("inf"))
    assert shares("claims", open_ended, effect=500.0).item() > 100


def test_where_no_lambda_was_found_the_l0_alone_is_compared():
    """Which of many lambdas that all miss comes nearest is rounding's choice."""
    missed = autoencoders().assign(l0=[4.0, 8.0, 6.0], trials=[1, 1, 7], nmse_se=0.01)
    other = missed.copy()
    other.loc[2, ["lambda", "nmse", "nmse_se", "l0"]] = [1.0, 0.7, 0.02, 6.5]
    other.loc[2, "trials"] = 6
    assert not verify.compare("lambdas", missed, other)[0]
    other.loc[2, "l0"] = 6.7
    (moved,) = verify.compare("lambdas", missed, other)[0]
    assert moved.column == "l0"
    # TopK needs no lambda.
    missed.loc[0, "l0"] = other.loc[0, "l0"] = 6.0
    other.loc[0, "nmse"] = 0.7
    assert "nmse" in [moved.column for moved in verify.compare("lambdas", missed, other)[0]]


def test_a_rate_above_the_chosen_one_may_differ_by_more():
    tried = autoencoders().assign(l0_target=4, method="relu", learning_rate=[0.1, 0.2, 0.4])
    tried["chosen"] = [False, True, False]
    found = tried.assign(nmse=tried["nmse"] * [1.004, 1.004, 1.02])
    assert not verify.compare("tuning", tried, found)[0]
    for row in (0, 1):
        other = found.copy()
        other.loc[row, "nmse"] *= 1.01
        assert [moved.column for moved in verify.compare("tuning", tried, other)[0]] == ["nmse"]


def test_times_names_and_hashes_of_weights_are_not_compared():
    found = autoencoders().assign(run="verify", training_seconds=9.0, model_sha256="ef")
    assert not verify.compare("autoencoders", autoencoders(), found.drop(columns="model_sha256"))[0]


def test_a_measure_that_moved_is_named_with_its_row_and_by_how_much():
    (said,) = moved(nmse=0.44)
    assert said == (
        "autoencoders.csv: nmse moved in 1 of 3 rows, most in method=topk n=128 l0_target=8 "
        "seed=0: expected 0.4, found 0.44 (+0.04, allowed "
        f"{0.4 * verify.RELATIVE:.1g})"
    )


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("evaluation_tokens", 2015, "evaluation_tokens moved in 1 of 3 rows"),
        ("corpus_sha256", "xy", "expected ab, found xy"),
        ("lambda", 0.01, "lambda moved in 1 of 3 rows"),  # was empty
        ("nmse", float("nan"), "expected 0.4, found nan"),
        ("nmse", float("inf"), "expected 0.4, found inf"),
    ],
)
def test_counts_hashes_and_empty_cells_agree_exactly(column, value, said):
    (found,) = moved(**{column: value})
    assert said in found


def test_infinities_agree_with_their_like_alone():
    infinite = autoencoders().assign(nmse=[0.5, float("inf"), 0.6])
    moved, shares = verify.compare("autoencoders", infinite, infinite)
    assert not moved
    assert (shares[["difference", "share"]] == 0).all(axis=None)
    for other in (0.4, float("nan"), -float("inf")):
        changed = infinite.assign(nmse=[0.5, other, 0.6])
        (moved,) = verify.compare("autoencoders", infinite, changed)[0]
        assert str(moved).endswith(f"expected inf, found {other}")


def test_rows_and_columns_that_are_missing_or_new_are_named():
    committed = autoencoders()
    said = [str(m) for m in verify.compare("autoencoders", committed, committed[:2])[0]]
    assert said == [
        "autoencoders.csv: rows missing: 1, such as method=relu n=128 l0_target=4 seed=0"
    ]
    found = committed.drop(columns="nmse").assign(kl=1.0)
    said = [str(m) for m in verify.compare("autoencoders", committed, found)[0]]
    assert said[0] == "autoencoders.csv: nmse is missing"
    assert said[1].startswith("autoencoders.csv: kl is new")


def test_rows_of_one_curve_are_compared_in_their_order():
    curve = autoencoders()[["method", "n", "l0_target", "seed", "nmse"]].assign(selection="topk")
    curve["l0_target"] = 4
    moved = verify.compare("curves", curve, curve.assign(nmse=[0.5, 0.5, 0.6]))[0]
    assert "l0_target=4 seed=0 selection=topk row 1: expected 0.4, found 0.5" in str(moved[0])


def test_a_threshold_may_move_by_a_share_of_the_largest_of_its_curve():
    curve = autoencoders()[["method", "n", "l0_target", "seed", "nmse"]]
    curve = curve.assign(l0_target=4, selection="jumprelu", value=[0.2, 0.002, 0.4])
    moved = curve["value"] + [0, 0.9 * verify.RELATIVE * 0.2, 0]
    assert shares("curves", curve, value=moved).item() == pytest.approx(0.9)


@pytest.fixture
def folders(tmp_path):
    for name in verify.TABLES:
        about = {"claim": "C1", "part": None, "verdict": "reproduced"}
        table = pd.DataFrame([about]) if "claims" in name else autoencoders()
        tidy.write(table, tmp_path / f"run/{name}.csv")
    return [str(tmp_path / "run"), str(tmp_path / "committed")]


def test_the_command_commits_compares_and_says_what_moved(folders, capsys):
    assert verify.main(folders) == 2
    assert "committed: no table to compare with" in capsys.readouterr().err
    assert verify.main([*folders, "--update"]) == 0
    assert "training_seconds" not in tidy.read(f"{folders[1]}/autoencoders.csv")
    assert verify.main(folders) == 0
    assert "all agree with the committed ones" in capsys.readouterr().out
    far = autoencoders().assign(l0=[4.0, 8.0, 5.0])
    tidy.write(far, f"{folders[0]}/tuning.csv")
    verify.main([*folders, "--update"])
    assert verify.main(folders) == 0
    assert "in 1 rows, which missed their L0, the L0 alone" in capsys.readouterr().out
    tidy.write(autoencoders().assign(nmse=[0.5, 0.4, 0.7]), f"{folders[0]}/refinement.csv")
    assert verify.main(folders) == 1
    said = capsys.readouterr().out
    assert "refinement.csv: nmse moved in 1 of 3 rows, most in method=relu" in said
    assert "1 column(s) moved" in said


def test_only_what_is_committed_is_compared_and_of_that_all(folders, capsys):
    verify.main([*folders, "--update"])
    Path(folders[1], "tuning.csv").unlink()
    assert verify.main(folders) == 0
    assert "committed, left out: tuning.csv" in capsys.readouterr().out
    Path(folders[0], "claims.csv").unlink()
    assert verify.main(folders) == 2
    assert "run/claims.csv: no such file" in capsys.readouterr().err


def test_a_number_that_became_an_empty_cell_is_not_the_same_to_the_last_bit(folders, capsys):
    verify.main([*folders, "--update"])
    one = autoencoders().assign(nmse=[0.5, float("nan"), 0.6])
    tidy.write(one, f"{folders[0]}/refinement.csv")
    capsys.readouterr()
    assert verify.main(folders) == 1
    said = capsys.readouterr().out
    numbers = 5 * 4 * 3 + 2  # lambda, l0, nmse and delta_ce, and the claims' empty part
    assert f"{numbers} numbers in 7 tables, {1 - 1 / numbers:.1%} of them the same" in said
    assert "the farthest is nmse in refinement.csv, beyond any tolerance" in said
