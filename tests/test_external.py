"""Autoencoders trained elsewhere: each format against its library's formula, on raw activations."""

import json
import os
import pickle

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import relu

from l0plane import external
from l0plane.files import UserError
from l0plane.preprocessing import normalise, restore

N, D, ROWS, K = 24, 8, 60, 3
RAW = 5 * torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0)) + 2


def draw(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(autoencoder, raw=RAW):
    """Codes and reconstructions of raw activations, as the benchmark comes to them."""
    x, mean, scale = normalise(raw, autoencoder.normalisation)
    code = autoencoder.encode(x)
    return code.to_dense(), restore(autoencoder.decode(code), mean, scale)


def agree(kind, path, z, reconstruction):
    """What is read gives the code `z` and the `reconstruction` of RAW."""
    found = external.read(kind, path)
    code, x_hat = measured(found.autoencoder)
    assert 0 < (z > 0).sum() < z.numel()
    torch.testing.assert_close(code, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x_hat, reconstruction, rtol=1e-4, atol=1e-4)
    return found


def top_k(v):
    return torch.where(v >= v.topk(K).values[:, -1:], v, 0.0).relu()


# --- SAELens


def saelens(directory, weights, **config):
    directory.mkdir(exist_ok=True)
    save_file(
        {name: w.contiguous() for name, w in weights.items()}, directory / "sae_weights.safetensors"
    )
    config = {"d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu", **config}
    (directory / "cfg.json").write_text(json.dumps(config))
    return directory


SAELENS = {
    "W_enc": draw(D, N),
    "b_enc": draw(N, seed=2),
    "W_dec": draw(N, D, seed=3),
    "b_dec": draw(D, seed=4),
}


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    "how", ["none", "layer_norm", "constant_norm_rescale", "expected_average_only_in"]
)
def test_saelens_normalisations(tmp_path, how, centred):
    if how == "layer_norm":
        mean, scale = RAW.mean(1, keepdim=True), RAW.std(1, keepdim=True) + 1e-5
    elif how == "constant_norm_rescale":
        mean, scale = 0.0, RAW.norm(dim=1, keepdim=True) / D**0.5
    else:
        mean, scale = 0.0, 1.0
    x = (RAW - mean) / scale
    z = relu((x - centred * SAELENS["b_dec"]) @ SAELENS["W_enc"] + SAELENS["b_enc"])
    x_hat = (z @ SAELENS["W_dec"] + SAELENS["b_dec"]) * scale + mean
    config = {"architecture": "standard", "apply_b_dec_to_input": centred}
    metadata = {"metadata": {"hook_name": "blocks.1.hook_resid_post"}}
    path = saelens(tmp_path / "sae", SAELENS, **config, normalize_activations=how, **metadata)
    assert agree("saelens", path, z, x_hat).hook == "blocks.1.hook_resid_post"


def test_saelens_top_k_that_weighs_latents_by_their_decoder(tmp_path):
    norm = SAELENS["W_dec"].norm(dim=1)
    z = top_k(((RAW - SAELENS["b_dec"]) @ SAELENS["W_enc"] + SAELENS["b_enc"]) * norm)
    x_hat = z / norm @ SAELENS["W_dec"] + SAELENS["b_dec"]
    config = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    agree("saelens", saelens(tmp_path / "sae", SAELENS, **config), z, x_hat)


@pytest.mark.parametrize("function", [None, "relu", "topk"])
def test_saelens_before_version_6(tmp_path, function):
    v = (RAW - SAELENS["b_dec"]) @ SAELENS["W_enc"] + SAELENS["b_enc"]
    z = top_k(v) if function == "topk" else relu(v)
    config = {
        "activation_fn_str": function,
        "activation_fn_kwargs": {"k": K} if function == "topk" else {},
        "normalize_activations": None,
        "hook_point": "blocks.0.hook_resid_pre",
    }
    if function is None:  # at first there was no other
        del config["activation_fn_str"]
    path = saelens(tmp_path / "sae", SAELENS | {"scaling_factor": torch.ones(N)}, **config)
    found = agree("saelens", path, z, z @ SAELENS["W_dec"] + SAELENS["b_dec"])
    assert found.hook == "blocks.0.hook_resid_pre"


# --- dictionary-learning


