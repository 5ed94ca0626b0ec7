"""Every method against every other.

Reads a run's errors per context; compares each pair at equal L0 (paired bootstraps); writes the
table and a page to read.
"""

from l0plane import tidy
from l0plane.claims import Tables, compare_methods
from l0plane.claims.comparisons import to_page
from l0plane.figures.palette import assign_styles
from l0plane.files import replacing
from l0plane.jobs import job

with job(snakemake):
    tables = {name: tidy.read(path) for name, path in snakemake.input.items()}
    looks = assign_styles(tables.pop("methods"))
    # What was trained elsewhere has seen other text.
    elsewhere = snakemake.params.external
    labels = {method: look.label for method, look in looks.items() if method not in elsewhere}
    failures = tidy.failures(tables["autoencoders"])
    comparisons = compare_methods(Tables(**tables), labels)
    tidy.write(comparisons, snakemake.output.table)
    with replacing(snakemake.output.page) as part:
        part.write_text(to_page(comparisons, labels, failures), encoding="utf-8")
