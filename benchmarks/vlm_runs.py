"""emoji-vlm asked about scenes of two objects: its margins, and which image tokens they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from steer.language.data import Pair, language
from steer.language.grains.attribute import integrated, masked
from steer.language.grains.baselines import start
from steer.language.grains.margin import Margin, preference, still
from steer.zoo.build.vlm import second
from steer.zoo.questions import NO, YES, Shown, absent, held_out, presence
from steer.zoo.vlm import ANSWERED, ASKED, IMAGE, Seeing

KINDS = ("present", "present", "near", "any")
"""What is asked about each picture: its two objects, one of the group of the first that is not there, any other."""


class Asked(NamedTuple):
    """Pictures, and for each the four names of `KINDS`."""

    shown: Sequence[Shown]
    names: Sequence[tuple[str, ...]]

    def pairs(self) -> list[Pair]:
        """Of each picture one object that is there, in turn, and one that is not, in turn: right over wrong answer."""
        found = []
        for k, (one, names) in enumerate(zip(self.shown, self.names)):
            for name, answers in ((names[k % 2], (YES, NO)), (names[2 + k // 2 % 2], (NO, YES))):
                found.append(Pair(prompt(presence(name)), *answers, image=pixels(one)))
        return found


def prompt(question: str) -> str:
    return f"{ASKED}{IMAGE}{question}{ANSWERED}"


def pixels(shown: Shown) -> Tensor:
    return shown.picture.clamp(0, 1).mul(255).round().byte()


def asked(shown: Sequence[Shown], seed: int) -> Asked:
    generator = Generator().manual_seed(seed)
    others = [[absent(one.names, near, generator) for near in (True, False)] for one in shown]
    return Asked(shown, [(*one.names, *names) for one, names in zip(shown, others)])


def unseen(count: int) -> list[Shown]:
    """Different held-out scenes."""
    return list({one.caption: one for one in held_out("pairs", 2 * count)}.values())[:count]


@torch.no_grad()
def margins(
    seeing: Seeing, asked: Asked, before: str = "", change: Callable[[Tensor], Tensor] | None = None, rows: int = 32
) -> Tensor:
    """log p(Yes) - log p(No) of every question, (pictures, 4), whatever steers the model.

    From the last states in float32, as half precision rounds logits to eighths; `before`: what stands before each
    question; `change`: of the pixels.
    """
    model, processor = seeing
    first, other = (language(processor)(word, add_special_tokens=False)["input_ids"][0] for word in (YES, NO))
    weight = model.get_output_embeddings().weight
    towards = weight[first].float() - weight[other].float()
    every = [(pixels(one), name) for one, names in zip(*asked) for name in names]
    found = []
    for k in range(0, len(every), rows):
        images, names = zip(*every[k : k + rows])
        texts = [prompt(before + presence(name)) for name in names]
        given = processor(text=texts, images=list(images), padding=True, return_tensors="pt")
        if change is not None:
            given["pixel_values"] = change(given["pixel_values"])
        out = model(**given.to(model.device), use_cache=False, logits_to_keep=1, output_hidden_states=True)
        found.append(out.hidden_states[-1][:, -1].float() @ towards)
    return torch.cat(found).unflatten(0, (-1, len(KINDS)))


def looked(
    seeing: Seeing, shown: Shown, which: int, k: int, draws: int, steps: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Of each method: where its scores of the image tokens lie, and how far the margin falls when tokens are masked.

    The question is about object `which` of two. The path of integrated gradients moves the image alone, from its mean.
    """
    model, processor = seeing
    pair = Pair(prompt(presence(shown.names[which])), YES, NO, image=pixels(shown))
    generator = Generator().manual_seed(0)
    own = half(shown, which)
    with still(model):
        margin = together(preference(model, processor, pair))
        places = margin.image.nonzero()[:, 0]
        drawn = [torch.randperm(len(places), generator=generator) for _ in range(draws)]
        sets = [own.nonzero()[:, 0], (~own).nonzero()[:, 0], *(order[:k] for order in drawn)]
        falls = fallen(seeing, margin, places, sets)
        for method in ("occlusion", "ig"):
            scores, gap = scored(seeing, margin, places, method, steps)
            most = scores.argsort(descending=True)[:k]
            yield {
                "method": method,
                "margin": margin.value,
                "gap": gap,
                "share": share(scores, own),
                "shuffled": sum(share(scores[order], own) for order in drawn) / draws,
                "top": float(fallen(seeing, margin, places, [most])[0]),
                "random": float(falls[2:].mean()),
                "own half": float(falls[0]),
                "other half": float(falls[1]),
            }


def together(margin: Margin) -> Margin:
    """Of a prompt with an image each answer has a row of its own; where both are one token, one row scores both."""
    if any(len(one.tail) for one in margin.scored):
        return margin
    both = {name: torch.cat([getattr(one, name) for one in margin.scored]) for name in ("read", "target", "weight")}
    return replace(margin, scored=(replace(margin.scored[0], **both),))


def half(shown: Shown, which: int) -> Tensor:
    """(TOKENS,) bool: the half of the picture in which object `which` of two is."""
    return second("above" if f" above {shown.names[1]}" in shown.caption else "beside") == bool(which)


def scored(
    seeing: Seeing, margin: Margin, places: Tensor, method: str, steps: Sequence[int]
) -> tuple[Tensor, float | None]:
    """Scores of the image tokens, and the completeness gap."""
    if method == "occlusion":
        return fallen(seeing, margin, places, list(torch.arange(len(places))[:, None])), None
    begin = start("mean", *seeing, margin, margin.image)
    found = integrated(margin, begin, tuple(steps), 0.05, (margin.value, float(margin(begin.embeds[None]))))
    return found.scores[margin.image].float(), found.gap


def fallen(seeing: Seeing, margin: Margin, places: Tensor, sets: Sequence[Tensor]) -> Tensor:
    """How far the margin falls when each set of image tokens is masked."""
    return margin.value - margin(torch.stack([masked(margin, *seeing, places[one]) for one in sets])).float()


def share(scores: Tensor, own: Tensor) -> float:
    """Of all that pushes towards Yes, what lies in the object's half; a half where nothing does."""
    pushes = scores.clamp_min(0)
    return float(pushes[own].sum() / pushes.sum()) if pushes.any() else 0.5
