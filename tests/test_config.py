"""A configuration is checked as a whole, and a mistake is one or two lines that name the key."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import save_file

from l0plane import config, method_folders, plan
from l0plane.files import UserError

REPOSITORY = Path(__file__).parents[1]
SCHEMAS = REPOSITORY / "workflow/schemas"
DEFAULT = yaml.safe_load((REPOSITORY / "config/default.yaml").read_text())


@pytest.fixture(scope="module")
def methods():
    return method_folders.read_methods(
        REPOSITORY / "workflow/methods", SCHEMAS / "method.schema.yaml"
    )


@pytest.fixture
def load(methods, tmp_path, monkeypatch):
    """Load the default configuration with changes; its language model has four layers."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "resources/lm"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"n_layer": 4, "n_positions": 64}))
    (model / "tokenizer.json").write_text("{}")
    save_file({}, model / "model.safetensors")
    (tmp_path / "results/reference").mkdir(parents=True)
    (tmp_path / "resources/published").mkdir()
    for name in (DEFAULT["tuning"]["table"], DEFAULT["lambdas"], PUBLISHED):
        shutil.copy(REPOSITORY / name, tmp_path / name)

    def load(changes=None):
        values = merged(DEFAULT, changes or {})
        return config.load(values, SCHEMAS / "config.schema.yaml", methods, tmp_path)

    return load


def merged(default, changes):
    """Snakemake's way: sections are merged key by key, everything else is replaced."""
    values = copy.deepcopy(default)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            value = merged(values[key], value)
        values[key] = value
    return values


PUBLISHED = "resources/published/gpt2_small_resid8_n24576.csv"
FILES = {"source": "files", "paths": ["*.txt"]}

# What is changed, and what the message has to say: the key, and what was expected.
WRONG = {
    "unknown section": ({"trainning": {}}, "trainning: unknown key; expected training?"),
    "unknown key": ({"training": {"epochs": 3}}, "training.epochs: unknown key; expected one of"),
    "wrong type": ({"sparsity_panel": {"n": "many"}}, 'sparsity_panel.n: "many"', "whole number"),
    "zero": ({"seeds": 0}, "seeds: 0", "at least 1"),
    "list of the wrong things": ({"size_panel": {"n": [512, -1]}}, "size_panel.n.1: -1"),
    "section that is none": ({"evaluation": 5}, "evaluation: 5", "a section"),
    "no such tuning": (
        {"tuning": {"table": "gone.csv"}},
        "tuning.table: no file gone.csv",
        "measure",
    ),
    "no such lambdas": ({"lambdas": "gone.csv"}, "lambdas: no file gone.csv", "measure, steer"),
    "run outside of results": ({"run": "../x"}, 'run: "../x"', "one folder name"),
    "run that is a path": ({"run": "a/b"}, 'run: "a/b"', "one folder name"),
    "run that is hidden": ({"run": ".."}, 'run: ".."', "one folder name"),
    "unknown method": ({"methods": ["topk", "tpok"]}, "methods: 'tpok'", "some of relu, "),
    "unknown method to refine": ({"refinement": {"methods": ["x"]}}, "refinement.methods: 'x'"),
    "k above n": ({"sparsity_panel": {"l0": [16, 4096]}}, "sparsity_panel.l0: 4096", "1024"),
    "k above the smallest n": ({"size_panel": {"n": [8, 64]}}, "size_panel.l0: 16", "8"),
    "k of the tuning above n": ({"tuning": {"l0": [16, 9999]}}, "tuning.l0: 9999", "1024"),
    "replicated level that is none": (
        {"sparsity_panel": {"replicated": [5]}},
        "sparsity_panel.replicated: 5",
        "sparsity_panel.l0",
    ),
    "refined level that is none": ({"refinement": {"l0": [5]}}, "refinement.l0: 5"),
    "more contexts than there are": (
        {"progressive": {"delta_ce_contexts": 5000}},
        "progressive.delta_ce_contexts: 5000",
        "evaluation.contexts",
    ),
    "missing text": ({"corpus": FILES}, "corpus.paths: no file matches '*.txt'"),
    "missing paths": ({"corpus": {"source": "files"}}, "corpus.paths is missing"),
    "key of another source": (
        {"corpus": {"documents": 5}},
        "corpus.documents: source docstrings does not read it",
    ),
    "package that is not there": (
        {"corpus": {"packages": ["no-such-package"]}},
        "corpus.packages: 'no-such-package' is not installed",
    ),
    "buffer smaller than a batch": (
        {"training": {"stream_buffer_tokens": 100}},
        "training.batch_tokens: 384",
        "at most training.stream_buffer_tokens, 100",
    ),
    "checkpoints without a pause": (
        {"execution": {"checkpoint_minutes": 0}},
        "execution.checkpoint_minutes: 0",
        "above 0",
    ),
    "processes that cannot share the latents": (
        {"execution": {"processes": 3, "shard_latents": True}},
        "execution.processes: 3 cannot share",
        "every n of the panels is a multiple of",
    ),
    "more processes than rows": (
        {"execution": {"processes": 600}},
        "execution.processes: 600",
        "at most training.batch_tokens, 384",
    ),
    "splits that leave nothing": (
        {"corpus": {"validation": 0.5, "test": 0.5}},
        "corpus.validation and corpus.test",
    ),
    "missing model": (
        {"language_model": {"path": "resources/nothing"}},
        "language_model.path: no folder resources/nothing",
    ),
    "missing data set": (
        {"corpus": {"source": "hub", "dataset": "resources/nothing", "documents": 9}},
        "corpus.dataset: no folder resources/nothing",
        "a data set's name on the hub",
    ),
    "data set at a revision": (
        {"corpus": {"source": "hub", "dataset": "someone/text@v1", "documents": 9}},
        "corpus.dataset: 'someone/text@v1'",
        "corpus.revision",
    ),
    "folder with an at sign": (
        {"language_model": {"path": "models/final/gpt2@x"}},
        "language_model.path: no folder models/final/gpt2@x",
    ),
    "hook of a layer that is not there": (
        {"language_model": {"hook": "blocks.4.hook_resid_post"}},
        "language_model.hook: blocks.4.hook_resid_post",
        "blocks.0 to blocks.3",
    ),
    "residual hook that no model has": (
        {"language_model": {"hook": "blocks.0.hook_resid_pst"}},
        'language_model.hook: "blocks.0.hook_resid_pst"',
        "such as blocks.2.hook_resid_post (or _pre, or _mid)",
    ),
    "hook that is called none": (
        {"language_model": {"hook": "blocks.2.resid_post"}},
        'language_model.hook: "blocks.2.resid_post"',
    ),
    "hook that is none": (
        {"language_model": {"hook": "layer 3"}},
        "language_model.hook",
        "such as blocks.2.hook_resid_post",
    ),
    "context too long for the model": (
        {"language_model": {"context": 65}},
        "language_model.context: 65",
        "at most 64",
    ),
    "heads that do not divide the width": (
        {"language_model_training": {"heads": 3}},
        "language_model_training.heads: 3",
    ),
    "hyperparameter that is none": (
        {"hyperparameters": {"topk": {"lambda": 1}}},
        "hyperparameters.topk.lambda",
        "it has learning_rate",
    ),
    "hyperparameters of nobody": (
        {"hyperparameters": {"x": {}}},
        "hyperparameters.x: not a method",
    ),
}


