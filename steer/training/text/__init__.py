"""Fine-tuning of language models: on answers, and by rewards of texts; which examples teach; what has changed."""

from steer.training.text.delta import delta_activations, probed, silhouette
from steer.training.text.methods import METHODS
from steer.training.text.scores import el2n, grand, hardest, scored
from steer.training.text.task import Example, TextTask
from steer.training.text.vanishing import Spread, spreads

__all__ = [
    "METHODS",
    "Example",
    "Spread",
    "TextTask",
    "delta_activations",
    "el2n",
    "grand",
    "hardest",
    "probed",
    "scored",
    "silhouette",
    "spreads",
]
