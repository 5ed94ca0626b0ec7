"""One figure.

Reads tidy tables (and, for a published frontier, the scale of the activations); writes PNG, PDF
and SVG.
"""

from pathlib import Path

import pandas as pd

from l0plane.figures import style
from l0plane.figures.claims import draw_claims
from l0plane.figures.combined import draw_combined
from l0plane.figures.comparisons import draw_comparisons
from l0plane.figures.frontier import draw_frontier
from l0plane.figures.progressive import draw_progressive
from l0plane.figures.refinement import draw_refinement
from l0plane.figures.scaling import draw_scaling
from l0plane.figures.timing import draw_timing
from l0plane.figures.tuning import draw_tuning
from l0plane.files import read_json
from l0plane.jobs import job


def draw(figure, tables, params, variance):
    """Draw one figure from its tables by name."""
    n, l0 = params.n, params.l0
    trained = [tables.get(name) for name in ("autoencoders", "methods")]
    published = [tables.get("published"), variance]
    match figure:
        case "figure2":
            return draw_combined(*trained, "nmse", n, l0, *published)
        case "figure2a":
            return draw_frontier(*trained, "nmse", n, *published)
        case "figure2b":
            return draw_scaling(*trained, "nmse", l0)
        case "figure5":
            return draw_combined(*trained, "delta_ce", n, l0, *published)
        case "figure5a":
            return draw_frontier(*trained, "delta_ce", n, *published)
        case "figure5b":
            return draw_scaling(*trained, "delta_ce", l0)
        case "figure9":
            return draw_refinement(
                tables["refinement"],
                tables["refinement_histogram"],
                tables["methods"],
                n,
                params.refined_l0,
            )
        case "figure10":
            return draw_progressive(tables["curves"], tables["autoencoders"], tables["methods"], n)
        case "tuning":
            return draw_tuning(tables["tuning"], tables["methods"])
        case "tuning_sizes":
            return draw_tuning(tables["tuning"], tables["methods"], over="n")
        case "timing":
            return draw_timing(tables["timing"], tables["methods"])
        case "claims":
            claims = tables["claims"]
            return draw_claims(claims[claims["part"].isna()])  # a claim's parts are in claims.md
        case "comparisons":
            return draw_comparisons(tables["comparisons"], tables["methods"])


with job(snakemake):
    tables = {
        name: pd.read_csv(path) for name, path in snakemake.input.items() if name != "activations"
    }
    store = snakemake.input.get("activations")
    variance = read_json(Path(store) / "manifest.json")["raw_variance"] if store else None
    figure = draw(snakemake.params.figure, tables, snakemake.params, variance)
    style.save(figure, Path(snakemake.output.png).with_suffix(""))
