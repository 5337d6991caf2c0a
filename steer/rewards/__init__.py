"""Rewards: pictures (or texts) and prompts in, one number for each out, higher is better."""

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
from steer.rewards.text import Classifier, Length, Regex, TextReward, Vader, ValidJSON

__all__ = [
    "NAMES",
    "Cached",
    "Classifier",
    "ClipScore",
    "Colour",
    "Compressibility",
    "EdgeSimilarity",
    "FromCallable",
    "FromPipeline",
    "Judge",
    "Length",
    "LinearDecoder",
    "Looking",
    "OnLatents",
    "Picture",
    "Regex",
    "Reward",
    "Scaled",
    "Sharpness",
    "StitchedClip",
    "StyleMatch",
    "Sum",
    "TextReward",
    "Vader",
    "VaeDecoder",
    "ValidJSON",
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
