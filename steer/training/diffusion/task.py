"""What a diffusion model is to learn from: its prompts with a reward on what it makes of them, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from steer.diffusion.control import Denoiser
from steer.diffusion.ledger import Ledger
from steer.diffusion.pipelines import denoiser_of
from steer.diffusion.pipelines.attach import replaced
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.levels import prediction_type
from steer.diffusion.state import Level
from steer.rewards import Reward, adapt
from steer.training.diffusion.levels import training_levels
from steer.training.diffusion.pairs import Pairs

KEPT_PROMPTS = 1024  # whose encodings are remembered

Cond = dict[str, Tensor]
"""What the denoiser is told, (b, branches, ...) each, the unconditional branch of guidance first; {}: nothing."""


@dataclass(eq=False)
class DiffusionTask:
    """A denoiser under training, as `DiffusionTask.of` takes it from a pipeline.

    model     the network that is trained unless a method says otherwise
    denoiser  (x, level, cond) -> x0, guided as in sampling; with one branch in cond unguided
    schedule  the sampler's levels, from noise to clean
    shape     of one sample
    prompts   to train on
    encode    prompts -> cond; None: the denoiser is told nothing
    decode    clean samples -> what the reward sees
    levels    all levels that the model was trained at
    kind      what the network predicts, one of `denoise.KINDS`: in which its squared errors are measured
    real      pictures that it should make; content: others, that show what it should keep to (Style Tailoring)
    text      the text encoder, for methods that train that
    recompute False: methods that would save memory by checkpointing do not, which costs fewer rows
    ledger    the cost of all that was asked so far
    """

    model: nn.Module
    denoiser: Denoiser
    schedule: Sequence[Level]
    shape: tuple[int, ...]
    prompts: tuple[str, ...] = ("",)
    reward: Reward | None = None
    encode: Callable[[Sequence[str]], Cond] | None = None
    decode: Callable[[Tensor], Tensor] = lambda x0: x0
    levels: Sequence[Level] = ()
    kind: str = "sample"
    real: Pairs | None = None
    content: Pairs | None = None
    text: nn.Module | None = None
    recompute: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    known: dict[str, Cond] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        pipe: Any,
        prompts: Sequence[str],
        reward: Any = None,
        real: tuple[Tensor, Sequence[str]] | None = None,
        content: tuple[Tensor, Sequence[str]] | None = None,
        **options: Any,
    ) -> DiffusionTask:
        """The task of a diffusers pipeline, all of whose networks are frozen until a method trains one.

        reward   whatever `steer.rewards.adapt` takes
        real     pictures (m, 3, h, w), float in [0, 1], with their captions; content likewise
        options  go to the pipeline: num_inference_steps, guidance_scale, height, ...

        Raises ValueError as `denoiser_of` does, and for pictures without a caption each.
        """
        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        d, network = denoiser_of(pipe, [*prompts[:1]], **options), getattr(pipe, family_of(pipe).network)
        return cls(
            network,
            d,
            d.schedule,
            d.shape,
            prompts,
            None if reward is None else adapt(reward),
            partial(_encode, pipe, options),
            d.decode,
            training_levels(pipe.scheduler),
            prediction_type(pipe.scheduler),
            *(None if given is None else Pairs.of(pipe, *given) for given in (real, content)),
            text=getattr(pipe, "text_encoder", None),
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def steps(self) -> int:
        return len(self.schedule) - 1

    def x0(self, x: Tensor, level: Level, cond: Cond, checkpointed: bool = False) -> Tensor:
        """The clean estimate; every row is counted.

        checkpointed  keep nothing for the backward pass but x, and pay for the rows again there
        """
        recomputed = checkpointed and self.recompute and torch.is_grad_enabled()
        if recomputed:
            x0 = checkpoint(self.denoiser, x, level, cond, use_reentrant=False)
        else:
            x0 = self.denoiser(x, level, cond)
        rows = len(x) * getattr(self.denoiser, "branches", lambda cond: 1)(cond)
        self.ledger.backward_rows += rows * x0.requires_grad
        self.ledger.rows += rows * (1 + (recomputed and x0.requires_grad))
        return x0

    def cond(self, prompts: Sequence[str], guided: bool = True) -> Cond:
        """The conditioning of some prompts, with a graph where the text encoder is trained; else remembered.

        guided  with all branches of the guidance; False: the conditional one alone
        """
        if self.encode is None:
            return {}
        if self.text is not None and any(parameter.requires_grad for parameter in self.text.parameters()):
            found = self.encode(prompts)
        else:
            rows = [self._remembered(prompt) for prompt in prompts]  # one by one: then no row depends on the others
            found = tree_map(lambda *leaves: torch.cat(leaves), *rows)
        return found if guided else tree_map(lambda leaf: leaf[:, -1:], found)

    def score(self, x0: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards (b,) of clean samples; a gradient flows where the reward has one. Raises ValueError without one."""
        if self.reward is None:
            raise ValueError("this method needs a reward, and the task has none; pass DiffusionTask.of(..., reward).")
        seen = x0
        if self.reward.needs_decode:
            with nullcontext() if self.reward.differentiable else torch.no_grad():
                seen = self.decode(x0)
            self.ledger.decodes += len(x0)
        self.ledger.reward_calls += len(x0)
        return self.reward(seen, list(prompts))

    def noise(self, count: int, generator: Generator) -> Tensor:
        """(count, *shape) standard normal, the same on every device."""
        dtype = next(self.model.parameters()).dtype
        return torch.randn((count, *self.shape), generator=generator, dtype=dtype).to(self.device)

    def pairs(self, which: str = "real") -> Pairs:
        """Real pictures. Raises ValueError where the task has none."""
        found = getattr(self, which)
        if found is None:
            raise ValueError(f"it learns from pictures; pass DiffusionTask.of(..., {which}=(pictures, captions)).")
        return found

    def _remembered(self, prompt: str) -> Cond:
        if prompt not in self.known:
            if len(self.known) >= KEPT_PROMPTS:
                self.known.clear()
            with torch.no_grad():
                self.known[prompt] = self.encode([prompt])
        return self.known[prompt]


def _encode(pipe: Any, options: dict[str, Any], prompts: Sequence[str]) -> Cond:
    """What the network is told of prompts; with a graph if one is wanted, though pipelines run without."""
    wanted = torch.is_grad_enabled()

    def encode_prompt(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        torch.set_grad_enabled(wanted)  # until the pipeline's own no_grad ends
        return original(*args, **kwargs)

    with replaced(pipe, "encode_prompt", encode_prompt):
        return denoiser_of(pipe, list(prompts), **options).cond
