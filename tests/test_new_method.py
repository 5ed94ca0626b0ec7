"""A new method is one more folder; what it gets wrong is said in one line.

The examples are those of docs/adding-a-method.md, taken from its text.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from test_docs import documented
from test_training import SETTINGS, STORE

from l0plane import tidy
from l0plane.methods import METHODS
from l0plane.training import train

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DOCUMENT = (REPOSITORY / "docs/adding-a-method.md").read_text()
#: What the document says that goes into each file.
EXAMPLES = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE))
KMEANS = {Path(p).name: text for p, text in EXAMPLES.items() if "methods/kmeans/" in p}

#: A method of one's own: one matrix that encodes and decodes, trained in a few lines of PyTorch.
TIED = """
from pathlib import Path

import torch

from l0plane.activation_store import ActivationStore
from l0plane.autoencoder import Autoencoder, TopK
from l0plane.jobs import job

with job(snakemake):
    n, l0, seed = (int(snakemake.wildcards[name]) for name in ("n", "l0", "seed"))
    store = ActivationStore(snakemake.input.activations)
    rows = torch.randn(n, store.d, generator=torch.Generator().manual_seed(seed))
    rows = torch.nn.functional.normalize(rows).requires_grad_()
    optimiser = torch.optim.Adam([rows], 0.01)
    for x in store.batches(256, 8192, seed):
        top = ((x - store.mean) @ rows.T).topk(l0)
        z = torch.zeros(len(x), n).scatter(1, top.indices, top.values.relu())
        error = (x - store.mean - z @ rows).square().sum()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    rows = rows.detach()
    trained = Autoencoder(rows, rows, store.mean, torch.zeros(n), TopK(l0))
    trained.save(Path(snakemake.output.cfg).parent, {"training_tokens": 8192})
"""

#: What a program may get wrong: a change of the example, and what is said to it.
BROKEN = {
    "missing": (
        '    "b_enc": np.full(n, -threshold),\n',
        "",
        "tensor b_enc is missing; a standard autoencoder needs it",
    ),
    "narrow": (
        '"W_enc": directions.T',
        '"W_enc": directions[:-1].T',
        "tensor W_enc has shape (128, 127); expected (128, 128)",
    ),
    "not_finite": (
        '"b_dec": mean',
        '"b_dec": mean * np.nan',
        "b_dec holds values that are not finite",
    ),
    "unknown": (
        '"architecture": "standard"',
        '"architecture": "softmax"',
        "architecture is 'softmax'; expected one of standard, topk, jumprelu, gated",
    ),
}


def add(directory, name, files):
    """Add a method: a folder and nothing else."""
    folder = directory / "workflow/methods" / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text)


def download(directory):
    """An autoencoder of dictionary-learning, which works on activations as they are: x^ = x."""
    both = torch.cat([torch.eye(128), -torch.eye(128)])
    state = {"encoder.weight": both, "encoder.bias": torch.zeros(256)}
    state |= {"decoder.weight": both.T.contiguous(), "bias": torch.zeros(128)}
    directory.mkdir(parents=True)
    torch.save(state, directory / "ae.pt")
    trainer = {"dict_class": "AutoEncoder", "activation_dim": 128}
    (directory / "config.json").write_text(json.dumps({"trainer": trainer}))


def snakemake(directory, *arguments, **variables):
    """Run Snakemake as a user does in the repository; what it printed."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= variables
    done = subprocess.run(
        ["snakemake", "--cores", "2", *map(str, arguments)],
        cwd=directory,
        env=environment,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


@pytest.fixture
def repository(tmp_path):
    """What of the repository is not installed, and a configuration in which a run is small."""
    for name in ("Snakefile", "workflow", "config", "profiles", "environment.yml"):
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, tmp_path / name)
        elif (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, tmp_path)
    changes = {
        "methods": ["tied", "kmeans"],
        "language_model": {"path": str(REPOSITORY / "resources/lm")},
        "published": str(REPOSITORY / "resources/published/gpt2_small_resid8_n24576.csv"),
        "sparsity_panel": {"l0": [8]},
        "external": {
            "elsewhere": {
                "format": "dictionary_learning",
                "paths": ["downloads/a", "downloads/b"],
                "label": "From elsewhere",
            }
        },
        "refinement": {"methods": ["tied", "elsewhere"], "l0": [8]},
        "progressive": {"methods": ["tied", "elsewhere"]},
    }
    for name in ("a", "b"):
        download(tmp_path / "downloads" / name)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(changes))
    return tmp_path


