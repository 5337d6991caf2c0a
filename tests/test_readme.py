"""The README and the pages beside it keep their promises: what they name is there, the two commands stand
alone in their blocks, and its examples run."""

from __future__ import annotations

import importlib.util
import re
from copy import deepcopy
from pathlib import Path

import pytest
import tiny
import tiny_models
import torch
from diffusers import DDIMScheduler

import steer
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import vp

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    """Files that it links to, and benchmarks that it runs."""
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    assert [link for link in links if not (page.parent / link).exists()] == []
    modules = set(re.findall(r"python -m (benchmarks\.\w+)", text))
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def test_run_and_test_are_one_line_each():
    (run,), (test,) = blocks(section("Run")), blocks(section("Test"))
    assert run == "python -m venv .venv && .venv/bin/pip install . && .venv/bin/steer demo\n"
    assert test == "python -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest\n"


def test_the_language_model_of_the_readme_is_steered(monkeypatch):
    """In the place of SmolLM2 a tiny model that is as deep as the example needs."""
    config = deepcopy(tiny_models.text_model("llama").config)
    config.num_hidden_layers = 13
    model = tiny_models.made(type(tiny_models.text_model("llama")), config, torch.float32)
    monkeypatch.setattr(steer, "load", lambda name: (model, tiny_models.tokenizer()))
    scope: dict = {"__name__": __name__}
    exec(blocks(section("Steer a language model"), "python")[0], scope)
    assert scope["vector"].provenance["method"] == "mean"
    assert "generate" not in model.__dict__


def test_the_fine_tuning_of_the_readme_runs(monkeypatch, tmp_path):
    """On a tiny pipeline, for one step; afterwards nothing is attached, and the weights have moved."""
    pipe = tiny.pipeline(DDIMScheduler(clip_sample=False))
    before = deepcopy(pipe.unet.state_dict())
    monkeypatch.setattr(steer, "load", lambda name: pipe)
    monkeypatch.chdir(tmp_path)
    exec(blocks(section("Or fine-tune"), "python")[0].replace("steps=50", "steps=1"), {"steer": steer})
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert (tmp_path / "steer-out/draft").is_dir()


def test_the_controller_of_the_readme_runs():
    scope: dict = {"__name__": __name__}
    exec(blocks(section("Your own controller"), "python")[0], scope)
    toy = GaussianMixture(torch.zeros(1, 1), torch.ones(1), torch.ones(1))
    reward = lambda x, prompts: -(x[:, 0] - 2).square()  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    states = steer.sample(toy, (1,), vp(20), scope["HalfTime"](reward), n=8, prompts=["a"] * 100, generator=generator)
    plain = steer.sample(toy, (1,), vp(20), n=8, prompts=["a"] * 100, generator=torch.Generator().manual_seed(0))
    assert (steer.finished(states).x - 2).abs().mean() < (steer.finished(plain).x - 2).abs().mean() - 0.2
