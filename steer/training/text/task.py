"""What a language model is to learn from: prompts with answers, and prompts with a reward on what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from steer.language.data import Encoded, Pair, joined, language, whole
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


@dataclass(eq=False)
class TextTask:
    """A causal language model under training.

    model     of transformers; its tokenizer pads on either side
    examples  prompts with answers; of a `Pair` the positive one is learnt
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
    examples: Sequence[Example | Pair] = ()
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
            stop = language(self.tokenizer).eos_token or "" if self.end else ""
            answers = [one.positive if isinstance(one, Pair) else one.answer for one in self.examples]
            self.encoded = answered(self.tokenizer, self.examples, [answer + stop for answer in answers])
            usable(self.model, self.encoded)

    @property
    def rows(self) -> Encoded:
        """All examples. Raises ValueError where the task has none."""
        if self.encoded is None:
            raise ValueError("this method learns from answers; pass TextTask(..., examples=[Example(prompt, answer)]).")
        return self.encoded

    def batch(self, generator: Generator, size: int, among: Tensor | None = None) -> Encoded:
        """Different examples, drawn from all or from some; as many as there are, if there are fewer than `size`."""
        pool = torch.arange(len(self.rows)) if among is None else among
        return self.rows.take(pool[torch.randperm(len(pool), generator=generator)[:size]])

    def loss(self, model: Any, batch: Encoded) -> Tensor:
        """Mean cross-entropy of the answers' tokens."""
        logits, ids, _ = self.answers(batch, model)
        return F.cross_entropy(logits, ids)

    def logits(self, model: Any, batch: Encoded) -> Tensor:
        """(tokens, vocabulary) that predict the answers' tokens."""
        return self.answers(batch, model)[0]

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
