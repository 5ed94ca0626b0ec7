"""Tables to read and to cite.

Reads autoencoders.csv and methods.csv; writes the summary, one row a method, and all points, each
as CSV, Markdown and LaTeX.
"""

from pathlib import Path

import pandas as pd

from l0plane import tables
from l0plane.jobs import job

with job(snakemake):
    autoencoders = pd.read_csv(snakemake.input.autoencoders)
    methods = pd.read_csv(snakemake.input.methods)
    params, directory = snakemake.params, Path(snakemake.output.summary).parent
    summary = tables.summary(autoencoders, methods, params.n, params.levels)
    tables.write(summary, directory / "summary")
    tables.write(tables.points(autoencoders, methods), directory / "points")
