"""What a benchmark's tables keep of other machines."""

import sys
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import training_step


def test_what_was_measured_on_another_machine_stays(tmp_path):
    output = tmp_path / "benchmark_steps.csv"
    rows = {"method": ["topk", "relu"], "ms": [1.0, 2.0]}
    here = pd.DataFrame({**rows, "machine": "here"})
    assert training_step.beside_others(here, output).equals(here)
    pd.concat([here.assign(ms=9.0), here.assign(machine="there")]).to_csv(output, index=False)
    both = training_step.beside_others(here, output)
    assert both["machine"].tolist() == ["here", "here", "there", "there"]
    assert both["ms"].tolist() == [1.0, 2.0, 1.0, 2.0]


def test_each_machine_has_a_table_of_its_own():
    folder = Path(__file__).parents[1] / "results/reference"
    tables = {
        name: pd.read_csv(folder / f"benchmark_{name}.csv")
        for name in ("steps", "scaling", "memory")
    }
    page = (Path(__file__).parents[1] / "docs/performance.md").read_text()
    for name, table in training_step.markdown_tables(tables).items():
        assert table.count("**") == 2 * tables[name]["machine"].nunique()
        assert f"<!-- {name} -->\n{table}\n<!-- end -->" in page
