"""GrAInS (arXiv 2507.18043): find the tokens that matter by gradients, and steer by what masking them does.

found  = grains.attribute(model, tokenizer, pair)       which tokens push, and how complete the sum is
tokens = grains.chosen(found, k=10)                     the most of each sign
moved  = grains.contrast(model, tokenizer, pair, tokens, sites)
vector = grains.fit(model, tokenizer, pairs)            all of it: a `SteeringVector`
"""

from steer.language.grains.attribute import Attribution, attribute
from steer.language.grains.contrast import Contrast, contrast
from steer.language.grains.fit import fit
from steer.language.grains.pictures import figure, html, patches
from steer.language.grains.tokens import Chosen, chosen

__all__ = [
    "Attribution",
    "Chosen",
    "Contrast",
    "attribute",
    "chosen",
    "contrast",
    "figure",
    "fit",
    "html",
    "patches",
]
