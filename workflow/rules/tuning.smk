rule tune_candidate:
    input:
        train=rules.activations.output.train,
        validation=rules.activations.output.validation,
        base=candidate_base,
    output:
        f"{RESULTS}/tuning/{{method}}/l{{l0}}-{{candidate}}.csv",
    log:
        f"{LOGS}/tuning/{{method}}/l{{l0}}-{{candidate}}.log",
    benchmark:
        f"{LOGS}/tuning/{{method}}/l{{l0}}-{{candidate}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        **training_resources(config["sparsity_panel"]["n"], config["tuning"]["tokens"], SEARCH),
    params:
        **tuning_params(),
    message:
        "Tuning: {wildcards.method} at L0 {wildcards.l0} with {wildcards.candidate}"
    script:
        "../scripts/tune.py"


use rule tune_candidate as tune_neighbour with:
    input:
        train=rules.activations.output.train,
        validation=rules.activations.output.validation,
        base=candidate_base,
        grid=grid_candidates,
    output:
        f"{RESULTS}/tuning/{{method}}/l{{l0}}-{{side}}.csv",
    log:
        f"{LOGS}/tuning/{{method}}/l{{l0}}-{{side}}.log",
    benchmark:
        f"{LOGS}/tuning/{{method}}/l{{l0}}-{{side}}.tsv"
    message:
        "Tuning: {wildcards.method} at L0 {wildcards.l0}, the rate {wildcards.side} than its best"


use rule tune_candidate as tune_size with:
    output:
        f"{RESULTS}/tuning/{{method}}/n{{n}}.csv",
    log:
        f"{LOGS}/tuning/{{method}}/n{{n}}.log",
    benchmark:
        f"{LOGS}/tuning/{{method}}/n{{n}}.tsv"
    resources:
        **training_resources(tokens=config["tuning"]["tokens"], trainings=CLIMB * SEARCH),
    params:
        **tuning_params(climbs=True),
    message:
        "Tuning: {wildcards.method} with {wildcards.n} latents, from the rate that the rule gives"


rule choose_tuning:
    input:
        tuning_candidates(),
    output:
        reported(f"{RESULTS}/tuning.csv"),
    log:
        f"{LOGS}/choose_tuning.log",
    benchmark:
        f"{LOGS}/choose_tuning.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        n=config["sparsity_panel"]["n"],
        l0=config["size_panel"]["l0"],
    message:
        "Tuning: choose each method's best candidate at each level by validation nMSE"
    script:
        "../scripts/choose_tuning.py"


rule search_lambda:
    input:
        train=rules.activations.output.train,
        validation=rules.activations.output.validation,
        start=seed_0_lambda,
    output:
        searched_lambda("{method}"),
    log:
        f"{LOGS}/lambdas/{{method}}/n{{n}}-l{{l0}}-s{{seed}}.log",
    benchmark:
        f"{LOGS}/lambdas/{{method}}/n{{n}}-l{{l0}}-s{{seed}}.tsv"
    # Before all that does not wait for it.
    priority: 100
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        **training_resources(trainings=SEARCH),
    params:
        run=config["run"],
        code=lambda wildcards: code_params(wildcards.method),
        settings=config["training"],
        hyperparameters=lambda wildcards: hyperparameters_at(
            wildcards.method, wildcards.n, wildcards.l0
        ),
    message:
        "Lambda: which gives {wildcards.method} {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../scripts/search_lambda.py"


rule collect_lambdas:
    input:
        searched_lambdas(),
    output:
        reported(f"{RESULTS}/lambdas.csv"),
    log:
        f"{LOGS}/collect_lambdas.log",
    benchmark:
        f"{LOGS}/collect_lambdas.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "Lambda: collect what was found into one table"
    script:
        "../scripts/collect_lambdas.py"
