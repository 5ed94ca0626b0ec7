"""What the machine refuses ends a job with one message, and what is then missing is named."""

import errno
import os
import resource
import runpy
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HOOK, autoencoder
from safetensors import SafetensorError
from safetensors.torch import save_file
from test_docs import documented
from test_training import SETTINGS, STORE
from torch.distributed.elastic.multiprocessing.api import SignalException

from l0plane import tidy
from l0plane.autoencoder import save_failed
from l0plane.files import UserError, read_json, sha256, write_json
from l0plane.jobs import AGAIN, job, refusal
from l0plane.missing import Asked, Job, hold, note
from l0plane.processes import Stopped, launch
from l0plane.tokens import save_contexts
from l0plane.training import ALL_DEAD

SCRIPTS = Path(__file__).parents[1] / "workflow/scripts"


@pytest.fixture
def snakemake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(log=["logs/a.log"], rule="a", threads=1, output=[])


def ends(snakemake, work):
    """The message with which a job that does `work` ends; it has no traceback."""
    with pytest.raises(SystemExit) as end, job(snakemake):
        work()
    assert end.value.code == 1
    _, said = Path(snakemake.log[0]).read_text().splitlines()
    assert said.startswith("a: ") and said.count(AGAIN) == 1
    return said


# --- disk


