"""From directories in the hub's own formats, without a network, to a measured autoencoder.

A model in sharded safetensors with its tokenizer, a Parquet data set; only names differ between
the architectures.
"""

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CONTEXT, HOOK, VOCABULARY, WIDTH, small_model

from l0plane import activation_store, corpus
from l0plane.activation_store import ActivationStore
from l0plane.evaluation.held_out import HeldOut
from l0plane.evaluation.reconstruction import evaluate
from l0plane.files import UserError, read_json
from l0plane.language_model import LanguageModel
from l0plane.tokens import encode_contexts, load_tokenizer, train_tokenizer
from l0plane.training import train

TRAINING = {
    "tokens": 40_000,
    "batch_tokens": 128,
    "warmup_steps": 0,
    "decay_share": 0.2,
    "ema": 0.99,
    "clip_norm": 1.0,
    "dead_after_tokens": 4_000,
    "aux_k": 8,
    "aux_weight": 1 / 32,
}


@pytest.fixture(scope="module", autouse=True)
def offline():
    """The hub as it is without a network."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """400 documents of a language of 40 words, as `hf download --repo-type dataset` leaves them."""
    directory = tmp_path_factory.mktemp("hub") / "openwebtext"
    (directory / "data").mkdir(parents=True)
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefgh"), 3)) for _ in range(40)]
    texts = [" ".join(draw.choice(words, 30)) for _ in range(400)]
    path = directory / "data/train-00000-of-00001.parquet"
    pq.write_table(pa.table({"text": texts}), path)
    (directory / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Documents\n")
    return directory


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
def test_from_the_text_to_a_measured_autoencoder(architecture, dataset, tmp_path):
    spec = {"source": "hub", "dataset": str(dataset), "documents": 400}
    spec |= {"validation": 0.1, "test": 0.1}
    corpus.build(spec, tmp_path / "documents.parquet", tmp_path / "manifest.json")

    path = tmp_path / architecture
    small_model(architecture).save_pretrained(path, max_shard_size="10KB")
    shards = sorted(path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert not (path / "model.safetensors").exists()
    assert set(read_json(path / "model.safetensors.index.json")["weight_map"].values()) == {
        shard.name for shard in shards
    }
    train_tokenizer(corpus.split_texts(tmp_path / "documents.parquet", "train"), VOCABULARY, path)

    tokenizer = load_tokenizer(path)
    contexts = {
        split: encode_contexts(
            corpus.split_texts(tmp_path / "documents.parquet", split), tokenizer, CONTEXT
        )
        for split in ("train", "test")
    }
    language_model = LanguageModel.load(path, HOOK)
    activation_store.write(
        tmp_path / "activations",
        contexts["train"],
        language_model,
        split="train",
        tokens=20_000,
        shard_tokens=8_000,
        seed=0,
        drop_first_position=True,
        facts={},
    )
    store = ActivationStore(tmp_path / "activations")
    assert store.d == WIDTH
    autoencoder, _, _ = train("topk", store, 64, 8, 0, TRAINING, {"learning_rate": 3e-3})
    held_out = HeldOut(language_model, contexts["test"][:40], drop_first_position=True)
    row, _ = evaluate(autoencoder, held_out)
    assert row["l0"] == pytest.approx(8, rel=0.05)
    assert row["nmse"] < 0.3
    assert row["loss_recovered_mean"] > 0.5


def test_a_revision_of_a_model_and_its_tokenizer(tmp_path, monkeypatch):
    """From the hub's own cache, as a machine without network finds it there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    hashes = {}
    for revision, commit in (("main", "0" * 40), ("step9", "1" * 40)):
        (repository / "refs" / revision).write_text(commit)
        folder = repository / "snapshots" / commit
        small_model("gpt2", seed=len(hashes)).save_pretrained(folder)
        train_tokenizer([f"{revision} " * 9], 257 + len(hashes), folder)
        hashes[revision] = LanguageModel.load(folder, HOOK).sha256
    assert hashes["main"] != hashes["step9"]
    assert LanguageModel.load("someone/model", HOOK).sha256 == hashes["main"]
    assert LanguageModel.load("someone/model@step9", HOOK).sha256 == hashes["step9"]
    assert [len(load_tokenizer(f"someone/model{at}")) for at in ("", "@step9")] == [257, 258]
    with pytest.raises(UserError, match=r"hf download someone/model .* --revision step8 "):
        LanguageModel.load("someone/model@step8", HOOK)


def test_what_cannot_be_reached_is_said_with_the_commands_that_bring_it():
    name = r"hf download no/such-model --repo-type model .*\n.*language_model\.path: hub/such-model"
    with pytest.raises(UserError, match=rf"language_model\.path: no/such-model .*\n.*\n.*{name}"):
        LanguageModel.load("no/such-model", HOOK)
    with pytest.raises(UserError, match=rf"language_model\.path: no tokenizer .*\n.*\n.*{name}"):
        load_tokenizer("no/such-model")
    with pytest.raises(
        UserError,
        match=r"(?s)corpus\.dataset: cannot read 'no/text'.*"
        r"hf download no/text --repo-type dataset .*'corpus=\{dataset: hub/text\}'",
    ):
        next(corpus.hub_documents({"dataset": "no/text", "documents": 3}))
    spec = {"dataset": "no/text", "revision": "refs/convert/parquet", "documents": 3}
    with pytest.raises(UserError, match=r"--repo-type dataset --revision refs/convert/parquet "):
        next(corpus.hub_documents(spec))


def test_a_data_set_that_is_a_loading_script_is_not_run(tmp_path):
    (tmp_path / "scripted").mkdir()
    mark = tmp_path / "ran"
    (tmp_path / "scripted/scripted.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with pytest.raises(UserError, match=r"corpus\.dataset: cannot read .*[Ss]cripts"):
        next(corpus.hub_documents({"dataset": str(tmp_path / "scripted"), "documents": 3}))
    assert not mark.exists()
