"""What a person may get wrong, and what is said to it: one message, no traceback, nothing left.

Mistakes that belong to one module are in its own tests as well; here is what crosses them, and what
is meant to do harm.
"""

import json
import math
import os
import pickle
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import CONTEXT, HOOK, WIDTH, autoencoder
from safetensors.torch import load_file, save_file
from test_config import DEFAULT, SCHEMAS, merged
from test_workflow import REPOSITORY, SMOKE, snakemake

from l0plane import config, corpus, external, measuring, method_folders, schemas, tidy
from l0plane.files import UserError
from l0plane.jobs import job
from l0plane.lambdas import read_lambda
from l0plane.language_model import LanguageModel
from l0plane.methods import METHODS
from l0plane.tokens import load_tokenizer

#: The longest that a message may be where it does not give commands to type.
LINES = 2


def said(function, *arguments):
    """The message with which a call ends; it is short and says nothing of Python."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    message = str(error.value)
    assert len(message.splitlines()) <= LINES, message
    assert "Traceback" not in message
    return message


def table(*cases):
    """Cases as (name, change, what the message has to contain...) for `parametrize`."""
    return pytest.mark.parametrize(
        ("change", "expected"),
        [(change, parts) for _, change, *parts in cases],
        ids=[name for name, *_ in cases],
    )


class Payload:
    """Unpickling it makes the folder `executed` in the working directory."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """Work in an empty folder; whatever a test reads, no code of it has run."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("executed"))