@pytest.fixture
def small_files():
    """No file may be longer than 4,000 bytes: the kernel refuses the rest, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


TABLE = pd.DataFrame(np.random.default_rng(0).random((999, 9)), columns=list("abcdefghi"))


@pytest.mark.parametrize(
    "work",
    [
        lambda: tidy.write(TABLE, "results/table.csv"),
        lambda: tidy.write(TABLE, "results/table.parquet"),
        lambda: save_contexts("results/t.safetensors", np.zeros((999, 9), np.int32)),
        lambda: autoencoder("topk").save("results/sae", {}),
    ],
    ids=["csv", "parquet", "contexts", "autoencoder"],
)
def test_a_full_disk_is_one_message_and_leaves_no_half_file(snakemake, small_files, work):
    assert "no space left on the disk; free some" in ends(snakemake, work)
    assert not [path for path in Path("results").rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file_where_the_system_does(number):
    error = OSError(number, os.strerror(number), "results/x.csv")
    assert refusal(error).startswith("results/x.csv: no space left on the disk")


def test_a_full_disk_is_known_from_what_a_library_says_of_it():
    error = SafetensorError("I/O error: No space left on device (os error 28)")
    assert refusal(error).startswith("no space left on the disk")


def test_a_log_that_cannot_be_written_does_not_stop_a_job(snakemake, capsys):
    snakemake.log = ["/dev/full"]
    with job(snakemake):
        print("half way")
    assert capsys.readouterr().out == "half way\n"


# --- rights


@pytest.fixture
def read_only(snakemake):
    """A folder in which the user may not write; root, who may do all, becomes nobody."""
    for name, mode in (("logs", 0o777), ("results", 0o555), (".", 0o755)):
        Path(name).mkdir(exist_ok=True)
        Path(name).chmod(mode)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)
    Path("results").chmod(0o755)


def test_a_folder_without_write_permission_is_one_message(snakemake, read_only):
    said = ends(snakemake, lambda: tidy.write(TABLE, "results/table.csv"))
    assert "results/" in said and ": no permission; make the file readable" in said


# --- memory


def test_out_of_memory_is_one_message(snakemake):
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 10**8, before[1]))
    try:
        for work in (lambda: torch.ones(10**9), lambda: np.ones(10**9)):
            assert "a: out of memory; free some, or let fewer jobs run" in ends(snakemake, work)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_our_own_mistakes_are_not_taken_for_the_machines():
    assert refusal(RuntimeError("shape mismatch")) is None
    assert refusal(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


# --- trainings that fail


class Named(dict):
    """What Snakemake gives a script: values by name, as keys and as attributes."""

    __getattr__ = dict.__getitem__


@pytest.fixture
def train(tmp_path):
    """A function that trains levels of a method: provenance, table and log of the first."""
    store = tmp_path / "activations"
    store.mkdir()
    save_file({"activations": STORE.x}, store / "0.safetensors")
    digest = sha256(store / "0.safetensors")
    shard = {"file": "0.safetensors", "rows": len(STORE.x), "sha256": digest}
    facts = dict.fromkeys(["hook", "context", "corpus_sha256", "model_sha256"], "-")
    facts |= {"d": STORE.x.shape[1], "tokens": len(STORE.x), "mean": STORE.x.mean(0).tolist()}
    write_json(store / "manifest.json", {**facts, "shards": [shard]})

    def run(method, rate, *levels, **inputs):
        places = [tmp_path / method / level for level in levels]
        snakemake = Named(
            rule=f"train_{method}",
            threads=1,
            resources=Named(),
            input=Named(activations=str(store), **inputs),
            output=Named(cfg=[str(place / "cfg.json") for place in places]),
            log=[str(tmp_path / f"{method}.log")],
            config={
                "execution": {"checkpoint_minutes": 10, "processes": 1, "shard_latents": False}
            },
            params=Named(
                run="r",
                method=method,
                language_model="-",
                settings=SETTINGS | {"tokens": 5120},
                hyperparameters={"learning_rate": rate},
                reference_n=48,
            ),
        )
        runpy.run_path(str(SCRIPTS / "train.py"), {"snakemake": snakemake})
        log = (tmp_path / f"{method}.log").read_text()
        return read_json(places[0] / "provenance.json"), tidy.read(places[0] / "training.csv"), log

    return run


def test_a_training_that_fails_is_a_result_and_so_is_what_derives_from_it(train, tmp_path):
    failing, working = "n48-l3-s0", "n48-l4-s0"
    provenance, table, log = train("relu", 1e9, failing)
    reason = provenance["failed"]
    assert "exploded at step" in reason and reason.endswith("lower the learning rate")
    assert f"relu n=48 L0=3 seed=0: {reason}" in log.splitlines()
    assert provenance["training_tokens"] < 5120
    assert list(table.columns) == [*tidy.KEYS, *tidy.MEASURED["training"]]
    earlier, _, _ = train("relu", 1e-2, working)
    bases = [tmp_path / "relu" / level for level in (failing, working)]
    inputs = {
        "base": [str(base / "cfg.json") for base in bases],
        "base_provenance": [str(base / "provenance.json") for base in bases],
    }
    derived, table, log = train("relu_scaled", 1e-2, failing, working, **inputs)
    assert derived["failed"] == f"derives from what failed: {bases[0]}: {reason}"
    assert derived["training_tokens"] == provenance["training_tokens"]
    assert table.empty
    assert "Traceback" not in log
    # The other level of the same job is none the worse for it.
    other = read_json(tmp_path / "relu_scaled" / working / "provenance.json")
    assert "failed" not in other and other["l0_target"] == 4
    assert other["training_tokens"] == 2 * earlier["training_tokens"] == 2 * 5120
    # Alone, from files that are no lists, it becomes the same.
    together = (tmp_path / "relu_scaled" / working / "sae_weights.safetensors").read_bytes()
    alone = {name: paths[1] for name, paths in inputs.items()}
    train("relu_scaled", 1e-2, working, **alone)
    assert (tmp_path / "relu_scaled" / working / "sae_weights.safetensors").read_bytes() == together


MEASURED = {
    **dict.fromkeys(["autoencoders", "training", "refinement", "refinement_histogram"], "csv"),
    **dict.fromkeys(["contexts", "refinement_contexts", "curve_contexts"], "parquet"),
    "curves": "csv",
}


def script(name, **facts):
    """Run a script of the workflow in this process."""
    snakemake = Named(rule=name, threads=1, resources=Named(), log=[f"logs/{name}.log"], **facts)
    runpy.run_path(str(SCRIPTS / f"{name}.py"), {"snakemake": snakemake})


def dead():
    """An autoencoder none of whose latents is ever active."""
    alive = autoencoder("relu")
    return replace(alive, encoder_bias=torch.full((alive.n,), -99.0))


def measured(method, model, levels):
    """What the evaluation of a method's autoencoders leaves: its tables by name."""
    levels = [[40, l0, 0] for l0 in levels]
    output = {name: f"measurements/{method}/{name}.{kind}" for name, kind in MEASURED.items()}
    script(
        "evaluate",
        input=Named(
            cfg=[f"{method}/{l0}/cfg.json" for _, l0, _ in levels],
            contexts="contexts.safetensors",
            manifest="manifest.json",
        ),
        output=Named(output),
        params=Named(
            **{"run": "r", "method": method, "external": None, "levels": levels},
            **{"refined_levels": levels, "progressive_levels": levels, "points": 4},
            **{"delta_ce_contexts": 4, "contexts": 12, "language_model_path": str(model)},
            language_model={"hook": HOOK, "drop_first_position": True},
        ),
    )
    return output


