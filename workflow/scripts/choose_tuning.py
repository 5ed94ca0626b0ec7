"""The table of the tuning.

Reads the row of every candidate, marks the best one of each method and L0, writes tuning.csv. The
chosen values do not go into the configuration by themselves: a person puts them into method.yaml.
"""

import pandas as pd

from l0plane import tidy
from l0plane.files import UserError
from l0plane.jobs import job
from l0plane.tuning import choose

with job(snakemake):
    if not snakemake.input:
        raise UserError(
            "tuning.methods: none of them has a learning rate and l0plane's own training"
        )
    rows = pd.concat([tidy.read(path) for path in snakemake.input], ignore_index=True)
    # Where the grid is as fine as that, a neighbour is one of it.
    candidate = ["method", "l0_target", "learning_rate", "knob", "value"]
    table = choose(rows.drop_duplicates(candidate, ignore_index=True))
    tidy.write(table, snakemake.output[0])
    shown = ["method", "l0_target", "learning_rate", "knob", "value", "nmse"]
    print(table.loc[table["chosen"], shown].to_string())
