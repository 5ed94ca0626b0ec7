"""What the methods of a run are.

Reads every method.yaml (through the rule's parameters); writes methods.csv, from which figures take
labels and colours.
"""

import pandas as pd

from l0plane import tidy
from l0plane.jobs import job

COLUMNS = ["run", "method", "label", "knob", "color", "marker", "order", "citation"]

with job(snakemake):
    params = snakemake.params
    methods = [
        {"run": params.run, "method": method, **facts} for method, facts in params.methods.items()
    ]
    tidy.write(pd.DataFrame(methods).reindex(columns=COLUMNS), snakemake.output.table)
