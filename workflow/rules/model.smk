rule train_tokenizer:
    input:
        documents=rules.corpus.output.documents,
    output:
        tokenizer=f"{RESULTS}/tokenizer/tokenizer.json",
        settings=f"{RESULTS}/tokenizer/tokenizer_config.json",
    log:
        f"{LOGS}/train_tokenizer.log",
    benchmark:
        f"{LOGS}/train_tokenizer.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        vocabulary=config["language_model_training"]["vocabulary"],
    message:
        "Tokenizer: learn {params.vocabulary} tokens from the training split"
    script:
        "../scripts/train_tokenizer.py"


rule train_language_model:
    input:
        documents=rules.corpus.output.documents,
        manifest=rules.corpus.output.manifest,
        tokenizer=rules.train_tokenizer.output.tokenizer,
        tokenizer_settings=rules.train_tokenizer.output.settings,
    output:
        config=f"{RESULTS}/language_model/config.json",
        weights=f"{RESULTS}/language_model/model.safetensors",
        tokenizer=f"{RESULTS}/language_model/tokenizer.json",
        tokenizer_settings=f"{RESULTS}/language_model/tokenizer_config.json",
        facts=f"{RESULTS}/language_model/training.json",
        card=f"{RESULTS}/language_model/README.md",
    log:
        f"{LOGS}/train_language_model.log",
    benchmark:
        f"{LOGS}/train_language_model.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        **language_model_training_resources(),
    params:
        training=config["language_model_training"],
        context=config["language_model"]["context"],
    message:
        "Language model: train a small GPT-2 on {params.training[tokens]} tokens"
    script:
        "../scripts/train_language_model.py"
