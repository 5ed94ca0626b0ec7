"""What the report (`snakemake --report`) shows of a run, and where in it."""

# File name -> category and label. Captions are in workflow/report/, by kind and name.
REPORT = {
    "claims.html": ("Claims", "All claims, to read"),
    "claims.png": ("Claims", "Figure: effects and verdicts"),
    "claims.csv": ("Claims", "Table: claims"),
    "published_claims.html": ("Claims", "Claims on the published frontier, to read"),
    "published_claims.csv": ("Claims", "Table: claims on the published frontier"),
    "comparisons.html": ("Comparisons", "Every method against every other, to read"),
    "comparisons.png": ("Comparisons", "Figure: every method against every other"),
    "comparisons.csv": ("Comparisons", "Table: comparisons"),
    "figure2.png": ("Frontier", "Figure 2: reconstruction"),
    "figure2a.png": ("Frontier", "Figure 2a: nMSE against L0"),
    "figure2b.png": ("Frontier", "Figure 2b: nMSE against number of latents"),
    "figure5.png": ("Frontier", "Figure 5: downstream loss"),
    "figure5a.png": ("Frontier", "Figure 5a: delta cross-entropy against L0"),
    "figure5b.png": ("Frontier", "Figure 5b: delta cross-entropy against number of latents"),
    "summary.html": ("Frontier", "Summary, to read"),
    "summary.csv": ("Frontier", "Table: summary"),
    "points.html": ("Frontier", "All autoencoders, to read"),
    "points.csv": ("Frontier", "Table: all autoencoders, labelled"),
    "autoencoders.csv": ("Frontier", "Table: autoencoders, all columns"),
    "figure9.png": ("Refinement", "Figure 9: values solved again"),
    "refinement.csv": ("Refinement", "Table: refined autoencoders"),
    "refinement_histogram.csv": ("Refinement", "Table: distribution of shifts"),
    "figure10.png": ("Progressive codes", "Figure 10: sparsity changed at test time"),
    "curves.csv": ("Progressive codes", "Table: test-time curves"),
    "tuning.png": ("Training", "Figure: error against learning rate"),
    "tuning_sizes.png": ("Training", "Figure: error against learning rate at each size"),
    "tuning.csv": ("Training", "Table: tuning"),
    "lambdas.csv": ("Training", "Table: constant lambdas"),
    "training.csv": ("Training", "Table: training logs"),
    "timing.png": ("Cost", "Figure: seconds by stage"),
    "timing.csv": ("Cost", "Table: time and memory of every job"),
    "run.html": ("Run", "Hashes, versions, machine, configuration"),
    "methods.csv": ("Run", "Table: methods"),
}
KINDS = {".png": "figures", ".html": "pages", ".csv": "tables"}


def reported(path):
    """Mark an output for the report; one that has no place in REPORT is left as it is."""
    file = Path(path)
    if file.name not in REPORT:
        return path
    category, label = REPORT[file.name]
    caption = f"../report/{KINDS[file.suffix]}/{file.stem}.rst"
    return report(path, caption=caption, category=category, labels={"result": label})


def page_sources():
    """The Markdown files that the report shows as pages."""
    judged = ["claims", "comparisons", *(["published_claims"] if config["published"] else [])]
    return {
        **{name: f"{RESULTS}/{name}.md" for name in judged},
        **{name: f"{RESULTS}/tables/{name}.md" for name in ("summary", "points")},
    }
