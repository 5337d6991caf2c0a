"""What commands that run a pipeline have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from steer.diffusion.trajectory import Trajectory


def loaded(model: str) -> tuple[Any, Any]:
    """A pipeline without its own progress bar, and its network. Raises ValueError for what is no supported pipeline."""
    import steer
    from steer.diffusion.pipelines.families import family_of

    pipe = steer.load(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe, getattr(pipe, family_of(pipe).network)


def device_of(device: str | None) -> str:
    """The one that was asked for; else cuda where there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def deterministic(pipe: Any) -> Any:
    """The same pipeline with a scheduler that draws no noise, so that runs lead back to the pictures they came from."""
    from diffusers import DDIMScheduler

    from steer.diffusion.pipelines.schedulers import draws_noise, kind_of

    first_order = kind_of(pipe.scheduler).dial(pipe.scheduler, 0.0) == 0
    if draws_noise(pipe.scheduler, 0.0) or not first_order:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def size_of(pipe: Any) -> tuple[int, int]:
    """(height, width) of the pictures that a pipeline makes, if it is not told."""
    from steer.diffusion.pipelines.families import family_of

    network = getattr(pipe, family_of(pipe).network)
    side = getattr(pipe, "default_sample_size", None) or network.config.sample_size
    height, width = side if isinstance(side, (tuple, list)) else (side, side)
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def tokenizers_of(pipe: Any) -> list[Any]:
    """The tokenizers whose tokens follow one another in the text that a pipeline's network is given."""
    first = pipe.tokenizer_2 if type(pipe).__name__.startswith("Flux") else pipe.tokenizer
    third = getattr(pipe, "tokenizer_3", None)  # of SD3; the second one of SDXL and SD3 cuts the words as the first
    return [first] if third is None else [first, third]


def inverted(pipe: Any, pixels: Tensor, prompt: str, steps: int, repeats: int) -> tuple[Trajectory, Tensor, float]:
    """The trajectory of a picture (3, h, w), where the deterministic run from its noise leads, and the PSNR of that.

    The PSNR, in dB, also counts what the autoencoder loses.
    """
    import steer

    height, width = pixels.shape[-2:]
    size = {"height": height, "width": width}
    trajectory = steer.invert(pipe, pixels[None], prompt, steps, repeats, **size)
    back = steer.reconstruct(pipe, trajectory, **size)[0]
    return trajectory, back, float(-10 * (back - pixels).square().mean().log10())


@contextmanager
def steps_shown(label: str, steps: int) -> Iterator[Callable[..., dict[str, Any]]]:
    """A progress bar, and the callback for a pipeline's `callback_on_step_end` that moves it."""
    from steer.cli import show

    with show.bars() as bars:
        task = bars.add_task(label, total=steps)

        def tell(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            bars.update(task, completed=i + 1)
            return {}

        yield tell