def test_what_failed_is_a_row_with_its_reason_and_nothing_else(
    tmp_path, monkeypatch, capsys, model_directory, contexts
):
    monkeypatch.chdir(tmp_path)
    save_contexts("contexts.safetensors", contexts)
    write_json("manifest.json", {"sha256": "c"})
    for l0 in (4, 8):
        autoencoder("topk", k=l0).save(f"topk/{l0}", {"training_tokens": 9, "learning_rate": 0.1})
        save_failed(f"relu/{l0}", {"failed": "the loss exploded"})
        dead().save(f"mine/{l0}", {})
    methods = ["topk", "relu", "mine"]
    found = [measured(method, model_directory("gpt2"), [4, 8]) for method in methods]
    output = {name: f"{name}.{kind}" for name, kind in MEASURED.items()}

    def collected():
        script(
            "collect",
            input=Named(
                {name: [one[name] for one in found] for name in output}, manifest="manifest.json"
            ),
            output=Named(output, run="run.json"),
            params=Named(config={"run": "r"}, methods={}, rows=dict.fromkeys(methods, 2)),
        )

    collected()
    whole = Path(found[0]["autoencoders"]).read_text()
    Path(found[0]["autoencoders"]).write_text(whole[: whole.index("\n") + 1])
    with pytest.raises(SystemExit):
        collected()
    assert "topk/autoencoders.csv: 0 rows; expected 2" in capsys.readouterr().err
    Path(found[0]["autoencoders"]).write_text(whole)
    for name, file in output.items():
        table = tidy.read(file)
        assert list(table.columns) == documented(file)
        if name != "autoencoders":
            assert set(table["method"]) == (set() if name == "training" else {"topk"})
    table = tidy.read("autoencoders.csv").set_index("method")
    assert table.loc["topk", "failed"].isna().all() and table.loc["topk", "nmse"].notna().all()
    assert set(table.loc["relu", "failed"]) == {"the loss exploded"}
    assert set(table.loc["mine", "failed"]) == {ALL_DEAD}
    assert table.loc[["relu", "mine"], "l0":"relative_reconstruction_bias"].isna().all(axis=None)

    # Everything is drawn and judged without them, and says so.
    pd.DataFrame({"run": "r", "method": methods, "label": methods}).to_csv("methods.csv")
    tuning = dict.fromkeys(documented("tuning.csv"), 1)
    tuning |= {"corpus_sha256": "c", "model_sha256": "m"}
    pd.DataFrame([tuning]).to_csv("tuning.csv")
    names = ["autoencoders", "contexts", "curve_contexts", "refinement_contexts"]
    script(
        "claims",
        input=Named({name: output[name] for name in names}, tuning="tuning.csv"),
        output=Named(table="claims.csv", page="claims.md"),
        params=Named(external=[]),
    )
    script(
        "comparisons",
        input=Named({name: output[name] for name in names[:2]}, methods="methods.csv"),
        output=Named(table="comparisons.csv", page="comparisons.md"),
        params=Named(external=[]),
    )
    script(
        "tables",
        input=Named(autoencoders="autoencoders.csv", methods="methods.csv"),
        output=Named(summary="tables/summary.csv"),
        params=Named(n=40, levels=[4, 8]),
    )
    for page in ("claims.md", "comparisons.md", "tables/summary.md", "tables/points.md"):
        text = Path(page).read_text()
        assert "the loss exploded" in text and ALL_DEAD in text, page
    for figure in ("figure2", "figure5", "figure9", "figure10"):
        names = ["autoencoders", "curves", "refinement", "refinement_histogram"]
        script(
            "figure",
            input=Named({name: output[name] for name in names}, methods="methods.csv"),
            output=Named(png=f"{figure}.png"),
            params=Named(figure=figure, n=40, l0=4, refined_l0=4),
        )
        assert Path(f"{figure}.png").stat().st_size > 0


