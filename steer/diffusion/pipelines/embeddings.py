"""A pipeline's prompts, and their embeddings repeated for the images and particles of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Given


def prompts_of(given: Given) -> list[str]:
    """The prompts of a call, empty ones for embeddings. Raises ValueError if there is none."""
    prompt, embeds = given.get("prompt"), given.get("prompt_embeds")
    if prompt is None:
        prompt = [""] * (1 if embeds is None else len(embeds))
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError(f"prompt = {prompt!r}: expected a string or a non-empty list of strings.")
    return prompts


def encode(original: Callable[..., Any], prompts: int, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A pipeline's `encode_prompt` for one image of each prompt; then its results are repeated, prompt by prompt.

    The pipelines' own repetition leaves out embeddings that the caller gives (SD3, FLUX) or deals the attention masks
    in another order than the embeddings (Sana, Lumina 2).
    """
    call = inspect.signature(original).bind(*args, **kwargs)
    call.apply_defaults()
    images, call.arguments["num_images_per_prompt"] = call.arguments["num_images_per_prompt"] or 1, 1
    results = original(*call.args, **call.kwargs)
    return tuple(one.repeat_interleave(images, 0) if _has_rows(one, prompts) and images > 1 else one for one in results)


def _has_rows(result: Any, prompts: int) -> bool:
    return isinstance(result, Tensor) and len(result) == prompts
