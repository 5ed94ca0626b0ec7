"""The workflow: its plan, its style, what it says to mistakes, and all of it at toy size."""

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import report_page
from test_docs import documented

from l0plane import tidy
from l0plane.files import read_json

REPOSITORY = Path(__file__).parents[1]
SNAKEFILE = REPOSITORY / "Snakefile"
SMOKE = REPOSITORY / "config/smoke.yaml"
GPT2 = REPOSITORY / "config/gpt2.yaml"
GPT2_EMBEDDED = REPOSITORY / "config/gpt2_embedded.yaml"
BIN = Path(sys.executable).parent


def snakemake(directory, *arguments, snakefile=SNAKEFILE, env=None):
    """Run Snakemake in `directory`; the process, its stdout and stderr in one text."""
    command = [BIN / "snakemake", "--snakefile", snakefile, "--directory", directory, *arguments]
    return subprocess.run(
        list(map(str, command)),
        cwd=directory,
        env=env,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        ([], {"together_topk": 1, "train_topk": 0, "together_relu_scaled": 1}),
        (["--config", "execution={together: false}"], {"train_topk": 10, "together_topk": 0}),
        (["--configfile", SMOKE], {"together_topk": 1, "search_lambda": 10}),
        # A stream trains all levels in one job; what starts from another's result reads the disk.
        (
            ["--configfile", GPT2],
            {"stream_topk": 1, "together_topk": 0, "train_topk": 0, "search_lambda": 60}
            | {"together_relu_scaled": 1},
        ),
        (
            # Of one level, too.
            [
                *("--configfile", SMOKE, "--config", "training={stream_buffer_tokens: 4096}"),
                *("sparsity_panel={l0: [8]}", "refinement={l0: [8]}"),
            ],
            {"stream_topk": 1, "train_topk": 0},
        ),
        (["--configfile", GPT2_EMBEDDED], {"train_language_model": 1, "train_topk": 6}),
        # At each of five L0s six learning rates of nine methods, and of one with two bandwidths.
        # Then two more beside the best one; and some at each of three other sizes.
        (
            ["tune"],
            {
                "choose_tuning": 1,
                "tune_candidate": 5 * 6 * (9 + 1),
                "tune_neighbour": 5 * 2 * 9,
                "tune_size": 3 * 9,
            },
        ),
        (["language_model"], {"train_language_model": 1}),
    ],
)
def test_there_is_a_plan(tmp_path, arguments, jobs):
    done = snakemake(tmp_path, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout
    assert "Job stats:" in done.stdout
    planned = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    assert {job: int(planned.get(job, 0)) for job in jobs} == jobs


PARAMS = '**training_params("topk"),'
INPUT = "activations=rules.activations.output.train,"
MADE = """

rule make_it:
    output:
        "it.txt",
    shell:
        "touch {output}"
"""


@pytest.mark.parametrize(
    ("old", "new", "jobs"),
    [
        (PARAMS, PARAMS, {"together_topk": 1, "train_topk": 0}),
        # What else the rule needs is what the group needs.
        (INPUT, f'{INPUT} more="it.txt",', {"together_topk": 1, "make_it": 1}),
        (INPUT, f'{INPUT} more=["it.txt"],', {"together_topk": 1, "make_it": 1}),
        # What cannot be written out for each level is left to the rule.
        (INPUT, f'"it.txt", {INPUT}', {"together_topk": 0, "train_topk": 2, "make_it": 1}),
        (INPUT, f"{INPUT} more=lambda wildcards: [],", {"together_topk": 0, "train_topk": 2}),
        (PARAMS, f"{PARAMS} m=lambda wildcards: wildcards.n,", {"train_topk": 2}),
        (PARAMS, f'{PARAMS} m="n{{n}}",', {"together_topk": 0, "train_topk": 2}),
        (PARAMS, f'{PARAMS} m=["n{{n}}"],', {"together_topk": 0, "train_topk": 2}),
        ("../../scripts/train.py", "train.py", {"together_topk": 0, "train_topk": 2}),
    ],
)
def test_a_group_needs_what_the_rule_of_the_method_does(with_my_method, old, new, jobs):
    folder = with_my_method / "workflow/methods/topk"
    rule = (folder / "rule.smk").read_text()
    assert old in rule
    (folder / "rule.smk").write_text(rule.replace(old, new) + MADE)
    (folder / "train.py").touch()
    arguments = ("--dry-run", "--configfile", SMOKE, "--config", "methods=[topk]")
    done = snakemake(with_my_method, *arguments, snakefile=with_my_method / "Snakefile")
    assert done.returncode == 0, done.stdout
    planned = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    assert {job: int(planned.get(job, 0)) for job in jobs} == jobs


def without_a_name(folder):
    """A method that is a copy of TopK, and whose name `l0plane.methods` does not have."""
    shutil.copytree(folder / "topk", folder / "topkk")
    rule = folder / "topkk/rule.smk"
    rule.write_text(rule.read_text().replace("topk", "topkk"))
    _relabelled(folder / "topkk/method.yaml")


def _relabelled(facts):
    text = re.sub("label: .*", "label: Other", facts.read_text())
    facts.write_text(re.sub("(color|marker): .*\n", "", text))


def with_the_other_s_parameters(folder):
    """A copy of TopK of which only the rule's parameters were forgotten."""
    without_a_name(folder)
    rule = folder / "topkk/rule.smk"
    rule.write_text(rule.read_text().replace('training_params("topkk")', 'training_params("topk")'))


def with_the_same_label(folder):
    shutil.copytree(folder / "topk", folder / "topkk")


def edited(file, old, new):
    """A change of one place in a file of a method's folder."""

    def change(folder):
        text = (folder / file).read_text()
        assert text.count(old) == 1
        (folder / file).write_text(text.replace(old, new))

    return change


def without_a_rate(folder):
    facts = folder / "topk/method.yaml"
    facts.write_text(re.sub("hyperparameters:(\n .*)*", "hyperparameters: {}", facts.read_text()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            without_a_name,
            "topkk/rule.smk: its script is scripts/train.py, but METHODS in "
            "src/l0plane/methods/__init__.py has no 'topkk'; expected topk?",
        ),
        (
            with_the_other_s_parameters,
            "topkk/rule.smk: params: training_params('topk'); expected",
        ),
        (with_the_same_label, "methods/topk/method.yaml, too; no figure could"),
        (
            edited("topk/rule.smk", "rule train_topk:", "rule topk:"),
            "topk/rule.smk: no rule train_topk; expected one of that name",
        ),
        (
            edited("topk/rule.smk", '**autoencoder("topk",', '**autoencoder("topkk",'),
            "expected **autoencoder('topk') among the outputs of train_topk",
        ),
        (
            edited("topk/rule.smk", INPUT, f'{INPUT} more="it.txt",'),
            "topk/rule.smk: input: no file it.txt, and no rule makes it",
        ),
        (
            edited("relu_scaled/method.yaml", "derived_from: relu", "derived_from: topk"),
            'expected autoencoder("topk")["cfg"], as its method.yaml has derived_from: topk',
        ),
        (without_a_rate, "topk/method.yaml: hyperparameters.learning_rate is missing; scripts/tr"),
    ],
)
def test_what_the_script_cannot_train_stops_it_before_any_job(with_my_method, change, said):
    change(with_my_method / "workflow/methods")
    arguments = ("--dry-run", "--configfile", SMOKE)
    done = snakemake(with_my_method, *arguments, snakefile=with_my_method / "Snakefile")
    assert done.returncode != 0
    assert said in done.stdout
    assert "Traceback" not in done.stdout
    assert "Job stats:" not in done.stdout


