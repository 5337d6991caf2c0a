"""Stock diffusers pipelines under controllers: attached (driver 1), or as a denoiser for our own loop (driver 2)."""

from steer.diffusion.pipelines.attach import attach
from steer.diffusion.pipelines.capture import PipelineDenoiser, denoiser_of
from steer.diffusion.pipelines.results import Candidates, SteeredOutput
from steer.diffusion.pipelines.steered import Steered
from steer.diffusion.pipelines.trajectories import invert, reconstruct, record

__all__ = [
    "Candidates",
    "PipelineDenoiser",
    "Steered",
    "SteeredOutput",
    "attach",
    "denoiser_of",
    "invert",
    "reconstruct",
    "record",
]
