"""Fine-tuning of diffusion models: by rewards, and on pictures."""

from steer.training.diffusion.blend import Blend, annealed, combined
from steer.training.diffusion.methods import METHODS
from steer.training.diffusion.pairs import Pairs
from steer.training.diffusion.task import DiffusionTask

__all__ = ["METHODS", "Blend", "DiffusionTask", "Pairs", "annealed", "combined"]
