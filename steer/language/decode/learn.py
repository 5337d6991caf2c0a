"""A cache that learns: gradients of a window's loss in the keys and values of what is before it, and Adam on them."""

from __future__ import annotations

from copy import copy
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from steer.language.decode.stream import cache_name, prepared

RATES = (0.9, 0.999, 1e-8)
"""Adam's decay rates and epsilon."""


class Settings(Protocol):
    """Those of `hidden_state_optimization`."""

    window: int
    steps: int
    lr: float
    clip: float


class Adam:
    """Adam on keys and values, whose moments and step counts stay with their columns; in float32 or finer.

    states  tensors (rows, heads, columns, width): keys and values in turn
    real    (rows, columns) bool: which columns are not padding
    """

    def __init__(self, states: list[Tensor], real: Tensor, how: Settings):
        self.real, self.how = real, how
        self.begin = [s.to(torch.promote_types(s.dtype, torch.float32)) for s in states]
        self.states = list(self.begin)
        self.first = [torch.zeros_like(s) for s in self.begin]
        self.second = [torch.zeros_like(s) for s in self.begin]
        self.count = [torch.zeros_like(s[:1, :1, :, :1]) for s in self.begin]

    def step(self, gradient: tuple[Tensor, ...]) -> None:
        """A step of `lr` root mean squares of each row's tensor, its way from the beginning clipped."""
        decay, square, eps = RATES
        for k, g in enumerate(gradient):
            real = self.real[:, None, -g.shape[2] :, None]
            self.count[k] = self.count[k] + 1
            self.first[k] = decay * self.first[k] + (1 - decay) * g
            self.second[k] = square * self.second[k] + (1 - square) * g.square()
            root = (self.second[k] / (1 - square ** self.count[k])).sqrt()
            move = self.first[k] / (1 - decay ** self.count[k]) / (root + eps)
            size = norm(self.begin[k] * real)
            rms = size / (real.sum((1, 2, 3), keepdim=True) * g.shape[1] * g.shape[3]).clamp_min(1).sqrt()
            away = self.states[k] - self.how.lr * rms * move - self.begin[k]
            most = self.how.clip * size / norm(away * real).clamp_min(1e-30)
            self.states[k] = self.begin[k] + away * most.clamp_max(1)

    def grow(self, states: list[Tensor], real: Tensor) -> None:
        """Columns come behind, and where layers slide the first ones go: states as they are now in the cache."""
        new = real.shape[1] - self.real.shape[1]
        for k, s in enumerate(states):
            behind, kept = s[:, :, -new:], s.shape[2]
            zeros, none = torch.zeros_like(behind), torch.zeros_like(behind[:1, :1, :, :1])
            every = (self.states, self.begin, self.first, self.second, self.count)
            for values, more in zip(every, (behind, behind, zeros, zeros, none)):
                values[k] = torch.cat([values[k], more], 2)[:, :, -kept:]
        self.real = real


class Window:
    """The columns from `split` on of ids (rows, columns), read with a cache of those before them."""

    def __init__(self, model: Any, cache: Any, ids: Tensor, split: int, given: dict[str, Tensor]):
        self.model, self.cache, self.ids = model, cache, ids[:, split:]
        mask = given["attention_mask"]
        self.past, self.targets = mask[:, :split].bool(), (mask[:, split:-1] * mask[:, split + 1 :]).bool()
        self.given = {"attention_mask": mask, "use_cache": True}
        if "position_ids" in given:
            self.given["position_ids"] = given["position_ids"][..., split:]

    def read(self, states: list[Tensor]) -> tuple[Tensor, Any]:
        """Logits (rows, window, V), and the cache with the window behind these keys and values."""
        trial = copy(self.cache)
        trial.layers = [copy(layer) for layer in self.cache.layers]
        write(trial, states)
        logits = self.model(input_ids=self.ids, **{**self.given, cache_name(self.model): trial}).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), trial

    def loss(self, logits: Tensor) -> Tensor:
        """(rows,) mean NLL of the window's tokens but the first, which the cache before it predicts."""
        return (nll(logits[:, :-1], self.ids[:, 1:]) * self.targets).sum(1) / self.targets.sum(1).clamp_min(1)

    def gradient(self, states: list[Tensor]) -> tuple[tuple[Tensor, ...], Tensor, Any]:
        """d/dC of each row's loss, with the logits and the cache that `read` gives."""
        with torch.enable_grad():
            leaves = [s.detach().requires_grad_() for s in states]
            logits, trial = self.read(leaves)
            return torch.autograd.grad(self.loss(logits).sum(), leaves), logits.detach(), trial

    def optimised(self, how: Settings) -> list[Tensor]:
        """Keys and values after `how.steps` steps of Adam."""
        learner = Adam(read(self.cache), self.past, how)
        for _ in range(how.steps):
            learner.step(self.gradient(learner.states)[0])
        return learner.states


