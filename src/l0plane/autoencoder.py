"""A trained autoencoder: parameters, encode, decode, and its directory on disk.

On disk it is a SAELens directory (`cfg.json`, `sae_weights.safetensors`), so that it opens in the
tool that users have and theirs can be measured here. In memory one that was trained here works on
activations of unit norm (`l0plane.preprocessing`), which SAELens calls `layer_norm` up to the
constant sqrt(d - 1); saving folds that constant into the weights and loading takes it out again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from l0plane import kernels
from l0plane.code import Code
from l0plane.files import (
    Broken,
    UserError,
    read_json,
    read_sealed,
    replacing,
    sealed,
    sha256,
    write_json,
)
from l0plane.hub import named
from l0plane.preprocessing import Normalisation

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
PROVENANCE_FILE = "provenance.json"


class Failed(UserError):
    """A training that came to nothing; tried again with the same settings, it would again."""


@dataclass(frozen=True)
class ReLU:
    """`z = ReLU(v)`."""


@dataclass(frozen=True)
class TopK:
    """The `k` largest of each row's positive values."""

    k: int


@dataclass(frozen=True)
class JumpReLU:
    """`z = v 1[v > threshold]` (5.3.2), with one threshold for all latents or one each `[n]`."""

    threshold: float | Tensor


@dataclass(frozen=True)
class Gated:
    """Which latents are active is decided apart from how active (Rajamanoharan et al. 2024a).

    `z = 1[a + gate_bias > 0] ReLU(exp(log_scale) a + magnitude_bias)`, each `[n]`.
    """

    gate_bias: Tensor
    magnitude_bias: Tensor
    log_scale: Tensor


ActivationFunction = ReLU | TopK | JumpReLU | Gated


