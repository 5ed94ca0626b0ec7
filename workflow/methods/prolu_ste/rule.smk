rule train_prolu_ste:
    input:
        activations=rules.activations.output.train,
        lambdas=lambda_table("prolu_ste"),
    output:
        **autoencoder("prolu_ste", "provenance.json", "training.csv"),
    log:
        autoencoder_log("prolu_ste", "log"),
    benchmark:
        autoencoder_log("prolu_ste", "tsv")
    conda:
        "../../../environment.yml"
    threads: PROCESSES
    resources:
        **training_resources(processes=PROCESSES),
    params:
        **training_params("prolu_ste"),
    message:
        "ProLU-STE: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "../../scripts/train.py"
