"""The README keeps its promises: the two commands stand alone in their blocks, and its controller runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import steer
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import vp

README = (Path(__file__).parents[1] / "README.md").read_text()


def section(title: str) -> str:
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_run_and_test_are_one_line_each():
    (run,), (test,) = blocks(section("Run")), blocks(section("Test"))
    assert run == "python -m venv .venv && .venv/bin/pip install . && .venv/bin/steer demo\n"
    assert test == "python -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest\n"


def test_the_controller_of_the_readme_runs():
    scope: dict = {"__name__": __name__}
    exec(blocks(section("Your own controller"), "python")[0], scope)
    toy = GaussianMixture(torch.zeros(1, 1), torch.ones(1), torch.ones(1))
    reward = lambda x, prompts: -(x[:, 0] - 2).square()  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    states = steer.sample(toy, (1,), vp(20), scope["HalfTime"](reward), n=8, prompts=["a"] * 100, generator=generator)
    plain = steer.sample(toy, (1,), vp(20), n=8, prompts=["a"] * 100, generator=torch.Generator().manual_seed(0))
    assert (steer.finished(states).x - 2).abs().mean() < (steer.finished(plain).x - 2).abs().mean() - 0.2
