"""Documents of the run.

Writes one Parquet file with the source, split and text of every document, and a manifest with
counts, versions and the hash that names the text in every result. Done once for a run: reading
docstrings parses some thousand modules.
"""

from l0plane.corpus import build
from l0plane.files import read_json, write_json
from l0plane.jobs import job

with job(snakemake):
    spec = snakemake.params.corpus
    build(spec, snakemake.output.documents, snakemake.output.manifest, snakemake.threads)
    manifest = read_json(snakemake.output.manifest)
    expected = spec.get("expected_sha256")
    if expected is not None:
        manifest["matches_expected"] = manifest["sha256"] == expected
        write_json(snakemake.output.manifest, manifest)
        if not manifest["matches_expected"]:
            print(
                f"corpus.expected_sha256: this text is another one ({manifest['sha256']}); the run "
                "goes on, and run.json says `corpus_matches: false`"
            )
    print(f"{sum(manifest['documents'].values())} documents, {manifest['characters']} characters")
