#!/usr/bin/env bash
# With --sdm conda Snakemake runs this once the environment is there, in the working directory: the
# project itself, which environment.yml cannot name.
set -euo pipefail
python -m pip install --no-deps --no-build-isolation -e .
