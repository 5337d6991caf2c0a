"""captum's own attribution of the same margin: its forward passes, its quadrature, one target token at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steer.language.data import language
from steer.language.grains.baselines import Start
from steer.language.grains.margin import Margin


def captum_scores(
    model: Any, tokenizer: Any, margin: Margin, begin: Start, steps: int, rule: str = "riemann_middle"
) -> Tensor:
    """Scores (P,) by `captum.attr.LLMGradientAttribution` over `LayerIntegratedGradients`, y+ minus y-.

    It runs the prompt with a growing response once for every token of it, where ours runs it once. rule is its
    `method`. Raises ValueError for a baseline that is no row of tokens, and ImportError without captum.
    """
    try:
        from captum.attr import (  # pyright: ignore[reportMissingImports]
            LayerIntegratedGradients,
            LLMGradientAttribution,
            TextTokenInput,
        )
    except ImportError as error:
        raise ImportError("method='captum' needs the package captum: pip install captum.") from error
    if begin.ids is None:
        raise ValueError(f"captum takes a baseline of tokens, and {begin.kind!r} or an image has none: take 'prompt'.")
    away = begin.ids.to(margin.ids.device)
    given = TextTokenInput("-", language(tokenizer))  # it would read a text, and knows one token for a baseline
    given.inp_tensor = given.itp_tensor = margin.ids[None]
    given.values = language(tokenizer).convert_ids_to_tokens(margin.ids.tolist())
    given.to_model_input = lambda kept=None: (
        margin.ids[None] if kept is None else torch.where(kept == 1, margin.ids, away)
    )
    engine = LLMGradientAttribution(LayerIntegratedGradients(model, model.get_input_embeddings()), language(tokenizer))
    total = torch.zeros_like(margin.ids, dtype=torch.float32)
    for ids, weight in margin.answers:
        found: Any = engine.attribute(given, target=ids, n_steps=steps, method=rule, internal_batch_size=margin.rows)
        total += (weight[:, None].to(total) * found.token_attr).sum(0)
    return total
