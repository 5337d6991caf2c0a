"""What `custom_generate` takes: the loop that all decoders share, and what they return."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steer.language.decode.draw import Draws, Random
from steer.language.decode.ledger import Ledger
from steer.language.decode.run import Run
from steer.language.decode.stream import Call, Forward, Stream

if TYPE_CHECKING:
    from steer.language.decode.looks import Look, Looks


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a decoder returns with `return_dict_in_generate=True`; else `sequences` alone.

    sequences   (prompts, columns) the prompt and the best of its candidates, the pad token after the end
    candidates  (prompts, n, tokens) what follows the prompt, the pad token after the end
    lengths     (prompts, n) tokens of each candidate, its end included
    rewards     (prompts, n) float32 scores of the finished candidates, -inf for those that failed or were switched
                off; None without a reward
    logw        (prompts, n) float32 log-weights of the finished candidates; None without a reward
    trace       every look of a search; the last one is at the finished candidates
    ledger      what it cost
    """

    sequences: Tensor
    candidates: Tensor
    lengths: Tensor
    rewards: Tensor | None = None
    logw: Tensor | None = None
    trace: tuple[Look, ...] = field(default=(), repr=False)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def lineage(self) -> Tensor:
        """(prompts, looks, n): at look j slot k continued candidate lineage[:, j, k]; row 0 is 0 ... n - 1."""
        prompts, n = self.lengths.shape
        own = torch.arange(n).expand(prompts, n)
        return torch.stack([own, *(look.index for look in self.trace[:-1])], 1)


class Decoder:
    """A way to decode, as `model.generate(**inputs, custom_generate=decoder, generator=..., ...)` takes it.

    A subclass is a frozen dataclass that opens a stream, whose logits are of its making; logits processors
    (temperature, top-p, ...) and stopping criteria act on them as ever. Prompts may be padded, on the left. `generator`
    is one `torch.Generator`, a sequence of one a prompt, or None: torch's global one; unused with do_sample=False.
    `generate` itself hands no streamer on to a custom decoder. Raises ValueError for beams, for caches that cannot be
    copied by rows (static, quantised, none), and for prompts without a token.
    """

    n = 1
    block: int | None = None

    def open(self, call: Call) -> AbstractContextManager[Stream]:
        raise NotImplementedError

    def looks(self, call: Call, length: int | None) -> Looks | None:
        return None

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        generator: Random = None,
        **model_kwargs: Any,
    ) -> Tensor | Decoded:
        began = time.perf_counter()
        call = checked(Call(model, input_ids, model_kwargs, generation_config), self.n)
        draws = Draws(self.n, generator, len(input_ids), input_ids.device)
        draw = draws.tokens if generation_config.do_sample else lambda scores, rows: scores.argmax(-1)
        length = getattr(stopping_criteria, "max_length", None)
        looks = self.looks(call, None if length is None else length - input_ids.shape[1])
        on = torch.ones(len(input_ids), 1, dtype=torch.bool) if looks is None else looks.on
        pad = getattr(generation_config, "_pad_token_tensor", None)
        with self.open(call) as stream:
            run = Run(stream, on, draw, logits_processor, stopping_criteria, 0 if pad is None else int(pad))
            run.block(self.block)
            while len(run.live) and looks is not None:
                run.follow(*looks.between(run, draws))
                run.block(self.block)
        if looks is not None:
            looks.last(run)
        call.ledger.seconds = time.perf_counter() - began
        found = decoded(call, run, looks)
        return found if generation_config.return_dict_in_generate else found.sequences


def checked(call: Call, n: int) -> Call:
    """A call with a mask. Raises ValueError for what guided decoding cannot do, and for prompts without a token."""
    config = call.config
    if getattr(call.model.config, "is_encoder_decoder", False):
        raise ValueError(f"{type(call.model).__name__} is an encoder-decoder: expected a model with one decoder.")
    if config.num_beams > 1:
        raise ValueError(f"num_beams={config.num_beams}: guided decoding has candidates of its own; expected 1.")
    if n > 1 and not config.do_sample:
        raise ValueError(f"{n} candidates would be equal: expected do_sample=True.")
    if n > 1 and config.guidance_scale not in (None, 1):
        raise ValueError(
            f"guidance_scale={config.guidance_scale} has a cache that does not follow {n} candidates: use source=cfg()."
        )
    mask = call.kwargs.get("attention_mask")  # generate drops one that masks nothing
    mask = torch.ones_like(call.ids) if mask is None else mask
    empty = (mask.sum(1) == 0).nonzero()[:, 0].tolist() if call.ids.shape[1] else [*range(len(call.ids))]
    if empty or not len(call.ids):
        raise ValueError(f"prompts {empty} of {len(call.ids)} hold no token: expected at least one, a BOS perhaps.")
    return Call(call.model, call.ids, {**call.kwargs, "attention_mask": mask}, config, call.ledger)


def decoded(call: Call, run: Run, looks: Looks | None) -> Decoded:
    """The candidates of a finished run and, of each prompt, the one with the highest score, else the first."""
    candidates, lengths = run.tokens.unflatten(0, run.shape), run.length.unflatten(0, run.shape)
    every = torch.arange(run.shape[0], device=candidates.device)
    best = torch.zeros_like(every) if looks is None else looks.trace[-1].scores.argmax(-1).to(every.device)
    longest = int(lengths[every, best].max())
    sequences = torch.cat([call.ids, candidates[every, best, :longest]], 1)
    scores = {} if looks is None else {"rewards": looks.trace[-1].scores, "logw": looks.logw, "trace": (*looks.trace,)}
    return Decoded(sequences, candidates, lengths, ledger=call.ledger, **scores)


@dataclass(frozen=True)
class Plain(Decoder):
    """The model's own next tokens."""

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        yield Forward.of(call)


plain = Plain()