def test_style():
    formatted = subprocess.run(
        [BIN / "snakefmt", "--check", SNAKEFILE, REPOSITORY / "workflow"], check=False
    )
    assert formatted.returncode == 0
    linted = snakemake(REPOSITORY, "--lint")
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("run=reference", "run: reference is where the committed tables and figures are"),
        ("run=../x", 'run: "../x" is not what was expected: one folder name'),
        ("methods=[tpok]", "methods: 'tpok' is not a method; expected all, or some of relu"),
    ],
)
def test_a_mistake_stops_it_before_any_job(tmp_path, changes, said):
    done = snakemake(tmp_path, "--cores", 1, "--config", changes)
    assert done.returncode != 0
    assert said in done.stdout
    assert "Traceback" not in done.stdout
    assert "Job stats:" not in done.stdout


def test_a_key_that_stands_twice_in_a_configuration_is_named(tmp_path):
    twice = "run: mine\ntraining: {tokens: 9000}\nmethods: [relu]\ntraining: {batch_tokens: 99}\n"
    (tmp_path / "mine.yaml").write_text(twice)
    done = snakemake(tmp_path, "-n", "--configfile", "mine.yaml")
    assert done.returncode != 0
    assert "mine.yaml:4: not valid YAML ('training' stands there twice)" in done.stdout


