"""What a script's person sees and what its log keeps; how tuning chooses; the order of columns."""

import math
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from l0plane import __version__, tidy
from l0plane.autoencoder import Autoencoder, TopK
from l0plane.files import UserError
from l0plane.jobs import job
from l0plane.plan import at_level
from l0plane.processes import _cause
from l0plane.tuning import CLIMB, choose, climb, neighbour, sides, size_factors, validate


@pytest.fixture
def snakemake(tmp_path):
    return SimpleNamespace(
        log=[str(tmp_path / "logs/a.log")], rule="a", threads=1, output=["results/a.csv"]
    )


def log_of(snakemake):
    return Path(snakemake.log[0]).read_text(encoding="utf-8")


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_one_prints_and_none_says_its_mistake(
    snakemake, tmp_path, capsys, monkeypatch, rank
):
    file = tmp_path / "error.json"
    launched = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "TORCHELASTIC_ERROR_FILE": file}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    Path(snakemake.log[0]).parent.mkdir()
    Path(snakemake.log[0]).write_text("before\n")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), job(snakemake):
        # torchrun ends it: one that waits for another would run no handler of Python's.
        assert signal.getsignal(signal.SIGTERM) is handler
        print("half way")
        raise UserError("key: 3; expected 2")
    said = "" if rank else "half way\n"
    assert capsys.readouterr() == (said, "")
    assert log_of(snakemake) == "before\n" + said
    failure = ProcessFailure(local_rank=rank, pid=1, exitcode=1, error_file=str(file))
    assert _cause({rank: failure}, 2) == "key: 3; expected 2"


def test_what_a_job_prints_is_in_the_terminal_and_in_the_log(snakemake, capsys):
    with job(snakemake):
        print("half way")
    assert capsys.readouterr().out == "half way\n"
    started, printed, done, written = log_of(snakemake).splitlines()
    assert started.endswith(f": a, l0plane {__version__}, 1 thread")
    assert printed == "half way"
    assert done.startswith("done in ")
    assert written == "  results/a.csv"


def test_what_a_job_says_last_stands_behind_what_its_processes_wrote(snakemake):
    with job(snakemake):
        pass
    with pytest.raises(SystemExit), job(snakemake):
        with Path(snakemake.log[0]).open("a") as other:
            other.write("from another process, a longer line than the last\n")
        raise UserError("key: 3; expected 2")
    _, other, said = log_of(snakemake).splitlines()
    assert other == "from another process, a longer line than the last"
    assert said == "a: key: 3; expected 2"


def test_a_users_mistake_is_one_message_and_a_failure(snakemake, capsys):
    with pytest.raises(SystemExit) as end, job(snakemake):
        raise UserError("seeds: 0 is too few")
    assert end.value.code == 1
    said = "a: seeds: 0 is too few\n"
    assert capsys.readouterr().err == said
    assert log_of(snakemake).endswith(said)


def test_our_own_mistake_is_in_the_log_with_its_place(snakemake):
    with pytest.raises(SystemExit) as end, job(snakemake):
        at_level({"learning_rate": {}}, 64, 10, 64)  # l0plane's own code raises it
    assert end.value.code == 1
    *_, last = log_of(snakemake).splitlines()
    assert "Traceback" in log_of(snakemake)
    assert re.fullmatch(
        r"a: \w+: .* \(.*l0plane/plan\.py:\d+\); a mistake of the program, or of a method's code",
        last,
    )


def test_of_an_error_of_several_lines_the_first_is_the_message(snakemake):
    with pytest.raises(SystemExit), job(snakemake):
        raise RuntimeError("CUDA error: out of luck\nCompile with more\nlines")
    *_, last = log_of(snakemake).splitlines()
    assert last.startswith("a: RuntimeError: CUDA error: out of luck (")


def candidates(**columns):
    keys = {"method": "a", "n": 64, "l0_target": 10}
    keys |= {"l0": 10.0, "nmse": 0.5, "training_tokens": 1}
    return pd.DataFrame({**keys, **columns})


def test_the_least_error_of_each_method_at_each_level_is_chosen():
    l0 = {"l0_target": [10, 10, 10, 20, 10], "l0": [10.0, 10.0, 10.0, 20.0, 10.0]}
    nmse, n = [0.3, 0.2, 0.9, 0.25, 0.4], [64, 64, 64, 64, 32]
    table = choose(candidates(method=["a", "a", "b", "a", "a"], n=n, nmse=nmse, **l0))
    assert table["chosen"].tolist() == [False, True, True, True, True]
    assert table.columns[-1] == "training_tokens"


def test_what_diverged_is_never_chosen():
    # Lost its numbers; is worse than the mean; missed its L0; is fine.
    table = choose(candidates(nmse=[math.nan, 1.5, 0.1, 0.4], l0=[math.nan, 10, 20, 10]))
    assert table["diverged"].tolist() == [True, True, False, False]
    assert table["off_target"].tolist() == [True, False, True, False]
    assert table["chosen"].tolist() == [False, False, False, True]


