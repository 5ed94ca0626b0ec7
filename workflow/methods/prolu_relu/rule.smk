rule train_prolu_relu:
    input:
        activations=rules.activations.output.train,
        lambdas=lambda_table("prolu_relu"),
    output:
        **autoencoder("prolu_relu", "provenance.json", "training.csv"),
    log:
        autoencoder_log("prolu_relu", "log"),
    benchmark:
        autoencoder_log("prolu_relu", "tsv")
    conda:
        "../../../environment.yml"
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("prolu_relu"),
    message:
        "ProLU-ReLU: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