def test_of_two_runs_of_one_name_the_second_does_not_begin(tmp_path):
    (tmp_path / "results/default").mkdir(parents=True)
    with (tmp_path / "results/default/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = ("--cores", 1, "--", "results/default/methods.csv")
        done = snakemake(tmp_path, *arguments)
        assert done.returncode != 0
        assert "results/default: another snakemake is at work on this run" in done.stdout
        assert "Traceback" not in done.stdout
        mine = ("--config", "run=mine", "--", "results/mine/methods.csv")
        assert snakemake(tmp_path, "--cores", 1, *mine).returncode == 0
    done = snakemake(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout


def test_a_mistake_that_only_the_text_shows_is_one_message(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / f"text/{number}.txt").write_text(f"A short text, the {number}th of its kind.\n")
    corpus = "corpus={source: files, paths: ['text/*.txt'], validation: 0.2, test: 0.2}"
    done = snakemake(
        *(tmp_path, "--configfile", SMOKE, "--cores", 1, "--config", corpus),
        *("language_model={path: resources/lm}", "--", "results/smoke/contexts/test.safetensors"),
    )
    assert done.returncode != 0
    assert "contexts: activations.train_tokens is 16384; expected at most" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.fixture
def with_my_method(tmp_path):
    """A copy of the workflow with one more method, which is a copy of the template."""
    for name in ("workflow", "config", "profiles", "resources/published"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    methods = tmp_path / "workflow/methods"
    shutil.copytree(methods / "_template", methods / "my_method")
    return tmp_path


def test_what_is_edited_is_made_again_and_nothing_else(with_my_method):
    """Results of nothing but Snakemake's own notes are enough to plan with."""
    shutil.copytree(REPOSITORY / "resources/lm", with_my_method / "resources/lm")
    source = with_my_method / "src/l0plane"
    shutil.copytree(REPOSITORY / "src/l0plane", source)
    methods = ["relu", "relu_scaled", "topk", "multi_topk", "my_method"]
    targets = [f"results/smoke/measurements/{name}/autoencoders.csv" for name in methods]
    targets.append("results/smoke/tuning.csv")

    def smoke(*arguments):
        done = snakemake(
            *(with_my_method, *arguments, "--configfile", SMOKE, "--config", "seeds=1"),
            *("language_model={path: resources/lm}", "sparsity_panel={l0: [8]}"),
            *("refinement={l0: [8]}", "--", *targets),
            snakefile=with_my_method / "Snakefile",
            env={**os.environ, "PYTHONPATH": str(source.parent)},
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def planned(*arguments):
        return {
            re.sub("^together_", "train_", rule)
            for rule in re.findall(r"^(\w+) +\d+$", smoke("--dry-run", *arguments), re.MULTILINE)
        } - {"total", "choose_tuning"}

    for line in smoke("--summary").splitlines():
        path = with_my_method / line.split("\t")[0]
        if "\t" in line and path.name != "output_file":
            folder = path if "/activations/" in str(path) else path.parent
            folder.mkdir(parents=True, exist_ok=True)
            folder == path or path.touch()
    smoke("--touch", "--cores", 1)
    assert planned() == set()

    tuned = {"tune_candidate", "tune_neighbour", "tune_size"}
    relu = {"train_relu", "evaluate_relu", "train_relu_scaled", "evaluate_relu_scaled"}
    topk = {f"{stem}_{name}" for stem in ("train", "evaluate") for name in ("topk", "multi_topk")}
    for file, expected in {
        "src/l0plane/methods/topk.py": topk | tuned,
        "src/l0plane/methods/relu.py": relu | tuned | {"search_lambda"},
        "workflow/methods/my_method/train.py": {"train_my_method", "evaluate_my_method"},
    }.items():
        before = (with_my_method / file).stat()
        text = (with_my_method / file).read_text()
        (with_my_method / file).write_text(f"{text}# edited\n")
        assert planned() == expected
        (with_my_method / file).write_text(text)
        os.utime(with_my_method / file, ns=(before.st_atime_ns, before.st_mtime_ns))

    # What was removed by hand is not missed before what was made of it is asked for.
    shutil.rmtree(with_my_method / "results/smoke/autoencoders/relu")
    assert planned() == set()
    assert planned("--forcerun", "evaluate_relu") == relu


def check_report(path, results, figures):
    """The report holds every figure, table and page of the run, and shows them."""
    report = report_page.read(path)
    paths = [*figures.glob("*.png"), *results.glob("pages/*.html")]
    paths += [*results.glob("*.csv"), *results.glob("tables/*.csv")]
    files = {str(file.relative_to(path.parent)): file for file in paths}
    assert {"figures/smoke/figure10.png", "results/smoke/pages/claims.html"} <= set(files)
    assert set(report["results"]) == set(files)
    for name, entry in report["results"].items():
        assert report_page.content(entry) == files[name].read_bytes()
        assert re.search(r"\b[Cc]laims?\b|equal L0", entry["caption"]), name
    labels = {entry["labels"]["result"]: entry for entry in report["results"].values()}
    assert len(labels) == len(files)
    assert {"Claims", "Frontier", "Refinement", "Progressive codes"} <= set(report["categories"])
    facts = read_json(results / "run.json")
    for said in ("corpus_sha256", "model_sha256", "python"):
        assert facts[said] in report["workflow_desc"]
    assert facts["machine"]["processor"] in report["workflow_desc"]
    assert facts["packages"]["torch"] in report["workflow_desc"]
    assert "delta_ce_contexts: 16" in report["workflow_desc"]
    if report_page.CHROMIUM:
        seen = report_page.seen(path)
        assert "in the L0-MSE plane" in seen.pop("landing")
        assert not seen.pop("cut")
        assert set(seen) == set(labels)
        for label, entry in labels.items():
            if entry["mime_type"] == "image/png":
                assert seen[label] > 300
            elif entry["mime_type"] == "text/html":
                assert seen[label] == "page"
            else:
                assert seen[label] == entry["name"]


def test_all_of_it_at_toy_size(with_my_method):
    """One method of all has a learning rate at which it cannot but fail."""

    def smoke(*arguments):
        arguments = ("--configfile", SMOKE, "--config", absurd, *arguments)
        return snakemake(tmp_path, *arguments, snakefile=tmp_path / "Snakefile")

    def killed_after(seconds, *arguments):
        """All of its processes, as kill -9 does it."""
        arguments = ("--configfile", SMOKE, "--config", absurd, *arguments)
        command = [BIN / "snakemake", "--snakefile", tmp_path / "Snakefile", *arguments]
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=tmp_path,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    absurd = "hyperparameters={prolu_ste: {learning_rate: 1e9}}"

    tmp_path = with_my_method
    done = smoke("--cores", 2)
    assert done.returncode == 0, done.stdout
    results, figures = tmp_path / "results/smoke", tmp_path / "figures/smoke"
    for name in ("figure2", "figure5", "figure9", "figure10", "tuning", "claims", "comparisons"):
        assert (figures / f"{name}.png").stat().st_size > 0
    claims = pd.read_csv(results / "claims.csv")
    assert {f"C{i}" for i in range(1, 19)} == set(claims["claim"])
    comparisons = pd.read_csv(results / "comparisons.csv")
    mine = comparisons[comparisons["method"] == "my_method"]
    assert set(mine["measure"]) == {"nmse", "delta_ce"}
    assert {"better", "worse", "undecided"} >= set(mine["verdict"]) - {"not compared"} != set()
    table = pd.read_csv(results / "autoencoders.csv")
    keys = ["run", "method", "n", "l0_target", "seed"]
    assert list(table.columns[:5]) == keys
    assert not table.duplicated(keys).any()

    tables = [path for path in results.glob("*.*") if path.suffix in (".csv", ".parquet")]
    assert len(tables) >= 14
    for path in tables:
        assert list(tidy.read(path).columns) == documented(path.name.removeprefix("published_"))

    # What failed is a row with its reason, and nothing else.
    failed = table[table["failed"].notna()]
    assert set(failed["method"]) == {"prolu_ste"} == set(table[table["nmse"].isna()]["method"])
    assert failed["failed"].str.contains("exploded at step").all()
    assert "prolu_ste" not in set(pd.read_parquet(results / "contexts.parquet")["method"])
    for page in ("claims.md", "comparisons.md", "tables/summary.md", "tables/points.md"):
        assert "lower the learning rate" in (results / page).read_text()
    lambdas = pd.read_csv(results / "lambdas.csv")
    assert set(lambdas.loc[lambdas["lambda"].isna(), "method"]) == {"prolu_ste"}
    assert list(lambdas.columns) == documented("lambdas.csv")

    # Every rule has run.
    listed = smoke("--list-rules", "--quiet", "all").stdout
    rules = {line for line in listed.splitlines() if line.isidentifier()}
    rules -= {"all", "tune", "lambdas", "language_model"}
    # But for those in whose place one job trained all levels.
    together = {rule for rule in rules if rule.startswith("together_")}
    rules -= {f"train_{rule.removeprefix('together_')}" for rule in together}
    assert {"together_topk", "together_relu_scaled", "together_prolu_ste"} <= together
    assert {"corpus", "train_my_method", "evaluate_topk", "choose_tuning", "draw_claims"} <= rules
    assert {rule for rule in rules if f"Rule: {rule})" not in done.stdout} == set()

    again = smoke("--cores", 2)
    assert "Nothing to be done" in again.stdout
    # Other tests need no other trainings.
    planned = smoke("evaluation={contexts: 24}", "--dry-run").stdout
    assert "evaluate_topk" in planned
    assert not re.search("^(corpus|contexts|activations|together_.*) ", planned, re.MULTILINE)

    # Trained alone, an autoencoder becomes what it became together with others.
    for method in ("relu_scaled", "batch_topk", "prolu_ste"):
        place = results / f"autoencoders/{method}/n128-l4-s0"
        before = {path.name: path.read_bytes() for path in place.iterdir()}
        shutil.rmtree(place)
        alone = smoke(
            "execution={together: false}",
            "--cores",
            2,
            "--",
            f"{place.relative_to(tmp_path)}/cfg.json",
        )
        assert f"Rule: train_{method})" in alone.stdout, alone.stdout
        after = {path.name: path.read_bytes() for path in place.iterdir()}
        for name in ("sae_weights.safetensors", "training.csv"):
            assert after[name] == before[name]
        assert after.keys() == before.keys()

    reported = smoke("--report", "report.html")
    assert reported.returncode == 0, reported.stdout
    check_report(tmp_path / "report.html", results, figures)

    # A flipped bit is found and named; what the message says makes it again, and the same.
    measured = Path("results/smoke/measurements/topk/autoencoders.csv")
    before = pd.read_csv(tmp_path / measured).drop(columns="training_seconds")
    (tmp_path / measured).unlink()
    weights = results / "autoencoders/topk/n128-l8-s0/sae_weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    broken = smoke("--cores", 2, "--", measured)
    assert broken.returncode != 0
    assert "Traceback" not in broken.stdout
    directory = weights.parent.relative_to(tmp_path)
    said = f"evaluate_topk: {directory / weights.name}: not the bytes that were written; "
    said += f"to rebuild it: rm -r {directory}, then the same snakemake command again"
    assert said in broken.stdout
    missing = pd.read_csv(results / "missing.csv")
    assert set(missing["method"]) == {"topk"}
    assert set(missing["reason"]) == {said}
    assert "2 of 20 autoencoders are missing (results/smoke/missing.csv" in broken.stdout
    # Killed, and killed again, it goes on with the same command.
    shutil.rmtree(weights.parent)
    for _ in range(2):
        killed_after(random.uniform(2, 12), "--cores", 2, "--", measured)
    repeated = smoke("--cores", 2, "--", measured)
    assert repeated.returncode == 0, repeated.stdout
    assert not (results / "missing.csv").exists()
    after = pd.read_csv(tmp_path / measured).drop(columns="training_seconds")
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    assert not list(tmp_path.rglob("*.part.*")) + list(tmp_path.rglob("*.checkpoint"))


def test_every_rule_says_what_it_asks_of_a_cluster_or_stays():
    for path in (REPOSITORY / "workflow").rglob("*.smk"):
        text = path.read_text()
        for rule in re.split(r"(?m)^(?=    rule:|rule \w+:)", text)[1:]:
            asked = re.search(r"runtime=|\*\*\w+_resources\(", rule)
            assert "threads:" in rule
            assert asked or "localrule: True" in rule, f"{path}: {rule.splitlines()[:3]}"


def test_no_lambdas_are_collected_where_nothing_is_penalised(tmp_path):
    arguments = ("--configfile", SMOKE, "--config", "methods=[topk]")
    done = snakemake(tmp_path, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout
    assert "together_topk" in done.stdout
    assert "search_lambda" not in done.stdout
    assert "collect_lambdas" not in done.stdout


def test_a_script_of_ones_own_is_neither_tuned_nor_searched_a_lambda_for(with_my_method):
    facts = with_my_method / "workflow/methods/my_method/method.yaml"
    facts.write_text(re.sub("(?m)^knob: .*$", "knob: lambda", facts.read_text()))
    arguments = ("--dry-run", "--configfile", SMOKE, "--config", "methods=[my_method]")
    done = snakemake(with_my_method, *arguments, snakefile=with_my_method / "Snakefile")
    assert done.returncode == 0, done.stdout
    assert "train_my_method" in done.stdout
    assert "search_lambda" not in done.stdout
    assert "tune_candidate" not in done.stdout