def paths(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# --- configurations


@pytest.fixture(scope="module")
def methods():
    return method_folders.read_methods(
        REPOSITORY / "workflow/methods", SCHEMAS / "method.schema.yaml"
    )


FILES = {"source": "files", "paths": ["text/*.txt"]}
THEIRS = {"format": "saelens", "paths": ["theirs"], "label": "Theirs"}


@table(
    ("NaN", {"training": {"clip_norm": math.nan}}, "training.clip_norm: NaN", "a number above 0"),
    ("infinity", {"training": {"aux_weight": math.inf}}, "training.aux_weight: Infinity"),
    ("NaN as text", {"training": {"clip_norm": "nan"}}, "training.clip_norm"),
    (
        "NaN hyperparameter",
        {"hyperparameters": {"topk": {"learning_rate": math.nan}}},
        "hyperparameters.topk.learning_rate: NaN",
        "a number",
    ),
    (
        "learning rate below 0",
        {"hyperparameters": {"topk": {"learning_rate": -1e-3}}},
        "hyperparameters.topk.learning_rate: -0.001; expected a number above 0",
    ),
    (
        "learning rate of 0 at one L0",
        {"hyperparameters": {"topk": {"learning_rate": {8: 0.1, 64: 0}}}},
        "hyperparameters.topk.learning_rate.64: 0",
        "a number above 0",
    ),
    (
        "learning rate by something else than an L0",
        {"hyperparameters": {"topk": {"learning_rate": {8.5: 0.1}}}},
        "hyperparameters.topk.learning_rate: 8.5",
        "an L0, a whole number of at least 1",
    ),
    (
        "learning rate at no L0",
        {"hyperparameters": {"topk": {"learning_rate": {}}}},
        "hyperparameters.topk.learning_rate: {}",
        "one for each of some L0s",
    ),
    (
        "a factor of the rate for no size",
        {"hyperparameters": {"topk": {"learning_rate_factor": 2}}},
        "hyperparameters.topk.learning_rate_factor: 2 is not",
        "such as {2048: 1.4}",
    ),
    ("tuning at no L0", {"tuning": {"l0": []}}, "tuning.l0: []"),
    (
        "half a latent",
        {"sparsity_panel": {"n": 2048.5}},
        "sparsity_panel.n: 2048.5",
        "a whole number",
    ),
    (
        "more latents than can be counted",
        {"sparsity_panel": {"n": 10**30}},
        "sparsity_panel.n",
        "from 1 to 100,000,000",
    ),
    ("a truth value for a number", {"seeds": True}, "seeds: true", "a whole number"),
    ("seeds without end", {"seeds": 10**9}, "seeds: 1000000000", "at most 1000"),
    ("nothing for a number", {"training": {"tokens": None}}, "training.tokens: null"),
    ("a list for a section", {"training": []}, "training: []", "a section"),
    ("a number for a key", {"training": {7: 1}}, "training.7: unknown key"),
    ("no levels", {"sparsity_panel": {"l0": []}}, "sparsity_panel.l0: []", "different whole"),
    ("a level twice", {"sparsity_panel": {"l0": [8, 8]}}, "sparsity_panel.l0: [8, 8]"),
    ("share of one", {"training": {"ema": 1}}, "training.ema: 1", "from 0 to below 1"),
    ("no methods", {"methods": []}, "methods: []", "all, or a list of folder names"),
    ("a method that is a path", {"methods": ["../topk"]}, "methods: '../topk' is not a method"),
    ("run that is absolute", {"run": "/x"}, 'run: "/x"', "one folder name"),
    ("run with a line end", {"run": "mine\n"}, "run:", "one folder name"),
    ("run that is too long", {"run": "x" * 300}, "run:", "one folder name"),
    ("run that is a number", {"run": 2024}, "run: 2024", "a number in quotes"),
    (
        "hook with a line end",
        {"language_model": {"hook": "blocks.1.hook_resid_post\n"}},
        "language_model.hook",
        "such as blocks.2.hook_resid_post",
    ),
    (
        "batch larger than the training",
        {"training": {"tokens": 100}},
        "training.tokens: 100 is too small; expected at least training.batch_tokens, 384",
    ),
    (
        "warm-up longer than the training",
        {"training": {"warmup_steps": 10**6}},
        "training.warmup_steps: 1000000 is too large",
        "training.tokens / training.batch_tokens, 1562",
    ),
    (
        "warm-up longer than the tuning",
        {"tuning": {"tokens": 800, "table": "measure"}},
        "training.warmup_steps:",
        "tuning.tokens / training.batch_tokens, 2",
    ),
    ("tuning shorter than a batch", {"tuning": {"tokens": 5}}, "tuning.tokens: 5 is too small"),
    (
        "not one context to train on",
        {"activations": {"train_tokens": 63}},
        "activations.train_tokens: 63 is too small; expected at least a context, 64",
    ),
    (
        "glob that is none",
        {"corpus": FILES | {"paths": ["text/**x.txt"]}},
        "corpus.paths: 'text/**x.txt' is not a path or glob",
    ),
    (
        "text that is a folder",
        {"corpus": FILES | {"paths": ["text"]}},
        "corpus.paths: 'text' matches the folder text; expected files only",
    ),
    (
        "tuning table of something else",
        {"tuning": {"table": "other.csv"}},
        "tuning.table: other.csv has no column method, n, l0_target",
    ),
    (
        "lambdas that are binary",
        {"lambdas": "text/noise.bin"},
        "lambdas: text/noise.bin has no column",
    ),
    (
        "published table without a column",
        {"published": "other.csv"},
        "published: other.csv has no column method, l0, mse, delta_ce",
    ),
    (
        "published table that does not say how large",
        {"published": "quoted.csv"},
        "quoted.csv: the name should end in _n<number of latents>.csv",
    ),
    (
        "a folder of one's home",
        {"language_model": {"path": "~/no such folder"}},
        "language_model.path: no folder /",
    ),
    (
        "a folder here",
        {"language_model": {"path": "./nothere"}},
        "language_model.path: no folder ./nothere",
    ),
    (
        "two series of one label",
        {"external": {"theirs": THEIRS | {"label": "TopK"}}},
        "external.theirs: label: TopK is that of method topk, too",
    ),
    (
        "external that a table would lose",
        {"external": {"NA": THEIRS}},
        "external.NA: a table would read this name as no value",
    ),
    (
        "external with a path for a name",
        {"external": {"../x": THEIRS}},
        'external: "../x"',
        "letters, digits and underscores",
    ),
    (
        "external that leaves its place on the hub",
        {"external": {"theirs": THEIRS | {"paths": ["hub:a/b/../../c"]}}},
        "external.theirs: 'hub:a/b/../../c'; expected hub:<owner>/<name>/<folder>",
    ),
    (
        "external that is not JSON",
        {"external": {"theirs": THEIRS}},
        "external.theirs: theirs/cfg.json: not valid JSON",
    ),
    (
        "package that is a path",
        {"corpus": {"packages": ["../../numpy"]}},
        "corpus.packages: '../../numpy' is not installed",
    ),
    ("more GPUs than a job can use", {"gpus": 8}, "gpus: 8", "0 or 1"),
    (
        "marker that is none",
        {"external": {"theirs": THEIRS | {"marker": "oo"}}},
        'external.theirs.marker: "oo"',
        "one of matplotlib's markers",
    ),
)
def test_a_configuration(methods, tmp_path, change, expected):
    for name in ("text", "theirs", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "text/a.txt").write_text("text")
    (tmp_path / "text/noise.bin").write_bytes(b"\xff\0" * 50_000)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    # As R and Excel write it.
    quoted = '\ufeff"method","l0","mse","delta_ce"\n"topk",8,1,1\n'
    (tmp_path / "quoted.csv").write_text(quoted, encoding="utf-8")
    (tmp_path / "theirs/cfg.json").write_text("{")
    (tmp_path / "theirs/sae_weights.safetensors").touch()
    before = paths(tmp_path)
    values = merged(DEFAULT, change)
    message = said(config.load, values, SCHEMAS / "config.schema.yaml", methods, REPOSITORY)
    for part in expected:
        assert part in message
    assert paths(tmp_path) == before


def test_numbers_may_be_written_as_people_do(methods):
    changes = {"activations": {"train_tokens": "1e6"}, "training": {"tokens": 2.0e6}}
    values = merged(DEFAULT, changes)
    loaded = config.load(values, SCHEMAS / "config.schema.yaml", methods, REPOSITORY)
    assert loaded["activations"]["train_tokens"] == 10**6
    assert repr(loaded["training"]["tokens"]) == "2000000"


# --- method folders

FACTS = {"label": "Mine", "citation": "Me 2024", "equation": "z = x", "knob": "k"}


def method_folder(folder, facts=FACTS, rule=""):
    folder.mkdir(parents=True)
    if facts is not None:
        text = facts if isinstance(facts, str) else yaml.safe_dump(facts)
        (folder / "method.yaml").write_text(text)
    if rule is not None:
        (folder / "rule.smk").write_text(rule)


@table(
    (
        "no rule",
        {"rule": None},
        "methods/mine: no rule.smk, which trains it; copy that of _template",
    ),
    ("no facts", {"facts": None}, "methods/mine: no method.yaml, which says what it is"),
    ("empty", {"facts": ""}, "mine/method.yaml: the file: null", "label, citation, equation"),
    ("not YAML", {"facts": "label: [Mine\nknob: k\n"}, "mine/method.yaml:2: not valid YAML"),
    (
        "code in YAML",
        {"facts": "label: !!python/object/apply:os.mkdir [executed]\n"},
        "mine/method.yaml:1: not valid YAML",
        "could not determine a constructor",
    ),
    ("a list", {"facts": "[1, 2]\n"}, "mine/method.yaml: the file: [1, 2]"),
    (
        "unknown key",
        {"facts": FACTS | {"colour": "red"}},
        "method.yaml: colour: unknown key; expected color?",
    ),
    ("missing key", {"facts": {"label": "Mine"}}, "mine/method.yaml: citation is missing"),
    ("unknown knob", {"facts": FACTS | {"knob": "beta"}}, 'knob: "beta"', "k, lambda or none"),
    ("marker that is none", {"facts": FACTS | {"marker": "star"}}, "matplotlib's markers"),
    (
        "learning rate of 0",
        {"facts": FACTS | {"hyperparameters": {"learning_rate": 0}}},
        "method.yaml: hyperparameters.learning_rate: 0; expected a number above 0",
    ),
    (
        "factors of no learning rate",
        {"facts": FACTS | {"hyperparameters": {"learning_rate_factor": {64: 2}}}},
        "method.yaml: hyperparameters.learning_rate_factor: there is no learning_rate",
    ),
    (
        "NaN",
        {"facts": FACTS | {"hyperparameters": {"width": math.nan}}},
        "method.yaml: hyperparameters.width: NaN",
        "a number",
    ),
    (
        "grid of nothing it has",
        {"facts": FACTS | {"grid": {"width": [1]}}},
        "grid: 'width' is not one of its hyperparameters",
    ),
    (
        "grid of learning rates",
        {
            "facts": FACTS
            | {"hyperparameters": {"learning_rate": 1}, "grid": {"learning_rate": [2]}}
        },
        "mine/method.yaml: grid: learning_rate is tuned anyway",
    ),
    (
        "fixed lambda where it is the knob",
        {"facts": FACTS | {"knob": "lambda", "hyperparameters": {"lambda": 0.3}}},
        "mine/method.yaml: hyperparameters.lambda: expected none where knob is lambda",
    ),
    ("colour that is none", {"facts": FACTS | {"color": "#12"}}, "six hexadecimal digits"),
    (
        "derived from nobody",
        {"facts": FACTS | {"derived_from": "nobody"}},
        "derived_from: 'nobody' is not a method",
    ),
    (
        "derived from itself",
        {"facts": FACTS | {"derived_from": "mine"}},
        "method.yaml: derived_from: 'mine' is not a method that stands on its own",
    ),
    ("name with a dash", {"name": "my-method"}, "'my-method' cannot be a method's name"),
    ("name that means all", {"name": "all"}, "'all' cannot be a method's name"),
    ("name that a table loses", {"name": "NA"}, "'NA' cannot be a method's name"),
)
def test_a_method_folder(tmp_path, change, expected):
    change = dict(change)
    method_folder(tmp_path / "methods" / change.pop("name", "mine"), **change)
    message = said(
        method_folders.read_methods, tmp_path / "methods", SCHEMAS / "method.schema.yaml"
    )
    for part in expected:
        assert part in message


def test_what_yaml_merges_stands_there_once(tmp_path):
    path = tmp_path / "it.yaml"
    path.write_text(
        "defs:\n  base: &base {a: 1, b: 2}\n  mid: &mid {<<: *base, a: 3}\n"
        "leaf: {<<: *mid, b: 4}\nnumbers: {8: x, '8': y}\n"
    )
    assert schemas.read_yaml(path)["leaf"] == {"a": 3, "b": 4}
    path.write_text("a: {x: 1}\nb: [{y: 1, z: 2, y: 3}]\n")
    assert "it.yaml:2: not valid YAML ('y' stands there twice)" in said(schemas.read_yaml, path)
    path.write_text("? [a, b]\n: 1\n")
    assert "it.yaml:1: not valid YAML" in said(schemas.read_yaml, path)


def test_numbers_of_a_method_may_be_written_as_people_do(tmp_path):
    own = "order: 1e1\nhyperparameters: {learning_rate: 2e-3, width: {16: 1e-1}}\n"
    method_folder(tmp_path / "mine", f"{yaml.safe_dump(FACTS)}{own}grid: {{width: [3e-1]}}")
    facts = method_folders.read_methods(tmp_path, SCHEMAS / "method.schema.yaml")["mine"]
    assert facts["hyperparameters"] == {"learning_rate": 0.002, "width": {16: 0.1}}
    assert facts["grid"] == {"width": [0.3]}
    assert repr(facts["order"]) == "10"


@pytest.mark.parametrize("name", ["threshold", "bandwidth"])
def test_a_hyperparameter_that_a_method_cannot_use(name):
    values = {"learning_rate": 0.1, "threshold": 0.1, "bandwidth": 0.1, name: 0}
    message = said(METHODS["jumprelu"](4, values).extra_parameters, 8)
    assert f"hyperparameters.jumprelu.{name}: 0; expected a number above 0" in message


# --- what a rule leaves, or somebody else trained


def change_config(**changes):
    def change(directory):
        path = directory / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def change_weights(function):
    def change(directory):
        path = directory / "sae_weights.safetensors"
        weights = load_file(path)
        function(weights)
        save_file(weights, path)

    return change


def write(name, content):
    return lambda directory: (directory / name).write_bytes(content)


def truncate(name, keep=0.5):
    def change(directory):
        raw = (directory / name).read_bytes()
        (directory / name).write_bytes(raw[: int(len(raw) * keep)])

    return change


def as_folder(name):
    def change(directory):
        (directory / name).unlink(missing_ok=True)
        (directory / name).mkdir()

    return change


@table(
    ("no configuration", lambda d: (d / "cfg.json").unlink(), "cfg.json: no such file"),
    ("configuration cut short", truncate("cfg.json"), "cfg.json: not valid JSON"),
    ("configuration that is a list", write("cfg.json", b"[]"), "cfg.json: expected a JSON object"),
    ("configuration of lists in lists", write("cfg.json", b"[" * 200_000), "not valid JSON"),
    ("configuration that is a folder", as_folder("cfg.json"), "cfg.json: cannot be read"),
    ("size that is a truth value", change_config(d_in=True), "d_in is True; expected a positive"),
    ("k of 0", change_config(k=0), "k is 0; expected a positive whole number"),
    (
        "a k and no architecture",
        write("cfg.json", b'{"d_in": 16, "d_sae": 40, "k": 4}'),
        "cfg.json: there is a k and no architecture",
    ),
    (
        "tanh of ReLU",
        change_config(activation_fn_str="tanh-relu"),
        "cfg.json: activation function 'tanh-relu'; expected relu or topk",
    ),
    (
        "text for a truth value",
        change_config(apply_b_dec_to_input="false"),
        "apply_b_dec_to_input is 'false'; expected true or false",
    ),
    (
        "text for a number of tokens",
        write("provenance.json", b'{"training_tokens": "16k"}'),
        "provenance.json: training_tokens is '16k'; expected a number",
    ),
    (
        "unknown activation function",
        change_config(architecture="softmax"),
        "architecture is 'softmax'; expected one of standard, topk",
    ),
    (
        "code of its own",
        change_config(architecture="custom", auto_map={"SAE": "evil.SAE"}),
        "architecture is 'custom'",
    ),
    ("weights cut short", truncate("sae_weights.safetensors"), "not a whole safetensors file"),
    ("weights of no length", write("sae_weights.safetensors", b""), "not a whole safetensors file"),
    ("weights that are a folder", as_folder("sae_weights.safetensors"), "not a whole safetensors"),
    (
        "weights that are a pickle",
        write("sae_weights.safetensors", pickle.dumps(Payload())),
        "sae_weights.safetensors: not a whole safetensors file",
    ),
    (
        "another width",
        change_weights(lambda w: w.update(W_enc=torch.zeros(WIDTH + 1, 40))),
        "tensor W_enc has shape (17, 40); expected (16, 40)",
    ),
    ("missing tensor", change_weights(lambda w: w.pop("b_dec")), "tensor b_dec is missing"),
    (
        "no provenance but a list",
        write("provenance.json", b"[]"),
        "provenance.json: expected a JSON",
    ),
)
def test_an_autoencoder(tmp_path, change, expected):
    directory = tmp_path / "n40-l4-s0"
    autoencoder("topk").save(directory, {})
    (directory / "provenance.json").unlink()  # as from a method of somebody's own
    change(directory)
    before = paths(tmp_path)
    found = measuring.subjects(
        [str(directory / "cfg.json")], "run", "topk", [[40, 4, 0]], "c", "m", WIDTH
    )
    message = said(list, found)
    for part in (*expected, "n40-l4-s0"):
        assert part in message
    assert paths(tmp_path) == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_autoencoder_without_finite_weights_is_a_training_that_failed(tmp_path, value):
    autoencoder("topk").save(tmp_path, {})
    (tmp_path / "provenance.json").unlink()
    change_weights(lambda w: w["b_enc"].fill_(value))(tmp_path)
    found = measuring.subjects(
        [str(tmp_path / "cfg.json")], "r", "m", [[40, 4, 0]], "c", "m", WIDTH
    )
    (subject,) = found
    assert subject.autoencoder is None
    assert "tensor b_enc holds values that are not finite" in subject.facts["failed"]


def test_an_autoencoder_for_another_language_model(tmp_path):
    autoencoder("topk").save(tmp_path / "sae", {})
    found = measuring.subjects([str(tmp_path / "sae/cfg.json")], "r", "m", [[40, 4, 0]], "", "", 99)
    assert "d_sae is 40 and d_in is 16; expected 40 and 99" in said(list, found)


def torch_file(value):
    def change(path):
        torch.save(value, path)

    return change


@table(
    ("empty", lambda path: path.touch(), "8.pt: not a state dictionary"),
    (
        "cut short",
        lambda path: (torch.save({"a": torch.ones(999)}, path), truncate("8.pt")(path.parent)),
        "8.pt: not a state dictionary",
    ),
    ("text", lambda path: path.write_text("weights"), "8.pt: not a state dictionary"),
    (
        "pickle that runs code",
        lambda path: path.write_bytes(pickle.dumps(Payload())),
        "read without running code",
    ),
    (
        "torch file that runs code",
        torch_file({"encoder.weight": Payload()}),
        "read without running code",
    ),
    ("whole module", torch_file(torch.nn.Linear(2, 2)), "read without running code"),
    ("list", torch_file([torch.ones(2)]), "holds a list; expected a state dictionary"),
    (
        "NaN",
        torch_file(
            {
                "encoder.weight": torch.full((4, 2), math.nan),
                "latent_bias": torch.ones(4),
                "decoder.weight": torch.ones(2, 4),
                "pre_bias": torch.ones(2),
            }
        ),
        "8.pt: tensor encoder.weight holds values that are not finite",
    ),
)
def test_a_released_checkpoint(tmp_path, change, expected):
    change(tmp_path / "8.pt")
    message = said(external.read, "openai", tmp_path / "8.pt")
    for part in expected:
        assert part in message


@table(
    ("empty table", b"", "lambdas.csv: not a readable table"),
    ("ragged table", b"a,b\n1\n1,2,3,4\n", "lambdas.csv: not a readable table"),
    ("binary table", b"\xff\xfe\0\0", "lambdas.csv: not a readable table"),
)
def test_a_table(tmp_path, change, expected):
    (tmp_path / "lambdas.csv").write_bytes(change)
    for function in (tidy.read, lambda path: read_lambda([path], {}, 0, {"tokens": 1}, 0.1)):
        assert expected[0] in said(function, tmp_path / "lambdas.csv")


# --- text

LINE = b'{"text": "%s"}\n'


@table(
    ("empty", {"a.txt": b""}, "no document fell into train, validation, test"),
    ("white space only", {"a.txt": b" \n\t \r\n" * 99}, "no document fell into train, validation"),
    (
        "one gigantic line",
        {"a.txt": b"word " * 500_000},
        "no document fell into",
        "shorter, documents",
    ),
    (
        "nothing but one document",
        {"a.jsonl": LINE % b"x"},
        "1 distinct documents",
        "too few to split",
    ),
    ("UTF-16", {"a.txt": "text".encode("utf-16")}, "a.txt: not UTF-8 text (byte 0)"),
    ("binary after a page of text", {"a.txt": b"text " * 999 + b"\0"}, "a.txt: holds zero bytes"),
    (
        "lists without end",
        {"a.jsonl": LINE % b"x" + b"[" * 200_000 + b"\n"},
        "a.jsonl:2: not valid JSON",
    ),
    (
        "number without end",
        {"a.jsonl": b'{"text": ' + b"9" * 9999 + b"}\n"},
        "a.jsonl:1: not valid JSON",
    ),
    ("other field", {"a.jsonl": b'{"body": "x"}\n'}, "a.jsonl:1", "string field 'text'"),
    ("no kind that is known", {"a.pdf": b"%PDF-1.4"}, "a.pdf: expected a file ending in .txt"),
    (
        "pickle for Parquet",
        {"a.parquet": pickle.dumps(Payload())},
        "a.parquet: not a readable Parquet",
    ),
)
def test_a_text(tmp_path, change, expected):
    (tmp_path / "text").mkdir()
    for name, content in change.items():
        (tmp_path / "text" / name).write_bytes(content)
    before = paths(tmp_path)
    spec = {"source": "files", "paths": ["text/*"], "validation": 0.2, "test": 0.2}
    message = said(corpus.build, spec, tmp_path / "documents.parquet", tmp_path / "manifest.json")
    for part in expected:
        assert part in message
    assert paths(tmp_path) == before


def test_a_folder_among_the_texts(tmp_path):
    (tmp_path / "a.txt").mkdir()
    message = said(list, corpus.file_documents(["*.txt"]))
    assert "corpus.paths: '*.txt' matches the folder a.txt; expected files only" in message


def parquet(*texts, column="text"):
    def change(path):
        pq.write_table(pa.table({column: list(texts)}), path)

    return change


@table(
    (
        "missing column",
        parquet("x", column="body"),
        "row 0: column 'text' is not there; it has ['body']",
    ),
    ("missing value", parquet("x", None), "row 1: column 'text' is not a text"),
    ("numbers", parquet(1, 2), "row 0: column 'text' is not a text"),
    ("not Parquet", lambda path: path.write_bytes(b"PAR1"), "corpus.dataset: cannot read"),
    ("no data", lambda path: None, "corpus.dataset: cannot read"),
)
def test_a_data_set(tmp_path, monkeypatch, change, expected):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "pile/data").mkdir(parents=True)
    change(tmp_path / "pile/data/train-00000-of-00001.parquet")
    spec = {"source": "hub", "dataset": "pile", "documents": 9, "validation": 0.2, "test": 0.2}
    before = paths(tmp_path)
    message = said(corpus.build, spec, tmp_path / "documents.parquet", tmp_path / "manifest.json")
    assert expected[0] in message
    assert paths(tmp_path) == before


