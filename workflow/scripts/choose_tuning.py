"""The table of the tuning.

Reads the row of every candidate, marks the best one of each method at each level, writes tuning.csv
and prints what was chosen. The chosen values do not go into the configuration by themselves: a
person puts them into method.yaml, `learning_rate` at each L0, and for other numbers of latents
`learning_rate_factor`, where it is not 1.
"""

import pandas as pd

from l0plane import tidy
from l0plane.files import UserError
from l0plane.jobs import job
from l0plane.tuning import choose, size_factors

with job(snakemake):
    if not snakemake.input:
        raise UserError(
            "tuning.methods: none of them has a learning rate and l0plane's own training"
        )
    rows = pd.concat([tidy.read(path) for path in snakemake.input], ignore_index=True)
    # Where the grid is as fine as that, a neighbour is one of it.
    candidate = ["method", "n", "l0_target", "learning_rate", "knob", "value"]
    table = choose(rows.drop_duplicates(candidate, ignore_index=True))
    tidy.write(table, snakemake.output[0])
    best = table.loc[table["chosen"], [*candidate, "nmse"]]
    factors = size_factors(best, snakemake.params.n, snakemake.params.l0)
    print(best.assign(learning_rate_factor=factors).to_string(index=False, na_rep=""))
    level = ["method", "n", "l0_target"]
    for values, rows in table.groupby(level):
        if not rows["chosen"].any():
            print(*values, "has no candidate that can be chosen: all diverged or missed the L0")