def linear(bias="b_dec"):
    return {
        "encoder.weight": SAELENS["W_enc"].T.contiguous(),
        "encoder.bias": SAELENS["b_enc"],
        "decoder.weight": SAELENS["W_dec"].T.contiguous(),
        bias: SAELENS["b_dec"],
    }


def dictionary(directory, state, kind):
    directory.mkdir(exist_ok=True)
    torch.save(state, directory / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": N, "k": K}
    (directory / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    return directory


def dictionaries():
    """dict_class, state, code and reconstruction of RAW by the formula of that class."""
    w, threshold = SAELENS, torch.tensor(4.0)
    centred = (RAW - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    plain = RAW @ w["W_enc"] + w["b_enc"]
    norm = w["W_dec"].norm(dim=1)

    def decoded(z):
        return z @ w["W_dec"] + w["b_dec"]

    yield "AutoEncoder", linear("bias"), relu(centred) * norm, decoded(relu(centred))
    yield "AutoEncoderNew", linear("decoder.bias"), relu(plain), decoded(relu(plain))
    more = {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
    yield "AutoEncoderTopK", linear() | more, top_k(centred), decoded(top_k(centred))
    z = relu(centred) * (relu(centred) > threshold)
    more = {"k": torch.tensor(K), "threshold": threshold}
    yield "BatchTopKSAE", linear() | more, z, decoded(z)
    groups = {"group_sizes": torch.tensor([N // 2, N // 2])}
    yield "MatryoshkaBatchTopKSAE", w | more | groups, z, decoded(z)
    z = relu(plain * (plain > draw(N, seed=5)))
    yield "JumpReluAutoEncoder", w | {"threshold": draw(N, seed=5)}, z, decoded(z)
    a = (RAW - w["b_dec"]) @ w["W_enc"]
    gate, magnitude, r = draw(N, seed=6), draw(N, seed=7), draw(N, seed=8, scale=0.3)
    z = (a + gate > 0) * relu(r.exp() * a + magnitude)
    state = {"gate_bias": gate, "mag_bias": magnitude, "r_mag": r, **linear("decoder_bias")}
    del state["encoder.bias"]
    yield "GatedAutoEncoder", state, z, decoded(z)


@pytest.mark.parametrize(
    "kind,state,z,x_hat", [*dictionaries()], ids=lambda v: v if isinstance(v, str) else ""
)
def test_dictionary_learning(tmp_path, kind, state, z, x_hat):
    agree("dictionary_learning", dictionary(tmp_path / "ae", state, kind), z, x_hat)


# --- sparsify and the paper's release


def sparsify(directory, **config):
    directory.mkdir(exist_ok=True)
    state = {**linear(), "W_dec": SAELENS["W_dec"]}
    del state["decoder.weight"]
    save_file(state, directory / "sae.safetensors")
    config = {
        "activation": "topk",
        "k": K,
        "d_in": D,
        "num_latents": N,
        "transcode": False,
        **config,
    }
    (directory / "cfg.json").write_text(json.dumps(config))
    return directory


def test_sparsify(tmp_path):
    z = top_k((RAW - SAELENS["b_dec"]) @ SAELENS["W_enc"] + SAELENS["b_enc"])
    agree("sparsify", sparsify(tmp_path / "layers.1"), z, z @ SAELENS["W_dec"] + SAELENS["b_dec"])


def release(path, function, postact="ReLU"):
    state = {
        "pre_bias": SAELENS["b_dec"],
        "encoder.weight": SAELENS["W_enc"].T.contiguous(),
        "latent_bias": SAELENS["b_enc"],
        "decoder.weight": SAELENS["W_dec"].T.contiguous(),
        "stats_last_nonzero": torch.zeros(N, dtype=torch.int64),
        "activation": function,
    }
    if function == "TopK":
        state["activation_state_dict"] = {"k": K, "postact_fn": postact}
    torch.save(state, path)
    return path


@pytest.mark.parametrize("function", ["TopK", "ReLU"])
def test_the_release_of_the_papers_authors(tmp_path, function):
    mean, scale = 0.0, 1.0
    if function == "TopK":  # of these alone the inputs were normalised
        mean = RAW.mean(1, keepdim=True)
        scale = (RAW - mean).std(1, keepdim=True) + 1e-5
    v = ((RAW - mean) / scale - SAELENS["b_dec"]) @ SAELENS["W_enc"] + SAELENS["b_enc"]
    z = top_k(v) if function == "TopK" else relu(v)
    x_hat = (z @ SAELENS["W_dec"] + SAELENS["b_dec"]) * scale + mean
    agree("openai", release(tmp_path / "8.pt", function), z, x_hat)


# --- what is refused


class Surprise:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("content", [b"half a download", b"<html>", b"a", b"", b"."])
def test_what_is_no_state_dictionary_is_named(tmp_path, content):
    (tmp_path / "8.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"8.pt: not a state dictionary that can be read"):
        external.read("openai", tmp_path / "8.pt")


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"encoder.weight": Surprise()}, tmp_path / "8.pt")
        with pytest.raises(UserError, match=r"8.pt: not a state dictionary that can be read"):
            external.read("openai", tmp_path / "8.pt")
    assert not (tmp_path / "executed").exists()


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


REFUSED = {
    "no file": (lambda p: ("openai", p / "8.pt"), "8.pt: no such file"),
    "unknown class": (
        lambda p: ("dictionary_learning", dictionary(p, {}, "CrossCoder")),
        "trainer.dict_class is 'CrossCoder'; expected one of AutoEncoder",
    ),
    "missing tensor": (
        lambda p: (
            "dictionary_learning",
            dictionary(p, without(linear("bias"), "bias"), "AutoEncoder"),
        ),
        "ae.pt: tensor bias is missing; a standard autoencoder needs it",
    ),
    "wrong shape": (
        lambda p: (
            "dictionary_learning",
            dictionary(p, linear() | {"b_dec": draw(3)}, "AutoEncoderTopK"),
        ),
        "tensor b_dec has shape (3,); expected (8,)",
    ),
    "another activation": (
        lambda p: ("openai", release(p / "8.pt", "TopK", "Identity")),
        "activation is 'TopK' with {'k': 3, 'postact_fn': 'Identity'}",
    ),
    "transcoder": (lambda p: ("sparsify", sparsify(p, transcode=True)), "transcode is True"),
    "no k": (lambda p: ("sparsify", sparsify(p, k=None)), "k is None; expected a positive whole"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_said(tmp_path, case):
    make, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        external.read(*make(tmp_path))
    assert message in str(error.value)


# --- the entry of a configuration


def rows(entry, d=D):
    facts = ("mine", "blocks.1.hook_resid_post", "c" * 64, "m" * 64, d)
    return list(external.subjects("theirs", entry, *facts))


def test_what_the_rows_say(tmp_path, capsys):
    paths = [str(sparsify(tmp_path / "a")), str(sparsify(tmp_path / "b"))]
    first, second = rows({"format": "sparsify", "paths": paths})
    assert first.keys == {"run": "mine", "method": "theirs", "n": N, "l0_target": K, "seed": 0}
    assert second.keys["seed"] == 1
    assert first.origin["source"] == f"sparsify {paths[0]}"
    assert first.origin["weights_sha256"] == second.origin["weights_sha256"]
    metadata = {"hook_name": "blocks.0.hook_resid_pre"}
    path = saelens(tmp_path / "c", SAELENS, architecture="standard", metadata=metadata)
    (relu_row,) = rows({"format": "saelens", "paths": [str(path)]})
    assert relu_row.keys["l0_target"] == 0
    assert (
        "trained at blocks.0.hook_resid_pre, and is measured at blocks.1" in capsys.readouterr().out
    )
    with pytest.raises(UserError, match=r"external.theirs: .* of width 8; those at .* have 16"):
        rows({"format": "saelens", "paths": [str(path)]}, d=16)


def test_a_release_on_the_hub(tmp_path, monkeypatch):
    """From the hub's own cache, as a machine without network finds it there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--saes"
    (repository / "refs").mkdir(parents=True)
    for revision, commit, k in (("main", "0" * 40, K), ("v1", "1" * 40, K - 1)):
        (repository / "refs" / revision).write_text(commit)
        folder = repository / "snapshots" / commit / "blocks.1"
        folder.mkdir(parents=True)
        saelens(folder, SAELENS, architecture="topk", k=k)
    paths = ["hub:someone/saes/blocks.1", "hub:someone/saes@v1/blocks.1"]
    found = rows({"format": "saelens", "paths": paths})
    assert [each.keys["l0_target"] for each in found] == [K, K - 1]
    with pytest.raises(UserError, match=r"Download blocks.1/cfg\.json and blocks.1/sae_weights"):
        rows({"format": "saelens", "paths": ["hub:nobody/nothing/blocks.1"]})
