"""The tables of a run.

Reads every method's measurements and writes each kind of table once for all methods, and run.json,
which says what was run.
"""

import platform

from l0plane import __version__, tidy
from l0plane.files import UserError, read_json, write_json
from l0plane.jobs import job
from l0plane.machine import machine, versions

with job(snakemake):
    params, output = snakemake.params, snakemake.output
    for name, paths in snakemake.input.items():
        if name != "manifest":
            parts = [tidy.read(path) for path in paths]
            if name == "autoencoders":
                for part, path, rows in zip(parts, paths, params.rows.values(), strict=True):
                    if len(part) != rows:
                        raise UserError(
                            f"{path}: {len(part)} rows; expected {rows}, one for each autoencoder; "
                            "remove it, and the same command measures again"
                        )
            table = tidy.together(parts, name)
            tidy.write(table, output[name])
            if name == "autoencoders":
                for failure in tidy.failures(table):
                    print(f"failed: {failure}")
    measured = tidy.read(output.autoencoders)
    manifest = read_json(snakemake.input.manifest)
    facts = {
        "run": params.config["run"],
        "version": __version__,
        "corpus_sha256": manifest["sha256"],
        "model_sha256": measured["model_sha256"].iloc[0],
        "python": platform.python_version(),
        "packages": versions(),
        "machine": machine(),
        "methods": params.methods,
        "config": params.config,
    }
    if "matches_expected" in manifest:
        facts["corpus_matches"] = manifest["matches_expected"]
    write_json(output.run, facts)
