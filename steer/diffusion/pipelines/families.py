"""The pipeline classes that steer can drive."""

from __future__ import annotations

from typing import Any

from steer.diffusion.pipelines.family import Family
from steer.diffusion.pipelines.flux import FLUX, FLUX_FILL
from steer.diffusion.pipelines.img2img import STABLE_DIFFUSION_IMG2IMG
from steer.diffusion.pipelines.inpaint import STABLE_DIFFUSION_INPAINT, STABLE_DIFFUSION_XL_INPAINT
from steer.diffusion.pipelines.lumina2 import LUMINA_2
from steer.diffusion.pipelines.pixart import PIXART_SIGMA
from steer.diffusion.pipelines.sana import SANA
from steer.diffusion.pipelines.sd import STABLE_DIFFUSION
from steer.diffusion.pipelines.sd3 import STABLE_DIFFUSION_3
from steer.diffusion.pipelines.sdxl import STABLE_DIFFUSION_XL, STABLE_DIFFUSION_XL_IMG2IMG

FAMILIES = {
    family.pipeline: family
    for family in (
        STABLE_DIFFUSION,
        STABLE_DIFFUSION_IMG2IMG,
        STABLE_DIFFUSION_INPAINT,
        STABLE_DIFFUSION_XL,
        STABLE_DIFFUSION_XL_IMG2IMG,
        STABLE_DIFFUSION_XL_INPAINT,
        STABLE_DIFFUSION_3,
        FLUX,
        FLUX_FILL,
        PIXART_SIGMA,
        SANA,
        LUMINA_2,
    )
}


def family_of(pipe: Any) -> Family:
    """The family of a pipeline, looked up along the bases of its class.

    Raises ValueError for a class that steer cannot drive.
    """
    for base in type(pipe).__mro__:
        if base.__name__ in FAMILIES:
            return FAMILIES[base.__name__]
    raise ValueError(
        f"{type(pipe).__name__} is not a pipeline that steer can drive; expected one of {', '.join(FAMILIES)}. "
        "For any other model write a denoiser and use steer.diffusion.loop.sample."
    )
