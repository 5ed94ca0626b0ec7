"""Claims of the paper.

Reads a run's tables; judges each claim on them (paired bootstraps over contexts); writes the table
and a page to read.
"""

from l0plane import tidy
from l0plane.claims import Tables, judge, to_markdown
from l0plane.files import replacing
from l0plane.jobs import job

with job(snakemake):
    tables = {name: tidy.read(path) for name, path in snakemake.input.items()}
    # What was trained elsewhere was trained otherwise: no claim is about it.
    elsewhere = snakemake.params.external
    tables = {name: table[~table["method"].isin(elsewhere)] for name, table in tables.items()}
    # A tuning of another text or model says nothing about this run.
    subject = ["corpus_sha256", "model_sha256"]
    same = tables["tuning"].merge(tables["autoencoders"][subject].drop_duplicates(), on=subject)
    claims = judge(Tables(**(tables | {"tuning": same})))
    failures = tidy.failures(tables["autoencoders"])
    tidy.write(claims, snakemake.output.table)
    with replacing(snakemake.output.page) as part:
        part.write_text(to_markdown(claims, failures), encoding="utf-8")
    print(claims.loc[claims["part"] == "", ["claim", "verdict"]].to_string(index=False))
