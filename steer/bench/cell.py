"""What makes a result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell of a suite: all that its result follows from.

    method   a name of `METHODS` with options, as in "code:block=5"
    budget   denoiser rows for a picture, each guidance branch a row and a backward row two
    images   pictures of each prompt, each from its own search, at least 2, as diversity is measured among them; a toy
             makes 32 times as many, as there they cost nothing
    """

    model: str
    method: str
    reward: str
    budget: int
    guidance: float = 3.0
    seed: int = 0
    steps: int = 20
    prompts: int = 16
    images: int = 2
    prompt_set: str = "names"
    dtype: str = "float32"
