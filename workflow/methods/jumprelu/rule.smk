rule train_jumprelu:
    input:
        activations=rules.activations.output.train,
        lambdas=lambda_table("jumprelu"),
    output:
        **autoencoder("jumprelu", "provenance.json", "training.csv"),
    log:
        autoencoder_log("jumprelu", "log"),
    benchmark:
        autoencoder_log("jumprelu", "tsv")
    conda:
        "../../../environment.yml"
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("jumprelu"),
    message:
        "JumpReLU: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
