"""What a method's rule has to be, checked before any job."""


def check_rule(method):
    """Stop before any job where a method's rule does not make what the workflow asks it for.

    Where there are results of an earlier run, Snakemake takes them for those of a method that
    nothing makes.
    """
    folder, base = WORKFLOW / "methods" / method, METHODS[method].get("derived_from")
    its = own_rule(method)
    if its is None:
        raise WorkflowError(
            f"{folder / 'rule.smk'}: no rule train_{method}; expected one of that name, which "
            "trains one autoencoder"
        )
    for path in autoencoder(method).values():
        if not its.is_producer(path.format(n=1, l0=1, seed=0)):
            raise WorkflowError(
                f"{folder / 'rule.smk'}: output: no {path}; expected **autoencoder({method!r}) "
                f"among the outputs of train_{method}"
            )
    if not trained_here(method):
        return
    try:
        said = its.params.get("method")
        method_folders.check_trained_here(folder, METHODS[method], said)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    start = its.input.get("base")
    if start != (autoencoder(base)["cfg"] if base else None):
        expected = f'autoencoder("{base}")["cfg"]' if base else "none"
        raise WorkflowError(
            f"{folder / 'rule.smk'}: input: base is {start}; expected {expected}, as its "
            f"method.yaml has derived_from: {base or 'nothing'}"
        )


def check_inputs(method):
    """Stop before any job where a file that a method's rule reads is not there, nor made."""
    for path in own_rule(method).input:
        # A function, or one that is marked; a file that Snakemake fetches.
        elsewhere = callable(path) or path.is_callable() or path.is_storage
        if elsewhere or contains_wildcard(path) or Path(path).exists():
            continue
        if not any(its.is_producer(path) for its in workflow.rules):
            raise WorkflowError(
                f"{WORKFLOW / 'methods' / method / 'rule.smk'}: input: no file {path}, and no rule "
                "makes it"
            )