@pytest.mark.parametrize(("changes", "said"), [(c, s) for c, *s in WRONG.values()], ids=WRONG)
def test_a_mistake_is_named(load, changes, said):
    with pytest.raises(UserError) as error:
        load(changes)
    message = str(error.value)
    assert len(message.splitlines()) <= 2
    for part in said:
        assert part in message


def test_a_missing_key_is_named(methods, tmp_path):
    values = {key: value for key, value in DEFAULT.items() if key != "seeds"}
    with pytest.raises(UserError, match=r"^seeds is missing$"):
        config.load(values, SCHEMAS / "config.schema.yaml", methods, tmp_path)


def test_numbers_may_come_as_text(load):
    """As they do from --config, and from YAML's 3e-3."""
    loaded = load(
        {
            "training": {"clip_norm": "3e-3", "tokens": "500000"},
            "size_panel": {"n": ["64", "128"]},
            "language_model": {"drop_first_position": "false"},
        }
    )
    assert loaded["training"]["clip_norm"] == 0.003
    assert loaded["training"]["tokens"] == 500_000
    assert loaded["size_panel"]["n"] == [64, 128]
    assert loaded["language_model"]["drop_first_position"] is False


def test_the_given_configuration_is_not_changed(load, methods, tmp_path):
    values = copy.deepcopy(DEFAULT)
    loaded = config.load(values, SCHEMAS / "config.schema.yaml", methods, tmp_path)
    assert values == DEFAULT
    assert loaded["methods"] == list(methods)


