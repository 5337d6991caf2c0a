"""Where the words of a prompt stand among the tokens that a network is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steer.diffusion.controllers.compose.words import Phrase

Tokenizers = Any
"""A fast tokenizer of transformers, or several, in the order in which their tokens follow one another in the text that
a network is given: `pipe.tokenizer` (SD, SDXL, PixArt), `pipe.tokenizer_2` (FLUX), `(pipe.tokenizer,
pipe.tokenizer_3)` (SD3)."""


@dataclass(frozen=True)
class Stream:
    """The stretch start ... stop of a network's text that holds the tokens of one tokenizer.

    first  how many start tokens it begins with: 1 for CLIP, 0 for T5
    """

    tokenizer: Any
    start: int
    stop: int
    first: int

    @property
    def last(self) -> int:
        """Where its last token stands."""
        return self.stop - 1

    def kept(self, prompt: str, padding: bool = True) -> slice:
        """Its tokens without the start token and the last one; without `padding` those of the prompt's own words."""
        own = self.start + len(_coded(self.tokenizer, prompt)["input_ids"]) - 1
        return slice(self.start + self.first, self.last if padding else min(self.last, own))

    def positions(self, prompt: str, phrase: Phrase) -> tuple[int, ...]:
        """Where the tokens of a phrase stand in the network's text. Raises ValueError if they lie beyond it."""
        found = tuple(self.start + place for place in positions(self.tokenizer, prompt, phrase))
        if found[-1] >= self.last:
            raise ValueError(
                f"{phrase.text!r} has the tokens {found} of the prompt {prompt!r}, but the network is given "
                f"{self.stop - self.start} tokens; shorten the prompt, or raise max_sequence_length."
            )
        return found


def positions(tokenizer: Any, prompt: str, phrase: Phrase) -> tuple[int, ...]:
    """Where the tokens of a phrase stand among those of its prompt, special tokens counted.

    A word of several tokens has all of them; of repeated words those at the phrase's own place count.

    Raises ValueError, with the tokens that there are, if none belongs to it, and for a tokenizer that does not tell
    where its tokens lie.
    """
    coded = _coded(tokenizer, prompt)
    spans = coded["offset_mapping"]
    found = tuple(k for k, (start, stop) in enumerate(spans) if start < min(stop, phrase.stop) and stop > phrase.at)
    if not found:
        seen = tokenizer.convert_ids_to_tokens(coded["input_ids"])
        raise ValueError(f"no token belongs to {phrase} of the prompt {prompt!r}; the tokens seen are {seen}.")
    return found


def _coded(tokenizer: Any, prompt: str) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell which characters its tokens stand for; pass a fast tokenizer of "
            "transformers, AutoTokenizer.from_pretrained(...)."
        )
    return tokenizer(prompt, return_offsets_mapping=True, truncation=tokenizer.model_max_length < 10**6)


def streams(tokenizers: Tokenizers, length: int) -> tuple[Stream, ...]:
    """The streams of a text of `length` tokens: all but the last are as wide as their tokenizer pads.

    Raises ValueError if the text has no room for them.
    """
    every = tokenizers if isinstance(tokenizers, Sequence) else (tokenizers,)
    found, start = [], 0
    for tokenizer in every:
        stop = min(length, start + tokenizer.model_max_length)
        starts = tokenizer("")["input_ids"][:1]
        found.append(Stream(tokenizer, start, stop, int(bool(starts) and starts[0] == tokenizer.bos_token_id)))
        start = stop
    if found[-1].stop - found[-1].start < 2:
        raise ValueError(
            f"the network is given {length} tokens of text, too few for {len(found)} tokenizers of "
            f"{[one.model_max_length for one in every]} tokens; pass those whose tokens follow one another in it."
        )
    return tuple(found)
