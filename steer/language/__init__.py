"""The language wing: read, steer and decode transformers language and vision-language models, at inference time.

Sites -> recorded states -> a direction -> `SteeringVector` -> `with steering(model, vector):`.
"""

from __future__ import annotations

from steer.language.edits import Add, Clamp, Project, Rotate
from steer.language.fold import folded
from steer.language.gates import Gate
from steer.language.record import activations, norms, recording
from steer.language.scopes import Positions
from steer.language.steering import steering
from steer.language.tower import Site
from steer.language.vectors import SteeringVector

__all__ = [
    "Add",
    "Clamp",
    "Gate",
    "Positions",
    "Project",
    "Rotate",
    "Site",
    "SteeringVector",
    "activations",
    "folded",
    "norms",
    "recording",
    "steering",
]
