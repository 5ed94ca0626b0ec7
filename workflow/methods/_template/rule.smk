# my_method is the folder's name, here as below. What the rest of the workflow asks of this rule:
# for any n (latents), l0 (asked L0) and seed, the two files of a SAELens directory,
#   cfg.json                  architecture standard, topk, jumprelu or gated;
#                             normalize_activations: layer_norm
#   sae_weights.safetensors   W_enc [d, n], W_dec [n, d], b_dec [d], and that architecture's vectors
# How they are made is up to the rule: a script in any language, a program, a download. Optional
# beside them: provenance.json, whose training_tokens, learning_rate, training_seconds and lambda go
# into the tables, and training.csv.
#
# Its input, activations/train/, holds shards of float32 activations [tokens, d] that have already
# had their mean subtracted and been scaled to unit norm: `layer_norm` divided by sqrt(d - 1).
# train.py beside this file reads them with ActivationStore and writes with Autoencoder.save, which
# takes the constant into account. A method in src/l0plane/methods/ needs no script of its own:
# take topk/rule.smk instead.
rule train_my_method:
    input:
        activations=rules.activations.output.train,
    output:
        **autoencoder("my_method"),
    log:
        autoencoder_log("my_method", "log"),
    benchmark:
        autoencoder_log("my_method", "tsv")
    conda:
        "../../../environment.yml"
    threads: 1
    resources:
        **training_resources(),
    params:
        **training_params("my_method"),
    message:
        "My method: {wildcards.n} latents, L0 {wildcards.l0}, seed {wildcards.seed}"
    script:
        "train.py"
