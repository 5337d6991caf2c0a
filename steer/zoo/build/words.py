"""The tokenizer of the embedded models: a stock CLIPTokenizer whose every caption word is one token."""

from __future__ import annotations

import functools
import json
import re

from ..data import COLOURS, RELATIONS, STYLES, captions

CONTEXT = 24
GRAMMAR = ("a", "on a background", "style", ",")


@functools.cache
def tokenizer():
    """CLIPTokenizer: byte-level pieces, merged until every word of the grammar is one; the special tokens come last.

    They come last because open_clip pools its text features at the highest token number, the end of the text.
    """
    from transformers import CLIPTokenizer

    corpus = [*(row["name"] for row in captions()), *STYLES, *COLOURS, *RELATIONS, *GRAMMAR]
    words = {word for text in corpus for word in re.findall(r"\w+|[^\w\s]", text)}
    ends = [f"{letter}</w>" for letter in sorted({word[-1] for word in words})]
    # given beforehand, for the trainer numbers what it finds in the order of a hash table, another one in every process
    found = CLIPTokenizer().train_new_from_iterator([corpus], vocab_size=8000, new_special_tokens=ends)
    trained = json.loads(found.backend_tokenizer.to_str())
    special = ("<|startoftext|>", "<|endoftext|>")
    pieces = [piece for piece in trained["model"]["vocab"] if piece not in special]
    vocab = {piece: number for number, piece in enumerate([*pieces, *special])}
    merges = [tuple(pair) for pair in trained["model"]["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)