# --- language models


def edit(name, **changes):
    def change(directory):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(function):
    def change(directory):
        tensors = load_file(directory / "model.safetensors")
        function(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return change


def sharded(names):
    """An index that gives every tensor to the files `names`; the weights are in part-1 alone."""

    def change(directory):
        (directory / "model.safetensors").rename(directory / "part-1.safetensors")
        places = {f"tensor {i}": name for i, name in enumerate(names)}
        index = {"metadata": {}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def code_of_its_own(directory):
    """A model, configuration and tokenizer that transformers would import from the folder."""
    (directory / "evil.py").write_text(
        "import os\nos.mkdir('executed')\nfrom transformers import GPT2Config as Config\n"
        "from transformers import GPT2LMHeadModel as Model\n"
    )
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit("config.json", auto_map=auto_map, model_type="evil")(directory)
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}
    edit("tokenizer_config.json", tokenizer_class="EvilTokenizer", **tokenizer)(directory)


def pickled(directory):
    (directory / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Payload()}, directory / "pytorch_model.bin")


def remove(name):
    return lambda directory: (directory / name).unlink()


#: What names, JSON and headers show; said before the first job.
SEEN_AT_ONCE = [
    ("no configuration", remove("config.json"), "config.json: no such file"),
    ("configuration that is a list", write("config.json", b"[]"), "config.json: expected a JSON"),
    ("configuration cut short", truncate("config.json"), "config.json: not valid JSON"),
    ("no weights", remove("model.safetensors"), "has no model.safetensors"),
    ("pickled weights", pickled, "pytorch_model.bin is a pickle and is not opened"),
    (
        "weights cut short",
        truncate("model.safetensors", 0.9),
        "model.safetensors is not whole",
        "copy it again",
    ),
    (
        "weights that are a pickle",
        write("model.safetensors", pickle.dumps(Payload())),
        "model.safetensors: not a safetensors file",
    ),
    ("weights of no length", write("model.safetensors", b""), "not a safetensors file"),
    (
        "pointer instead of weights",
        write("model.safetensors", b"version https://git-lfs.github.com"),
        "model.safetensors: not a safetensors file",
    ),
    (
        "missing shard",
        sharded(["part-1.safetensors", "part-2.safetensors"]),
        "has no part-2.safetensors, a shard that model.safetensors.index.json names",
    ),
    ("shard elsewhere", sharded(["../part-1.safetensors"]), "names '../part-1.safetensors'"),
    (
        "pickled shard",
        sharded(["part-1.bin"]),
        "names 'part-1.bin'; expected the names of safetens",
    ),
    ("index of nothing", sharded([]), "model.safetensors.index.json: weight_map names 'None'"),
    ("no tokenizer", remove("tokenizer.json"), "has no tokenizer.json"),
    ("code of its own", code_of_its_own, "config.json has an auto_map", "which is not run"),
    (
        "tokenizer with code of its own",
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}),
        "tokenizer_config.json has an auto_map",
    ),
]


