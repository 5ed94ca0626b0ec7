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
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("relu"),
    message:
        "ReLU: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
