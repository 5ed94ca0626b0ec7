"""Saving, loading, test-time activation functions, and what a broken directory is told."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from l0plane.autoencoder import Autoencoder, Failed, Gated, JumpReLU, ReLU, TopK, save_failed
from l0plane.external import read
from l0plane.files import UserError
from l0plane.measuring import subjects

N, D = 24, 8


def vector(seed):
    return torch.randn(N, generator=torch.Generator().manual_seed(seed))


FUNCTIONS = {
    "standard": ReLU(),
    "topk": TopK(3),
    "jumprelu": JumpReLU(vector(1).abs() / 2),
    "gated": Gated(vector(2), vector(3), 0.3 * vector(4)),
}


def autoencoder(function):
    generator = torch.Generator().manual_seed(0)
    return Autoencoder(
        encoder=torch.randn(N, D, generator=generator),
        decoder=torch.nn.functional.normalize(torch.randn(N, D, generator=generator)),
        pre_bias=torch.randn(D, generator=generator),
        encoder_bias=torch.zeros(N) if isinstance(function, Gated) else 0.1 * vector(5),
        activation_function=function,
    )


def save_as_others_do(original, directory):
    """Without a provenance.json, which holds the hashes of the other files."""
    original.save(directory, {})
    (directory / "provenance.json").unlink()


X = torch.randn(50, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("architecture", FUNCTIONS)
def test_what_is_saved_is_what_is_loaded(architecture, tmp_path):
    original = autoencoder(FUNCTIONS[architecture])
    original.save(tmp_path, {"method": "x", "seed": 3})
    loaded = Autoencoder.load(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == architecture
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert (provenance["method"], provenance["seed"]) == ("x", 3)
    for a, b in ((original, loaded),):
        torch.testing.assert_close(a.encode(X).to_dense(), b.encode(X).to_dense())
        torch.testing.assert_close(a.decode(a.encode(X)), b.decode(b.encode(X)))


@pytest.mark.parametrize("how", ["none", "constant_norm"])
def test_the_space_of_an_autoencoder_is_saved_with_it(how, tmp_path):
    original = replace(autoencoder(FUNCTIONS["jumprelu"]), normalisation=how)
    original.save(tmp_path, {})
    loaded = Autoencoder.load(tmp_path)
    assert loaded.normalisation == how
    torch.testing.assert_close(original.encode(X).to_dense(), loaded.encode(X).to_dense())
    torch.testing.assert_close(loaded.decoder, original.decoder)


def saelens(directory, x):
    """SAELens' own forward pass on raw activations, from the files, by its documented formulas."""
    w = {k: v.double() for k, v in load_file(directory / "sae_weights.safetensors").items()}
    config = json.loads((directory / "cfg.json").read_text())
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    inside = (x - mean) / (std + 1e-5)
    if config["apply_b_dec_to_input"]:
        inside = inside - w["b_dec"]
    a = inside @ w["W_enc"]
    if config["architecture"] == "gated":
        gate = (a + w["b_gate"] > 0).double()
        z = gate * (a * w["r_mag"].exp() + w["b_mag"]).relu()
    else:
        v = a + w["b_enc"]
        if config["architecture"] == "topk":
            z = torch.where(v >= v.topk(config["k"]).values[:, -1:], v, 0.0).relu()
        elif config["architecture"] == "jumprelu":
            z = v.relu() * (v > w["threshold"])
        else:
            z = v.relu()
    return z, (z @ w["W_dec"] + w["b_dec"]) * (std + 1e-5) + mean


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("architecture", FUNCTIONS)
def test_the_directory_means_in_saelens_what_it_means_here(
    architecture, apply_b_dec_to_input, tmp_path
):
    save_as_others_do(autoencoder(FUNCTIONS[architecture]), tmp_path)
    path = tmp_path / "cfg.json"
    config = json.loads(path.read_text()) | {"apply_b_dec_to_input": apply_b_dec_to_input}
    path.write_text(json.dumps(config))
    raw = (3 * X + 1).double()
    z, reconstruction = saelens(tmp_path, raw)
    mean = raw.mean(1, keepdim=True)
    scale = (raw.std(1, keepdim=True) + 1e-5) * math.sqrt(D - 1)
    ours = Autoencoder.load(tmp_path)
    code = ours.encode(((raw - mean) / scale).float())
    torch.testing.assert_close(code.to_dense(), z.float(), rtol=1e-4, atol=1e-5)
    restored = ours.decode(code) * scale + mean
    torch.testing.assert_close(restored, reconstruction, rtol=1e-4, atol=1e-4)


