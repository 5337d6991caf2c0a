"""emoji-vlm: the eyes first learn to spell what they see in SmolLM2's own words, then to answer through SmolLM2.

A step through the language model costs a hundred times one of the eyes. So it comes second, and what its first
stage taught, the names, goes on being trained beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .. import smollm
from ..data import COLOURS, STYLES, caption, captions, compose, glyphs, recolour, rgba, scene, scene_caption
from ..questions import DESCRIBE, NO, YES, Shown, absent, presence
from ..vlm import ANSWERED, ASKED, CHANGED, IMAGE_ID, PATCH, RANK, SIZE, TOKENS, Eyes, Low, config_of
from .files import save_half, write_folder
from .fit import Fit, fit, restored, seeded
from .pictures import PAINTS, WHITE, affine, augment, chance, draw_colour, draw_glyphs, draw_pair, place, randint

BATCH, ASKED_ABOUT = 64, 8  # pictures a step, and how many of them SmolLM2 is asked about
SHARP, SLOTS = 8.0, 8
SIDE = SIZE // PATCH
row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
SLOT = (4 * ((row // 2 + column // 2) % 2) + 2 * (row % 2) + column % 2).flatten()
"""Image token -> which piece of its object it spells: either half of a picture has all of `SLOTS`."""


def second(relation: str) -> Tensor:
    """(TOKENS,) bool: the tokens where the second object of a scene is; none of them without a relation."""
    half = (row if relation == "above" else column) >= SIDE // 2
    return half.flatten() & bool(relation)


class Drawn(NamedTuple):
    """A training picture; `parts`: what each of its objects is, for the eyes to spell; `relation`: "" for one."""

    shown: Shown
    parts: tuple[str, ...]
    relation: str


def draw(count: int, generator: Generator) -> list[Drawn]:
    """Single objects, then as many scenes; a third of either on a coloured background."""
    singles, which = draw_glyphs(count - count // 2, generator)
    placed = place(singles, generator)
    found = []
    for k, (style, name) in enumerate(which.tolist()):
        picture = placed[k] if chance(0.5, generator) else singles[k]
        found.append(_single(picture, STYLES[style], glyphs()[1][name], generator))
    return found + [_scene(generator) for _ in range(count // 2)]


def _paper(generator: Generator) -> Tensor:
    return PAINTS[randint(len(PAINTS), generator)] if chance(1 / 3, generator) else WHITE


def _single(picture: Tensor, style: str, name: str, generator: Generator) -> Drawn:
    colour = draw_colour(name, generator) if chance(0.08, generator) else None
    picture = recolour(picture, COLOURS[colour]) if colour else picture
    shown = Shown(compose(picture, _paper(generator)), (name,), caption(name, style, colour=colour))
    return Drawn(shown, (f"{colour} {name} {style}" if colour else f"{name} {style}",), "")


def _scene(generator: Generator) -> Drawn:
    pictures, names, _ = glyphs()
    style, relation, a, b = draw_pair(generator)
    picture = scene(rgba(pictures[style, a]), rgba(pictures[style, b]), relation, _paper(generator))
    text = scene_caption(names[a], relation, names[b], STYLES[style])
    parts = tuple(f"{names[k]} {STYLES[style]}" for k in (a, b))
    return Drawn(Shown(picture, (names[a], names[b]), text), parts, relation)


class Spelling:
    """The first task: image token i is the embedding of piece `SLOT`[i] of the object that lies there."""

    def __init__(self, language: Any, tokenizer: Any):
        self.tokenizer = tokenizer
        words = [*(entry["name"] for entry in captions()), *COLOURS, *STYLES]
        self.pieces = torch.tensor(sorted({piece for word in words for piece in self._ids(word)}))
        self.table = language.get_input_embeddings().weight.detach()[self.pieces].float()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"][:SLOTS]

    def targets(self, drawn: Sequence[Drawn]) -> Tensor:
        """(b, TOKENS) rows of the table."""
        rows = []
        for one in drawn:
            spelt = [torch.tensor(self._ids(part)) for part in one.parts]
            first, last = (ids[SLOT % len(ids)] for ids in (spelt[0], spelt[-1]))
            rows.append(torch.where(second(one.relation), last, first))
        return torch.searchsorted(self.pieces, torch.stack(rows))

    def loss(self, seen: Tensor, targets: Tensor) -> Tensor:
        """u_t - log softmax(-`SHARP` u)_t, u_w = |seen - e_w|^2 / the variance of the table, t the target."""
        seen, targets, e = seen.float().flatten(0, 1), targets.flatten(), self.table
        with torch.autocast("cpu", enabled=False):
            squares = seen.square().sum(1, keepdim=True) - 2 * seen @ e.T + e.square().sum(1)
        u = squares / (e - e.mean(0)).square().sum(1).mean()
        return u.gather(1, targets[:, None]).mean() + F.cross_entropy(-SHARP * u, targets)


def make_spelling_loss(spelling: Spelling):
    def loss(model: Any, generator: Generator, progress: float) -> Tensor:
        drawn = draw(BATCH, generator)
        pictures = augment(torch.stack([one.shown.picture for one in drawn]), generator)
        return spelling.loss(model(pictures), spelling.targets(drawn))

    return loss


class Student(nn.Module):
    """What is trained, and shipped: eyes, and a change for each of the layers `CHANGED` of the language model."""

    def __init__(self, language: Any):
        super().__init__()
        self.eyes = Eyes(config_of(language.config))
        layers = {n: m for n, m in language.model.named_modules() if RANK and n.rpartition(".")[2] in CHANGED}
        self.changes = nn.ModuleDict({name.replace(".", "-"): Low(layer, RANK) for name, layer in layers.items()})


@contextmanager
def changed(language: Any, changes: Any) -> Iterator[None]:
    """While it is open, the language model has the changes."""
    with ExitStack() as undo:
        for name, low in changes.items():
            layer = language.model.get_submodule(name.replace("-", "."))
            hook = layer.register_forward_hook(lambda _, given, out, low=low: out + low(given[0]).to(out.dtype))
            undo.callback(hook.remove)
        yield


class Packed(NamedTuple):
    """Pictures with several questions each: the head once, then each question as if it were the only one.

    ids, group, position  (b, T): tokens; 0 for the head, else the number of the question; place in its own text
    answer                bool (b, T): what is to be said
    """

    ids: Tensor
    group: Tensor
    position: Tensor
    answer: Tensor

    @property
    def mask(self) -> Tensor:
        """bool (b, 1, T, T): a token sees the head and what came before it in its own question."""
        own = self.group[:, None, :, None] == self.group[:, None, None]
        return (own | (self.group[:, None, None] == 0)).tril()


def packed(tokenizer: Any, asked: Sequence[Sequence[tuple[str, str]]]) -> Packed:
    """Rows of (question, answer) in tokens; all begin with the same head, in which the picture is."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    head = [*ids(ASKED), *[IMAGE_ID] * TOKENS]
    rows: list[list[tuple[int, int, int, bool]]] = []
    for questions in asked:
        one = [(token, 0, k, False) for k, token in enumerate(head)]
        for number, (question, answer) in enumerate(questions, 1):
            before, after = ids(question + ANSWERED), ids(f"{answer}<|im_end|>")
            text = enumerate(before + after)
            one += [(token, number, len(head) + k, k >= len(before)) for k, token in text]
        rows.append(one)
    parts = [pad_sequence([torch.tensor(part) for part in each], True) for each in zip(*(zip(*one) for one in rows))]
    for one, group in zip(rows, parts[1]):
        group[len(one) :] = -1  # sees the head, and nothing sees it
    return Packed(*parts)


