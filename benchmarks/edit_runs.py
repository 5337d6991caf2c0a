"""The three checks of editing on emoji-sd: every one gives {method: {measure: (pictures,)}} and pictures to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

import steer
from steer.diffusion.controllers import edit
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import encoded
from steer.rewards import Judge
from steer.zoo.data import COLOURS, STYLES, caption, captions, compose, glyphs, scene_caption

Values = dict[str, dict[str, Tensor]]
HOLE = slice(20, 44)
CONCEPT = "heart"


class Found(NamedTuple):
    """What a check measured, and its pictures (pictures, columns, 3, 64, 64), column by column as named."""

    values: Values
    pictures: Tensor
    columns: tuple[str, ...]


class Workshop:
    """A pipeline, its settings, and seeds that go with the number of the picture."""

    def __init__(self, steps: int, guidance: float):
        from diffusers import DDIMScheduler

        self.pipe = steer.load("emoji")
        self.pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        self.options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}

    def run(self, controllers: Sequence[Any], prompt: str | list[str], seed: int, **more: Any) -> tuple[Tensor, int]:
        """Pictures (prompts, 3, 64, 64), and the rows that they took."""
        given = {"generator": torch.Generator().manual_seed(seed), "output_type": "pt", **self.options, **more}
        out = steer.Steered(self.pipe, list(controllers))(prompt, n=1, **given)
        return out.images.float(), out.ledger.rows

    def recorded(self, prompt: str, seed: int) -> steer.Trajectory:
        return steer.record(self.pipe, prompt, generator=torch.Generator().manual_seed(seed), **self.options)

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        made = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample
        return (made / 2 + 0.5).clamp(0, 1)

    def encoded(self, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return encoded(self.pipe, family_of(self.pipe), pictures)


def names(count: int) -> list[str]:
    """Names spread evenly over the data set."""
    every = [row["name"] for row in captions()]
    return [every[k] for k in torch.linspace(0, len(every) - 1, count).round().long()]


def similar(a: Tensor, b: Tensor) -> Tensor:
    """(pictures,) judge cosine of pictures."""
    judge = Judge()
    with torch.no_grad():
        return (judge.embed_images(a) * judge.embed_images(b)).sum(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(pictures,)"""
    found = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found


def clip(pictures: Tensor, prompts: list[str]) -> Tensor:
    with torch.no_grad():
        return Judge()(pictures, prompts)


