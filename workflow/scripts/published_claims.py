"""Claims of the paper on somebody else's frontier.

Reads a published table; judges each claim that it can bear by the same code as a run's; writes the
table and a page to read.
"""

from l0plane import tidy
from l0plane.claims import judge, published_tables, to_markdown
from l0plane.files import replacing
from l0plane.jobs import job

with job(snakemake):
    claims = judge(published_tables(snakemake.input.table))
    tidy.write(claims, snakemake.output.table)
    with replacing(snakemake.output.page) as part:
        part.write_text(to_markdown(claims), encoding="utf-8")
    print(claims.loc[claims["part"] == "", ["claim", "verdict"]].to_string(index=False))