# --- what is missing


def asked(seed):
    keys = {"run": "r", "method": "relu", "n": 8, "l0_target": 4, "seed": seed}
    jobs = [("search_lambda", "lambda"), ("train_relu", f"s{seed}"), ("evaluate_relu", "rows")]
    return Asked(keys, [Job(rule, f"{name}.csv", f"{name}.log") for rule, name in jobs])


def test_what_is_missing_is_a_table_with_reasons_until_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lambda.csv", "s0.csv"):
        Path(name).touch()
    Path("s0.log").write_text("train_relu: an old message\n")
    Path("s1.log").write_text("step 7\ntrain_relu: out of memory; free some\n")
    Path("s2.log").write_text("today: train_relu, l0plane 1, 1 thread\nrelu: step 9/64\n")
    Path("s4.log").touch()
    # A message of several lines, and a program of a user's own.
    begun = "today: train_relu, l0plane 1, 1 thread\n"
    Path("s5.log").write_text(f"{begun}train_relu: no tokenizer.\nhf download it,\ncopy it here\n")
    Path("s6.log").write_text("train_relu: epoch 3\nValueError: too few rows\n")
    everything = [asked(seed) for seed in range(7)]
    said = note(everything, "missing.csv")
    assert said.startswith("7 of 7 autoencoders are missing (missing.csv names them):")
    assert "\n  1 x train_relu: out of memory; free some" in said
    table = pd.read_csv("missing.csv")
    assert table["seed"].to_list() == [0, 1, 2, 3, 4, 5, 6]
    assert table["reason"].to_list() == [
        "not begun",
        "train_relu: out of memory; free some",
        "train_relu: stopped without a message, as when killed (out of memory?); "
        "it last said: relu: step 9/64",
        "not begun",
        "train_relu: ended before its log began: an error in what it imports (Snakemake shows it), "
        "or killed",
        "train_relu: no tokenizer. hf download it, copy it here",
        "train_relu: failed; it last said: ValueError: too few rows",
    ]
    for name in (*(f"s{seed}.csv" for seed in range(1, 7)), "rows.csv"):
        Path(name).touch()
    assert note(everything, "missing.csv") == ""
    assert not Path("missing.csv").exists()


def test_what_comes_from_elsewhere_is_missing_until_it_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("theirs.log").write_text("evaluate_theirs: no file\n")
    keys = {"run": "r", "method": "theirs", "n": None, "l0_target": None, "seed": 0}
    measured = Job("evaluate_theirs", "theirs.csv", "theirs.log")
    theirs = Asked(keys, [Job("contexts", "contexts", "contexts.log"), measured], 1)
    assert "1 x evaluate_theirs: no file" in note([theirs, asked(0)], "missing.csv")
    assert Path("missing.csv").read_text().splitlines()[1:] == [
        "r,theirs,,,0,evaluate_theirs: no file",
        "r,relu,8,4,0,not begun",
    ]
    Path("theirs.csv").touch()
    assert note([theirs], "missing.csv") == ""


