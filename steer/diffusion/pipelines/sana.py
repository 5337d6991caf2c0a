"""Sana."""

from __future__ import annotations

from steer.diffusion.pipelines.family import Family
from steer.diffusion.pipelines.pixart import finish

SANA = Family(
    "SanaPipeline", "transformer", finish=finish, time=lambda pipe, t: t * pipe.transformer.config.timestep_scale
)
