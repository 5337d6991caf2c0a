"""emoji-flow: its training goes on bit for bit, and writes a stock pipeline that sees the text as the training did."""

from __future__ import annotations

import pytest
import torch

import steer
from steer import zoo
from steer.bench import Cell
from steer.bench import run as run_cell
from steer.bench.worlds import world_of
from steer.zoo.build import files, flow, run, sd, vae
from steer.zoo.build.fit import Fit, fit, seeded

SHIPPED = zoo.WEIGHTS
TEXTS = ["a red apple, noto style", "fox", ""]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One block, batches of four, an untrained autoencoder, latents of ones, and a folder to write weights to."""
    from safetensors.torch import save_file

    monkeypatch.setitem(flow.TRANSFORMER, "num_layers", 1)
    monkeypatch.setattr(flow, "BATCH", 4)
    monkeypatch.setattr(vae, "trained", lambda cache: vae.build())
    for module in (files, zoo):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    latents = torch.ones(8, 4, 16, 16)
    tokens = flow.tokens_of(TEXTS + ["a cat"] * 5)
    save_file({"latents": latents, "tokens": tokens}, tmp_path / "latents.safetensors")
    with seeded(1):
        torch.save({"average": sd.Denoiser(sd.CHANNELS).state_dict()}, tmp_path / "emoji-sd.pt")
    return tmp_path, flow.make_loss(latents, tokens)


def begin() -> flow.Denoiser:
    with seeded(0):
        return flow.Denoiser()


def test_a_stopped_training_goes_on_bit_for_bit(small):
    folder, loss = small
    config = Fit(steps=4, lr=1e-3)
    whole = fit("flow", begin(), loss, config, folder / "whole")
    fit("flow", begin(), loss, config, folder / "parts", until=2)
    parts = fit("flow", begin(), loss, config, folder / "parts")
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


def test_it_learns(small):
    """The loss begins at |eps - 1|^2 = 2, as the output begins at zero, and a few steps on one batch bring it down."""
    model, loss = begin(), small[1]
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    values = []
    for _ in range(20):
        value = loss(model, torch.Generator().manual_seed(1), 0.0)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert values[0] == pytest.approx(2.0, rel=0.05)
    assert values[-1] < 0.8 * values[0]


def test_the_stage_writes_a_stock_pipeline(small):  # a step takes longer than the time it is given
    from diffusers import StableDiffusion3Pipeline

    folder, _ = small
    run("emoji-flow", folder, minutes=1e-4)
    pipe = steer.load("emoji-flow")
    assert type(pipe) is StableDiffusion3Pipeline
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    assert pipe("a red apple", **settings).images.shape == (1, 3, 64, 64)
    assert pipe("a red apple", max_sequence_length=1, **settings).images.shape == (1, 3, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize("blanks", [1, flow.BLANKS])
def test_training_sees_the_text_as_the_pipeline_does(small, blanks):
    model = begin()
    pipe = flow.pipeline(model, vae.build())
    rows, _, pooled, _ = pipe.encode_prompt(TEXTS, None, None, max_sequence_length=blanks)
    ours, ours_pooled = model.words(flow.tokens_of(TEXTS), blanks)
    assert torch.equal(rows, ours)
    assert torch.equal(pooled, ours_pooled)


@torch.no_grad()
def test_it_begins_with_the_words_of_emoji_sd():
    model, teacher = begin(), sd.Denoiser(sd.CHANNELS)
    flow.begin_with_words(model, teacher)
    tokens = flow.tokens_of(TEXTS)
    ours, theirs = model.text(tokens, output_hidden_states=True), teacher.text(tokens, output_hidden_states=True)
    torch.testing.assert_close(ours.hidden_states[-2], theirs.hidden_states[-2])
    torch.testing.assert_close(ours.text_embeds, theirs.pooler_output)


def test_it_is_small_enough_to_ship():
    with torch.device("meta"):
        count = sum(p.numel() for part in (flow.Denoiser(), vae.build()) for p in part.parameters())
    assert 2 * count < 15e6  # bytes in half precision; the tokenizers add a quarter of a megabyte


def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="steer world build --only emoji-flow"):
        steer.load("emoji-flow")


def test_it_is_steered_with_noise_of_its_own(small):
    """A flow draws no noise: the suite's transition does, and every row of both branches is counted."""
    folder, _ = small
    run("emoji-flow", folder, minutes=1e-4)
    (zoo.WEIGHTS / "emoji-judge").symlink_to(SHIPPED / "emoji-judge")
    try:
        cell = Cell("emoji-flow", "svdd", "sharpness", budget=2 * (2 * 3 + 1), steps=4, prompts=2)
        row = run_cell(cell)
    finally:
        world_of.cache_clear()
    assert (row["n"], row["rows"], row["reward_calls"]) == (2, 2 * (2 * 3 + 1), 2 * 4)
