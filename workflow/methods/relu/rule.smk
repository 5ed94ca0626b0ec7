rule train_relu:
    input:
        activations=rules.activations.output.train,
        lambdas=lambda_table("relu"),
    output:
        **autoencoder("relu", "provenance.json", "training.csv"),
    log:
        autoencoder_log("relu", "log"),
    benchmark:
        autoencoder_log("relu", "tsv")
    conda:
        "../../../environment.yml"
    threads: 1
    resources:
        **training_resources(),
    params:
        **training_params("relu"),
    message:
        "ReLU: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
