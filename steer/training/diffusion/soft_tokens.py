"""A few learnt tokens beside the text, in the frozen network: SoftREPA's parametrisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steer.training.diffusion.task import DiffusionTask
from steer.training.handle import Handle
from steer.training.method import Parametrise

NAME = "soft_tokens"
TIMES = 1000  # of the network's timesteps
SPREAD = 0.02


class SoftTokens(nn.Module):
    """Tokens in the text that blocks of a network see, in all branches of guidance alike.

    A Stable Diffusion UNet has m tokens, the same for all down blocks with cross-attention, after the first one of the
    text. A Stable Diffusion 3 transformer has m for each of its first `layers` blocks, before the text, plus a vector
    for each block and each of `bins` stretches of time (0: none); they are taken away again after the block.

    tokens  (blocks or 1, m, d) as the text encoder gives them
    times   (bins, blocks, inner d)
    """

    def __init__(self, model: nn.Module, start: Tensor, bins: int):
        super().__init__()
        self.tokens, self.bins, self.times = nn.Parameter(start.clone()), bins, None
        self.joint = hasattr(model, "context_embedder")
        if self.joint and bins:
            noise = SPREAD * torch.randn(bins, len(start), model.inner_dim)
            self.times = nn.Parameter(noise.to(start))
        self.hooks: list[Any] = []

    def attach(self, model: Any) -> None:
        """Raises ValueError for another network than the two kinds."""
        clock = model.time_text_embed if self.joint else model.time_proj
        embed = model.context_embedder if self.joint else nn.Identity()
        self.hooks.append(clock.register_forward_pre_hook(self._note_time))
        for k, block in enumerate(blocks_of(model, len(self.tokens))):
            k = k if self.joint else 0
            self.hooks.append(block.register_forward_pre_hook(self._put(k, embed), with_kwargs=True))
            if self.joint:
                self.hooks.append(block.register_forward_hook(self._take))

    def leave(self) -> None:
        """Take all hooks away."""
        while self.hooks:
            self.hooks.pop().remove()

    def _note_time(self, module: nn.Module, args: tuple) -> None:
        self.t = args[0]

    def _put(self, k: int, embed: nn.Module) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            text = kwargs["encoder_hidden_states"]
            own = embed(self.tokens[k]).to(text).expand(len(text), -1, -1)
            if self.times is not None:
                bins = (self.t.reshape(-1).long() * self.bins // TIMES).clamp(max=self.bins - 1)
                own = own + self.times[bins, k][:, None].to(text)
            parts = [own, text] if self.joint else [text[:, :1], own, text[:, 1:]]
            return args, {**kwargs, "encoder_hidden_states": torch.cat(parts, 1)}

        return hook

    def _take(self, module: nn.Module, args: tuple, output: tuple) -> tuple:
        text, pictures = output
        return (None if text is None else text[:, self.tokens.shape[1] :], pictures)


def blocks_of(model: Any, layers: int) -> list[nn.Module]:
    """The blocks that see the tokens. Raises ValueError for another network than UNet2DConditionModel or SD3's."""
    kinds = {base.__name__ for base in type(model).__mro__}
    if "UNet2DConditionModel" in kinds:
        return [block for block in model.down_blocks if getattr(block, "has_cross_attention", False)]
    if "SD3Transformer2DModel" in kinds:
        return list(model.transformer_blocks[:layers])
    raise ValueError(
        f"soft tokens in a {type(model).__name__}: expected a UNet2DConditionModel or an SD3Transformer2DModel."
    )


def soft_tokens(count: int = 4, layers: int = 5, bins: int = 100, seed: int = 0) -> Parametrise:
    """Learnt tokens alone. Unlike other parametrisations they change the network from the start, and cannot be merged.

    They begin as N(0, 0.02) in a transformer, and in a UNet as what the text encoder gives for the empty prompt.
    """

    def parametrise(task: DiffusionTask) -> Handle:
        model: Any = task.model
        blocks = blocks_of(model, layers)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            if hasattr(model, "context_embedder"):
                start = SPREAD * torch.randn(len(blocks), count, model.config.joint_attention_dim)
            else:
                start = task.cond([""], guided=False)["encoder_hidden_states"][:, 0, 1 : count + 1]
            module = SoftTokens(model, start.to(next(model.parameters())), bins)
        module.attach(model)
        setattr(model, NAME, module)

        def leave() -> None:
            module.leave()
            delattr(model, NAME)

        trained = {f"{NAME}.{name}": value for name, value in module.named_parameters(recurse=False)}
        return Handle(model, trained, _refuse, leave)

    return parametrise


def _refuse() -> None:
    raise ValueError("soft tokens have no place in the network's own weights; keep them attached, with end='keep'.")
