"""A table in which one quantity moved is found out, and which, where and by how much is said."""

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
    found.loc[0, "delta_ce"] = 0.9 * verify.ABSOLUTE  # no share of nothing is anything
    assert not verify.compare("autoencoders", autoencoders(), found)[0]


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


@pytest.fixture
def folders(tmp_path):
    for name in verify.TABLES:
        about = {"claim": "C1", "part": None, "verdict": "reproduced"}
        table = pd.DataFrame([about]) if "claims" in name else autoencoders()
        tidy.write(table, tmp_path / f"run/{name}.csv")
    return [str(tmp_path / "run"), str(tmp_path / "committed")]


def test_the_command_commits_compares_and_says_what_moved(folders, capsys):
    assert verify.main(folders) == 2
    assert "committed/autoencoders.csv: no such file" in capsys.readouterr().err
    assert verify.main([*folders, "--update"]) == 0
    assert "training_seconds" not in tidy.read(f"{folders[1]}/autoencoders.csv")
    assert verify.main(folders) == 0
    assert "all agree with the committed ones" in capsys.readouterr().out
    tidy.write(autoencoders().assign(nmse=[0.5, 0.4, 0.7]), f"{folders[0]}/refinement.csv")
    assert verify.main(folders) == 1
    said = capsys.readouterr().out
    assert "refinement.csv: nmse moved in 1 of 3 rows, most in method=relu" in said
    assert "1 column(s) moved" in said


def test_a_number_that_became_an_empty_cell_is_not_the_same_to_the_last_bit(folders, capsys):
    verify.main([*folders, "--update"])
    one = autoencoders().assign(nmse=[0.5, float("nan"), 0.6])
    tidy.write(one, f"{folders[0]}/refinement.csv")
    capsys.readouterr()
    assert verify.main(folders) == 1
    said = capsys.readouterr().out
    numbers = 5 * 3 * 3 + 2  # lambda, nmse and delta_ce, and the claims' empty part
    assert f"{numbers} numbers in 7 tables, {1 - 1 / numbers:.1%} of them the same" in said
    assert "the farthest is nmse in refinement.csv, beyond any tolerance" in said
