"""Rewards: pictures and prompts in, one number a picture out, higher is better."""

from steer.rewards.adapt import FromCallable, FromPipeline, adapt, as_trl
from steer.rewards.analytic import Colour, Compressibility, Sharpness
from steer.rewards.base import Cached, Reward, Scaled, Sum, ZScored
from steer.rewards.border import to_pil, to_tensor
from steer.rewards.cheap import LinearDecoder, Looking, OnLatents, VaeDecoder, looking
from steer.rewards.clip import ClipScore, Judge
from steer.rewards.names import NAMES, named
from steer.rewards.reference import Picture
from steer.rewards.stitched import StitchedClip, stitch, tune
from steer.rewards.style import EdgeSimilarity, StyleMatch

__all__ = [
    "NAMES",
    "Cached",
    "ClipScore",
    "Colour",
    "Compressibility",
    "EdgeSimilarity",
    "FromCallable",
    "FromPipeline",
    "Judge",
    "LinearDecoder",
    "Looking",
    "OnLatents",
    "Picture",
    "Reward",
    "Scaled",
    "Sharpness",
    "StitchedClip",
    "StyleMatch",
    "Sum",
    "VaeDecoder",
    "ZScored",
    "adapt",
    "as_trl",
    "looking",
    "named",
    "stitch",
    "to_pil",
    "to_tensor",
    "tune",
]
