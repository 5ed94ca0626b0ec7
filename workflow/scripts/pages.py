"""Pages of the report.

Reads what a run left as Markdown, and run.json; writes each as an HTML page.
"""

from pathlib import Path

from l0plane.files import read_json, replacing
from l0plane.jobs import job
from l0plane.pages import run_page, to_html

with job(snakemake):
    for name, path in snakemake.input.items():
        text = run_page(read_json(path)) if name == "run" else Path(path).read_text("utf-8")
        with replacing(snakemake.output[name]) as part:
            part.write_text(to_html(text, f"{snakemake.params.run}: {name}"), encoding="utf-8")
