"""Controllers: what steers a run."""

from steer.diffusion.controllers import compose, edit, gradients, guidance, style
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
    "compose",
    "edit",
    "fk",
    "funnel",
    "gradients",
    "guidance",
    "halving",
    "noise_search",
    "paths",
    "rollover",
    "smc",
    "style",
    "svdd",
]
