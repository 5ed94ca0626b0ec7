# The levels of a method that one job trains together: what they share is loaded once. These rules
# leave the same files as the methods' own and have no wildcards, which is why Snakemake prefers them.
GROUPS |= {method: group for method in METHODS if (group := group_of(method))}

for method, group in GROUPS.items():

    rule:
        name:
            group.name
        input:
            **group_inputs(method, group),
        output:
            **files_of(method, group.levels, "provenance.json", "training.csv"),
        log:
            f"{LOGS}/autoencoders/{method}/{group.stem}.log",
        benchmark:
            f"{LOGS}/autoencoders/{method}/{group.stem}.tsv"
        # Before evaluations, which are shorter and fill what is left of the time.
        priority: 2
        conda:
            "../../environment.yml"
        # A stream's language model takes what there is.
        threads: max(8, PROCESSES) if group.streamed else PROCESSES
        resources:
            **group_resources(group),
        params:
            **dict(own_rule(method).params.items()),
            **({"language_model_path": language_model_path} if group.streamed else {}),
        message:
            # Braces are Snakemake's, unless there are two.
            METHODS[method]["label"].replace("{", "{{").replace("}", "}}")
            + f": {len(group.levels)} levels, {group.stem}"
        script:
            "../scripts/train.py"
