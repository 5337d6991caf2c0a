"""Search over continuations: the same looks and picks as over pictures."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from steer.language.decode.decoder import Decoder, plain
from steer.language.decode.looks import Looks
from steer.language.decode.stream import Call, Stream
from steer.language.decode.texts import Reward
from steer.pick import Pick, greedy, systematic, when_ess_below
from steer.plan import Planned


@dataclass(frozen=True)
class blockwise(Decoder):
    """Every `block` tokens, n candidates of each prompt are scored and the chosen ones continue.

    Blockwise best-of-n of controlled decoding (arXiv 2310.17022), CoDe (arXiv 2502.00968) for text; `block=1` chooses
    among n next tokens at the price of one. The cache is copied once a block, and candidates that are equal are
    evaluated once. With no end of text before T = `max_new_tokens`, prompts of L columns cost, in tokens of the model,
    P L + P (B n (block - 1) + B - 1) with B = T / block blocks and one survivor a prompt.

    reward     (texts, prompts) -> (b,), higher is better; texts follow their prompts, may be unfinished, and come
               without special tokens, prompts with them
    tokenizer  the model's tokenizer or processor
    n          candidates a prompt; n = 1 is plain sampling
    block      tokens between two looks; None: look only at finished texts, best-of-n
    pick       log-weights -> ancestors, from `steer.pick` or `steer.plan`
    beta       a look's log-weight is log G = beta r; with "diff" beta (r_now - r_before)
    potential  "value": each look is judged by itself; "diff": the product over a path is exp(beta r), see `smc`
    source     where the next tokens come from: the model, or another decoder such as `cfg(...)`

    A candidate that has ended is scored as finished, takes part to the end, and costs nothing more. Raises ValueError
    for n or block under 1, an unknown pick or potential, a search as source, and when run without do_sample.
    """

    reward: Reward
    tokenizer: Any
    n: int = 4
    block: int | None = 16
    pick: Pick | Planned = greedy
    beta: float = 1.0
    potential: str = "value"
    source: Decoder = plain

    def __post_init__(self):
        if self.n < 1:
            raise ValueError(f"n = {self.n}: expected at least one candidate a prompt.")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block = {self.block}: expected at least one token, or None for finished texts alone.")
        if not callable(self.pick) and not isinstance(self.pick, Planned):
            raise ValueError(f"unknown pick {self.pick!r}: expected one of steer.pick or steer.plan, as pick.greedy.")
        if self.potential not in ("value", "diff"):
            raise ValueError(f"unknown potential {self.potential!r}: expected 'value' or 'diff'.")
        if not isinstance(self.source, Decoder) or isinstance(self.source, blockwise):
            raise ValueError(f"source {self.source!r}: expected a decoder that does not search, as plain or cfg().")

    def open(self, call: Call) -> AbstractContextManager[Stream]:
        return self.source.open(call)

    def looks(self, call: Call, length: int | None) -> Looks:
        return Looks(self, call, length)


def best_of_n(reward: Reward, tokenizer: Any, n: int = 4, source: Decoder = plain) -> blockwise:
    """The best of n independent samples; in tokens of the model P (L + n (T - 1)), as the prompt is read once."""
    return blockwise(reward, tokenizer, n, None, source=source)


def smc(
    reward: Reward,
    tokenizer: Any,
    n: int = 16,
    block: int = 16,
    beta: float = 1.0,
    ess: float = 0.5,
    source: Decoder = plain,
) -> blockwise:
    """Sequential Monte Carlo on text, Feynman-Kac steering (arXiv 2501.06848, for text 2404.17546).

    As n grows, `Decoded.candidates` with weights softmax(`Decoded.logw`) follow p(y | x) exp(beta r(y)) exactly,
    whatever the intermediate scores; resampled when the effective sample size is under `ess` n.
    """
    return blockwise(reward, tokenizer, n, block, when_ess_below(ess, systematic), beta, "diff", source)
