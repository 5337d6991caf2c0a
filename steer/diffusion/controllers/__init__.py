"""Controllers: what steers a run. The families compose, edit, gradients, guidance and style are imported by name."""

from steer.diffusion.controllers.demon import Demon
from steer.diffusion.controllers.maps import Maps
from steer.diffusion.controllers.noises import FoundNoise, Near, noise_search
from steer.diffusion.controllers.potential import FeynmanKac, Tempered, Value
from steer.diffusion.controllers.renoise import Renoised, paths
from steer.diffusion.controllers.search import Search, beam, best_of_n, code, fk, funnel, halving, rollover, smc, svdd
from steer.diffusion.controllers.when import Adaptive, Every

__all__ = [
    "Adaptive",
    "Demon",
    "Every",
    "FeynmanKac",
    "FoundNoise",
    "Maps",
    "Near",
    "Renoised",
    "Search",
    "Tempered",
    "Value",
    "beam",
    "best_of_n",
    "code",
    "fk",
    "funnel",
    "halving",
    "noise_search",
    "paths",
    "rollover",
    "smc",
    "svdd",
]