def test_saelens_is_told_the_model_and_its_revision_apart(tmp_path):
    facts = {}
    for model in ("gpt2", "someone/model@step9", str(tmp_path)):
        autoencoder(ReLU()).save(tmp_path / "ae", {"model": model})
        facts[model] = json.loads((tmp_path / "ae/cfg.json").read_text())["metadata"]
        assert json.loads((tmp_path / "ae/provenance.json").read_text())["model"] == model
    assert [own["model_name"] for own in facts.values()] == ["gpt2", "someone/model", str(tmp_path)]
    kwargs = [own.get("model_from_pretrained_kwargs") for own in facts.values()]
    assert kwargs == [None, {"revision": "step9"}, None]


@pytest.mark.parametrize("architecture", FUNCTIONS)
def test_test_time_functions_pick_from_the_positive_values(architecture):
    a = autoencoder(FUNCTIONS[architecture])
    positive = a.positive_code(X).to_dense()
    if not isinstance(a.activation_function, Gated):
        v = (X - a.pre_bias) @ a.encoder.T + a.encoder_bias
        torch.testing.assert_close(positive, v.relu())
    top = a.encode(X, TopK(2)).to_dense()
    for row, kept in zip(positive, top, strict=True):
        expected = row.sort(descending=True).values[:2]
        assert torch.equal(kept.sort(descending=True).values[:2], expected)
        assert (kept > 0).sum() <= 2
    jump = a.encode(X, JumpReLU(0.7)).to_dense()
    torch.testing.assert_close(jump, positive * (positive > 0.7))


def broken(tmp_path, change):
    save_as_others_do(autoencoder(FUNCTIONS["jumprelu"]), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    weights = load_file(tmp_path / "sae_weights.safetensors")
    change(config, weights)
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(UserError) as error:
        Autoencoder.load(tmp_path)
    return str(error.value)


@pytest.mark.parametrize(
    "change,expected",
    [
        (lambda c, w: w.pop("threshold"), "tensor threshold is missing; a jumprelu"),
        (lambda c, w: w.update(W_enc=torch.zeros(D, N + 1)), "W_enc has shape (8, 25); expected"),
        (lambda c, w: w["W_dec"].fill_(torch.nan), "W_dec holds values that are not finite"),
        (lambda c, w: c.update(architecture="softmax"), "architecture is 'softmax'; expected one"),
        (lambda c, w: c.update(d_sae="many"), "d_sae is 'many'; expected a positive whole number"),
        (lambda c, w: c.update(normalize_activations="rms"), "normalize_activations is 'rms'"),
        (lambda c, w: w.update(scaling_factor=torch.zeros(N)), "scaling_factor"),
    ],
)
def test_a_broken_autoencoder_is_told_in_terms_of_the_contract(tmp_path, change, expected):
    assert expected in broken(tmp_path, change)


def test_a_truncated_or_missing_weights_file_is_named(tmp_path):
    save_as_others_do(autoencoder(ReLU()), tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        Autoencoder.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"sae_weights.safetensors: no such file"):
        Autoencoder.load(tmp_path)


FILES = ["cfg.json", "sae_weights.safetensors", "provenance.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["flipped", "missing", "cut short"])
def test_no_byte_of_what_the_run_made_can_change_unnoticed(tmp_path, name, change):
    directory = tmp_path / "n24-l3-s0"
    autoencoder(TopK(3)).save(directory, {"seed": 3, "method": "topk"})
    path = directory / name
    content = path.read_bytes()
    place = content.index(b"3") if name != "sae_weights.safetensors" else len(content) - 2
    changed = {
        "flipped": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        "missing": content[:place] + content[place + 1 :],
        "cut short": content[: len(content) // 2],
    }
    path.write_bytes(changed[change])
    levels = [[N, 3, 0]]
    with pytest.raises(UserError) as error:
        list(subjects([str(directory / "cfg.json")], "run", "topk", levels, "c", "m", D))
    assert str(error.value).startswith(f"{path}: not ")
    assert f"; to rebuild it: rm -r {directory}, then the same" in str(error.value)
    autoencoder(TopK(3)).save(directory, {"seed": 3, "method": "topk"})
    assert Autoencoder.load(directory).n == N


def test_what_somebody_else_made_is_not_to_be_removed(tmp_path):
    autoencoder(TopK(3)).save(tmp_path, {})
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(UserError, match=r"cfg\.json: no such file$"):
        read("saelens", tmp_path)


def test_a_failed_training_leaves_its_reason_and_no_autoencoder(tmp_path):
    save_failed(tmp_path, {"seed": 3, "failed": "the loss exploded"})
    with pytest.raises(Failed, match="the loss exploded"):
        Autoencoder.load(tmp_path)
    (found,) = subjects([str(tmp_path / "cfg.json")], "run", "topk", [[N, 3, 0]], "c", "m", D)
    assert found.autoencoder is None
    assert found.facts["failed"] == "the loss exploded"
