"""What `make gpu` measures runs, at toy size and without a GPU; the speeds mean nothing."""

import importlib.util
import io
from pathlib import Path

import pytest
import torch


@pytest.fixture
def benchmark(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks/gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"D": 24, "N": 48, "K": 4, "BATCH": 192, "STEPS": 1, "WARM_UP": 1}.items():
        monkeypatch.setattr(module, name, value)
    yield module
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("way", ["product", "l0plane", "language_model"])
def test_each_way_gives_its_row(benchmark, way):
    row = benchmark.measure(way, "highest")
    assert list(row) == benchmark.COLUMNS
    milliseconds = pytest.approx(row["milliseconds"], rel=0.01, abs=6e-4)  # both are rounded
    assert 192e3 / row["tokens_per_second"] == milliseconds


@pytest.mark.parametrize("method", ["topk", "jumprelu"])
def test_a_small_autoencoder_waits_for_the_others_and_counts_its_steps(
    benchmark, monkeypatch, capsys, method
):
    monkeypatch.setattr(benchmark, "SMALL", {"d": 8, "n": 16, "k": 2, "batch_tokens": 8})
    monkeypatch.setattr(benchmark, "SECONDS", 0.1)
    monkeypatch.setattr(benchmark.sys, "stdin", io.StringIO("begin\n"))
    benchmark.small(method)
    ready, steps = capsys.readouterr().out.split()
    assert ready == "ready"
    assert int(steps) > 0
