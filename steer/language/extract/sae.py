"""Features of sparse autoencoders as directions: any safetensors file with an encoder and a decoder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from steer.language.edits import along
from steer.language.tower import Site, site
from steer.language.vectors import SteeringVector

# what SAELens, sparsify and dictionary_learning call each tensor, and whether theirs is (d, features)
ENCODERS = {"W_enc": True, "encoder.weight": False}
DECODERS = {"W_dec": False, "decoder.weight": True}
ENCODER_BIASES = ("b_enc", "encoder.bias")
DECODER_BIASES = ("b_dec", "decoder.bias", "bias")


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """a(h) = f(encoder (h - c) + encoder_bias), h' = decoder^T a + decoder_bias (arXiv 2309.08600).

    f is ReLU, or with a threshold JumpReLU: a where a > threshold, else 0 (arXiv 2407.14435). Of a top-k autoencoder
    this is what enters the choice of k. c is decoder_bias if `centred`, else 0.

    encoder, decoder         (features, d)
    encoder_bias, threshold  (features,)
    decoder_bias             (d,)
    centred                  None: the file does not say
    """

    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor
    decoder_bias: Tensor
    threshold: Tensor | None = None
    centred: bool | None = None

    def direction(self, feature: int, at: Site | int | str) -> SteeringVector:
        """The decoder row of a feature, to add at the site that the autoencoder was trained on.

        The row as it is, so that with relative=False, keep_norm=False a strength is an activation. It carries no norms.
        Raises ValueError for a feature that is not there.
        """
        self._known(feature)
        about = {"method": "sae", "feature": str(feature)}
        return SteeringVector({site(at): self.decoder[feature]}, provenance=about)

    def clamp(self, feature: int, to: float, active: bool = False) -> ClampFeature:
        """The edit that brings a feature to activation `to`, for `steering(..., edit=...)` with `direction(feature)`.

        Raises ValueError for a feature that is not there, and if the file did not say how to encode.
        """
        self._known(feature)
        if self.centred is None:
            raise ValueError(
                "this file does not say whether decoder_bias is subtracted before the encoder: "
                "read it with read_sae(path, centred=True) or centred=False, as its training had it."
            )
        row, bias = self.encoder[feature].float(), self.encoder_bias[feature].float()
        bias = bias - row @ self.decoder_bias.float() if self.centred else bias
        threshold = 0.0 if self.threshold is None else float(self.threshold[feature])
        return ClampFeature(row, float(bias), threshold, to, active)

    def _known(self, feature: int) -> None:
        if not 0 <= feature < len(self.decoder):
            raise ValueError(f"feature {feature}: expected 0 to {len(self.decoder) - 1}.")


@dataclass(frozen=True, eq=False)
class ClampFeature:
    """h + s (to - a(h)) v, with v the decoder row: all that the autoencoder does not explain of h is kept.

    encoder, bias, threshold  a(h) = z where z = encoder . h + bias > threshold, else 0
    active                    leave tokens alone on which the feature is silent
    """

    encoder: Tensor
    bias: float
    threshold: float
    to: float
    active: bool

    def __call__(self, hidden: Tensor, direction: Tensor, strength: Tensor | float) -> Tensor:
        z = along(hidden.float(), self.encoder.to(hidden.device)) + self.bias
        activation = z.where(z > self.threshold, 0)
        change = self.to - activation
        change = change.where(activation > 0, 0) if self.active else change
        return hidden + (strength * change).to(hidden.dtype) * direction


def read_sae(path: str | Path, centred: bool | None = None) -> SparseAutoencoder:
    """Read a sparse autoencoder from safetensors: SAELens, sparsify, dictionary_learning, or tensors named as theirs.

    centred  whether decoder_bias is subtracted before the encoder; None: as the names or the cfg.json beside say

    Raises ValueError for a file that cannot be read, lacks an encoder or a decoder, or whose shapes disagree.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no safetensors file: {error}. Convert the autoencoder to safetensors.") from error
    bias, offset = _one(tensors, ENCODER_BIASES)[1], _one(tensors, DECODER_BIASES)[1]
    encoder, decoder = (_by_feature(tensors, names, len(bias)) for names in (ENCODERS, DECODERS))
    if encoder.shape != decoder.shape or offset.shape != encoder.shape[1:]:
        raise ValueError(
            f"encoder {tuple(encoder.shape)}, decoder {tuple(decoder.shape)}, decoder bias {tuple(offset.shape)}: "
            "expected (features, d) twice and (d,)."
        )
    told = _centred(tensors, Path(path).with_name("cfg.json"))
    return SparseAutoencoder(
        encoder, decoder, bias, offset, tensors.get("threshold"), told if centred is None else centred
    )


def _one(tensors: Mapping[str, Tensor], names: Iterable[str]) -> tuple[str, Tensor]:
    """The first of these names that there is, and its tensor."""
    found = [(name, tensors[name]) for name in names if name in tensors]
    if not found:
        raise ValueError(f"no tensor called {' or '.join(names)}: this file has {sorted(tensors)}.")
    return found[0]


def _by_feature(tensors: Mapping[str, Tensor], names: Mapping[str, bool], features: int) -> Tensor:
    """(features, d): turned as the name says, or the other way where only that fits."""
    name, weight = _one(tensors, names)
    weight = weight.mT if names[name] else weight
    return weight if len(weight) == features else weight.mT


def _centred(tensors: Mapping[str, Tensor], beside: Path) -> bool | None:
    settings = json.loads(beside.read_text()) if beside.is_file() else {}
    if (scaled := settings.get("normalize_activations")) in ("layer_norm", "constant_norm_rescale"):
        raise ValueError(
            f"{beside}: an autoencoder of states that are normalised at run time ({scaled!r}) is not read."
        )
    if "apply_b_dec_to_input" in settings:  # SAELens
        return bool(settings["apply_b_dec_to_input"])
    if "encoder.weight" in tensors and "W_dec" in tensors:  # sparsify
        return not settings.get("transcode", False)
    return None
