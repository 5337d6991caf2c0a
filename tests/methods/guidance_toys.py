"""A mixture whose components are the prompts: exact conditional and unconditional denoisers, and their runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from steer.diffusion.control import Denoiser
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.loop import finished, sample
from steer.diffusion.schedule import vp
from steer.diffusion.solve import noise_scale
from steer.diffusion.state import Level, State

STEPS = 20
SCHEDULE = [level._replace(progress=i / STEPS) for i, level in enumerate(vp(STEPS + 1)[1:])]
"""Without the level of alpha = 0, where epsilon says nothing about x0."""

NOTHING = -1
"""The prompt that asks for nothing: the whole mixture."""


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    """Equal to rounding: largest difference within `tolerance` of the largest value."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def part(prior: GaussianMixture, k: int) -> GaussianMixture:
    """Component k alone."""
    return GaussianMixture(prior.means[k : k + 1], prior.stds[k : k + 1], torch.ones_like(prior.weights[:1]))


@dataclass
class Classes:
    """The exact denoiser under cond {"class": (b, branches)}; two branches are guided by `weight`, as pipelines do.

    calls  how many rows the network saw, call by call
    """

    prior: GaussianMixture
    weight: float = 3.0
    calls: list[int] = field(default_factory=list)

    def __call__(self, x, level, cond):
        labels = cond["class"]
        self.calls.append(len(x) * labels.shape[1])
        found = [self._branch(x, level, labels[:, k]) for k in range(labels.shape[1])]
        return found[0] if len(found) == 1 else found[0] + self.weight * (found[1] - found[0])

    def _branch(self, x, level, label):
        answers = torch.stack([part(self.prior, k)(x, level) for k in range(len(self.prior.means))])
        own = answers[label.clamp(min=0), torch.arange(len(x))]
        return torch.where((label == NOTHING)[:, None], self.prior(x, level), own)

    def branches(self, cond):
        return cond["class"].shape[1]


def two_classes(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """Class 0 around (-2, 0), class 1 around (2, 1), wide enough to meet."""
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]], dtype=dtype)
    return GaussianMixture(means, torch.tensor([1.0, 0.7], dtype=dtype), torch.tensor([0.5, 0.5], dtype=dtype))


def asking(*labels: int, free: int = NOTHING) -> dict[str, torch.Tensor]:
    """cond of prompts, with the unconditional branch before each."""
    return {"class": torch.tensor([[free, label] for label in labels])}


def concept(label: int) -> dict[str, torch.Tensor]:
    """What `denoiser_of(pipe, text).cond` would be."""
    return {"class": torch.tensor([[NOTHING, label]])}


def noise(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def guided(controllers=(), labels=(1,) * 64, denoiser: Denoiser | None = None, **options) -> State:
    """The finished state of a run of 20 steps for prompts `labels`, from the same noise every time."""
    options = {"schedule": SCHEDULE, "generator": torch.Generator().manual_seed(1), "x": noise(len(labels)), **options}
    options = {"cond": asking(*labels), "prompts": [""] * len(labels), **options}
    denoiser = Classes(two_classes()) if denoiser is None else denoiser
    return finished(sample(denoiser, (2,), controllers=controllers, **options))


def plus_plus(strength: float, schedule: list[Level], eta: float, labels=(1,) * 64) -> torch.Tensor:
    """CFG++ written out (arXiv 2406.08070, algorithm 2): x0 of the guided branch, noise of the unconditional one."""
    denoiser, cond, x = Classes(two_classes()), asking(*labels), noise(len(labels))
    generator = torch.Generator().manual_seed(1)
    for level, to in zip(schedule[:-1], schedule[1:]):
        free, asked = (denoiser(x, level, {"class": cond["class"][:, [k]]}) for k in (0, 1))
        eps = (x - level.alpha * free) / level.sigma
        scale = noise_scale(level, to, eta)
        x = to.alpha * (free + strength * (asked - free)) + max(0.0, to.sigma**2 - scale**2) ** 0.5 * eps
        if scale > 0:
            x = x + scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def near(state: State, k: int) -> float:
    """The share of samples that class k explains better than the other."""
    likely = torch.stack([part(two_classes(), j).log_prob(state.x) for j in range(2)])
    return float((likely.argmax(0) == k).double().mean())


def runs_as(guide, other, rows: int | None = None, tolerance: float = 1e-9, **options) -> None:
    """Both end in the same samples; `rows`: rows a particle and step of the first."""
    ours, reference = guided(guide, **options), guided(other, **options)
    assert same(ours.x, reference.x, tolerance)
    if rows is not None:
        assert ours.run.ledger.rows == rows * len(ours.x) * ours.steps
