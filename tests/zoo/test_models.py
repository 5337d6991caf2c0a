"""The shipped models: stock classes, safe files, clear errors; and the training loop that made them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import steer
from steer import zoo
from steer.zoo.build.fit import Fit, fit, restored
from steer.zoo.build.sd import Denoiser, grown


def test_emoji_is_a_stock_pipeline_that_round_trips(tmp_path):
    from diffusers import StableDiffusionPipeline

    pipe = steer.load("emoji")
    assert type(pipe) is StableDiffusionPipeline
    settings = {"num_inference_steps": 3, "output_type": "pt"}
    first = pipe("a red apple, noto style", generator=torch.Generator().manual_seed(0), **settings).images
    assert first.shape == (1, 3, 64, 64)
    pipe.save_pretrained(tmp_path)
    again = steer.load(tmp_path)
    second = again("a red apple, noto style", generator=torch.Generator().manual_seed(0), **settings).images
    assert torch.equal(first, second)


def test_shipped_files_are_safe_and_small():
    files = [path for path in zoo.WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json"}
    data = sum(path.stat().st_size for path in [*files, *(zoo.WEIGHTS.parent / "data").iterdir()])
    assert data < 80e6


@pytest.mark.parametrize("name", ["emojy", "emoji-sdd", "stable diffusion"])
def test_unknown_models_are_told_what_there_is(name):
    with pytest.raises(ValueError, match="emoji"):
        steer.load(name)


def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="steer world build"):
        zoo.folder("emoji-clip")


def loss(model, generator, progress):
    x = torch.randn(8, 3, generator=generator)
    return (model(x).float() - x.sum(1, keepdim=True)).square().mean()


def line() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path):
    config = Fit(steps=40, lr=0.05)
    whole = fit("line", line(), loss, config, tmp_path / "whole")
    fit("line", line(), loss, config, tmp_path / "parts", until=17)
    parts = fit("line", line(), loss, config, tmp_path / "parts")
    for one, other in zip(whole.parameters(), parts.parameters()):
        assert torch.equal(one, other)


def test_training_that_diverges_stops(tmp_path):
    with pytest.raises(ValueError, match="lower lr"):
        fit("line", line(), lambda *a: loss(*a) * float("nan"), Fit(steps=3), tmp_path)


@torch.no_grad()
def test_a_grown_denoiser_is_the_coarse_one_inside():
    coarse = Denoiser((64, 64, 64))
    fine = grown(coarse)
    pairs = [(fine.unet.down_blocks[i + 1], coarse.unet.down_blocks[i]) for i in range(3)]
    pairs += [(fine.unet.mid_block, coarse.unet.mid_block), (fine.text, coarse.text)]
    pairs += [(fine.unet.up_blocks[i], coarse.unet.up_blocks[i]) for i in range(2)]
    for ours, theirs in pairs:
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    tokens = torch.zeros(1, 24, dtype=torch.long)
    assert fine(torch.zeros(1, 4, 16, 16), torch.tensor([500]), tokens).shape == (1, 4, 16, 16)


def test_a_stage_that_builds_on_another_says_which_is_missing(tmp_path):
    with pytest.raises(ValueError, match="stage line has left nothing"):
        restored("line", line(), tmp_path)


def test_the_vocabulary_is_the_same_in_every_process():
    """The weights are trained on its numbers: in one process after the other, and long after it was saved."""
    tell = "from steer.zoo.build.words import tokenizer; print(tokenizer().get_vocab() == {vocabulary})"
    shipped = steer.load("emoji").tokenizer.get_vocab()
    command = [sys.executable, "-c", tell.format(vocabulary=shipped)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"
