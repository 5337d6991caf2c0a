"""Classical style transfer: masked statistics, layers that know regions, and two small feed-forward networks."""

from steer.transfer.apply import stylize
from steer.transfer.layers import InstanceNorm, MaskedConv, feathered
from steer.transfer.net import AdaIN
from steer.transfer.prediction import Arbitrary
from steer.transfer.statistics import Moments, adain, covariance, instance_norm, match_covariance, moments

__all__ = [
    "AdaIN",
    "Arbitrary",
    "InstanceNorm",
    "MaskedConv",
    "Moments",
    "adain",
    "covariance",
    "feathered",
    "instance_norm",
    "match_covariance",
    "moments",
    "stylize",
]
