"""Vanishing gradients: does a prompt without spread of its reward teach nothing, and do a few examples cure it?

Short questions with known answers (`guardrail_facts`). Easy: the answer has the right word. Hard: in square brackets,
which SmolLM2 hardly ever writes by itself. GRPO on hard prompts has as many steps more as the examples cost.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from scipy.stats import bootstrap, spearmanr
from torch import Generator, Tensor

from benchmarks.guardrail_facts import CAPITALS, facts, others
from benchmarks.texts_parts import Check, Part, Row, World, last, of, some
from steer.language.decode.ledger import Ledger
from steer.language.guard import Fact
from steer.measure import Interval, interval
from steer.training import Method, Run, tune
from steer.training.text import Example, TextTask, spreads
from steer.training.text.methods import grpo, sft_grpo, text_sft
from steer.training.weights.attach import weights

SHOT = "Question: What colour is snow?\nAnswer: white\n\nQuestion: {}\n"
BRACKETS = "Answer in brackets:"
EASY, HARD = f"{SHOT}Answer:", f"{SHOT}{BRACKETS}"
METHODS = ("before", "sft", "grpo", "sft_grpo")


@dataclass(frozen=True)
class Size:
    prompts: int = 20
    """of each family in the diagnostic, and of hard ones that are held out"""
    trained: int = 150
    """hard prompts to train on"""
    share: float = 0.02
    """of them that have an answer to learn from"""
    each: int = 10
    """answers to a prompt, in a diagnostic set and where the reward is measured"""
    tokens: int = 8
    layers: int = 8
    """the last blocks, which are trained"""
    warm: int = 20
    """updates on examples"""
    steps: int = 14
    """of GRPO after them"""
    asked: int = 4
    """prompts in a step of GRPO"""
    drawn: int = 6
    """answers to each"""
    lr: float = 3e-4

    @property
    def known(self) -> int:
        """Examples: at least one, in one batch."""
        return max(1, round(self.share * self.trained))

    @property
    def more(self) -> int:
        """Steps of GRPO that cost as much as the examples: drawing a row is one pass, learning it three."""
        return math.ceil(self.warm * 3 * self.known / (4 * self.asked * self.drawn))


class Knows:
    """Easy prompts: 1 for an answer with the right word. Hard ones: 0.5 for one that begins with square brackets around
    something, 0.5 more if that has the right word."""

    def __init__(self, known: list[Fact]):
        self.wanted = {family.format(fact.question): fact.answer for fact in known for family in (EASY, HARD)}

    def __call__(self, texts: list[str], prompts: list[str]) -> Tensor:
        return torch.tensor([self.one(text, prompt) for text, prompt in zip(texts, prompts)])

    def one(self, text: str, prompt: str) -> float:
        if not prompt.endswith(BRACKETS):
            return float(self.wanted[prompt].lower() in text.lower())
        found = re.match(r"\s*\[([^\[\]]+)\]", text)
        return 0.0 if found is None else 0.5 + 0.5 * (self.wanted[prompt].lower() in found[1].lower())


def questions() -> list[Fact]:
    """All facts in an order of their own, the same every time; no question twice."""
    every = [*facts("What is the capital of {}?", CAPITALS), *others(0, 1)]
    order = torch.randperm(len(every), generator=Generator().manual_seed(0))
    return [every[k] for k in order.tolist()]


def run(world: World, size: Size, what: str) -> Row:
    """The diagnostic over both families, or the reward of held-out hard prompts after a method."""
    every, targets = questions(), last(world.model, size.layers)
    held, train = every[: size.prompts], every[size.prompts :][: size.trained]
    both = [family.format(fact.question) for family in (EASY, HARD) for fact in held]
    examples = [Example(HARD.format(fact.question), f" [{fact.answer}]") for fact in train[: size.known]]
    asked = [HARD.format(fact.question) for fact in train]
    task = TextTask(world.model, world.tokenizer, examples, asked, Knows(every), size.tokens, ledger=Ledger())
    generator = Generator().manual_seed(0)
    if what == "spreads":
        handle = weights(targets)(task)
        found = spreads(handle, task, generator, both, size.each)
        handle.detach()
        return {key: [getattr(one, key) for one in found] for key in ("mean", "std", "gradient")}
    if what == "before":
        return {"reward": reward(task, both[size.prompts :], generator, size.each)}
    method, steps = method_of(size, what, targets)
    tuned = tune(task, method, Run(steps))
    cost = task.ledger.tokens + 2 * task.ledger.backward_tokens
    found = {"steps": steps, "cost": cost, "seconds": sum(row["seconds"] for row in tuned.log)}
    found |= {"path": [row["reward"] for row in tuned.log if "reward" in row]}
    found |= {"reward": reward(task, both[size.prompts :], generator, size.each)}
    tuned.handle.detach()
    return found


def method_of(size: Size, what: str, targets: tuple[str, ...]) -> tuple[Method, int]:
    """A method and its steps. Advantages are not divided by the std, as in the diagnostic."""
    dials = {"lr": size.lr, "targets": targets}
    if what == "sft":
        return text_sft(size.known, **dials), size.warm
    draws = {"prompts": size.asked, "each": size.drawn, "spread": "none"}
    if what == "grpo":
        return grpo(**draws, **dials), size.steps + size.more
    steps = size.warm + size.steps
    return sft_grpo(size.warm / steps, size.known, **draws, **dials), steps


def reward(task: TextTask, prompts: list[str], generator: Generator, each: int) -> list[float]:
    """The mean reward of answers to each prompt."""
    texts = [task.sample([prompt] * each, generator)[1] for prompt in prompts]
    return [float(task.score(said, [prompt] * each).mean()) for said, prompt in zip(texts, prompts)]


def correlated(rows: list[Row]) -> Interval:
    """Spearman's correlation of std and gradient over prompts, bootstrapped over them."""
    (row,) = some(rows, what="spreads")
    rank = lambda x, y: float(spearmanr(x, y).statistic)  # noqa: E731
    both = (row["std"], row["gradient"])
    if len(set(both[0])) < 2:
        raise ValueError("the reward of every prompt has the same spread")
    found = bootstrap(both, rank, paired=True, vectorized=False, method="percentile", n_resamples=2000, rng=0)
    return Interval(rank(*both), *map(float, found.confidence_interval))


def lines(rows: list[Row]) -> list[Row]:
    """A line a method: reward of held-out hard prompts, and what it took."""
    found = []
    for what in METHODS:
        (row,) = some(rows, what=what)
        line = {"method": what, "reward": interval(of(rows, "reward", what=what)[0])}
        found.append({**line, **{key: row.get(key) for key in ("steps", "cost", "seconds")}})
    return found


def ahead(rows: list[Row], what: str, other: str) -> Tensor:
    return (of(rows, "reward", what=what) - of(rows, "reward", what=other))[0]


CHECKS = (
    Check("rank correlation of reward std and gradient norm over prompts", correlated, 0.6, False),
    Check("reward of hard prompts: sft_grpo less grpo", lambda r: ahead(r, "sft_grpo", "grpo")),
    Check("reward of hard prompts: sft_grpo less its examples alone", lambda r: ahead(r, "sft_grpo", "sft")),
)
PART = Part(
    Size(),
    Size(2, 4, 0.25, 2, 2, 1, 1, 1, 1, 2),
    lambda size, seeds: [{"what": what} for what in ("spreads", *METHODS)],
    run,
    CHECKS,
    lines,
)
