from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


# What a run's own file says (--configfile) overrides the default, key by key.
configfile: f"{workflow.basedir}/config/default.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/checks.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/reported.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/activations.smk"


# A method is a folder: its rule is found here, its facts were read with the configuration.
for method in METHODS:

    include: f"workflow/methods/{method}/rule.smk"

    check_rule(method)


include: "workflow/rules/together.smk"
include: "workflow/rules/tuning.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/missing.smk"
include: "workflow/rules/progress.smk"


for method in config["methods"]:

    check_inputs(method)


rule all:
    default_target: True
    input:
        everything(),


rule tune:
    input:
        rules.choose_tuning.output,
        f"{FIGURES}/tuning.png",
        f"{FIGURES}/tuning_sizes.png",


rule lambdas:
    input:
        rules.collect_lambdas.output,


rule language_model:
    input:
        rules.train_language_model.output,