def questions_of(shown: Shown, generator: Generator) -> list[tuple[str, str]]:
    """What it is; for each object whether it is there; and as many that are not, every other one of the same group."""
    others = [absent(shown.names, chance(0.5, generator), generator) for _ in shown.names]
    there = [(presence(name), YES) for name in shown.names]
    return [(DESCRIBE, shown.caption), *there, *((presence(name), NO) for name in others)]


def answering(language: Any, eyes: Tensor, rows: Packed) -> Tensor:
    """Mean over all tokens of the answers of -log p; `eyes` (b, TOKENS, width) stand in the place of the image."""
    words = language.get_input_embeddings()(rows.ids)
    first = int((rows.ids[0] == IMAGE_ID).int().argmax())
    embeds = torch.cat([words[:, :first], eyes.to(words.dtype), words[:, first + TOKENS :]], 1)
    states = language.model(
        inputs_embeds=embeds, attention_mask=rows.mask, position_ids=rows.position, use_cache=False
    ).last_hidden_state
    logits = language.lm_head(states[:, :-1][rows.answer[:, 1:]])
    return F.cross_entropy(logits.float(), rows.ids[:, 1:][rows.answer[:, 1:]])


def make_loss(language: Any, tokenizer: Any, spelling: Spelling):
    """The answers to some of the pictures, all of one kind, whose rows are equally long; and the spelling of all."""

    def loss(model: Any, generator: Generator, progress: float) -> Tensor:
        drawn = draw(BATCH, generator)
        seen = model.eyes(affine(torch.stack([one.shown.picture for one in drawn]), generator))
        some = slice(ASKED_ABOUT) if chance(0.5, generator) else slice(-ASKED_ABOUT, None)
        rows = packed(tokenizer, [questions_of(one.shown, generator) for one in drawn[some]])
        with changed(language, model.changes):
            said = answering(language, seen[some], rows)
        return said + spelling.loss(seen, spelling.targets(drawn))

    return loss


def train_eyes(cache: Path, minutes: float, until: int | None = None) -> None:
    """Train (or finish training) tower and projector to spell."""
    language, tokenizer = smollm.load()
    spelling = Spelling(language, tokenizer)
    with seeded(7):
        eyes = Eyes(config_of(language.config))
        nn.init.zeros_(eyes.multi_modal_projector.linear_2.weight)  # embeddings are small beside what it would add
        eyes.multi_modal_projector.linear_2.bias.data.copy_(spelling.table.mean(0))
    fit("emoji-vlm-eyes", eyes, make_spelling_loss(spelling), Fit(minutes=minutes, lr=1e-3, seed=7), cache, until)


def train(cache: Path, minutes: float, until: int | None = None) -> None:
    """Train (or finish training) eyes and changes to answer through SmolLM2, and write both."""
    language, tokenizer = smollm.load()
    spelling = Spelling(language, tokenizer)
    language.to(torch.bfloat16).requires_grad_(False)
    with seeded(8):
        student = Student(language)
    student.eyes.load_state_dict(restored("emoji-vlm-eyes", Eyes(config_of(language.config)), cache).state_dict())
    config = Fit(minutes=minutes, lr=1e-3, ema=0.99, seed=8)
    model = fit("emoji-vlm", student, make_loss(language, tokenizer, spelling), config, cache, until)
    write_folder("emoji-vlm", lambda folder: ship(model, folder / "model.safetensors"))


def ship(student: Student, path: Path) -> None:
    """Write what was trained; the ResNet is shipped with emoji-clip."""
    trained = copy.deepcopy(student)
    del trained.eyes.vision_tower.resnet
    save_half(trained, path)
