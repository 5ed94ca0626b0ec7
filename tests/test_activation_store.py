from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CONTEXT, HOOK, WIDTH
from safetensors.numpy import load_file

from l0plane.activation_store import ActivationStore, write
from l0plane.files import UserError
from l0plane.preprocessing import normalise

PER_CONTEXT = CONTEXT - 1


@pytest.fixture
def written(tmp_path, language_model, contexts):
    """A function that writes a store and opens it."""

    def make(name: str = "store", **changes) -> ActivationStore:
        arguments = {
            "split": "train",
            "tokens": 20 * PER_CONTEXT + 3,
            "shard_tokens": 64,
            "seed": 0,
            "drop_first_position": True,
            "facts": {"corpus_sha256": "c0"},
        }
        write(tmp_path / name, contexts, language_model, **(arguments | changes))
        return ActivationStore(tmp_path / name)

    return make


def in_order(language_model, contexts, first=1):
    residual = language_model.residual(torch.from_numpy(contexts))
    return normalise(residual[:, first:])[0].reshape(-1, WIDTH)


def test_the_manifest_has_the_variance_of_the_models_own_activations(
    written, language_model, contexts
):
    raw = language_model.residual(torch.from_numpy(contexts[:20]))[:, 1:].reshape(-1, WIDTH)
    expected = (raw - raw.mean(0)).double().square().sum(1).mean().item()
    assert written().manifest["raw_variance"] == pytest.approx(expected, rel=1e-5)


def lexical(rows):
    rows = np.asarray(rows)
    return rows[np.lexsort(rows.T)]


def match_rows(found, expected):
    """For each found row, which expected row it is."""
    return torch.cdist(found, expected).argmin(1)


def test_holds_every_activation_once_in_another_order(written, language_model, contexts):
    store = written()
    expected = in_order(language_model, contexts[:20])
    assert store.tokens == 20 * PER_CONTEXT
    everything = store.sample(store.tokens)
    np.testing.assert_allclose(lexical(everything), lexical(expected), atol=1e-6)
    order = match_rows(everything, expected)
    assert (order.diff() == 1).float().mean() < 0.1
    # Over the whole set: the first shard holds rows from the first and the last quarter.
    assert order[:64].min() < 55 < 165 < order[:64].max()


def test_first_position_can_be_kept(written, language_model, contexts):
    store = written(drop_first_position=False, tokens=20 * CONTEXT)
    expected = in_order(language_model, contexts[:20], first=0)
    np.testing.assert_allclose(lexical(store.sample(10**6)), lexical(expected), atol=1e-6)


def test_manifest(written, language_model, contexts):
    store = written()
    facts = store.manifest
    assert facts["hook"] == HOOK
    assert facts["corpus_sha256"] == "c0"
    assert facts["model_sha256"] == language_model.sha256
    assert [shard["rows"] for shard in facts["shards"]] == [64, 64, 64, 28]
    mean = in_order(language_model, contexts[:20]).mean(0)
    torch.testing.assert_close(store.mean, mean, atol=1e-6, rtol=0)
    assert not list(store.directory.glob("*.raw"))


def test_the_same_seed_gives_the_same_bytes(written):
    first, again, other = written("a"), written("b"), written("c", seed=1)
    assert first.manifest == again.manifest
    assert first.manifest["shards"] != other.manifest["shards"]


def test_batches_keep_to_the_budget_and_visit_all_rows_each_epoch(written):
    store = written()
    everything = store.sample(store.tokens)
    batches = list(store.batches(44, 2 * store.tokens + 43, seed=3))
    assert len(batches) == 2 * store.tokens // 44
    assert all(b.shape == (44, WIDTH) and b.is_contiguous() for b in batches)
    assert all(b.dtype == torch.float32 for b in batches)
    orders = match_rows(torch.cat(batches), everything).reshape(2, -1)
    for order in orders:
        assert sorted(order.tolist()) == list(range(store.tokens))
    assert (orders[0] == orders[1]).float().mean() < 0.1


def test_batches_may_be_larger_than_a_shard_and_span_epochs(written):
    store = written()
    (batch,) = store.batches(300, 300, seed=0)
    counts = match_rows(batch, store.sample(store.tokens)).bincount()
    assert sorted(set(counts.tolist())) == [1, 2]


def test_batches_depend_on_the_seed_alone(written):
    store = written()
    a, b, c = (torch.cat(list(store.batches(10, 100, seed=s))) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_too_few_contexts(written, contexts):
    with pytest.raises(UserError, match=r"activations\.train_tokens.*has 30.*and 330"):
        written(tokens=31 * PER_CONTEXT)


def test_a_changed_shard_is_found_when_it_is_read(written):
    store = written()
    path = store.directory / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(ActivationStore(store.directory).sample(100)) == 100
    command = f"rm -r {store.directory}, then the same snakemake command"
    with pytest.raises(UserError, match=rf"shard-00002.*{command}"):
        list(store.batches(10, store.tokens, seed=0))


def test_a_missing_shard_and_a_broken_manifest(written):
    store = written()
    (store.directory / "shard-00000.safetensors").unlink()
    with pytest.raises(UserError, match=r"shard-00000.*no such file.*rm -r .*store,"):
        store.sample(1)
    manifest = store.directory / "manifest.json"
    written = manifest.read_text()
    for broken in ("{}", written[:-9], written.replace('"seed": 0', '"seed": 1'), None):
        manifest.unlink() if broken is None else manifest.write_text(broken)
        with pytest.raises(UserError, match=r"manifest\.json.*rm -r .*store,"):
            ActivationStore(store.directory)


def test_shards_are_plain_safetensors(written):
    store = written()
    shard = load_file(store.directory / "shard-00000.safetensors")["activations"]
    np.testing.assert_array_equal(shard, store.sample(64))
