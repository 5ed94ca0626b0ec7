rule corpus:
    output:
        documents=f"{RESULTS}/corpus/documents.parquet",
        manifest=f"{RESULTS}/corpus/manifest.json",
    log:
        f"{LOGS}/corpus.log",
    benchmark:
        f"{LOGS}/corpus.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        **text_resources(minutes=240),
    params:
        corpus=config["corpus"],
    message:
        "Corpus: collect the documents and split them into train, validation and test"
    script:
        "../scripts/corpus.py"


rule contexts:
    input:
        documents=rules.corpus.output.documents,
        tokenizer=tokenizer_files(),
    output:
        train=f"{RESULTS}/contexts/train.safetensors",
        validation=f"{RESULTS}/contexts/validation.safetensors",
        test=f"{RESULTS}/contexts/test.safetensors",
    log:
        f"{LOGS}/contexts.log",
    benchmark:
        f"{LOGS}/contexts.tsv"
    conda:
        "../../environment.yml"
    # One beside the training of a language model; else nothing could start before this ends.
    threads: 1 if config["language_model"]["path"] == l0config.TRAINED else 8
    resources:
        **text_resources(minutes=240),
    params:
        language_model=config["language_model"],
        tokenizer=tokenizer_path,
        seed=config["activations"]["seed"],
    message:
        "Contexts: encode the documents with the language model's tokenizer"
    script:
        "../scripts/contexts.py"