@dataclass(frozen=True)
class Autoencoder:
    """Parameters of one autoencoder.

    Pre-activations are `a = encoder (x - pre_bias)`, values `v = a + encoder_bias`, with x
    normalised as `normalisation` says.
    """

    encoder: Tensor
    """`[n, d]`."""
    decoder: Tensor
    """`[n, d]`: row i is the direction of latent i."""
    pre_bias: Tensor
    """`[d]`: subtracted before the encoder, added after the decoder."""
    encoder_bias: Tensor
    """`[n]`; zero for a gated autoencoder, whose biases are in its activation function."""
    activation_function: ActivationFunction
    normalisation: Any = "unit_norm"
    """The space of `x`, a `Normalisation`; anything but unit norm was trained elsewhere."""

    def to(self, device: torch.device) -> Autoencoder:
        """The same autoencoder on another device."""
        function = self.activation_function
        tensors = {k: v.to(device) for k, v in vars(function).items() if isinstance(v, Tensor)}
        return Autoencoder(
            self.encoder.to(device),
            self.decoder.to(device),
            self.pre_bias.to(device),
            self.encoder_bias.to(device),
            replace(function, **tensors),  # type: ignore[arg-type]  # none for ReLU, TopK
            self.normalisation,
        )

    def each_latent(self, change: Callable[[Tensor], Tensor]) -> Autoencoder:
        """The same autoencoder with `change` made to every tensor that has a row per latent."""
        function = self.activation_function
        tensors = {k: change(v) for k, v in vars(function).items() if isinstance(v, Tensor)}
        return replace(
            self,
            encoder=change(self.encoder),
            decoder=change(self.decoder),
            encoder_bias=change(self.encoder_bias),
            activation_function=replace(function, **tensors),  # type: ignore[arg-type]  # as above
        )

    def digest(self) -> str:
        """SHA-256 of all its tensors."""
        function = vars(self.activation_function).values()
        tensors = (
            value for value in (*vars(self).values(), *function) if isinstance(value, Tensor)
        )
        hashed = hashlib.sha256()
        for tensor in tensors:
            hashed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()

    @property
    def n(self) -> int:
        """How many latents there are."""
        return self.encoder.shape[0]

    @property
    def d(self) -> int:
        """The width of an activation."""
        return self.encoder.shape[1]

    @torch.no_grad()
    def encode(self, x: Tensor, activation_function: TopK | JumpReLU | None = None) -> Code:
        """The code of activations `x [rows, d]`.

        `activation_function` replaces the trained one (5.3): `TopK(k')` or `JumpReLU(theta)` on
        the positive values.
        """
        function = activation_function or self.activation_function
        if isinstance(self.activation_function, Gated):
            code = self._gated(x, self.activation_function)
            return code if activation_function is None else _cut(code, activation_function)
        encoded = (x, self.pre_bias, self.encoder)
        if isinstance(function, TopK):
            return kernels.encode_top_k(*encoded, function.k, bias=self.encoder_bias)
        threshold: Tensor | float = 0.0
        if isinstance(function, JumpReLU):
            # As in SAELens, the value must be positive as well as above its threshold.
            threshold = torch.as_tensor(function.threshold, dtype=x.dtype).clamp(min=0.0)
        return kernels.encode_above(*encoded, bias=self.encoder_bias, threshold=threshold)

    def positive_code(self, x: Tensor) -> Code:
        """Every positive value of `x [rows, d]`, from which test-time functions pick."""
        return self.encode(x, JumpReLU(0.0))

    def _gated(self, x: Tensor, gate: Gated) -> Code:
        code = kernels.encode_above(x, self.pre_bias, self.encoder, bias=gate.gate_bias)
        a = code.values - kernels.gather(gate.gate_bias, code)
        scale, bias = gate.log_scale.exp(), gate.magnitude_bias
        magnitude = kernels.gather(scale, code) * a + kernels.gather(bias, code)
        return code.with_values(magnitude).keep(magnitude > 0)

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """The reconstruction `[rows, d]` of a code."""
        return kernels.decode(code, self.decoder, self.pre_bias)

    def save(self, directory: str | Path, provenance: dict[str, Any]) -> None:
        """Write the SAELens directory and `provenance.json`, each file whole or not at all.

        `provenance` may name the `model` and `hook`, which SAELens users look for in its metadata,
        and say why the training `failed`. The file also holds the hashes of the others.
        """
        directory = Path(directory)
        root = _length(self.normalisation, self.d)
        weights = {
            "W_enc": self.encoder.T / root,
            "W_dec": self.decoder * root,
            "b_dec": self.pre_bias * root,
            "b_enc": self.encoder_bias,
        }
        config: dict[str, Any] = {
            "d_in": self.d,
            "d_sae": self.n,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": _SAELENS_NAMES[self.normalisation],
            "reshape_activations": "none",
            "metadata": {
                **_model(provenance.get("model")),
                "hook_name": provenance.get("hook"),
                "context_size": provenance.get("context"),
                "prepend_bos": False,
            },
        }
        match self.activation_function:
            case ReLU():
                config["architecture"] = "standard"
            case TopK(k):
                config |= {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}
            case JumpReLU(threshold):
                config["architecture"] = "jumprelu"
                weights["threshold"] = torch.as_tensor(threshold).expand(self.n)
            case Gated(gate_bias, magnitude_bias, log_scale):
                config["architecture"] = "gated"
                del weights["b_enc"]
                weights |= {"b_gate": gate_bias, "b_mag": magnitude_bias, "r_mag": log_scale}
        _write(directory, config, weights, provenance)

    @classmethod
    def load(cls, directory: str | Path) -> Autoencoder:
        """Read a SAELens directory.

        Raises:
            Failed: the training came to nothing: its provenance says so, or a value is not finite.
            Broken: a file is missing, or not what its provenance says that was written.
            UserError: a tensor is missing or has the wrong shape, or the configuration asks for
                what is not known here.
        """
        directory = Path(directory)
        facts = read_provenance(directory)
        if reason := facts.get("failed"):
            raise Failed(f"{directory}: {reason}")
        for name, digest in facts.get("files", {}).items():
            if (path := directory / name).is_file() and sha256(path) != digest:
                raise Broken(f"{path}: not the bytes that were written")
        config = read_json(directory / CONFIG_FILE)
        path = directory / WEIGHTS_FILE
        return from_saelens(config, read_safetensors(path), directory)


