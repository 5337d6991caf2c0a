"""`steer chat`: talk to a steered language model in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chat:
    """Talk to a language model while a vector steers it; an empty line or the end of input stops.

    Type /strength 0.2 to turn the dial. Example: steer chat --vector steer-out/vector.safetensors --strength 0.1
    """

    vector: Path | None = None
    strength: float = 0.1
    sites: tuple[str, ...] = ()
    """some of the vector's; default all"""
    edit: str = "add"
    where: str = "all"
    model: str = "smollm2"
    system: str | None = None
    """what the model is told before the first message"""
    tokens: int = 200

    def run(self) -> None:
        from steer.cli import models, show
        from steer.language import files

        vector = None if self.vector is None else files.load(self.vector)
        vector = vector[self.sites] if vector is not None and self.sites else vector
        show.quiet()
        model, tokenizer = models.language(self.model)
        if not tokenizer.chat_template:
            raise ValueError(f"{self.model} has no chat template: expected an instruct model.")
        said: list[dict[str, str]] = [{"role": "system", "content": self.system}] if self.system else []
        strength = self.strength
        while line := _asked(strength if vector is not None else None):
            if line.startswith("/strength"):
                strength = _dial(line, strength)
                continue
            said.append({"role": "user", "content": line})
            said.append({"role": "assistant", "content": self._answer(model, tokenizer, vector, strength, said)})

    def _answer(self, model: Any, tokenizer: Any, vector: Any, strength: float, said: list[dict[str, str]]) -> str:
        from contextlib import nullcontext

        import torch
        from transformers import TextStreamer

        from steer.language import steering

        asked = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        opened = nullcontext()
        if vector is not None:
            opened = steering(model, vector, strength, edit=self.edit, where=self.where)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        with opened, torch.no_grad():
            made = model.generate(
                **asked.to(model.device), max_new_tokens=self.tokens, do_sample=False, streamer=streamer
            )
        return tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def _asked(strength: float | None) -> str:
    try:
        return input("> " if strength is None else f"[{strength:g}] > ").strip()
    except EOFError:
        return ""


def _dial(line: str, strength: float) -> float:
    try:
        return float(line.split()[1])
    except (IndexError, ValueError):
        print(f"/strength takes a number, as in /strength 0.2; it stays {strength:g}.")
        return strength
