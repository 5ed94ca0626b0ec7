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
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("batch_topk"),
    message:
        "BatchTopK: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
