"""Where the time of the run went.

Reads the benchmark files that Snakemake wrote for every job; writes timing.csv.
"""

from l0plane import tidy
from l0plane.jobs import job
from l0plane.timing import read_benchmarks

with job(snakemake):
    tidy.write(read_benchmarks(snakemake.params.logs, snakemake.params.run), snakemake.output[0])
