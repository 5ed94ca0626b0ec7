rule train_relu_scaled:
    input:
        activations=rules.activations.output.train,
        base=autoencoder("relu")["cfg"],
        base_weights=autoencoder("relu")["sae_weights"],
        base_provenance=autoencoder("relu", "provenance.json")["provenance"],
    output:
        **autoencoder("relu_scaled", "provenance.json", "training.csv"),
    log:
        autoencoder_log("relu_scaled", "log"),
    benchmark:
        autoencoder_log("relu_scaled", "tsv")
    conda:
        "../../../environment.yml"
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("relu_scaled"),
    message:
        "ReLU, fine-tuned scales: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