def test_a_job_that_is_interrupted_says_so_and_has_no_traceback(snakemake, capsys):
    with pytest.raises(SystemExit) as end, job(snakemake):
        raise KeyboardInterrupt
    assert end.value.code == 128 + signal.SIGINT
    said = "a: interrupted; the same command goes on from here"
    assert Path("logs/a.log").read_text().splitlines()[1:] == [said]
    assert capsys.readouterr().err == f"{said}\n"
    keys = {"run": "r", "method": "a", "n": 8, "l0_target": 4, "seed": 0}
    jobs = [Job("a", "a.csv", "logs/a.log"), Job("evaluate_a", "rows.csv", "rows.log")]
    assert f"1 x {said}" in note([Asked(keys, jobs)], "missing.csv")


def test_a_job_that_is_asked_to_end_says_so_and_has_no_traceback(snakemake, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, job(snakemake):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal came to nothing")
    assert end.value.code == 128 + signal.SIGTERM
    said = "a: asked to end (SIGTERM), as at a time limit; the same command goes on from here"
    assert Path("logs/a.log").read_text().splitlines()[1:] == [said]
    assert capsys.readouterr().err == f"{said}\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_of_two_jobs_of_one_rule_and_log_the_second_does_nothing(snakemake, capsys):
    with job(snakemake):
        Path("logs/a.log").unlink()  # as Snakemake does before a job
        with pytest.raises(SystemExit) as end, job(snakemake):
            pytest.fail("it has begun")
    assert end.value.code == 1
    assert "a: logs/a.log: another job is at work on this" in capsys.readouterr().err
    assert not Path("logs/a.log").exists()
    with job(snakemake):  # the lock ends with the job
        pass


def test_a_run_whose_jobs_are_still_at_work_does_not_begin_again(snakemake, tmp_path):
    with job(snakemake), pytest.raises(UserError, match=r"logs/a.log: a job of an earlier snake"):
        hold("results/r", "logs")
    hold("results/s", "logs")


def test_a_job_that_finds_no_gpu_fails_unless_it_may_do_without(snakemake, monkeypatch):
    snakemake.resources = {"gpu": 1}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit), job(snakemake):
        pytest.fail("it runs on the CPU")
    assert "a: gpus: 1, but PyTorch sees none on" in Path("logs/a.log").read_text()
    monkeypatch.setenv("L0PLANE_WITHOUT_GPU", "1")
    with job(snakemake):
        pass
    assert "this job runs on the CPU" in Path("logs/a.log").read_text()


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)]
)
def test_processes_that_are_interrupted_are_no_mistake(monkeypatch, number, raised):
    def interrupted(*arguments):
        raise SignalException("", number)

    monkeypatch.setattr(
        "torch.distributed.launcher.api.elastic_launch", lambda *arguments: interrupted
    )
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(raised):
        launch(2, 2)


def test_the_reason_is_that_of_the_latest_failure(tmp_path, monkeypatch, snakemake):
    """Logs of tries that went well, and whose files were lost since, say nothing about it."""
    monkeypatch.chdir(tmp_path)

    def reason():
        note([asked(0)], "missing.csv")
        return pd.read_csv("missing.csv")["reason"].item()

    def log(name, rule, error=None):
        snakemake.log, snakemake.rule, snakemake.output = [f"{name}.log"], rule, ["a", "b"]
        with suppress(SystemExit), job(snakemake):
            print(f"{rule}: step 1")
            if error:
                raise error

    log("lambda", "search_lambda")
    assert reason() == "not begun"
    # It was done once, and fails when it is done again.
    log("lambda", "search_lambda", UserError("no lambda"))
    assert reason() == "search_lambda: no lambda"
    Path("lambda.csv").touch()
    log("s0", "train_relu")
    assert reason() == "not begun"
    log("s0", "train_relu", UserError("no activations"))
    assert reason() == "train_relu: no activations"
    # Of an earlier run both may be left.
    Path("lambda.csv").unlink()
    os.utime("lambda.log", (1, 1))
    assert reason() == "train_relu: no activations"
    os.utime("s0.log", (0, 0))
    assert reason() == "search_lambda: no lambda"