def test_packages_of_the_default_are_forgotten_with_another_source(load, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert set(load({"corpus": FILES})["corpus"]) == {"source", "paths", "validation", "test"}


ENTRY = {"format": "sparsify", "paths": ["theirs"], "label": "Theirs"}


@pytest.mark.parametrize(
    "name,changes,d,message",
    [
        ("topk", {}, 16, "external.topk: there is a method of that name"),
        ("theirs", {"paths": ["gone"]}, 16, "external.theirs: no file gone/cfg.json; format"),
        ("theirs", {"format": "pt"}, 16, 'external.theirs.format: "pt" is not what was expected'),
        ("theirs", {"label": None}, 16, "external.theirs.label: null"),
        ("theirs", {"paths": ["hub:one"]}, 16, "expected hub:<owner>/<name>/<folder>"),
        ("theirs", {}, 32, "is for activations of width 32; those at blocks.2.hook_resid_post"),
    ],
)
def test_what_was_trained_elsewhere_is_looked_for_before_the_run(
    load, tmp_path, name, changes, d, message
):
    model = tmp_path / "resources/lm/config.json"
    model.write_text(json.dumps(json.loads(model.read_text()) | {"n_embd": 16}))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/cfg.json").write_text(json.dumps({"d_in": d}))
    (tmp_path / "theirs/sae.safetensors").touch()
    with pytest.raises(UserError) as error:
        load({"external": {name: ENTRY | changes}})
    assert message in str(error.value)


def test_what_was_trained_elsewhere_may_be_refined(load, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/cfg.json").write_text("{}")
    (tmp_path / "theirs/sae.safetensors").touch()
    changes = {"external": {"theirs": ENTRY}, "refinement": {"methods": ["topk", "theirs"]}}
    assert load(changes)["refinement"]["methods"] == ["topk", "theirs"]
    assert "theirs" not in load(changes)["tuning"]["methods"]


HUB = {"source": "hub", "documents": 9}


def test_what_is_on_the_hub_needs_no_folder(load):
    revisions = ("EleutherAI/pythia-70m@step512", "gpt2@refs/pr/1")
    for name in ("gpt2", "openai-community/gpt2", *revisions):
        assert load({"language_model": {"path": name}})["language_model"]["path"] == name
    for name in ("openwebtext", "Skylion007/openwebtext"):
        assert load({"corpus": HUB | {"dataset": name}})["corpus"]["dataset"] == name
    paths = ["hub:someone/saes/blocks.1", "hub:someone/saes@v1/blocks.1"]
    assert load({"external": {"theirs": ENTRY | {"paths": paths}}})["external"]["theirs"]


def test_folders_beside_the_workflow_are_found_from_elsewhere(load, tmp_path, monkeypatch):
    for name in ("text", "elsewhere/json"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load({"corpus": HUB | {"dataset": "text"}})
    assert loaded["language_model"]["path"] == str(tmp_path / "resources/lm")
    assert loaded["corpus"]["dataset"] == str(tmp_path / "text")
    # As it is written: without the dot `datasets` takes it for one of its readers.
    assert load({"corpus": HUB | {"dataset": "./json"}})["corpus"]["dataset"] == "./json"


def test_other_parts_look_only_at_methods_of_the_run(load):
    loaded = load({"methods": ["topk", "gated"]})
    assert loaded["refinement"]["methods"] == ["topk"]
    assert loaded["tuning"]["methods"] == loaded["methods"]


def test_levels_are_both_panels_without_repetition(load):
    loaded = load(
        {
            "sparsity_panel": {"n": 64, "l0": [4, 8], "replicated": [8]},
            "size_panel": {"n": [32, 64], "l0": 8, "replicated": []},
            "refinement": {"l0": [8]},
            "progressive": {"l0": [8]},
            "tuning": {"l0": [8]},
            "seeds": 2,
        }
    )
    names = [str(level) for level in plan.levels(loaded)]
    assert names == ["n32-l8-s0", "n64-l4-s0", "n64-l8-s0", "n64-l8-s1"]
    assert [str(level) for level in plan.panel_levels(loaded, "refinement")] == [
        "n64-l8-s0",
        "n64-l8-s1",
    ]


def test_candidates_are_every_learning_rate_with_every_value_of_a_knob(load):
    loaded = load({"tuning": {"learning_rates": [0.01, 0.1]}})
    facts = {"grid": {}}
    assert plan.candidates(loaded, facts) == {
        "learning_rate0.01": {"learning_rate": 0.01},
        "learning_rate0.1": {"learning_rate": 0.1},
    }
    facts = {"grid": {"width": [1, 2]}}
    found = plan.candidates(loaded, facts)
    assert len(found) == 4
    assert found["learning_rate0.1-width2"] == {"learning_rate": 0.1, "width": 2}


def test_hyperparameters_of_the_configuration_win(load, methods):
    loaded = load({"hyperparameters": {"jumprelu": {"bandwidth": 7}}})
    found = plan.hyperparameters(loaded, "jumprelu", methods["jumprelu"])
    assert found == {**methods["jumprelu"]["hyperparameters"], "bandwidth": 7}


def test_what_was_tuned_at_several_l0s_is_interpolated_between_them(load):
    own = {"learning_rate": {4: 0.008, 16: 0.002, 64: 0.004}, "width": 3}
    rates = {l0: plan.at_level(own, 64, l0, 64)["learning_rate"] for l0 in (1, 4, 8, 16, 32, 99)}
    halfway = {8: 0.004, 32: 0.002 * 2**0.5}  # on both axes
    assert rates == pytest.approx({1: 0.008, 4: 0.008, 16: 0.002, 99: 0.004} | halfway)
    assert rates[4] == 0.008  # to the last bit: lambdas are looked up by it
    assert plan.at_level(own, 256, 4, 64) == {"learning_rate": 0.004, "width": 3}
    # As text, as --config gives it, and as JSON's keys.
    loaded = load({"hyperparameters": {"topk": {"learning_rate": {"4": "1e-3", "16": 2e-3}}}})
    found = plan.hyperparameters(loaded, "topk", {"hyperparameters": {}})
    assert plan.at_level(found, 64, 16, 64) == {"learning_rate": 2e-3}
    assert plan.at_level(found, 64, 2, 64) == {"learning_rate": 1e-3}


def test_a_rate_tuned_at_a_size_is_a_factor_of_what_the_rule_for_sizes_gives(load):
    own = {"learning_rate": {4: 0.008, 16: 0.004}, "learning_rate_factor": {256: 1.4}}
    assert plan.at_level(own, 256, 4, 64) == pytest.approx({"learning_rate": 1.4 * 0.004})
    assert plan.at_level(own, 256, 16, 64) == pytest.approx({"learning_rate": 1.4 * 0.002})
    assert plan.at_level(own, 1024, 4, 64) == {"learning_rate": 0.002}  # nothing was tuned there
    assert plan.at_size_by_rule(own, 256, 4, 64) == {"learning_rate": 0.004}
    # A configuration may give one to each method that has a rate; on the command line it is text.
    loaded = load({"hyperparameters": {"topk": {"learning_rate_factor": {"256": 0.5}}}})
    found = plan.hyperparameters(loaded, "topk", {"hyperparameters": {"learning_rate": 0.1}})
    assert plan.at_level(found, 256, 4, 64) == {"learning_rate": 0.025}
    # Where so many latents are the size that rates are tuned at, nothing is left to correct; nor is
    # a rate that a configuration gives that of which method.yaml has the factor.
    assert plan.at_level(own, 256, 16, 256) == {"learning_rate": 0.004}
    loaded = load({"hyperparameters": {"topk": {"learning_rate": 0.1}}})
    found = plan.hyperparameters(loaded, "topk", {"hyperparameters": own})
    assert plan.at_level(found, 256, 4, 64) == {"learning_rate": 0.05}


def test_sizes_too_small_for_the_size_panels_l0_are_not_tuned(load):
    loaded = load({"size_panel": {"l0": 300, "n": [512, 1024], "replicated": []}})
    assert plan.tuned_sizes(loaded) == [512, 2048]
    loaded = load({"sparsity_panel": {"n": 512}})
    assert plan.tuned_sizes(loaded) == [256, 2048]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"evaluation": {"contexts": 101}}, "evaluation.contexts"),
        ({"activations": {"validation_tokens": 100 * 63 + 1}}, "activations.validation_tokens"),
        ({"activations": {"train_tokens": 100 * 63 + 1}}, "activations.train_tokens"),
    ],
)
def test_a_text_that_is_too_short_is_named(load, changes, key):
    enough = {
        "evaluation": {"contexts": 100},
        "activations": {"train_tokens": 100 * 63, "validation_tokens": 100 * 63},
        "progressive": {"delta_ce_contexts": 1},
    }
    contexts = dict.fromkeys(("train", "validation", "test"), 100)
    config.check_token_supply(load(enough), contexts)
    with pytest.raises(UserError, match=f"^{key} is .*at most"):
        config.check_token_supply(load(merged(enough, changes)), contexts)


# --- methods


def test_a_method_is_a_folder(tmp_path):
    methods = REPOSITORY / "workflow/methods"
    for name in ("_template", "topk"):
        shutil.copytree(methods / name, tmp_path / name)
    shutil.copytree(methods / "_template", tmp_path / "mine")
    found = method_folders.read_methods(tmp_path, SCHEMAS / "method.schema.yaml")
    assert list(found) == ["topk", "mine"]  # by the order that method.yaml gives


@pytest.mark.parametrize(
    "hook",
    ["hook_resid_pre", "hook_resid_mid", "hook_mlp_out", "attn.hook_result", "mlp.out.hook_in"],
)
def test_hooks_that_models_have_are_let_through(load, hook):
    own = load({"language_model": {"hook": f"blocks.0.{hook}"}})
    assert own["language_model"]["hook"] == f"blocks.0.{hook}"


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "config").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_configurations_that_come_with_it_are_valid(load, path):
    assert load(yaml.safe_load(path.read_text()))["run"] == path.stem
