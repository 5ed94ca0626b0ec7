rule claims:
    input:
        **claim_tables(),
    output:
        table=reported(f"{RESULTS}/claims.csv"),
        page=f"{RESULTS}/claims.md",
    log:
        f"{LOGS}/claims.log",
    benchmark:
        f"{LOGS}/claims.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        external=list(config["external"]),
    message:
        "Claims: what this run says about each claim of the paper"
    script:
        "../scripts/claims.py"


rule comparisons:
    input:
        **{
            name: path
            for name, path in claim_tables().items()
            if name in ("autoencoders", "contexts")
        },
        methods=rules.methods.output.table,
    output:
        table=reported(f"{RESULTS}/comparisons.csv"),
        page=f"{RESULTS}/comparisons.md",
    log:
        f"{LOGS}/comparisons.log",
    benchmark:
        f"{LOGS}/comparisons.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        external=list(config["external"]),
    message:
        "Comparisons: every method against every other"
    script:
        "../scripts/comparisons.py"


rule published_claims:
    input:
        table=config["published"] or [],
    output:
        table=reported(f"{RESULTS}/published_claims.csv"),
        page=f"{RESULTS}/published_claims.md",
    log:
        f"{LOGS}/published_claims.log",
    benchmark:
        f"{LOGS}/published_claims.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "Claims: what somebody else's table says about each claim of the paper"
    script:
        "../scripts/published_claims.py"


rule tables:
    input:
        autoencoders=rules.collect.output.autoencoders,
        methods=rules.methods.output.table,
    output:
        summary=reported(f"{RESULTS}/tables/summary.csv"),
        points=reported(f"{RESULTS}/tables/points.csv"),
        readable=expand(
            f"{RESULTS}/tables/{{table}}.{{suffix}}",
            table=["summary", "points"],
            suffix=["md", "tex"],
        ),
    log:
        f"{LOGS}/tables.log",
    benchmark:
        f"{LOGS}/tables.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        n=config["sparsity_panel"]["n"],
        levels=config["sparsity_panel"]["l0"],
    message:
        "Tables: one row a method, and all points"
    script:
        "../scripts/tables.py"


rule pages:
    input:
        **page_sources(),
        run=rules.collect.output.run,
    output:
        **{name: reported(f"{RESULTS}/pages/{name}.html") for name in ["run", *page_sources()]},
    log:
        f"{LOGS}/pages.log",
    benchmark:
        f"{LOGS}/pages.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        run=config["run"],
    message:
        "Pages: what the report shows to read"
    script:
        "../scripts/pages.py"


rule timing:
    input:
        timed(),
    output:
        reported(f"{RESULTS}/timing.csv"),
    log:
        f"{LOGS}/timing.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        run=config["run"],
        logs=LOGS,
        superseded=superseded_jobs(),
    message:
        "Timing: where the time of the run went"
    script:
        "../scripts/timing.py"


for figure, tables in FIGURE_TABLES.items():

    rule:
        name:
            f"draw_{figure}"
        input:
            **figure_tables(tables),
            activations=published_scale(figure),
        output:
            png=reported(f"{FIGURES}/{figure}.png"),
            pdf=f"{FIGURES}/{figure}.pdf",
            svg=f"{FIGURES}/{figure}.svg",
        log:
            f"{LOGS}/figures/{figure}.log",
        benchmark:
            f"{LOGS}/figures/{figure}.tsv"
        localrule: True
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=1000,
        params:
            figure=figure,
            n=config["sparsity_panel"]["n"],
            l0=config["size_panel"]["l0"],
            refined_l0=refined_l0(),
        message:
            "Figure: {params.figure}"
        script:
            "../scripts/figure.py"
