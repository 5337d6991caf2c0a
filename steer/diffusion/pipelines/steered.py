"""A steered pipeline as an object: called like the pipeline, it returns the winners."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from steer.diffusion.control import Controller, as_chain
from steer.diffusion.noise import key
from steer.diffusion.pipelines.attach import attach, check
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import decoded
from steer.diffusion.pipelines.results import SteeredOutput, final_slots
from steer.diffusion.pipelines.schedulers import check_noise, kind_of
from steer.diffusion.pipelines.session import Session


@dataclass(frozen=True)
class Steered:
    """A diffusers pipeline under controllers; `eta`, `exact` and `chunk` as in `attach`.

    >>> out = Steered(pipe, code(reward, block=5), eta=1.0)("a red apple", n=8, generator=generator)
    """

    pipe: Any
    controllers: Controller | Sequence[Controller] = ()
    eta: float | None = None
    exact: bool = False
    chunk: int | None = None

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        n: int = 8,
        *,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        generator: Generator | list[Generator] | None = None,
        **kwargs: Any,
    ) -> SteeredOutput:
        """Run the pipeline with n particles for every image that it would return, and keep the best of each n.

        generator  as for the pipeline: one, or a list of one for each image (particle 0 draws from it), or one for each
                   particle of each image
        kwargs     go to the pipeline

        With n = 1 the images are the pipeline's own, bit for bit. Raises ValueError as `attach` does, and for an empty
        list of prompts, embeddings that disagree in number, and a list of generators of any other length.
        """
        began = time.perf_counter()
        control = as_chain(self.controllers)
        family_of(self.pipe)
        check(self.pipe, control, n, self.eta)
        if self.eta is not None and "eta" in kwargs:
            raise ValueError(f"eta = {kwargs['eta']} in the call and {self.eta} in Steered; give it once.")
        images = _count(prompt, num_images_per_prompt, kwargs)
        if n > 1 and kwargs.get("padding_mask_crop") is not None:
            raise ValueError(
                f"padding_mask_crop = {kwargs['padding_mask_crop']}: the pipeline itself lays its pictures over the "
                "original; crop picture and mask before the call, and leave it out."
            )
        if n > 1 and control.needs_noise and kind_of(self.pipe.scheduler).eta == "own":
            check_noise(self.pipe.scheduler, kwargs.get("eta", self.eta))
        with attach(self.pipe, control, n, self.eta, self.exact, self.chunk) as session:
            result = self.pipe(
                prompt,
                num_images_per_prompt=num_images_per_prompt * n,
                output_type=output_type if n == 1 else "latent",
                generator=_generators(generator, images, n),
                **kwargs,
            ).images
            result = result if n == 1 else _winners(session, result, output_type)
        session.ledger.seconds = time.perf_counter() - began
        return _output(session, result)


def _output(session: Session, images: Any) -> SteeredOutput:
    candidates = session.candidates
    return SteeredOutput(
        images=images,
        rewards=None if candidates.scores is None else candidates.scores.amax(-1),
        candidates=candidates,
        ledger=session.ledger,
        lineage=session.lineage,
        trace=session.trace,
    )


@torch.no_grad()
def _winners(session: Session, latents: Tensor, output_type: str) -> Any:
    """The best particle of every image, as the pipeline would return it.

    Taken from the latents that the pipeline returned, which a callback may have edited, if the winner is among them:
    a resampling at the end may have dropped it.
    """
    candidates = session.candidates
    kept = final_slots(session.state) == candidates.winners[:, None]
    every = torch.arange(len(kept))
    returned = session.state.grouped(latents)[every, kept.long().argmax(-1)]
    dropped = candidates.latents[every, candidates.winners]
    there = kept.any(-1).to(latents.device).reshape(-1, *[1] * (latents.ndim - 1))
    best = torch.where(there, returned, dropped)
    if output_type == "latent":
        return best
    raw = decoded(session.pipe, session.family, session.decoder, best, session.given)
    return session.family.finish(session.pipe, raw, output_type, session.given)


def _count(prompt: Any, num_images_per_prompt: int, kwargs: dict[str, Any]) -> int:
    """How many images the stock pipeline would return."""
    embeds = {name: len(v) for name, v in kwargs.items() if name.endswith("prompt_embeds") and isinstance(v, Tensor)}
    if len(set(embeds.values())) > 1:
        raise ValueError(f"embeddings of {embeds} prompts: expected as many of each.")
    if prompt is None and not embeds:
        raise ValueError("neither prompt nor prompt_embeds was given; pass one of them.")
    if not (prompt is None or isinstance(prompt, str) or (isinstance(prompt, list) and prompt)):
        raise ValueError(f"prompt = {prompt!r}: expected a string or a non-empty list of strings.")
    if isinstance(prompt, list) and not all(isinstance(one, str) for one in prompt):
        raise ValueError(f"prompt = {prompt!r}: expected strings only.")
    if num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt = {num_images_per_prompt}: expected at least 1.")
    if "return_dict" in kwargs:
        raise ValueError("return_dict was given, but a steered call always returns a SteeredOutput; leave it out.")
    prompts = 1 if isinstance(prompt, str) else len(prompt) if prompt is not None else next(iter(embeds.values()))
    return prompts * num_images_per_prompt


def _generators(given: Any, images: int, n: int) -> Any:
    """A list of one generator an image becomes one of one a particle: particle k >= 1 is keyed by its image's and k."""
    if not isinstance(given, list) or len(given) == images * n:
        return given
    if len(given) != images:
        raise ValueError(
            f"{len(given)} generators for {images} images of {n} particles; expected {images} or {images * n}."
        )
    return [own if k == 0 else Generator(own.device).manual_seed(key(own, k)) for own in given for k in range(n)]
