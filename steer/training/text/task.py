"""What a language model is to learn from: prompts with answers, and prompts with a reward on what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from steer.language.data import Choices, Encoded, Pair, joined, language, whole
from steer.language.decode import plain
from steer.language.decode.ledger import Ledger
from steer.language.scoring import answer_logits, answered, matched, usable

Reward = Callable[[list[str], list[str]], Tensor]
"""(texts, their prompts) -> (b,), higher is better."""


@dataclass(frozen=True)
class Example:
    """A prompt with the answer that is to be learnt; the space between them belongs to the answer."""

    prompt: str
    answer: str
    image: Any = field(default=None, repr=False)

    @property
    def options(self) -> tuple[str]:
        return (self.answer,)


@dataclass(frozen=True, eq=False)
class Drawn(Encoded):
    """Examples of a task with their answers; index (rows,) says which they are."""

    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))


@dataclass(eq=False)
class TextTask:
    """A causal language model under training.

    model     of transformers; its tokenizer pads on either side
    examples  prompts with answers; of a `Pair` the positive one is learnt, of `Choices` the first; the others are for
              methods that learn from wrong answers too (`t_few`)
    prompts   to answer under the reward; those of the examples, if none are given
    reward    of answers, as a `steer.rewards.text.TextReward`
    tokens    the longest answer that is sampled
    end       answers of examples end with the model's end-of-text token, so that it learns to stop
    ledger    the cost of all that was asked so far

    Raises ValueError for a task with neither examples nor prompts, a tokenizer of another model, and examples that do
    not fit into the context.
    """

    model: Any
    tokenizer: Any
    examples: Sequence[Example | Pair | Choices] = ()
    prompts: Sequence[str] = ()
    reward: Reward | None = None
    tokens: int = 32
    end: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    encoded: Encoded | None = field(init=False, repr=False, default=None)

    def __post_init__(self):
        matched(self.model, self.tokenizer)
        self.prompts = list(self.prompts) or [example.prompt for example in self.examples]
        if not self.prompts:
            raise ValueError("a text task without examples and prompts: expected at least one of either.")
        if self.examples:
            self.encoded = self._encoded([(one, one.options[0]) for one in self.examples])

    def _encoded(self, answers: Sequence[tuple[Example | Pair | Choices, str]]) -> Encoded:
        stop = language(self.tokenizer).eos_token or "" if self.end else ""
        asked, said = zip(*answers)
        rows = answered(self.tokenizer, asked, [answer + stop for answer in said])
        usable(self.model, rows)
        return rows

    @cached_property
    def options(self) -> tuple[Encoded, Tensor]:
        """All answers of all examples, right and wrong, and how many each example has (n,).

        Raises ValueError where none has a wrong one.
        """
        sizes = torch.tensor([len(one.options) for one in self.examples])
        if not (sizes > 1).any():
            raise ValueError("this method learns from wrong answers too; give examples as Pair or Choices.")
        return self._encoded([(one, option) for one in self.examples for option in one.options]), sizes

    @property
    def rows(self) -> Encoded:
        """All examples. Raises ValueError where the task has none."""
        if self.encoded is None:
            raise ValueError("this method learns from answers; pass TextTask(..., examples=[Example(prompt, answer)]).")
        return self.encoded

    def batch(self, generator: Generator, size: int, among: Tensor | None = None) -> Drawn:
        """Different examples, drawn from all or from some; as many as there are, if there are fewer than `size`."""
        pool = torch.arange(len(self.rows)) if among is None else among
        index = pool[torch.randperm(len(pool), generator=generator)[:size]]
        return Drawn(**vars(self.rows.take(index)), index=index)

    def loss(self, model: Any, batch: Encoded) -> Tensor:
        """Mean cross-entropy of the answers' tokens."""
        logits, ids, _ = self.answers(batch, model)
        return F.cross_entropy(logits, ids)

    def logits(self, model: Any, batch: Encoded) -> Tensor:
        """(tokens, vocabulary) that predict the answers' tokens."""
        return self.answers(batch, model)[0]

    def choices(self, model: Any, batch: Drawn) -> tuple[Tensor, Tensor, Tensor]:
        """log p (b, choices, tokens) of each answer's tokens, which of them there are (the same shape), and the number
        of the right answer (b,), 0: what T-Few's losses take. Raises ValueError where no example has a wrong answer."""
        every, sizes = self.options
        first, sizes = (sizes.cumsum(0) - sizes)[batch.index], sizes[batch.index]
        there = torch.arange(int(sizes.max())) < sizes[:, None]
        rows = every.take((first[:, None] + torch.arange(there.shape[1]))[there])
        logits, ids, _ = self.answers(rows, model)
        counts = there.new_zeros(*there.shape, int(rows.answer.sum(1).max()))
        counts[there] = torch.arange(counts.shape[-1]) < rows.answer.sum(1)[:, None]
        counts = counts.to(logits.device)
        logp = logits.new_zeros(counts.shape).masked_scatter(counts, -F.cross_entropy(logits, ids, reduction="none"))
        return logp, counts, torch.zeros(len(sizes), dtype=torch.long, device=logits.device)

    def answers(self, batch: Encoded, model: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the answers' tokens, the tokens, and the row of each, as `answer_logits`; counted."""
        found = answer_logits(self.model, batch, model)
        self.ledger.tokens += batch.input_ids.numel()
        self.ledger.backward_tokens += batch.input_ids.numel() * found[0].requires_grad
        return found

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        """Rewards (b,) float32. Raises ValueError without a reward, and for one that is not finite."""
        if self.reward is None:
            raise ValueError("this method needs a reward, and the task has none; pass TextTask(..., reward=...).")
        self.ledger.reward_calls += len(texts)
        found = torch.as_tensor(self.reward(texts, prompts)).float().cpu()
        if found.shape != (len(texts),) or not bool(found.isfinite().all()):
            raise ValueError(f"{self.reward!r} gave {found}; expected {len(texts)} finite scores, one a text.")
        return found

    @torch.no_grad()
    def sample(self, prompts: list[str], generator: Generator, temperature: float = 1.0) -> tuple[Encoded, list[str]]:
        """Answers drawn from softmax(logits / temperature), as rows for teacher forcing and as texts."""
        given = whole(self.tokenizer, prompts)
        config = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,
            max_new_tokens=self.tokens,
            eos_token_id=self.model.generation_config.eos_token_id,
            pad_token_id=language(self.tokenizer).pad_token_id or 0,
            return_dict_in_generate=True,
        )
        inputs = given.inputs(self.model.device)
        made = self.model.generate(**inputs, generation_config=config, custom_generate=plain, generator=generator)
        self.ledger.tokens += made.ledger.tokens
        asked = [ids[mask.bool()] for ids, mask in zip(given.input_ids, given.attention_mask)]
        said = [ids[:count].cpu() for ids, count in zip(made.candidates[:, 0], made.lengths[:, 0].tolist())]
        rows = joined(self.tokenizer, [torch.cat(both) for both in zip(asked, said)], [len(ids) for ids in asked])
        return rows, self.tokenizer.batch_decode([ids.tolist() for ids in said], skip_special_tokens=True)
