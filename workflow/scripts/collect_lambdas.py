"""The table of all lambdas.

Reads what the search found for every level of every penalty method; writes lambdas.csv, which
`lambdas` in another run's configuration may name.
"""

import pandas as pd

from l0plane import tidy
from l0plane.files import UserError
from l0plane.jobs import job

with job(snakemake):
    if not snakemake.input:
        raise UserError("methods: none of them has a penalty and l0plane's own training")
    found = [tidy.read(path) for path in snakemake.input]
    tidy.write(pd.concat(found, ignore_index=True), snakemake.output[0])
