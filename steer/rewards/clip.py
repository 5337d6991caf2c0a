"""Agreement of picture and prompt by an open_clip dual encoder, as a reward and as a judge that is never optimised."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from steer import zoo
from steer.rewards.base import Reward
from steer.rewards.border import unknown

KEPT_TEXTS = 4096


@dataclass(frozen=True)
class DualEncoder(Reward):
    """cos(image embedding, text embedding) of an open_clip model, in [-1, 1]; see `ClipScore` and `Judge`."""

    model: str | Path | None = None
    pretrained: str | None = None
    batch: int | None = field(default=64, repr=False)
    embedded: ClassVar[str] = ""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (self.embed_images(images) * self.embed_texts(prompts, images.device)).sum(-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit embeddings (b, d) of pictures (b, 3, h, w) in [0, 1]; differentiable."""
        return self._encoder(images.device).images(images)

    def embed_texts(self, prompts: list[str], device: torch.device | str = "cpu") -> Tensor:
        """Unit embeddings (b, d) of prompts, remembered per prompt; no gradient."""
        return self._encoder(device).texts(prompts)

    def image_tower(self, device: torch.device | str = "cpu") -> Any:
        """The tower that embeds pictures, open_clip's own module: shared by the process, so leave it as it is."""
        return self._encoder(device).tower

    def _encoder(self, device: torch.device | str) -> Encoder:
        source = str(zoo.folder(self.embedded)) if self.model is None else str(self.model)
        return encoder(source, self.pretrained, str(device))


@dataclass(frozen=True)
class ClipScore(DualEncoder):
    """CLIP score (Hessel et al. 2021, arXiv 2104.08718, without its factor 2.5): cos(image, text), in [-1, 1].

    model       None for the embedded `emoji-clip`; an open_clip name, with `pretrained`; a folder or `local-dir:FOLDER`
                with open_clip_config.json, weights and tokenizer; or `hf-hub:owner/name`
    pretrained  a pretrained tag of that open_clip name, or a file of weights

    Pictures are resized and normalised as the model was trained, with a gradient. The model is read at the first call
    and kept for the process. Raises ValueError for an unknown name and for a name without weights.
    """

    embedded = "emoji-clip"
    differentiable = True


@dataclass(frozen=True)
class Judge(DualEncoder):
    """The held-out CLIP score by `emoji-judge`: report it, never optimise it.

    It differs from `emoji-clip` in architecture and seed, so that a gain it does not confirm is over-optimisation. It
    offers no gradient, and no search should be given it. Arguments as `ClipScore`.
    """

    embedded = "emoji-judge"


class Encoder:
    """An open_clip model with its preprocessing as differentiable tensor operations and a memory of embedded texts."""

    def __init__(self, model: Any, tokenizer: Any, device: str):
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from torchvision.transforms import CenterCrop, Compose, Normalize, Resize

        config = dict(model.visual.preprocess_cfg)
        if config.get("resize_mode") == "longest":  # its padding is written for PIL pictures only
            raise ValueError("open_clip's resize_mode 'longest' is not supported; expected 'shortest' or 'squash'.")
        transform: Any = image_transform_v2(PreprocessCfg(**config), is_train=False)
        steps = transform.transforms
        self._fit = Compose([step for step in steps if isinstance(step, Resize | CenterCrop)])
        self._normalise = next(step for step in steps if isinstance(step, Normalize))
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self._texts: dict[str, Tensor] = {}

    @property
    def tower(self) -> Any:
        return self._model.visual

    def images(self, images: Tensor) -> Tensor:
        seen = self._fit(images).clamp(0, 1)  # a bicubic resize overshoots; PIL, which the model was trained on, clamps
        return self._model.encode_image(self._normalise(seen), normalize=True)

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Tensor:
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if len(self._texts) + len(fresh) > KEPT_TEXTS:
            self._texts.clear()
            fresh = list(dict.fromkeys(prompts))
        if fresh:
            embedded = self._model.encode_text(self._tokenizer(fresh).to(self._device), normalize=True)
            self._texts |= dict(zip(fresh, embedded))
        return torch.stack([self._texts[prompt] for prompt in prompts])


@functools.lru_cache(maxsize=4)
def encoder(source: str, pretrained: str | None, device: str) -> Encoder:
    """Read an open_clip model once for each device; ValueError where there is no such model or no weights for it."""
    import open_clip

    if Path(source).is_dir():
        source = f"local-dir:{source}"
    if ":" not in source:
        if source not in open_clip.list_models():
            raise unknown("open_clip model", source, open_clip.list_models(), "Or give a folder.")
        if pretrained is None:
            tags = open_clip.list_pretrained_tags_by_model(source)
            raise ValueError(f"{source} without weights is a random network: pass pretrained= one of {tags} or a file.")
    try:
        model = open_clip.create_model(source, pretrained, device=device, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(source)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise ValueError(f"open_clip cannot read {source} (pretrained={pretrained}): {error}") from error
    return Encoder(model.eval().requires_grad_(False), tokenizer, device)
