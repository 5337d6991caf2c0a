"""Hidden-state optimisation: a little learning in the cache, none in the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from steer.language.decode.decoder import Decoder
from steer.language.decode.learn import Window, write
from steer.language.decode.stream import Call, Forward, Stream


@dataclass(frozen=True)
class hidden_state_optimization(Decoder):
    """Before it answers, the model's cached keys and values learn to predict the end of the prompt (arXiv 2112.08653).

    C <- Adam(C, d/dC mean NLL of the last `window` tokens, which attend to the cache C of those before them), `steps`
    times. Then the window is read with that C and generation goes on. steps = 0 is plain. A prompt no longer than the
    window stays as it is. It differentiates keys and values, where the paper has hidden states.

    lr    step size, in units of the root mean square of each layer's keys or values
    clip  the largest change of a layer's keys or values of one text, in units of their norm

    Raises ValueError for window < 2, steps < 0, lr or clip <= 0, and a prompt with images.
    """

    window: int = 32
    steps: int = 1
    lr: float = 3e-3
    clip: float = 0.1

    def __post_init__(self):
        if self.window < 2 or self.steps < 0 or not self.lr > 0 or not self.clip > 0:
            raise ValueError(f"{self!r}: expected window >= 2, steps >= 0, lr > 0 and clip > 0.")

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        split = call.ids.shape[1] - self.window
        if self.steps == 0 or split < 1:
            yield Forward.of(call)
            return
        call.text_only("hidden_state_optimization")
        whole = {name: call.kwargs[name] for name in ("attention_mask", "position_ids") if name in call.kwargs}
        before = {**call.kwargs, **{name: value[..., :split] for name, value in whole.items()}}
        stream = Forward(call.model, call.ids[:, :split], before, call.config, call.ledger)
        stream.kwargs |= whole
        write(stream.cache, Window(call.model, stream.cache, call.ids, split, whole).optimised(self))
        call.ledger.tokens += self.steps * call.ids[:, split:].numel()
        call.ledger.backward_tokens += self.steps * call.ids[:, split:].numel()
        stream.extend(call.ids[:, split:])
        yield stream
