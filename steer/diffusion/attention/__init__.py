"""Attention features of a pipeline's network: named sites, and what is done at them while a controller is at work."""

from steer.diffusion.attention.attending import Ask, Attend, Edit, attending, lone
from steer.diffusion.attention.maps import TokenMaps, grid, looked, probabilities
from steer.diffusion.attention.relax import pb_relax
from steer.diffusion.attention.rows import Placed, beside, groups, placed
from steer.diffusion.attention.sites import Site, sites

__all__ = [
    "Ask",
    "Attend",
    "Edit",
    "Placed",
    "Site",
    "TokenMaps",
    "attending",
    "beside",
    "grid",
    "groups",
    "lone",
    "looked",
    "pb_relax",
    "placed",
    "probabilities",
    "sites",
]
