"""Guided decoding: ways to decode that `model.generate` takes as its `custom_generate`.

    from steer.language import decode

    search = decode.blockwise(reward, tokenizer, n=4, block=16)
    out = model.generate(**inputs, custom_generate=search, generator=g, do_sample=True, max_new_tokens=64)

Every decoder is a frozen dataclass, called the same way, batched over left-padded prompts, on the dynamic cache that
`generate` makes by itself. Temperature, top-p, stopping criteria and the like act as ever, and so does steering that is
open around the call. With `return_dict_in_generate=True` the result is a `Decoded`: all candidates, their rewards and
lineage, and a `Ledger` of what it cost; without it the winning sequences, as `generate` returns them.

    search        best_of_n, blockwise, smc          of n candidates, with the picks of `steer.pick` and `steer.plan`
    every token   value_guided                       FUDGE, ARGS
    logits        contrastive, cfg, dola, vcd        against an amateur, a prompt, an earlier layer, a noised picture
    attention     pasta                              look at what is marked
    cache         hidden_state_optimization          learn from the prompt before answering

Those that search or are value-guided take any of the others as their `source`:
`decode.blockwise(reward, tokenizer, source=decode.cfg(scale=2.0))`.
"""

from __future__ import annotations

from steer.language.decode.contrast import cfg, contrastive
from steer.language.decode.decoder import Decoded, Decoder, plain
from steer.language.decode.dola import dola
from steer.language.decode.learn import streamed_nll
from steer.language.decode.ledger import Ledger
from steer.language.decode.looks import Look
from steer.language.decode.pasta import pasta
from steer.language.decode.search import best_of_n, blockwise, smc
from steer.language.decode.states import hidden_state_optimization
from steer.language.decode.value import value_guided
from steer.language.decode.vcd import noised, vcd

__all__ = [
    "Decoded",
    "Decoder",
    "Ledger",
    "Look",
    "best_of_n",
    "blockwise",
    "cfg",
    "contrastive",
    "dola",
    "hidden_state_optimization",
    "noised",
    "pasta",
    "plain",
    "smc",
    "streamed_nll",
    "value_guided",
    "vcd",
]