@pytest.fixture
def broken(model_directory, tmp_path):
    """A function that gives a copy of a language model's directory with a change."""

    def broken(change):
        directory = tmp_path / "lm"
        shutil.copytree(model_directory("gpt2"), directory)
        change(directory)
        return directory

    return broken


@table(*SEEN_AT_ONCE)
def test_a_model_directory_before_the_first_job(methods, broken, change, expected):
    directory = broken(change)
    model = {"path": str(directory), "hook": HOOK, "context": CONTEXT}
    values = merged(DEFAULT, {"language_model": model})
    message = said(config.load, values, SCHEMAS / "config.schema.yaml", methods, REPOSITORY)
    for part in (*expected, "language_model.path: ", "lm"):
        assert part in message
    # The same where a name on the hub has led to it.
    assert said(LanguageModel.load, directory, HOOK) == message


@table(
    (
        "layers that are words",
        edit("config.json", n_layer="three"),
        "n_layer in its config.json is 'three'",
    ),
    (
        "context of nothing",
        edit("config.json", n_positions=0),
        "n_positions in its config.json is 0",
    ),
)
def test_a_model_configuration(methods, broken, change, expected):
    values = merged(DEFAULT, {"language_model": {"path": str(broken(change)), "hook": HOOK}})
    message = said(config.load, values, SCHEMAS / "config.schema.yaml", methods, REPOSITORY)
    assert expected[0] in message


