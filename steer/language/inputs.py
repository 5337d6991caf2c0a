"""What a model's decoder is given, kept whole, so that it can be run again on other embeddings.

`model(inputs_embeds=...)` is silently wrong for a vision-language model: positions with three axes, masks in which
images or prompts see both ways, and image features of deeper layers come from inputs that it was not given.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steer.language.tower import tower


@dataclass(frozen=True, eq=False)
class Merged:
    """A decoder's input.

    embeds  (rows, T, width): those of the tokens, and of images where the model puts them; detached
    kwargs  all else that the decoder was given: masks, positions, image features of deeper layers
    image   (rows, T) bool: which columns are images
    """

    embeds: Tensor
    kwargs: Mapping[str, Any]
    image: Tensor

    def repeated(self, times: int) -> dict[str, Any]:
        """`kwargs` for `times` copies of every row, side by side."""
        return {name: self._repeated(name, value, times) for name, value in self.kwargs.items()}

    def _repeated(self, name: str, value: Any, times: int) -> Any:
        rows = len(self.embeds)
        if isinstance(value, Mapping):
            return {key: self._repeated(key, entry, times) for key, entry in value.items()}
        if name == "deepstack_visual_embeds" and value is not None:  # a list of (image tokens of all rows, width)
            counts = self.image.sum(1).tolist()
            return [torch.cat([row.repeat(times, 1) for row in layer.split(counts)]) for layer in value]
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        axis = 1 if name == "position_ids" and value.ndim == 3 else 0  # (axes, rows, T) of multimodal positions
        return value.repeat_interleave(times, axis) if value.shape[axis] == rows else value


@torch.no_grad()
def captured(model: Any, **inputs: Any) -> Merged:
    """Run a model once, as its processor or tokenizer prepares its inputs, and keep what its decoder was given.

    Pass all that the processor gives: types of tokens too, without which masks and positions are silently others.
    Raises ValueError for inputs without input_ids.
    """
    if inputs.get("input_ids") is None:
        raise ValueError(f"inputs {sorted(inputs)}: expected input_ids, which tell images from text.")
    decoder = tower(model).decoder
    calls: list[dict[str, Any]] = []
    names = [*inspect.signature(decoder.forward).parameters]

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(dict(zip(names, args)) | kwargs)

    hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:  # without a cache: some models would hand the decoder one that a second run finds filled
        model(**{**inputs, "use_cache": False})
    finally:
        hook.remove()
    kwargs = calls[-1]
    ids, embeds = kwargs.pop("input_ids", None), kwargs.pop("inputs_embeds", None)
    embeds = model.get_input_embeddings()(ids) if embeds is None else embeds
    number = getattr(model.config, "image_token_id", None)
    return Merged(embeds.detach(), kwargs, inputs["input_ids"] == (-1 if number is None else number))


def replay(
    model: Any, merged: Merged, embeds: Tensor | None = None, at: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Logits of the decoder on other embeddings, bit-equal to the model's own where they are the same.

    Differentiable in `embeds`: (n * rows, T, width), n copies of every captured row, side by side; those captured, if
    None. An image's features of deeper layers, which some models have, are constants here.

    at  columns whose logits are wanted: (A,) numbers for every row, then the logits are (n * rows, A, vocabulary); or
        a bool mask (n * rows, T), then they are (columns chosen, vocabulary), row by row. All of them, if None

    Raises ValueError for embeddings of another length or width, or of a number of rows that is not a multiple.
    """
    embeds = merged.embeds if embeds is None else embeds
    rows = len(merged.embeds)
    if embeds.ndim != 3 or embeds.shape[1:] != merged.embeds.shape[1:] or not len(embeds) or len(embeds) % rows:
        raise ValueError(
            f"embeddings {tuple(embeds.shape)} for a capture of {tuple(merged.embeds.shape)}: expected the same length "
            f"and width, and a multiple of its {rows} rows."
        )
    kwargs = merged.repeated(len(embeds) // rows)
    states = tower(model).decoder(**{**kwargs, "inputs_embeds": embeds})[0]
    if at is None:
        return head(model, states)
    if isinstance(at, Tensor) and at.dtype == torch.bool:
        return head(model, states[at][None])[0]
    return head(model, states[:, at])


def head(model: Any, states: Tensor) -> Tensor:
    """Logits (rows, A, vocabulary) of final states (rows, A, width) by the model's own head.

    Behind the matrix many families scale or cap their logits, each in its own code: so the model is run with a decoder
    that returns these states.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    final = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)
    extra: dict[str, Any] = {"use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:  # some would continue those of the last call
        extra["position_ids"] = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
    with replaced(tower(model).decoder, "forward", lambda *args, **kwargs: final):
        return model(inputs_embeds=states, **extra).logits


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute for the length of a `with`."""
    before = owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)
