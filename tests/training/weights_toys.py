"""Two tasks on which every method of steer/training/weights runs in a moment: a net of two layers, a Llama of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tiny_models
import torch
import transformers as hf
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from steer.training.weights.task import Examples


def net(*widths: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear layers with tanh in between; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b, dtype=dtype) for a, b in zip(widths, widths[1:])]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])


def examples(dtype: torch.dtype = torch.float32) -> Examples:
    """Points in 8 dimensions in 4 classes, and a net 8 - 12 - 4."""
    generator = Generator().manual_seed(0)
    points = torch.randn(64, 8, generator=generator, dtype=dtype)
    labels = (points @ torch.randn(8, 4, generator=generator, dtype=dtype)).argmax(-1)
    return Examples(net(8, 12, 4, dtype=dtype), points, labels, view=jitter)


def jitter(points: Tensor, generator: Generator) -> Tensor:
    return points + 0.1 * torch.randn(points.shape, generator=generator, dtype=points.dtype)


@dataclass(eq=False)
class Tokens:
    """Sequences of words for a Llama: what is right follows the first 4, in the next row is what is wrong."""

    model: Any
    ids: Tensor

    def batch(self, generator: Generator, size: int) -> Tensor:
        return self.ids[torch.randint(len(self.ids), (size,), generator=generator)]

    def loss(self, model: Any, batch: Tensor) -> Tensor:
        return cross_entropy(self.logits(model, batch), batch[:, 1:].flatten())

    def logits(self, model: Any, batch: Tensor) -> Tensor:
        return model(input_ids=batch).logits[:, :-1].flatten(0, 1)

    def choices(self, model: Any, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.stack([torch.cat([batch[:, :4], batch.roll(k, 0)[:, 4:]], 1) for k in range(2)], 1)
        logp = model(input_ids=rows.flatten(0, 1)).logits[:, 3:-1].log_softmax(-1)
        taken = logp.gather(-1, rows.flatten(0, 1)[:, 4:, None])[..., 0].unflatten(0, rows.shape[:2])
        return taken, torch.ones_like(taken, dtype=torch.bool), torch.zeros(len(batch), dtype=torch.long)

    def features(self, model: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
        views = torch.cat([batch, batch.flip(1)])
        return model.model(input_ids=views).last_hidden_state.mean(1), (batch[:, 0] % 2).repeat(2)

    def ones(self, model: Any) -> Tensor:
        return model(inputs_embeds=torch.ones(1, 3, 32, dtype=torch.float64)).logits


def tokens() -> Tokens:
    """16 rows of 8 words, and a Llama of two blocks of width 32."""
    config = hf.LlamaConfig(**{**tiny_models.LLAMA, "num_hidden_layers": 2, "tie_word_embeddings": True})
    model = tiny_models.made(hf.LlamaForCausalLM, config, torch.float32)
    return Tokens(model, tiny_models.tokens(16, 8)["input_ids"])


TASKS = {"net": examples, "llama": tokens}
