rule train_multi_topk:
    input:
        activations=rules.activations.output.train,
    output:
        **autoencoder("multi_topk", "provenance.json", "training.csv"),
    log:
        autoencoder_log("multi_topk", "log"),
    benchmark:
        autoencoder_log("multi_topk", "tsv")
    conda:
        "../../../environment.yml"
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("multi_topk"),
    message:
        "Multi-TopK: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
