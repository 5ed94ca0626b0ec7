import numpy as np
import pandas as pd
import pytest
import tidy

from l0plane import tables
from l0plane.files import UserError

LEVELS = (8, 16, 32)


@pytest.fixture
def summary():
    return tables.summary(tidy.autoencoders(), tidy.methods(), tidy.N, LEVELS)


def test_summary_has_one_row_a_method_in_legend_order(summary):
    assert summary["method"].to_list() == tidy.methods()["method"].to_list()


def test_summary_interpolates_means_over_seeds(summary):
    rows = tidy.autoencoders().query("method == 'topk' and n == @tidy.N and l0_target == 16")
    topk = summary.set_index("method").loc["topk"]
    assert len(rows) == 3
    assert topk["nmse_at_16"] == pytest.approx(rows["nmse"].mean())
    assert topk["delta_ce_at_16"] == pytest.approx(rows["delta_ce"].mean())


def test_summary_leaves_unmeasured_levels_empty():
    table = tables.summary(tidy.autoencoders(), tidy.methods(), tidy.N, (2, 16))
    assert table["nmse_at_2"].isna().all() and table["nmse_at_16"].notna().all()


def test_training_cost_is_per_million_tokens():
    table = tidy.autoencoders().assign(training_seconds=60.0, training_tokens=4_000_000)
    summary = tables.summary(table, tidy.methods(), tidy.N, LEVELS)
    assert summary["seconds_per_million_tokens"].to_list() == pytest.approx([15.0] * 9)


def test_provenance_is_kept_and_joined_where_it_differs():
    table = tidy.autoencoders()
    table.loc[table["l0_target"] == 4, "learning_rate"] = 3e-3
    summary = tables.summary(table, tidy.methods(), tidy.N, LEVELS)
    assert set(summary["learning_rate"]) == {"0.001;0.003"}
    assert list(summary.columns[-5:]) == list(tidy.PROVENANCE)


def test_missing_column_is_named():
    with pytest.raises(UserError, match="no column 'training_seconds'"):
        tables.summary(
            tidy.autoencoders().drop(columns="training_seconds"), tidy.methods(), tidy.N, LEVELS
        )


def test_points_keep_every_row_in_legend_order():
    table = tables.points(tidy.autoencoders().sample(frac=1, random_state=0), tidy.methods())
    assert len(table) == len(tidy.settings())
    assert table["method"].drop_duplicates().to_list() == tidy.methods()["method"].to_list()
    assert table["label"][0] == "ReLU"


def test_written_tables_say_the_same(summary, tmp_path):
    summary.loc[0, "nmse_at_8"] = np.nan
    paths = tables.write(summary, tmp_path / "summary")
    assert [path.suffix for path in paths] == [".csv", ".md", ".tex"]
    pd.testing.assert_frame_equal(
        pd.read_csv(paths[0], keep_default_na=False, na_values={"nmse_at_8": ""}), summary
    )
    markdown, latex = (path.read_text() for path in paths[1:])
    best = f"{summary['nmse_at_16'].min():#.3g}"
    assert f"**{best}**" in markdown and rf"\textbf{{{best}}}" in latex
    assert "| ReLU | 2048 | – |" in markdown and "ReLU & 2048 & -- &" in latex
    assert "sha256" not in markdown
    rows = [line.count("|") for line in markdown.splitlines()]
    assert len(rows) == 13 and rows[:2] == [0, 0] and len(set(rows[2:])) == 1
    assert markdown.startswith(f"Run {summary['run'][0]}.")


def test_what_reads_the_same_is_bold_together(tmp_path):
    table = pd.DataFrame({"run": "a", "label": [*"xyz"], "nmse_at_8": [0.09003, 0.09004, 0.091]})
    markdown = tables.write(table, tmp_path / "t")[1].read_text()
    assert "| x | **0.0900** |" in markdown and "| y | **0.0900** |" in markdown
    assert "| z | 0.0910 |" in markdown


def test_latex_escapes_what_labels_may_hold(tmp_path):
    table = pd.DataFrame({"run": "a", "label": ["50%_a & b"], "nmse_at_8": [0.1]})
    latex = tables.write(table, tmp_path / "t")[2].read_text()
    assert r"50\%\_a \& b & \textbf{0.100} \\" in latex


def test_the_summary_says_how_many_are_missing_and_why(tmp_path):
    table = tidy.with_failures(tidy.autoencoders())
    summary = tables.summary(table, tidy.methods(), tidy.N, LEVELS)
    found = summary.set_index("method")
    assert found["missing"].loc[["gated", "topk", "relu"]].to_list() == [7, 1, 0]
    assert found.loc["gated", "failed"] == "the loss exploded"
    assert np.isnan(found.loc["gated", "nmse_at_16"])
    assert found.loc["topk", "nmse_at_16"] > 0
    markdown = tables.write(summary, tmp_path / "summary")[1].read_text()
    assert "| missing | failed |" in markdown and "| 7 | the loss exploded |" in markdown
    points = tables.write(tables.points(table, tidy.methods()), tmp_path / "points")[1].read_text()
    assert points.count("the loss exploded") == table["failed"].notna().sum()
    whole = tables.summary(tidy.autoencoders(), tidy.methods(), tidy.N, LEVELS)
    assert "missing" not in tables.write(whole, tmp_path / "whole")[1].read_text()
