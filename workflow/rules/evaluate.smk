for method in SERIES:

    rule:
        name:
            f"evaluate_{method}"
        input:
            **autoencoders_of(method),
            contexts=rules.contexts.output.test,
            manifest=rules.corpus.output.manifest,
            language_model=language_model_files(),
        output:
            **measurements(method),
        log:
            f"{LOGS}/evaluate/{method}.log",
        benchmark:
            f"{LOGS}/evaluate/{method}.tsv"
        # The longer ones first.
        priority: int(method in config["progressive"]["methods"])
        conda:
            "../../environment.yml"
        # A GPU would wait for codes that are refined and cut on the CPU.
        threads: 8 if config["gpus"] else 1
        resources:
            **evaluation_resources(),
        params:
            **measurement_params(method),
        message:
            "Evaluation: what the autoencoders of {params.method} keep of the language model"
        script:
            "../scripts/evaluate.py"


rule methods:
    output:
        table=reported(f"{RESULTS}/methods.csv"),
    log:
        f"{LOGS}/methods.log",
    benchmark:
        f"{LOGS}/methods.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        run=config["run"],
        methods=SERIES,
    message:
        "Methods: labels, colours and citations"
    script:
        "../scripts/methods.py"


rule collect:
    input:
        **measurement_tables(),
        manifest=rules.corpus.output.manifest,
    output:
        **{name: reported(f"{RESULTS}/{name}.{suffix}") for name, (suffix, _) in TABLES.items()},
        run=f"{RESULTS}/run.json",
    log:
        f"{LOGS}/collect.log",
    benchmark:
        f"{LOGS}/collect.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        config=config,
        methods=SERIES,
        rows=rows_measured(),
    message:
        "Collect the measurements of {params.config[run]} into tables"
    script:
        "../scripts/collect.py"
