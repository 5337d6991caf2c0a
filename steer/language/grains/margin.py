"""The preference margin of a pair as a function of the embeddings of its prompt, which is what is attributed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from steer.language.data import Pair
from steer.language.grains.parts import Parts, parts
from steer.language.grains.prefix import Run, resumed
from steer.language.inputs import Merged, replay
from steer.language.scoring import Reduction, log_probs, matched

BUDGET = 2**30
"""Bytes of activations for a chunk of rows where the device does not say what it has left."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Responses behind a prompt in one row of embeddings, and which logits score them.

    run     embeddings (n, T, d), columns (m,) -> logits (n, m, vocabulary) there
    tail    (T - P, d) embeddings behind the prompt's P
    read    (m,) column whose logits score a response token: the one before it
    target  (m,) that token
    weight  (m,) its part in the margin
    ends    the column of the last token of each response
    resume  a column -> `run` of what comes from there on, or None
    """

    run: Run
    tail: Tensor
    read: Tensor
    target: Tensor
    weight: Tensor
    ends: tuple[int, ...]
    resume: Callable[[int], Run | None] = lambda start: None

    def logits(self, prompts: Tensor) -> Tensor:
        """Prompt embeddings (n, P, d), or those from some column on -> logits that score tokens, (n, m, vocabulary)."""
        return self.run(torch.cat([prompts, self.tail.expand(len(prompts), -1, -1)], 1), self.read)

    def __call__(self, prompts: Tensor) -> Tensor:
        """The same -> their part of the margin, (n,), in float32 at least."""
        logits = self.logits(prompts)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found = logits.log_softmax(-1).gather(-1, self.target.expand(len(prompts), -1)[..., None])[..., 0]
        return found @ self.weight.to(found.dtype)

    def behind(self, start: int) -> Scored | None:
        """The same for prompts that are given from a column on, or None."""
        run = self.resume(start)
        return None if run is None else replace(self, run=run, read=self.read - start)


@dataclass(frozen=True, eq=False)
class Margin:
    """f(e) = log p(y+ | e) - log p(y- | e), e (P, d) the embeddings of the prompt, the responses as they are.

    scored   one row [prompt, y+, y-], or one for each response
    embeds   (P, d) of the prompt itself
    ids      (P,)
    image    (P,) bool: tokens that stand for an image
    answers  the tokens of y+ and of y-, and the part of each in the margin
    value    f at the prompt itself
    rows     that are run at once
    """

    scored: tuple[Scored, ...]
    embeds: Tensor
    ids: Tensor
    image: Tensor
    answers: tuple[tuple[Tensor, Tensor], ...]
    value: float
    rows: int

    @torch.no_grad()
    def __call__(self, prompts: Tensor) -> Tensor:
        """(n, P, d) -> (n,)."""
        start, scored = self._from(prompts)
        chunks = prompts[:, start:].split(self.rows)
        return torch.cat([torch.stack([one(chunk) for one in scored]).sum(0) for chunk in chunks])

    def gradient(self, prompts: Tensor, ends: Tensor) -> Tensor:
        """Sum over prompts (n, P, d) of df/de, (P, d), in float32 at least; 0 in front of where `ends` (P, d) differs.

        Prompts on the line from `ends` to this one have the same columns there, and these no part in its integral.
        """
        start, scored = self._from(ends[None])
        exact = torch.promote_types(self.embeds.dtype, torch.float32)
        total = torch.zeros_like(self.embeds, dtype=exact)
        for points in prompts[:, start:].detach().split(self.rows):
            for one in scored:  # one graph at a time
                total[start:] += _slope(one, points).sum(0).to(exact)
        return total

    @torch.no_grad()
    def _from(self, prompts: Tensor) -> tuple[int, tuple[Scored, ...]]:
        """The first column in which some prompt is not this one, and what scores prompts that are given from there on.

        0 and all, where a decoder does not resume to the same margin.
        """
        differs = (prompts != self.embeds).any(-1).any(0).nonzero()
        start = int(differs[0]) if len(differs) else len(self.embeds) - 1
        behind = [one.behind(start) for one in self.scored] if start else []
        scored = tuple(one for one in behind if one is not None)
        if len(scored) < len(self.scored):
            return 0, self.scored
        found = float(torch.stack([one(self.embeds[None, start:]) for one in scored]).sum())
        return (start, scored) if abs(found - self.value) <= close(self.embeds) else (0, self.scored)


def preference(
    model: Any, tokenizer: Any, pair: Pair, reduction: Reduction = "mean", rows: int | None = None, whole: bool = False
) -> Margin:
    """The margin of a pair over its whole responses: the mean or the sum of log p(y_t | prompt, y_<t).

    One row holds prompt, y+ and y-, with a 4D mask that hides y+ from y- and positions that start again behind the
    prompt: the prompt is computed once, and one backward gives the contrast. Models whose attention does not heed such
    a mask, told by another margin than `scoring.log_probs` finds, and prompts with an image get a row a response.

    rows   at once; by default what fits the memory
    whole  keeps the last token of each response, which no score needs: to read states there

    Raises ValueError for fewer rows than 1, and what `scoring.log_probs` and `data.encoded` do.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"{rows} rows at once: expected at least 1.")
    matched(model, tokenizer)
    given = parts(model, tokenizer, pair)
    positive, negative = (float(log_probs(model, row, reduction)) for row in given.rows)
    weights = _weights(given, reduction)
    found = None if given.pictured else _joined(given, weights, whole, positive - negative)
    scored, merged = found or _apart(given, weights, whole)
    device, size = merged.embeds.device, len(given.ids)
    answers = tuple((ids.to(device), weight.to(device)) for ids, weight in zip(given.responses, weights))
    prompt = (merged.embeds[0, :size], given.ids.to(device), merged.image[0, :size])
    return Margin(scored, *prompt, answers, positive - negative, rows or fitting(model, scored, size))


