"""The stages that train the networks of style transfer: they learn, and write what the loaders read."""

from __future__ import annotations

import pytest
import torch

from steer import zoo
from steer.transfer import stylize
from steer.zoo.build import files, run, transfer
from steer.zoo.data import compose, glyphs, split


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Batches of a few pictures, and a folder to write weights to."""
    monkeypatch.setattr(transfer, "BATCH", 4)
    monkeypatch.setattr(transfer, "PAIRS", 2)
    monkeypatch.setattr(transfer, "SAMPLE", 8)
    for module in (files, zoo):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    loaders = (zoo.adain_net, zoo.arbitrary_net)
    for loader in loaders:
        loader.cache_clear()
    yield tmp_path
    for loader in loaders:
        loader.cache_clear()


def learns(model: torch.nn.Module, loss, steps: int = 4, lr: float = 2e-3) -> float:
    """Last over first loss of a few steps on one batch."""
    optimiser = torch.optim.AdamW(model.parameters(), lr)
    values = []
    for _ in range(steps):
        value = loss(model, torch.Generator().manual_seed(1), 0.0)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    return values[-1] / values[0]


def test_the_stages_write_what_the_loaders_read(small):  # a step takes longer than the time it is given
    run("features", small, minutes=1e-4)
    run("emoji-adain", small, minutes=1e-4)
    run("emoji-arbitrary", small, minutes=1e-4)
    sizes = [path.stat().st_size for path in (small / "weights").rglob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 3e6
    content, style = compose(glyphs()[0][0, :2]), compose(glyphs()[0][1, 5:6])
    for net in (None, zoo.arbitrary_net()):
        assert stylize(content, style, net=net).shape == (2, 3, 64, 64)
    shipped, trained = zoo.adain_net().encoder, transfer.encoder_of(small)
    assert not any(p.requires_grad for p in trained.parameters())
    for one, other in zip(shipped.parameters(), trained.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)  # half precision


def test_a_stage_without_an_encoder_says_so(small):
    with pytest.raises(ValueError, match="stage features has left nothing"):
        run("emoji-adain", small, minutes=1e-4)


def test_they_learn(small):
    run("features", small, minutes=1e-4)
    encoder = transfer.encoder_of(small)
    assert learns(transfer.features(), transfer.recognition) < 0.9
    assert learns(transfer.AdaIN().decoder, transfer.reconstruction(encoder)) < 0.8
    assert learns(transfer.arbitrary(), transfer.stylization(encoder)) < 0.8


def test_pictures_of_chosen_styles_only():
    _, which = transfer.draw(40, torch.Generator().manual_seed(0), styles=(1, 3))
    assert set(which[:, 0].tolist()) == {1, 3}
    pictures, which = transfer.draw(8, torch.Generator().manual_seed(0))
    again, same = transfer.draw(8, torch.Generator().manual_seed(0))
    assert torch.equal(pictures, again)
    assert torch.equal(which, same)
    assert split()[which[:, 0], which[:, 1]].all()
