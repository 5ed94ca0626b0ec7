rule train_topk:
    input:
        activations=rules.activations.output.train,
    output:
        **autoencoder("topk", "provenance.json", "training.csv"),
    log:
        autoencoder_log("topk", "log"),
    benchmark:
        autoencoder_log("topk", "tsv")
    conda:
        "../../../environment.yml"
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("topk"),
    message:
        "TopK: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