def test_neighbours_of_the_best_of_the_grid_have_its_knob():
    rates = {"learning_rate": [0.001, 0.002, 0.004, 0.002]}
    knob = {"knob": "width", "value": [1.0, 1.0, 1.0, 3.0]}
    grid = candidates(nmse=[0.4, 0.3, 0.1, 0.2], l0=[10.0, 10.0, 20.0, 10.0], **rates, **knob)
    assert neighbour(grid, "lower") == {"learning_rate": 0.0014, "width": 3.0}
    assert neighbour(grid, "higher") == {"learning_rate": 0.0028, "width": 3.0}
    plain = grid.assign(knob=None, value=math.nan)
    assert neighbour(plain, "higher") == {"learning_rate": 0.0028}
    # None that can be chosen: beside the one nearest to its L0 of those that did not diverge.
    none = plain.assign(nmse=[math.nan, 0.1, 0.3, 4.0], l0=[math.nan, 20.0, 12.0, 10.0])
    assert neighbour(none, "lower") == {"learning_rate": 0.0028}
    assert sides([0.001]) == []


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1.0, [0.71, 1, 1.4]),
        (1.9, [0.71, 1, 1.4, 2, 2.8]),
        (0.4, [0.25, 0.35, 0.5, 0.71, 1, 1.4]),
        (99, [0.71, 1, 1.4, 2, 2.8, 4, 5.7]),  # as many as are tried at most
    ],
)
def test_a_climb_ends_with_worse_rates_on_both_sides_of_the_best(best, tried):
    def candidate(rate):
        return candidates(learning_rate=[rate], nmse=abs(math.log(rate / 0.01 / best)) / 10)

    rates = climb(0.01, candidate)["learning_rate"].tolist()
    assert rates == pytest.approx([0.01 * factor for factor in tried])
    assert len(rates) <= CLIMB


def test_a_climb_goes_on_from_what_can_be_chosen_alone():
    def candidate(rate):  # lower rates look better, but have missed their L0; then all of them
        return candidates(learning_rate=[rate], nmse=rate, l0=10.0 if rate > missed else 20.0)

    missed = 0.008
    assert len(climb(0.01, candidate)) == 3
    missed = 1
    assert len(climb(0.01, candidate)) == 3


def test_a_factor_printed_for_a_size_gives_the_rate_that_was_chosen_there():
    n, l0 = {"n": [64, 64, 256, 256]}, {"l0_target": [10, 20, 10, 10]}
    rates = [0.008, 0.004, 0.0057, 0.01]
    chosen = candidates(method=["a", "a", "a", "b"], learning_rate=rates, **n, **l0)
    factors = size_factors(chosen, 64, 10)
    assert factors.isna().tolist() == [True, True, False, True]  # b has none to compare with
    tied = pd.concat([chosen, chosen.head(1)], ignore_index=True)
    assert size_factors(tied, 64, 10)[2] == factors[2]
    own = {"learning_rate": {10: 0.008, 20: 0.004}, "learning_rate_factor": {256: factors[2]}}
    assert at_level(own, 256, 10, 64)["learning_rate"] == pytest.approx(0.0057, rel=0.01)


def test_validation_is_in_float32_where_training_is_not(monkeypatch):
    encoder = torch.eye(4)
    autoencoder = Autoencoder(encoder, encoder, torch.zeros(4), torch.zeros(4), TopK(2))
    x, seen, encode = torch.randn(8, 4), [], Autoencoder.encode

    def watched(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return encode(*arguments)

    monkeypatch.setattr(Autoencoder, "encode", watched)
    torch.set_float32_matmul_precision("medium")
    try:
        validate(autoencoder, SimpleNamespace(tokens=8, sample=lambda rows: x))
        assert (seen, torch.get_float32_matmul_precision()) == (["highest"], "medium")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_validation_of_a_known_autoencoder():
    """The first of two latents reads and writes its axis; the second axis is lost."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 2, generator=generator).abs()
    axes = torch.eye(2)
    autoencoder = Autoencoder(axes[:1], axes[:1], torch.zeros(2), torch.zeros(1), TopK(1))
    store = SimpleNamespace(tokens=len(x), sample=lambda rows: x[:rows])
    measured = validate(autoencoder, store)
    expected = x[:, 1].square().sum() / (x - x.mean(0)).square().sum()
    assert measured["nmse"] == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < measured["nmse_se"] < 0.1 * measured["nmse"]
    assert measured["l0"] == 1
    assert measured["dead_fraction"] == 0


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_comes_back_with_keys_first_and_provenance_last(tmp_path, suffix):
    table = tidy.arrange(
        pd.DataFrame({"nmse": [0.1, 0.2]}), {"run": "r", "n": 4}, {"version": "1.0b"}
    )
    assert list(table.columns) == ["run", "n", "nmse", "version"]
    tidy.write(table, tmp_path / f"t.{suffix}")
    pd.testing.assert_frame_equal(tidy.read(tmp_path / f"t.{suffix}"), table)