def changes(count: int) -> list[tuple[str, str]]:
    """Captions before and after: every second one changes its colour word, every other its style word."""
    colours, found = list(COLOURS), []
    for k, name in enumerate(names(count)):
        colour, other = (colours[(k + shift) % len(colours)] for shift in (0, 3))
        style, to = (STYLES[(k // 2 + shift) % len(STYLES)] for shift in (0, 1))
        after = (other, style) if k % 2 == 0 else (colour, to)
        pair = [caption(name, s, colour=c) for c, s in ((colour, style), after)]
        found.append((pair[0], pair[1]))
    return found


def edits(shop: Workshop, count: int, tick: Callable[[], None]) -> Found:
    """A word of a recorded run's caption is changed: is the new one met, and the picture kept?"""
    made: dict[str, list[Tensor]] = {}
    rows: dict[str, list[int]] = {}
    pairs = changes(count)
    for seed, (before, after) in enumerate(pairs):
        source = shop.recorded(before, seed)
        words, unet = edit.aligned(shop.pipe.tokenizer, before, after), shop.pipe.unet
        blend = words.changed if all(words.changed) else None  # a style may be another's name less a word
        methods = {
            "resample": [],
            "prompt-to-prompt": [edit.prompt_to_prompt(unet, source, words)],
            "prompt-to-prompt, blend": [edit.prompt_to_prompt(unet, source, words, blend=blend)],
            "masactrl": [edit.masactrl(unet, source)],
            "plug-and-play": [edit.plug_and_play(unet, source)],
        }
        made.setdefault("source", []).append(shop.decoded(source.latents))
        for name, controllers in methods.items():
            picture, cost = shop.run(controllers, after, seed)
            made.setdefault(name, []).append(picture)
            rows.setdefault(name, []).append(cost)
            tick()
    pictures = {name: torch.cat(some) for name, some in made.items()}
    old, new = map(list, zip(*pairs, strict=True))
    source = pictures["source"]
    values = {}
    for name in rows:
        ours = pictures[name]
        judged = {"target": clip(ours, new), "hit": (clip(ours, new) > clip(ours, old)).float()}
        kept = {"ssim": ssim(ours, source), "kept": similar(ours, source)}
        values[name] = {**judged, **kept, "rows": torch.tensor(rows[name], dtype=torch.float)}
    return Found(values, torch.stack(list(pictures.values()), 1), tuple(pictures))


def holes(shop: Workshop, count: int, tick: Callable[[], None]) -> Found:
    """The middle of a real emoji, which is filled in: how far from what was there, and how visible its edge?"""
    every, known, styles = glyphs()
    chosen = names(count)
    which = [(k % len(styles), known.index(name)) for k, name in enumerate(chosen)]
    truth = torch.stack([compose(every[style, name]) for style, name in which])
    mask = torch.zeros(64, 64)
    mask[HOLE, HOLE] = 1
    colours = (truth * (1 - mask)).sum((2, 3), keepdim=True) / (1 - mask).sum()
    holed = torch.where(mask.bool(), colours, truth)
    mean = shop.encoded(holed)
    coarse = torch.nn.functional.max_pool2d(mask[None, None], 4)[0, 0]
    fills = {"noise": None, "mean colour": mean, "patch swap": edit.patch_swap(mean, coarse)}
    made: dict[str, list[Tensor]] = {name: [] for name in fills}
    rows: dict[str, list[int]] = {name: [] for name in fills}
    for k, name in enumerate(chosen):
        for how, fill in fills.items():
            control = edit.inpaint(coarse, mean[k : k + 1], None if fill is None else fill[k : k + 1])
            picture, cost = shop.run([control], caption(name, styles[which[k][0]]), k)
            made[how].append(torch.where(mask.bool(), picture, truth[k]))
            rows[how].append(cost)
            tick()
    values = {}
    for how, some in made.items():
        ours = torch.cat(some)
        values[how] = {
            "judge distance": 1 - similar(ours, truth),
            "error": (ours - truth)[..., HOLE, HOLE].square().mean((1, 2, 3)),
            "seam": seam(ours) - seam(truth),
            "rows": torch.tensor(rows[how], dtype=torch.float),
        }
    columns = [truth, holed, *(torch.cat(some) for some in made.values())]
    return Found(values, torch.stack(columns, 1), ("truth", "hole", *fills))


def seam(pictures: Tensor) -> Tensor:
    """(pictures,) mean step of a colour across the edge of the hole."""
    low, high = HOLE.start, HOLE.stop
    across = [pictures[..., HOLE, at] - pictures[..., HOLE, at - 1] for at in (low, high)]
    across += [pictures[..., at, HOLE] - pictures[..., at - 1, HOLE] for at in (low, high)]
    return torch.stack([step.abs().mean((1, 2)) for step in across]).mean(0)


def avoided(shop: Workshop, count: int, tick: Callable[[], None]) -> Found:
    """Two things are asked for, and one of them is not wanted: is it gone, and is the rest as it was?"""
    others = [name for name in names(count + 1) if CONCEPT not in name][:count]
    styles = [STYLES[k % len(STYLES)] for k in range(len(others))]
    prompts = [scene_caption(name, "and", CONCEPT, style) for name, style in zip(others, styles)]
    weight = shop.options["guidance_scale"]
    concept = steer.denoiser_of(shop.pipe, CONCEPT, **shop.options).cond
    methods: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "plain": ([], {}),
        "negative prompt": ([], {"negative_prompt": [CONCEPT] * len(prompts)}),
        "late negative": ([steer.guidance.late_negative(weight, concept)], {}),
        "early negative, weaker": ([steer.guidance.late_negative(weight, concept, erase=weight / 2, start=0.0)], {}),
    }
    made, values = {}, {}
    for name, (controllers, more) in methods.items():
        made[name], rows = shop.run(controllers, prompts, 0, **more)
        ours = made[name]
        values[name] = {
            "concept": clip(ours, [CONCEPT] * len(prompts)),
            "rest": clip(ours, others),
            "ssim": ssim(ours, made["plain"]),
            "rows": torch.full((len(prompts),), rows / len(prompts)),
        }
        tick()
    return Found(values, torch.stack(list(made.values()), 1), tuple(made))