def test_folders_are_all_it_takes(repository):
    assert "l0plane" not in KMEANS["kmeans.py"]
    add(repository, "kmeans", KMEANS)
    template = repository / "workflow/methods/_template"
    rule = (template / "rule.smk").read_text().replace("my_method", "tied")
    facts = (template / "method.yaml").read_text()
    add(repository, "tied", {"rule.smk": rule, "method.yaml": facts, "train.py": TIED})
    small = ("--configfile", "config/smoke.yaml", "small.yaml")
    results, figures = repository / "results/smoke", repository / "figures/smoke"

    code, said = snakemake(
        repository, *small, "--", "figures/smoke/figure2.png", "results/smoke/tables/points.md"
    )
    assert code == 0, said
    assert (figures / "figure2.png").stat().st_size > 0
    table = pd.read_csv(results / "autoencoders.csv").set_index("method")
    found = table.loc["elsewhere"]
    assert found["source"].tolist() == [f"dictionary_learning downloads/{name}" for name in "ab"]
    assert found["seed"].tolist() == [0, 1]
    assert found["weights_sha256"].nunique() == 1
    assert found["nmse"].max() < 1e-9
    assert found["l0"].to_numpy() == pytest.approx(128, abs=0.1)
    assert (found["l0_target"] == 128).all()
    for name in ("refinement", "curves"):
        assert set(pd.read_csv(results / f"{name}.csv")["method"]) == {"tied", "elsewhere"}
    assert "From elsewhere" in (results / "tables/points.md").read_text()
    table = table.drop(index="elsewhere")
    assert set(table.index) == {"tied", "kmeans"}
    assert table.loc["tied", "l0"] == pytest.approx(8, abs=0.1)
    assert table.loc["kmeans", "l0"] == pytest.approx(8, rel=0.3)
    assert table["nmse"].between(0, 1).all()
    assert table.loc["tied", "training_tokens"] == 8192

    tables = [path for path in results.glob("*.*") if path.suffix in (".csv", ".parquet")]
    tables = [path for path in tables if path.name != "training.csv"]  # neither of them wrote any
    assert len(tables) == 8
    for path in tables:
        assert list(tidy.read(path).columns) == documented(path.name), path.name

    for number, (name, (right, wrong, _)) in enumerate(BROKEN.items()):
        assert right in KMEANS["kmeans.py"]
        program = KMEANS["kmeans.py"].replace(right, wrong)
        rule = KMEANS["rule.smk"].replace('"kmeans"', f'"{name}"').replace("_kmeans", f"_{name}")
        facts = yaml.safe_load(KMEANS["method.yaml"]) | {"label": name}
        facts["color"] = f"#{number:06x}"
        files = {"kmeans.py": program, "rule.smk": rule, "method.yaml": yaml.safe_dump(facts)}
        add(repository, name, {**KMEANS, **files})
    (repository / "downloads/b/ae.pt").write_bytes(b"half a download")
    targets = [f"results/smoke/measurements/{m}/autoencoders.csv" for m in (*BROKEN, "elsewhere")]
    methods = f"methods=[{', '.join(BROKEN)}]"
    code, said = snakemake(repository, *small, "--keep-going", "--config", methods, "--", *targets)
    assert code != 0
    for name, (_, _, message) in BROKEN.items():
        log = (repository / f"logs/smoke/evaluate/{name}.log").read_text()
        assert message in log
        assert "Traceback" not in log
    missing = pd.read_csv(results / "missing.csv").set_index("method").loc["elsewhere"]
    assert missing["n"].isna().all()
    assert missing["seed"].tolist() == [0, 1]
    (reason,) = set(missing["reason"])
    assert reason.startswith("evaluate_elsewhere: downloads/b/ae.pt: ")


def test_a_method_inside_l0plane(monkeypatch):
    names = {}
    exec(EXAMPLES["src/l0plane/methods/log_penalty.py"], names)
    monkeypatch.setitem(METHODS, "log_penalty", names["LogPenalty"])
    facts = yaml.safe_load(EXAMPLES["workflow/methods/log_penalty/method.yaml"])
    hyperparameters = {**facts["hyperparameters"], "learning_rate": 5e-3}
    settings = {**SETTINGS, "tokens": 120_000}
    autoencoder, log, _ = train("log_penalty", STORE, 48, 4, 0, settings, hyperparameters)
    assert autoencoder.encode(STORE.x).l0.float().mean().item() == pytest.approx(4, rel=0.1)
    assert log["nmse"].iloc[-1] < 0.35
