rule train_batch_topk:
    input:
        activations=rules.activations.output.train,
    output:
        **autoencoder("batch_topk", "provenance.json", "training.csv"),
    log:
        autoencoder_log("batch_topk", "log"),
    benchmark:
        autoencoder_log("batch_topk", "tsv")
    conda:
        "../../../environment.yml"
    threads: 1
    resources:
        **training_resources(),
    params:
        **training_params("batch_topk"),
    message:
        "BatchTopK: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
