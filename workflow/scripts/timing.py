"""Where the time of the run went.

Reads the benchmark files that Snakemake wrote for every job; writes timing.csv.
"""

from l0plane import tidy
from l0plane.jobs import job
from l0plane.timing import read_benchmarks

with job(snakemake):
    params = snakemake.params
    table = read_benchmarks(params.logs, params.run, params.superseded)
    tidy.write(table, snakemake.output[0])
