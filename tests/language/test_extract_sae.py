"""Features of sparse autoencoders: read from three layouts, added and clamped as the autoencoder computes them."""

import json

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from steer.language import Site, recording, steering
from steer.language.extract import read_sae

RAW = {"relative": False, "keep_norm": False}


def ids(text):
    return torch.tensor([tiny_models.tokenizer()(text)["input_ids"]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(features=12, d=4):
    names = ("encoder", "decoder", "encoder_bias", "decoder_bias")
    shapes = ((features, d), (features, d), (features,), (d,))
    return {name: random(*shape, seed=k) for k, (name, shape) in enumerate(zip(names, shapes))}


LAYOUTS = {
    "saelens": ("W_enc", "W_dec", "b_enc", "b_dec", True, False),
    "sparsify": ("encoder.weight", "W_dec", "encoder.bias", "b_dec", False, False),
    "dictionary_learning": ("encoder.weight", "decoder.weight", "encoder.bias", "bias", False, True),
}


def written(folder, layout, settings=None, **more):
    *names, turned, decoder_turned = LAYOUTS[layout]
    content = dict(zip(names, tensors().values()))
    for name, turn in zip(names, (turned, decoder_turned)):
        content[name] = content[name].mT.contiguous() if turn else content[name]
    if settings is not None:
        (folder / "cfg.json").write_text(json.dumps(settings))
    save_file({**content, **more}, folder / "sae.safetensors")
    return folder / "sae.safetensors"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_feature_is_its_decoder_row(tmp_path, layout):
    sae, wanted = read_sae(written(tmp_path, layout)), tensors()
    for name, value in wanted.items():
        torch.testing.assert_close(getattr(sae, name), value, atol=0, rtol=0)
    vector = sae.direction(5, "2.mlp")
    torch.testing.assert_close(vector.directions[Site(2, "mlp")], wanted["decoder"][5])


@pytest.mark.parametrize(
    ("layout", "settings", "centred"),
    [
        ("saelens", {"apply_b_dec_to_input": True}, True),
        ("saelens", {"apply_b_dec_to_input": False}, False),
        ("saelens", None, None),
        ("sparsify", None, True),
        ("sparsify", {"transcode": True}, False),
        ("dictionary_learning", None, None),
    ],
)
def test_whether_states_are_centred_is_read(tmp_path, layout, settings, centred):
    path = written(tmp_path, layout, settings)
    assert read_sae(path).centred is centred
    assert read_sae(path, centred=True).centred is True


@pytest.mark.parametrize("threshold", [0.0, 0.8])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("active", [True, False])
def test_a_clamp_moves_by_what_the_activation_lacks(tmp_path, threshold, centred, active):
    """Oracle: the activation written out, as the autoencoder computes all of its features."""
    more = {"threshold": torch.full((12,), threshold)} if threshold else {}
    sae = read_sae(written(tmp_path, "saelens", **more), centred)
    hidden = random(2, 9, 4, seed=7)
    z = (hidden - sae.decoder_bias * centred) @ sae.encoder.mT + sae.encoder_bias
    activation = (z * (z > threshold))[..., 3]
    assert 0 < int((activation > 0).sum()) < activation.numel()
    change = (2.0 - activation) * ((activation > 0) if active else 1)
    edit, row = sae.clamp(3, to=2.0, active=active), sae.direction(3, 0).directions[Site(0)]
    torch.testing.assert_close(
        edit(hidden, row, 1.0), hidden + change[..., None] * sae.decoder[3], atol=1e-5, rtol=1e-5
    )
    assert torch.equal(edit(hidden, row, 0.0), hidden)


def test_a_feature_of_an_orthonormal_dictionary_lands_where_it_is_put(tmp_path):
    """Through the engine: encoding the edited states gives the activation that was asked for, other features stay."""
    model, rows = tiny_models.text_model("llama"), torch.linalg.qr(random(32, 32))[0].contiguous()
    save_file(
        {"W_enc": rows.mT.contiguous(), "W_dec": rows, "b_enc": torch.zeros(32), "b_dec": torch.zeros(32)},
        tmp_path / "sae.safetensors",
    )
    sae = read_sae(tmp_path / "sae.safetensors", centred=False)
    with recording(model, [1]) as plain:
        model(ids("the cat is not a dog"))
    clamping = steering(model, sae.direction(4, 1), 1.0, edit=sae.clamp(4, to=6.0, active=True), **RAW)
    with clamping, recording(model, [1]) as steered:
        model(ids("the cat is not a dog"))
    before, after = (states[Site(1)][0][0] @ rows.mT for states in (plain, steered))
    wanted = before.clone()
    wanted[before[:, 4] > 0, 4] = 6.0
    torch.testing.assert_close(after, wanted, atol=1e-4, rtol=1e-4)
    assert 0 < int((before[:, 4] > 0).sum()) < len(before)


def test_what_is_no_sparse_autoencoder_is_said(tmp_path):
    path = written(tmp_path, "saelens")
    sae = read_sae(path)
    with pytest.raises(ValueError, match="feature 12: expected 0 to 11"):
        sae.direction(12, 0)
    with pytest.raises(ValueError, match="centred=True"):
        sae.clamp(1, to=2.0)
    save_file({"W_enc": torch.ones(4, 12), "b_enc": torch.ones(12), "b_dec": torch.ones(4)}, path)
    with pytest.raises(ValueError, match="no tensor called W_dec"):
        read_sae(path)
    shapes = {"W_enc": (5, 12), "W_dec": (12, 4), "b_enc": (12,), "b_dec": (4,)}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(ValueError, match=r"encoder \(12, 5\)"):
        read_sae(path)
    path = written(tmp_path, "saelens", {"normalize_activations": "layer_norm"})
    with pytest.raises(ValueError, match="layer_norm"):
        read_sae(path)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="no safetensors"):
        read_sae(path)
