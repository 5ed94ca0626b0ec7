rule tune_candidate:
    input:
        train=rules.activations.output.train,
        validation=rules.activations.output.validation,
    output:
        f"{RESULTS}/tuning/{{method}}/{{candidate}}.csv",
    log:
        f"{LOGS}/tuning/{{method}}/{{candidate}}.log",
    benchmark:
        f"{LOGS}/tuning/{{method}}/{{candidate}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        run=config["run"],
        n=config["sparsity_panel"]["n"],
        l0=config["tuning"]["l0"],
        settings={**config["training"], "tokens": config["tuning"]["tokens"]},
        hyperparameters=candidate_hyperparameters,
        changed=candidate_changes,
    message:
        "Tuning: {wildcards.method} with {wildcards.candidate}"
    script:
        "../scripts/tune_candidate.py"


rule choose_tuning:
    input:
        tuning_candidates(),
    output:
        f"{RESULTS}/tuning.csv",
    log:
        f"{LOGS}/choose_tuning.log",
    benchmark:
        f"{LOGS}/choose_tuning.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "Tuning: choose each method's best candidate by validation nMSE"
    script:
        "../scripts/choose_tuning.py"
