"""Blockwise search over text against best-of-n on SmolLM2, at equal numbers of tokens that the model processes.

    python -m benchmarks.decode
    python -m benchmarks.decode --small       a few minutes

Both sample from the same model with a generator for each prompt and seed. Of best-of-n with n, n + 1, ... candidates
the first is compared that processes at least as many tokens as blockwise search with n. Differences are paired over
prompts and seeds, with bootstrap intervals over prompts. What was not optimised stands beside: the mean log-probability
of the text's tokens, and its length in words. Writes benchmarks/results/decode.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

import steer
from benchmarks.output import part_of, tabulate, write
from steer.cli import record
from steer.language import decode
from steer.language.data import chat
from steer.language.scoring import LogProb
from steer.measure import interval
from steer.rewards import TextReward, Vader

TOPICS = (
    "a rainy day", "an old bicycle", "the first day of school", "a visit to the dentist", "a lost key", "the sea",
    "a long train ride", "an empty house", "a birthday party", "the night shift", "a broken phone", "winter",
    "a new neighbour", "the traffic in town", "a bowl of soup", "the last page of a book", "a barking dog", "a storm",
    "a job interview", "the smell of coffee", "a wrong number", "an airport", "a garden in autumn", "a quarrel",
)  # fmt: skip
SPARE = 2
"""How many candidates more than n best-of-n is tried with, to reach the tokens of blockwise search."""


@dataclass(frozen=True)
class Initial(TextReward):
    """Share of the words that begin with a letter."""

    letter: str

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        words = [text.lower().split() for text in texts]
        return torch.tensor([sum(w.startswith(self.letter) for w in said) / max(len(said), 1) for said in words])


REWARDS = {"VADER": Vader(), "words with s": Initial("s")}


@dataclass(frozen=True)
class Decode:
    """Two sentences about each of some topics."""

    n: int = 4
    blocks: tuple[int, ...] = (4, 8, 16, 32)
    tokens: int = 64
    topics: int = len(TOPICS)
    seeds: int = 3
    temperature: float = 1.0
    rows: int = 4
    """prompts that are searched at once"""
    small: bool = False
    """4 topics, 2 seeds, 16 tokens, one block length"""
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.decode -->` and the end of that"""


@dataclass(frozen=True)
class Found:
    """What one decoder wrote; all (topics, seeds). `tokens` and `calls` are means for one text."""

    reward: Tensor
    logp: Tensor
    words: Tensor
    tokens: float
    calls: float


def written(bench: Decode, model: Any, tokenizer: Any, decoder: decode.Decoder) -> Found:
    """Run a decoder on every topic and seed."""
    prompts = [chat(tokenizer, f"Write two sentences about {topic}.") for topic in TOPICS[: bench.topics]]
    judge, texts, best, tokens, calls = LogProb(model, tokenizer), [], [], 0, 0
    for seed in range(bench.seeds):
        for start in range(0, len(prompts), bench.rows):
            some = prompts[start : start + bench.rows]
            inputs = tokenizer(some, return_tensors="pt", padding=True)
            generators = [torch.Generator().manual_seed(1000 * seed + start + k) for k in range(len(some))]
            out = model.generate(
                **inputs,
                custom_generate=decoder,
                generator=generators,
                do_sample=True,
                temperature=bench.temperature,
                max_new_tokens=bench.tokens,
                return_dict_in_generate=True,
            )
            columns = inputs["input_ids"].shape[1]
            texts += tokenizer.batch_decode(out.sequences[:, columns:], skip_special_tokens=True)
            best.append(out.rewards.amax(1))
            tokens, calls = tokens + out.ledger.tokens, calls + out.ledger.reward_calls
    shape = (bench.seeds, len(prompts))
    logp, words = judge(texts, prompts * bench.seeds), torch.tensor([float(len(text.split())) for text in texts])
    reward, logp, words = (values.view(shape).T for values in (torch.cat(best), logp, words))
    return Found(reward, logp, words, tokens / len(texts), calls / len(texts))


def compared(block: int, n: int, ours: Found, rivals: dict[int, Found]) -> dict[str, Any]:
    """A line of the table: blockwise search against the first best-of-n that processes as many tokens."""
    enough = [k for k, rival in rivals.items() if rival.tokens >= ours.tokens] or [max(rivals)]
    rival = rivals[enough[0]]
    return {
        "block": block,
        "n": [n, enough[0]],
        "tokens": [ours.tokens, rival.tokens],
        "reward calls": [ours.calls, rival.calls],
        "reward": [float(ours.reward.mean()), float(rival.reward.mean())],
        "difference": interval(ours.reward - rival.reward),
        "log p": interval((ours.logp - rival.logp).nan_to_num()),  # an empty text has none
        "words": interval(ours.words - rival.words),
    }


def main(bench: Decode) -> None:
    """Measure, print and write."""
    if bench.small:
        bench = replace(bench, topics=4, seeds=2, tokens=16, blocks=(4,))
    record.folder(bench.results)
    part = part_of(bench)
    model, tokenizer = steer.load("smollm2")
    table = []
    for name, reward in REWARDS.items():
        counts = range(bench.n, bench.n + SPARE + 1)
        rivals = {k: written(bench, model, tokenizer, decode.best_of_n(reward, tokenizer, k)) for k in counts}
        for block in bench.blocks:
            ours = written(bench, model, tokenizer, decode.blockwise(reward, tokenizer, bench.n, block))
            table.append({"reward": name, **compared(block, bench.n, ours, rivals)})
    tabulate(table, "blockwise search, best-of-n, and the mean of their difference with its 95 % interval", part)
    write(bench, {"table": table})


if __name__ == "__main__":
    main(tyro.cli(Decode, description=__doc__))