def test_a_model_that_is_a_file(methods, tmp_path):
    (tmp_path / "lm").write_text("weights")
    values = merged(DEFAULT, {"language_model": {"path": "lm"}})
    message = said(config.load, values, SCHEMAS / "config.schema.yaml", methods, REPOSITORY)
    assert "language_model.path: lm is a file; expected a folder" in message


@table(
    (
        "wrong shape",
        weights(lambda t: t.update({"transformer.h.1.ln_1.weight": torch.ones(3)})),
        "tensor transformer.h.1.ln_1.weight has shape (3,); expected (16,) by config.json",
    ),
    (
        "missing tensor",
        weights(lambda t: t.pop("transformer.h.2.ln_1.bias")),
        "tensor transformer.h.2.ln_1.bias is missing",
    ),
    (
        "fewer layers than said",
        edit("config.json", n_layer=4),
        "tensor transformer.h.3",
        "is missing",
    ),
    (
        "NaN",
        weights(lambda t: t["transformer.h.0.ln_1.bias"].fill_(math.nan)),
        f"activations at {HOOK} are not finite",
    ),
    (
        "unknown architecture",
        edit("config.json", model_type="abacus", architectures=["Abacus"]),
        "cannot load",
        "abacus",
    ),
    ("tokenizer cut short", truncate("tokenizer.json"), "language_model.path: cannot load"),
)
def test_a_language_model(broken, change, expected):
    message = said(LanguageModel.load, broken(change), HOOK)
    for part in ("language_model.path: ", *expected):
        assert part in message