def save_failed(directory: str | Path, provenance: dict[str, Any]) -> None:
    """Write what a training leaves that `failed` without weights: its provenance, and no tensor."""
    _write(Path(directory), {}, {}, provenance)


def _write(
    directory: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    provenance: dict[str, Any],
) -> None:
    with replacing(directory / WEIGHTS_FILE) as part:
        save_file({k: v.detach().float().contiguous() for k, v in weights.items()}, part)
    write_json(directory / CONFIG_FILE, config)
    files = {name: sha256(directory / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    write_json(directory / PROVENANCE_FILE, sealed({**provenance, "files": files}))


def read_provenance(directory: Path) -> dict[str, Any]:
    """What `provenance.json` in a directory says; empty where there is none.

    Raises:
        UserError: it is not what was written (Broken), or no object, or what goes into tables is
            no number.
    """
    path = directory / PROVENANCE_FILE
    facts = read_sealed(path) if path.exists() else {}
    if not isinstance(facts, dict):
        raise UserError(f"{path}: expected a JSON object")
    for key in ("training_tokens", "learning_rate", "training_seconds", "lambda"):
        value = facts.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{path}: {key} is {value!r}; expected a number")
    return facts


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError where it is missing or not whole."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise Broken(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise Broken(f"{path}: not a whole safetensors file ({error})") from None


def checked_tensors(
    weights: dict[str, Any], shapes: dict[str, tuple[int, ...]], path: Path, kind: str
) -> dict[str, Tensor]:
    """The tensors named in `shapes`, in float32.

    Raises:
        UserError: one that `kind` of autoencoder needs is missing in the file `path`, or has
            another shape.
        Failed: one has a value that is not finite.
    """
    found = {}
    for name, shape in shapes.items():
        where, tensor = f"{path}: tensor {name}", weights.get(name)
        if not isinstance(tensor, Tensor):
            raise UserError(f"{where} is missing; a {kind} autoencoder needs it")
        if tuple(tensor.shape) != shape:
            raise UserError(f"{where} has shape {tuple(tensor.shape)}; expected {shape}")
        if not torch.isfinite(tensor).all():
            raise Failed(f"{where} holds values that are not finite")
        found[name] = tensor.detach().float()
    return found


def _cut(code: Code, function: TopK | JumpReLU) -> Code:
    """Apply a test-time activation function to a code whose values are positive."""
    if isinstance(function, JumpReLU):
        return code.keep(code.values > torch.as_tensor(function.threshold).clamp(min=0.0))
    return code.keep(kernels.top_k_mask(code, function.k))


#: Tensors of each architecture beside W_enc, W_dec and b_dec; all are `[n]`.
_VECTORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}

#: What SAELens calls each normalisation.
_SAELENS_NAMES: dict[Normalisation, str] = {
    "unit_norm": "layer_norm",
    "none": "none",
    "constant_norm": "constant_norm_rescale",
}
#: The reverse; training with expected_average_only_in leaves its factor in the weights.
_NORMALISATIONS = {name: normalisation for normalisation, name in _SAELENS_NAMES.items()} | {
    "expected_average_only_in": "none"
}


def _model(place: str | None) -> dict[str, Any]:
    """The language model in SAELens' terms, which loads it by a name, and options beside it."""
    name, revision = (None, None) if place is None else named(place)
    options = {"model_from_pretrained_kwargs": {"revision": revision}} if revision else {}
    return {"model_name": name, **options}


def _length(normalisation: Normalisation, d: int) -> float:
    """How long an activation is to SAELens where it is 1 here."""
    return math.sqrt(d - 1) if normalisation == "unit_norm" else 1.0


def from_saelens(config: Any, weights: dict[str, Tensor], directory: Path) -> Autoencoder:
    """An autoencoder from the `config` and `weights` of a SAELens directory; errors as `load`."""
    file = directory / CONFIG_FILE
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected a JSON object, a SAELens configuration")
    config = _of_today(config, file)
    architecture = config.get("architecture")
    expected = {
        "architecture": [*_VECTORS],
        "normalize_activations": [*_NORMALISATIONS],
        "reshape_activations": ["none"],
    }
    for key, names in expected.items():
        if config.get(key) not in names:
            raise UserError(
                f"{file}: {key} is {config.get(key)!r}; expected one of {', '.join(names)}"
            )
    for key in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(config.get(key, False), bool):
            raise UserError(f"{file}: {key} is {config[key]!r}; expected true or false")
    n, d = positive(config, "d_sae", file), positive(config, "d_in", file)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,)}
    shapes |= dict.fromkeys(_VECTORS[architecture], (n,))
    tensors = checked_tensors(weights, shapes, directory / WEIGHTS_FILE, architecture)
    if (weights.get("scaling_factor", torch.ones(1)) != 1).any():
        raise UserError(f"{directory / WEIGHTS_FILE}: fine-tuned with scaling_factor; not known")
    normalisation = _NORMALISATIONS[config["normalize_activations"]]
    length = _length(normalisation, d)
    pre_bias = tensors["b_dec"] / length
    encoder = (tensors["W_enc"].T * length).contiguous()
    decoder = tensors["W_dec"] / length
    # With apply_b_dec_to_input off their pre-activation is W x; ours is W (x - b_pre), so the
    # difference goes into the biases.
    shift = torch.zeros(n) if config.get("apply_b_dec_to_input", True) else encoder @ pre_bias
    bias = tensors.get("b_enc", -shift) + shift
    function: ActivationFunction
    match architecture:
        case "topk":
            function = TopK(min(n, positive(config, "k", file)))
            if config.get("rescale_acts_by_decoder_norm", False):
                norm = tensors["W_dec"].norm(dim=1)
                encoder, bias, decoder = (
                    encoder * norm[:, None],
                    bias * norm,
                    decoder / norm[:, None],
                )
        case "jumprelu":
            function = JumpReLU(tensors["threshold"])
        case "gated":
            log_scale = tensors["r_mag"]
            magnitude_bias = tensors["b_mag"] + log_scale.exp() * shift
            function = Gated(tensors["b_gate"] + shift, magnitude_bias, log_scale)
        case _:
            function = ReLU()
    return Autoencoder(encoder, decoder, pre_bias, bias, function, normalisation)


def _of_today(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A SAELens configuration with its defaults, also one from before version 6.

    Raises:
        UserError: naming `file`, its activation function is not known.
    """
    function = config.get("activation_fn", config.get("activation_fn_str"))
    if function not in (None, "relu", "topk"):
        raise UserError(f"{file}: activation function {function!r}; expected relu or topk")
    config = {"reshape_activations": "none", **config}
    scaled = config.get("normalize_activations") or "none"
    # Before it had a name, `true` meant this one.
    config["normalize_activations"] = "expected_average_only_in" if scaled is True else scaled
    if function == "topk":
        options = config.get("activation_fn_kwargs") or {}
        k = options.get("k", config.get("k")) if isinstance(options, dict) else None
        return config | {"architecture": "topk", "k": k}
    if "k" in config and "architecture" not in config:
        raise UserError(f"{file}: there is a k and no architecture; expected topk, if it has a k")
    return {"architecture": "standard", **config}


def positive(config: dict[str, Any], key: str, file: Path) -> int:
    """The positive whole number `config[key]`; UserError naming `file` where it is none."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{file}: {key} is {value!r}; expected a positive whole number")
    return value