@torch.no_grad()
def streamed_nll(model: Any, ids: Tensor, how: Settings, random: Generator | None = None) -> Tensor:
    """Mean NLL of each window of a text while the cache learns from the windows before, (rows, windows) float32.

    Each window is scored with the cache as it is; then `how.steps` steps of Adam on its loss change the keys and values
    that it attended to; then its own come behind them. So no token is learnt from before it is scored, and the first
    two windows are as they would be without learning. The first token of all is not scored.

    ids     (rows, columns) without padding
    how     a `hidden_state_optimization`; its window is the length of a window
    random  steps along random gradients in place of the true ones: the control

    Raises ValueError for ids of fewer than two columns.
    """
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"ids {tuple(ids.shape)}: expected (rows, columns), at least two columns.")
    whole = prepared(model, ids, torch.ones_like(ids))
    cache, learner, last, found = whole[cache_name(model)], None, None, []
    for start in range(0, ids.shape[1], how.window):
        end = start + how.window
        given = {name: whole[name][..., :end] for name in ("attention_mask", "position_ids") if name in whole}
        window = Window(model, cache, ids[:, :end], start, given)
        states = [] if learner is None else learner.states
        learns = learner is not None and how.steps > 0 and window.ids.shape[1] > 1
        gradient, logits, trial = window.gradient(states) if learns else ((), *window.read(states))
        told = logits[:, :-1] if last is None else torch.cat([last, logits[:, :-1]], 1)
        found.append(nll(told, window.ids[:, -told.shape[1] :]).mean(1).float())
        for step in range(how.steps if learns else 0):
            if step:
                gradient = window.gradient(learner.states)[0]
            learner.step(gradient if random is None else tuple(noise(g, random) for g in gradient))
        last, cache = logits[:, -1:], trial
        kept = [s.detach() for s in read(cache)]
        if learner is None:
            learner = Adam(kept, given["attention_mask"].bool(), how)
        else:
            learner.grow(kept, given["attention_mask"].bool())
        write(cache, learner.states)
    return torch.stack(found, 1)


def noise(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def nll(logits: Tensor, ids: Tensor) -> Tensor:
    """(rows, T) -log p of ids (rows, T) under logits (rows, T, V)."""
    return cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)


def norm(states: Tensor) -> Tensor:
    """(rows, 1, 1, 1)."""
    return torch.linalg.vector_norm(states, dim=(1, 2, 3), keepdim=True)


def read(cache: Any) -> list[Tensor]:
    """Keys and values of every layer that has its own."""
    return [s for layer in cache.layers if layer.get_seq_length() for s in (layer.keys, layer.values)]


def write(cache: Any, states: list[Tensor]) -> None:
    """Put keys and values where `read` found them, in the type that they have there."""
    layers = [layer for layer in cache.layers if layer.get_seq_length()]
    for layer, keys, values in zip(layers, states[::2], states[1::2]):
        layer.keys, layer.values = keys.to(layer.keys.dtype), values.to(layer.values.dtype)