@table(
    ("cut short", truncate("tokenizer.json"), "no tokenizer at"),
    ("not JSON", write("tokenizer.json", b"tokens"), "no tokenizer at"),
    ("code of its own", code_of_its_own, "no tokenizer at"),
)
def test_a_tokenizer(broken, change, expected):
    directory = broken(change)
    message = said(load_tokenizer, directory)
    assert expected[0] in message


# --- the whole


def test_a_job_that_refuses_leaves_its_message_and_nothing_else(tmp_path, capsys):
    job_of_snakemake = SimpleNamespace(log=[str(tmp_path / "a.log")], rule="corpus", threads=1)
    spec = {"source": "files", "paths": ["*.txt"], "validation": 0.2, "test": 0.2}
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(SystemExit), job(job_of_snakemake):
        corpus.build(spec, tmp_path / "documents.parquet", tmp_path / "manifest.json")
    assert capsys.readouterr().err == "corpus: a.txt: not UTF-8 text (byte 0)\n"
    assert paths(tmp_path) == [".a.log.lock", "a.log", "a.txt"]


def test_a_model_with_code_of_its_own_stops_the_run_before_any_job(broken, tmp_path):
    directory = broken(lambda d: (code_of_its_own(d), pickled(d)))
    before = paths(tmp_path)
    model = f"language_model={{path: {directory.name}, hook: {HOOK}, context: {CONTEXT}}}"
    done = snakemake(tmp_path, "--cores", 1, "--configfile", SMOKE, "--config", model)
    assert done.returncode != 0
    assert "lm/config.json has an auto_map" in done.stdout
    assert "Traceback" not in done.stdout
    assert [path for path in paths(tmp_path) if not path.startswith(".snakemake")] == before


def test_a_method_folder_without_a_rule_stops_the_run_before_any_job(tmp_path):
    workflow = tmp_path / "workflow"
    shutil.copytree(REPOSITORY / "workflow", workflow)
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    shutil.copy(REPOSITORY / "Snakefile", tmp_path)
    method_folder(workflow / "methods/mine", rule=None)
    before = paths(tmp_path)
    done = snakemake(
        tmp_path, "--cores", 1, "--configfile", SMOKE, snakefile=tmp_path / "Snakefile"
    )
    assert done.returncode != 0
    assert "workflow/methods/mine: no rule.smk" in done.stdout
    assert "Traceback" not in done.stdout
    assert [path for path in paths(tmp_path) if not path.startswith(".snakemake")] == before
