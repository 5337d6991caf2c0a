"""Two prompts, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """Where the tokens of a target prompt find their attention maps among those of a source prompt.

        A*[t] = kept[t] sum_s A_source[s] matrix[s, t] + (1 - kept[t]) A_target[t]

    matrix   (source tokens, target tokens)
    kept     (target tokens,) 1: the source's maps; 0: its own
    changed  the positions of the words that differ: of the source's, of the target's

    `a + b` is that of texts that follow one another, for networks that read two tokenizers' tokens in a row.
    """

    matrix: Tensor = field(repr=False)
    kept: Tensor = field(repr=False)
    changed: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """Maps (..., target tokens) of maps (..., source tokens) and (..., target tokens). ValueError for others."""
        expected = (source.shape[-1], target.shape[-1])
        if self.matrix.shape != expected:
            raise ValueError(
                f"the prompts were aligned as {tuple(self.matrix.shape)} tokens, but the network reads {expected}; "
                "give `aligned` the length that it reads, and add the alignments of tokenizers that follow one another."
            )
        kept = self.kept.to(source)
        return kept * (source @ self.matrix.to(source)) + (1 - kept) * target

    def __add__(self, other: Alignment) -> Alignment:
        lengths = self.matrix.shape
        after = (tuple(at + length for at in side) for side, length in zip(other.changed, lengths))
        changed = tuple(mine + theirs for mine, theirs in zip(self.changed, after))
        return Alignment(torch.block_diag(self.matrix, other.matrix), torch.cat([self.kept, other.kept]), changed)


def aligned(tokenizer: Any, source: str, target: str, length: int | None = None, swap: bool = True) -> Alignment:
    """The alignment of two prompts (arXiv 2208.01626): equal words, in order, take their maps from the source.

    tokenizer  of the pipeline's
    length     tokens that the network reads of it; None: what the tokenizer pads to
    swap       words in the place of others take those' maps too ("replace": the shape stays); False: only equal words
               do, and new ones have their own ("refine"). Words that are added have their own in either case

    Words are compared by difflib, which pairs the longest equal stretches first. Raises ValueError for a prompt of more
    tokens than that.
    """
    size: int = tokenizer.model_max_length if length is None else length
    a, b = (tokenizer(text)["input_ids"] for text in (source, target))
    if max(len(a), len(b)) > size:
        raise ValueError(
            f"prompts of {len(a)} and {len(b)} tokens, where the network reads {size}; shorten them, or pass the "
            "`length` that it reads (max_sequence_length)."
        )
    matrix, kept = torch.zeros(size, size), torch.ones(size)
    changed: tuple[list[int], list[int]] = ([], [])
    for tag, i, i_end, j, j_end in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal" or (tag == "replace" and swap and i_end - i == j_end - j):
            matrix[range(i, i_end), range(j, j_end)] = 1
        elif tag == "replace" and swap:  # each new token its share of what the old ones are paid
            matrix[i:i_end, j:j_end] = 1 / (j_end - j)
        else:
            kept[j:j_end] = 0
        if tag != "equal":
            changed[0].extend(range(i, i_end))
            changed[1].extend(range(j, j_end))
    rest = torch.arange(len(b), size)  # padding, counted from where each prompt ends
    matrix[(rest - len(b) + len(a)).clamp(max=size - 1), rest] = 1
    return Alignment(matrix, kept, (tuple(changed[0]), tuple(changed[1])))
