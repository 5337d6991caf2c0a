"""The table of methods: each is a function of what a budget of denoiser rows buys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from steer.bench.problem import Found, Problem
from steer.bench.published import code_as_published
from steer.diffusion import controllers
from steer.diffusion.control import Controller


class Size(NamedTuple):
    """What a picture gets: n particles for so many steps."""

    n: int
    steps: int

    def looks(self, block: int) -> int:
        """How many times a block ends before the run does."""
        return (self.steps - 1) // block


def distinct(size: Size) -> int:
    """n T: every particle is evaluated at every step."""
    return size.n * size.steps


def common_start(size: Size) -> int:
    """n (T - 1) + 1: the particles are one at the first step."""
    return size.n * (size.steps - 1) + 1


def with_gradient(size: Size) -> int:
    """3 n T: a backward pass at every step, though not where x holds no signal, as at the first of a flow."""
    return 3 * size.n * size.steps


def narrowing(widths: Sequence[int], block: int, steps: int) -> list[int]:
    """Rows step by step of widths that change with the looks, which come after the evaluation of their step."""
    return [widths[min(max(i - 1, 0) // block, len(widths) - 1)] for i in range(steps)]


def limited(rows: Sequence[int], guided: float) -> float:
    """Rows for a branch of guidance, of which there are two in the first part of the run and one in the rest."""
    return sum(count if i / len(rows) < guided else count / 2 for i, count in enumerate(rows))


@dataclass(frozen=True)
class Entry:
    """One method.

    make      (reward, size, **options) -> its controllers, or else
    drive     (problem, reward, size, **options) -> Found, for a method that is no controller
    settings  the options that a suite tries, as in "block=5,beta=100"
    rows      (size, **those options whose names it has) -> denoiser rows for a picture in each branch of guidance, a
              backward row counted as two: the harness gives a method the largest n that a budget pays for, and the
              ledger says what was spent
    eta       1 ancestral, 0 deterministic
    gradient  True: the reward must be differentiable
    guided    True: it saves on classifier-free guidance, which the model must have
    """

    make: Callable[..., Sequence[Controller]] | None = None
    settings: tuple[str, ...] = ("",)
    rows: Callable[..., float] = distinct
    eta: float = 1.0
    gradient: bool = False
    guided: bool = False
    drive: Callable[..., Found] | None = None


def _halves(n: int, looks: int) -> list[int]:
    widths = [n]
    for _ in range(looks):
        widths.append(-(-widths[-1] // 2))
    return widths


def _funnel(size: Size, block: int) -> list[int]:
    """The shape 10, 6, 6, 4, 4, 2, 2 ... (UniCoDe, arXiv 2512.12339) at n particles, one width a block."""
    shape = (10, 6, 6, 4, 4, 2)
    return [max(1, size.n * shape[min(j, 5)] // 10) for j in range(size.looks(block) + 1)]


def _kept(size: Size) -> int:
    return max(1, size.n // 4)


def _path_rows(size: Size, block: int = 5, back: int = 1) -> int:
    """n until the first look, then a row a path, as copies are equal without noise; n (back + 1) more at a look."""
    looks = size.looks(block)
    if size.n == 1 or not looks:
        return distinct(size)
    return size.n * (block + 1 + looks * (back + 1)) + _kept(size) * (size.steps - block - 1)


def _published(problem: Problem, reward: Any, size: Size, block: int = 5) -> Found:
    p, same = problem, {"n": size.n, "block": block, "generator": problem.generator, "prompts": problem.prompts}
    state = code_as_published(p.denoiser, p.shape, p.schedule, reward, **same, cond=p.cond, decode=p.decode)
    return Found(state.grouped(state.x)[:, 0], state.run.ledger)


def _rollover(problem: Problem, reward: Any, size: Size, block: int = 5) -> Found:
    return problem.solve([controllers.rollover(reward, size.n, block)], 2 * size.n)


def _noise_search(problem: Problem, reward: Any, size: Size, rounds: int = 4, radius: float | None = None) -> Found:
    found = controllers.noise_search(lambda c: problem.sample(c, size.n, eta=0.0), reward, rounds, radius)
    return Found(found.x, found.ledger)


BLOCKS = ("block=1", "block=2", "block=5", "block=10")
BETAS = ("beta=1", "beta=10", "beta=100")
BASELINE, PUBLISHED = "best-of-n-ode", "code-published"

METHODS: dict[str, Entry] = {
    BASELINE: Entry(lambda reward, size: [controllers.best_of_n(reward)], eta=0.0),
    "best-of-n": Entry(lambda reward, size: [controllers.best_of_n(reward)]),
    PUBLISHED: Entry(
        settings=BLOCKS,
        rows=lambda size, block=5: size.n * (size.steps + size.looks(block)),
        drive=_published,
    ),
    "code": Entry(lambda reward, size, block=5: [controllers.code(reward, block)], BLOCKS[1:], common_start),
    "code-interval": Entry(
        lambda reward, size, block=1, guided=0.5: [
            controllers.guidance.interval(progress=(0, guided)),
            controllers.code(reward, block),
        ],
        ("block=1", "block=2", "block=5"),
        lambda size, guided=0.5: limited([1, *[size.n] * (size.steps - 1)], guided),
        guided=True,
    ),
    "svdd": Entry(lambda reward, size: [controllers.svdd(reward)], rows=common_start),
    "fk": Entry(lambda reward, size, beta, every=5: [controllers.fk(reward, beta, every)], BETAS),
    "smc": Entry(lambda reward, size, beta, every=5: [controllers.smc(reward, beta, every)], BETAS),
    "beam": Entry(lambda reward, size, block=5: [controllers.beam(reward, _kept(size), block)], BLOCKS[:3]),
    "funnel": Entry(
        lambda reward, size, block=2: [controllers.funnel(reward, _funnel(size, block), block, keep=1)],
        rows=lambda size, block=2: sum(narrowing(_funnel(size, block), block, size.steps)),
    ),
    "funnel-interval": Entry(
        lambda reward, size, block=1, guided=0.5: [
            controllers.guidance.interval(progress=(0, guided)),
            controllers.funnel(reward, _funnel(size, block), block, keep=1),
        ],
        ("block=1", "block=2"),
        lambda size, block=1, guided=0.5: limited(narrowing(_funnel(size, block), block, size.steps), guided),
        guided=True,
    ),
    "halving-ode": Entry(
        lambda reward, size, block=5: [controllers.halving(reward, block)],
        rows=lambda size, block=5: sum(narrowing(_halves(size.n, size.looks(block)), block, size.steps)),
        eta=0.0,
    ),
    "rollover": Entry(settings=BLOCKS[:3], drive=_rollover),
    "demon": Entry(
        lambda reward, size: [controllers.Demon(reward)],
        rows=lambda size: 1 + (size.steps - 1) * (size.n + 1) if size.n > 1 else size.steps,
    ),
    "paths-ode": Entry(
        lambda reward, size, block=5, back=1: [controllers.paths(reward, _kept(size), block, back)],
        rows=_path_rows,
        eta=0.0,
    ),
    "noise-search-ode": Entry(
        settings=("rounds=4,radius=0.5",),
        rows=lambda size, rounds=4: rounds * size.n * size.steps,
        drive=_noise_search,
    ),
    "mpgd": Entry(
        lambda reward, size, strength: [controllers.gradients.mpgd(reward, strength), controllers.best_of_n(reward)],
        ("strength=0.03", "strength=0.1", "strength=0.3"),
        gradient=True,
    ),
    "universal-guidance": Entry(
        lambda reward, size, forward: [
            controllers.gradients.universal_guidance(reward, forward),
            controllers.best_of_n(reward),
        ],
        ("forward=1", "forward=10", "forward=100"),
        with_gradient,
        gradient=True,
    ),
}
"""name -> method. In a suite a setting follows the name, as in "code:block=5"; a name alone is all its settings."""
