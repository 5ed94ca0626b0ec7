"""The published GPT-2 frontier through the same code as a run's tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import PchipInterpolator

from l0plane.claims import judge, published_tables
from l0plane.files import UserError

PATH = Path(__file__).parents[1] / "resources/published/gpt2_small_resid8_n24576.csv"


@pytest.fixture(scope="module")
def claims() -> pd.DataFrame:
    return judge(published_tables(PATH)).set_index(["claim", "part"])


@pytest.mark.parametrize(
    "key",
    [
        ("C1", "Gated against ReLU"),
        ("C2", "TopK against ReLU"),
        ("C2", "TopK against Gated"),
        ("C3", "Gated against ReLU"),
        ("C3", "TopK against ReLU"),
        ("C3", "TopK against Gated"),
    ],
)
def test_what_it_can_bear_is_reproduced(claims, key):
    row = claims.loc[key]
    assert row["verdict"] == "reproduced"
    assert row["low"] < row["effect"] < row["high"] < 0


def test_what_it_lacks_is_not_measured(claims):
    assert claims.loc[("C1", "ProLU-STE against ReLU"), "verdict"] == "not measured"
    assert set(claims.loc[["C1", "C2", "C3"]].xs("", level="part")["verdict"]) == {"inconclusive"}
    assert set(claims.loc[[f"C{i}" for i in range(4, 19)], "verdict"]) == {"not measured"}


def test_effect_agrees_with_a_reading_by_hand(claims):
    """TopK against Gated at TopK's levels, by SciPy's interpolation of logarithms."""
    table = pd.read_csv(PATH)
    topk, gated = (table[table["method"] == method] for method in ("topk", "gated"))
    edge = np.clip(topk["l0"], gated["l0"].min(), gated["l0"].max())
    curves = (PchipInterpolator(np.log(one["l0"]), np.log(one["mse"])) for one in (topk, gated))
    logs = [curve(np.log(edge)) for curve in curves]
    expected = 100 * np.expm1(np.mean(logs[0] - logs[1]))
    assert claims.loc[("C2", "TopK against Gated"), "effect"] == pytest.approx(expected)


def test_the_constant_of_normalisation_cancels(claims):
    tables = published_tables(PATH)
    scaled = tables.autoencoders.assign(nmse=tables.autoencoders["nmse"] / 12345.0)
    again = judge(type(tables)(autoencoders=scaled)).set_index(["claim", "part"])
    pd.testing.assert_series_equal(again["verdict"], claims["verdict"])
    assert np.allclose(again["effect"].dropna(), claims["effect"].dropna())


def test_too_few_points_leave_the_uncertainty_unknown():
    tables = published_tables(PATH)
    some = tables.autoencoders.groupby("method").head(3)
    found = judge(type(tables)(autoencoders=some)).set_index(["claim", "part"])
    row = found.loc[("C2", "TopK against Gated")]
    assert row["verdict"] == "inconclusive"
    assert "uncertainty is unknown" in row["detail"]
    assert np.isfinite(row["effect"])
    assert np.isnan(row["low"])


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        published_tables(tmp_path / "absent_n5.csv")
    bad = tmp_path / "bad_n5.csv"
    bad.write_text("method,l0\nrelu,3\n")
    with pytest.raises(UserError, match="no column delta_ce, mse"):
        published_tables(bad)
