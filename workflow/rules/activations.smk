rule activations:
    input:
        train=rules.contexts.output.train,
        validation=rules.contexts.output.validation,
        manifest=rules.corpus.output.manifest,
        language_model=language_model_files(),
    output:
        train=directory(f"{RESULTS}/activations/train"),
        validation=directory(f"{RESULTS}/activations/validation"),
    log:
        f"{LOGS}/activations.log",
    benchmark:
        f"{LOGS}/activations.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        **activations_resources(),
    params:
        activations=config["activations"],
        language_model=config["language_model"],
        language_model_path=language_model_path,
    message:
        "Activations: run the language model up to {params.language_model[hook]} and store them"
    script:
        "../scripts/activations.py"
