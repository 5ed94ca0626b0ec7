rule train_gated:
    input:
        activations=rules.activations.output.train,
        lambdas=lambda_table("gated"),
    output:
        **autoencoder("gated", "provenance.json", "training.csv"),
    log:
        autoencoder_log("gated", "log"),
    benchmark:
        autoencoder_log("gated", "tsv")
    conda:
        "../../../environment.yml"
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("gated"),
    message:
        "Gated: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
