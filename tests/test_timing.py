"""Where the time goes: Snakemake's benchmark files as a table and a figure."""

import pandas as pd
import pytest
import tidy as example

from l0plane.figures.timing import draw_timing
from l0plane.files import UserError
from l0plane.timing import read_benchmarks

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


@pytest.fixture
def logs(tmp_path):
    for name, line in {
        "corpus": "20\t0:00:20\t600\t1\t1\t1\t0\t0\t99\t19.5",
        "autoencoders/topk/n8-l4-s0": "3\t0:00:03\t100\t1\t1\t1\t0\t0\t99\t2",
        "figures/figure2": "0.5\t0:00:00\t-\t-\t-\t-\t-\t-\t-\t-",
    }.items():
        path = tmp_path / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEADER + line + "\n")
    return tmp_path


def test_every_job_is_a_row(logs):
    table = read_benchmarks(logs, "mine").set_index("job")
    assert list(table["stage"].sort_values()) == ["corpus", "draw", "train"]
    assert table.loc["autoencoders/topk/n8-l4-s0", "method"] == "topk"
    assert table.loc["corpus", ["seconds", "cpu_seconds", "max_rss_mb"]].tolist() == [20, 19.5, 600]
    assert pd.isna(table.loc["figures/figure2", "max_rss_mb"])


def test_what_was_made_anew_in_another_job_does_not_count_twice(logs):
    table = read_benchmarks(logs, "mine", ["autoencoders/topk/n8-l4-s0"])
    assert set(table["job"]) == {"corpus", "figures/figure2"}


def test_no_benchmarks_are_an_error(tmp_path):
    with pytest.raises(UserError, match="no benchmark file"):
        read_benchmarks(tmp_path, "mine")


def test_the_figure_says_how_long_each_stage_took(logs):
    figure = draw_timing(read_benchmarks(logs, "mine"), example.methods())
    ax = figure.axes[0]
    said = {text.get_text() for text in ax.texts}
    assert said == {"20 s in 1 job", "3 s in 1 job", "0 s in 1 job"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["draw", "train", "corpus"]
