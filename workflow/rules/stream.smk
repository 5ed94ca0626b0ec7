# Where the configuration asks for a stream, one job trains all levels of a method. These rules leave
# the same files as the methods' own and have no wildcards, which is why Snakemake prefers them.
for method in streamed_methods():

    rule:
        name:
            f"stream_{method}"
        input:
            activations=rules.activations.output.train,
            contexts=rules.contexts.output.train,
            language_model=language_model_files(),
            lambdas=lambda_tables(method),
        output:
            **autoencoders_of(method, "provenance.json", "training.csv"),
        log:
            f"{LOGS}/autoencoders/{method}/stream.log",
        benchmark:
            f"{LOGS}/autoencoders/{method}/stream.tsv"
        conda:
            "../../environment.yml"
        threads: max(8, PROCESSES)
        resources:
            **streamed_resources(),
        params:
            **training_params(method),
            levels=plain(l0config.levels(config)),
            language_model_path=language_model_path,
        message:
            "Training: all levels of {params.method}, streamed from the language model"
        script:
            "../scripts/train.py"
