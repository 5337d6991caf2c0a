"""What `steer train` trains: a pipeline with prompts and pictures, or a language model with examples; and its check."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from steer.cli.train import Train
    from steer.rewards import Reward
    from steer.training import Method
    from steer.training.diffusion import DiffusionTask
    from steer.training.text import TextTask

ROWS = 16  # pictures or answers at a time
SEEN = 128  # pictures of the embedded world that a method learns from


@dataclass
class Painter:
    """A pipeline: checked on prompts that it is not trained on, with the same noise each time."""

    pipe: Any
    task: DiffusionTask
    held: list[str]
    reward: Reward
    embedded: bool
    pictures: Tensor | None = None

    @torch.no_grad()
    def measured(self, seed: int) -> dict[str, Tensor]:
        """Of each prompt the reward, and for embedded models the judge's score."""
        from steer.rewards import Judge
        from steer.training.diffusion.rollout import rollout

        task, generator, made = self.task, torch.Generator().manual_seed(seed), []
        for k in range(0, len(self.held), ROWS):
            prompts = self.held[k : k + ROWS]
            x = task.schedule[0].sigma * task.noise(len(prompts), generator)
            x0 = rollout(task, task.cond(prompts), x, task.steps, task.steps)
            made.append(task.decode(x0).float().cpu())
        self.pictures = torch.cat(made)
        judged = {"judge": Judge()(self.pictures, self.held)} if self.embedded else {}
        return {"reward": self.reward(self.pictures, self.held), **judged}


@dataclass
class Writer:
    """A language model: checked on examples or prompts that it is not trained on."""

    pipe = pictures = None
    task: TextTask
    held: TextTask

    @torch.no_grad()
    def measured(self, seed: int) -> dict[str, Tensor]:
        """Of each held-out example log p of its answer, of each prompt the reward; and of neutral texts log p."""
        from steer.language.data import whole
        from steer.language.neutral import TEXTS
        from steer.language.scoring import log_probs

        found, generator = {}, torch.Generator().manual_seed(seed)
        if self.held.encoded is not None:
            found["log p of answers"] = log_probs(self.task.model, self.held.rows).float().cpu()
        if self.held.reward is not None:
            texts = self.held.sample(list(self.held.prompts), generator)[1]
            found["reward"] = self.held.score(texts, list(self.held.prompts))
        neutral = whole(self.task.tokenizer, list(TEXTS))
        return {**found, "log p of neutral texts": log_probs(self.task.model, neutral).float().cpu()}


def painter(command: Train, made: Method) -> Painter:
    """A method may follow a smooth stand-in for the reward, which is checked by the reward itself.

    Raises ValueError for a model, a reward, prompts or pictures that are none."""
    from steer import zoo
    from steer.cli import running
    from steer.rewards import named
    from steer.rewards.reference import resized
    from steer.training.diffusion import DiffusionTask
    from steer.training.methods import followed

    model = command.model or "emoji"
    pipe, _ = running.loaded(model)
    embedded = model in ("emoji", *zoo.PIPELINES)
    prompts, held = prompts_of(command)
    options = {"num_inference_steps": command.sampling, "guidance_scale": command.guidance}
    options |= zoo.CALLS.get(model, {})
    if model == "emoji-flow":  # by itself the last step begins at 0.001, where direct reward has nothing to change
        options["sigmas"] = [1 - k / command.sampling for k in range(command.sampling)]
    sets = [(command.pictures, command.pictures or embedded), (command.content, command.content)]
    size, given = running.size_of(pipe), [pictures_of(name) if wanted else None for name, wanted in sets]
    real, content = (one and (resized(one[0], size), one[1]) for one in given)
    reward = named(command.reward or "clip")
    task = DiffusionTask.of(pipe, prompts, followed(made, reward), real, content, **options)
    return Painter(pipe, task, held, reward, embedded)


def writer(command: Train) -> Writer:
    """Raises ValueError for a model, a reward or examples that are none, and too few examples to hold some out."""
    from steer.cli import models
    from steer.language.readers import split
    from steer.rewards import named
    from steer.rewards.names import OF_TEXTS
    from steer.training.text import TextTask

    reward = None if command.reward is None else named(command.reward, OF_TEXTS)
    if command.examples is None and not command.prompts:
        raise ValueError("nothing to learn from: give --examples FILE, or --prompts with a --reward for texts.")
    model, tokenizer = models.language(command.model or "smollm2")
    same = {"model": model, "tokenizer": tokenizer, "reward": reward, "tokens": command.tokens}
    if command.examples is None:
        prompts = lines_of(command.prompts)
        return Writer(TextTask(**same, prompts=prompts), TextTask(**same, prompts=prompts))
    every = examples_of(command.examples)
    left = len({one.prompt for one in every}) - command.check
    if left < 1:
        raise ValueError(f"{command.examples}: {left + command.check} prompts, and --check holds {command.check} out.")
    held, rest = split(every, [command.check, left], command.seed)
    prompts = lines_of(command.prompts)
    return Writer(TextTask(**same, examples=rest, prompts=prompts), TextTask(**same, examples=held))


def prompts_of(command: Train) -> tuple[list[str], list[str]]:
    """Prompts to train on and to check: those given, for both; else every second name of the embedded pictures."""
    from steer.zoo.data import caption, captions

    if command.prompts:
        prompts = lines_of(command.prompts)
        return prompts, (prompts * command.check)[: command.check]
    every = [caption(row["name"], article=True) for row in captions()]
    held = every[1::2]
    return every[::2], [held[k * len(held) // command.check] for k in range(command.check)]


def lines_of(prompts: tuple[str, ...]) -> list[str]:
    """Prompts as they are, or the lines of one text file."""
    if len(prompts) == 1 and Path(prompts[0]).is_file():
        return [line for line in Path(prompts[0]).read_text(encoding="utf-8").splitlines() if line.strip()]
    return list(prompts)


def examples_of(path: Path) -> list[Any]:
    """Lines with prompt and answer, or all that `pairs_of` reads. Raises as that does."""
    from steer.cli.models import pairs_of
    from steer.training.text import Example

    if path.is_file() and path.suffix == ".jsonl":
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: {error}; expected one JSON object a line.") from error
        if rows and all({"prompt", "answer"} <= row.keys() for row in rows):
            return [Example(row["prompt"], row["answer"]) for row in rows]
    return pairs_of(path)


def pictures_of(name: str | None) -> tuple[Tensor, list[str]]:
    """Pictures (m, 3, h, w) with captions: of an art style or all of them, or of a folder, whose files say the caption.

    Raises ValueError for a folder without pictures, and FileNotFoundError for one that is not there.
    """
    from steer.rewards import to_tensor
    from steer.rewards.reference import picture
    from steer.zoo.data import STYLES, seen

    if name is None or name in STYLES:
        return seen(SEEN, name)
    if not Path(name).is_dir():
        raise FileNotFoundError(f"no folder {name!r}: give one of pictures, or a style: {', '.join(STYLES)}.")
    files = sorted(one for one in Path(name).iterdir() if one.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    return to_tensor([picture(str(one)).pixels[0] for one in files]), [one.stem.replace("_", " ") for one in files]