def _weights(given: Parts, reduction: Reduction) -> tuple[Tensor, Tensor]:
    """The part of each token of y+ and of y- in the margin."""
    sizes = [len(ids) if reduction == "mean" else 1 for ids in given.responses]
    first, second = (
        torch.full((len(ids),), 1 / size, dtype=torch.float64) for ids, size in zip(given.responses, sizes)
    )
    return first, -second


def _apart(given: Parts, weights: tuple[Tensor, Tensor], whole: bool) -> tuple[tuple[Scored, ...], Merged]:
    """Each response behind the prompt in a row of its own."""
    cut, size, found = 0 if whole else 1, len(given.ids), []
    for which, (ids, weight) in enumerate(zip(given.responses, weights)):
        merged = given.alone(which, cut)
        read = torch.arange(size - 1, size + len(ids) - 1)
        found.append(_scored(given, merged, (read, ids, weight), (size + len(ids) - cut - 1,)))
    return tuple(found), merged


def _joined(
    given: Parts, weights: tuple[Tensor, Tensor], whole: bool, expected: float
) -> tuple[tuple[Scored, ...], Merged] | None:
    """Both responses behind the prompt in one row, the second blind to the first; None where the margin is another."""
    cut, size = 0 if whole else 1, len(given.ids)
    first, second = given.responses
    a, b = len(first) - cut, len(second) - cut
    mask = torch.ones(size + a + b, size + a + b, dtype=torch.bool).tril()
    mask[size + a :, size : size + a] = False
    place = torch.cat([torch.arange(size + a), torch.arange(size, size + b)])
    ahead = torch.arange(size - 1, size + len(first) - 1)
    behind = torch.tensor([size - 1, *range(size + a, size + a + len(second) - 1)])
    read, target, weight = torch.cat([ahead, behind]), torch.cat([first, second]), torch.cat(weights)
    try:
        merged = given.joined(torch.cat([first[:a], second[:b]]), mask, place)
        one = _scored(given, merged, (read, target, weight), (size + a - 1, size + a + b - 1))
        with torch.no_grad():
            error = abs(float(one(merged.embeds[:, :size])) - expected)
    except (TypeError, ValueError, RuntimeError):  # a model may refuse such a mask, or positions
        return None
    return ((one,), merged) if error <= close(merged.embeds) else None


def _scored(given: Parts, merged: Merged, reading: tuple[Tensor, Tensor, Tensor], ends: tuple[int, ...]) -> Scored:
    run, tail = partial(replay, given.model, merged), merged.embeds[0, len(given.ids) :]
    resume = lru_cache(1)(partial(resumed, given.model, merged))
    read, target, weight = (part.to(tail.device) for part in reading)
    return Scored(run, tail, read, target, weight, ends, resume)


def close(embeds: Tensor) -> float:
    """How near the margin of another way to compute it must come, in nats; half precision rounds by more."""
    return {torch.float64: 1e-8, torch.float32: 1e-4}.get(embeds.dtype, 0.02)


def _slope(scored: Scored, points: Tensor) -> Tensor:
    """df/de of each point. Raises ValueError where a kernel of a quantised model has no backward."""
    cure = "its kernels have no backward (quantised?). Use method='occlusion', or load it unquantised."
    points = points.requires_grad_()
    with torch.enable_grad():
        values = scored(points)
    try:
        with warnings.catch_warnings():  # torch only warns of these, and gives the gradient of what lies beside them
            warnings.filterwarnings("error", ".*autograd kernel was not registered")
            slope = torch.autograd.grad(values.sum(), points, allow_unused=True)[0] if values.requires_grad else None
    except (NotImplementedError, UserWarning) as error:
        raise ValueError(f"no gradient passes through this model: {cure}") from error
    if slope is None:
        raise ValueError(f"no gradient reaches the embeddings of this model: {cure}")
    return slope


def fitting(model: Any, scored: Sequence[Scored], size: int) -> int:
    """Rows whose activations for one backward fit into half of what a CUDA device has free, else into 1 GiB."""
    config, device = model.config.get_text_config(decoder=True), model.device
    tokens, read = max(size + len(one.tail) for one in scored), max(len(one.read) for one in scored)
    wide = 16 * config.hidden_size + 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    row = (
        tokens * config.num_hidden_layers * (wide + config.num_attention_heads * tokens) + 3 * read * config.vocab_size
    )
    free = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else BUDGET
    return max(1, min(64, free // (row * model.dtype.itemsize)))


@contextmanager
def still(model: Any) -> Iterator[None]:
    """Inside, no weight asks for a gradient, which spares half of a backward, and no layer trains (dropout)."""
    asked = [(p, p.requires_grad) for p in model.parameters()]
    trained = [(m, m.training) for m in model.modules()]
    try:
        model.requires_grad_(False).eval()
        yield
    finally:
        for p, wanted in asked:
            p.requires_grad_(wanted)
        for module, wanted in trained:
            module.training = wanted
