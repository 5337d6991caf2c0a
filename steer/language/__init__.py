"""The language wing: read, steer and decode transformers language and vision-language models, at inference time.

    model, tokenizer = steer.load("smollm2")                          # or any causal model of transformers
    vector = steer.language.fit(model, tokenizer, pairs, sites=[12])  # pairs of a wanted and an unwanted answer
    with steer.language.steering(model, vector, strength=0.1):
        model.generate(**inputs)

Sites -> recorded states -> a direction -> `SteeringVector` -> `with steering(...)`. `extract` has the ways to find a
direction, `grains` that of gradient attribution, `decode` the guided decoders for `generate(custom_generate=...)`.
"""

from __future__ import annotations

from steer.language import decode, extract, grains, guard
from steer.language.data import Choices, Pair, encoded
from steer.language.edits import Add, Clamp, Project, Rotate
from steer.language.extract import fit
from steer.language.files import load, save
from steer.language.fold import folded
from steer.language.gates import Gate
from steer.language.inputs import captured, replay
from steer.language.record import activations, norms, recording
from steer.language.scopes import Positions
from steer.language.scoring import LogProb, choice_accuracy, log_probs, margins, perplexity
from steer.language.steering import steering
from steer.language.tower import Site
from steer.language.vectors import SteeringVector

__all__ = [
    "Add",
    "Choices",
    "Clamp",
    "Gate",
    "LogProb",
    "Pair",
    "Positions",
    "Project",
    "Rotate",
    "Site",
    "SteeringVector",
    "activations",
    "captured",
    "choice_accuracy",
    "decode",
    "encoded",
    "extract",
    "fit",
    "folded",
    "grains",
    "guard",
    "load",
    "log_probs",
    "margins",
    "norms",
    "perplexity",
    "recording",
    "replay",
    "save",
    "steering",
]
