"""What is known about each scheduler class of diffusers: its scaling, its memory, its noise, its calls of `step`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One scheduler class.

    scaling  levels come from  vp: alphas_cumprod[t]   ratio: sigmas[i], scaled to variance preserving
                               ve: (1, sigmas[i])      flow: (1 - sigmas[i], sigmas[i])
    rows     attributes that hold one row a particle between calls of `step`
    draws    (scheduler, eta) -> whether a run draws noise, with the `eta` that its `step` is given
    first    (scheduler, call number) -> whether this call is the first at its noise level
    eta      own: `step` has the argument; added: the stochastic transition may replace `step`; none: neither
    dial     (scheduler, eta) -> the eta with which `solve.transition` is this step; None for a step of another form
    """

    scaling: str
    rows: tuple[str, ...] = ()
    draws: Callable[[Any, float], bool] = lambda scheduler, eta: False
    first: Callable[[Any, int], bool] = lambda scheduler, call: True
    eta: str = "none"
    dial: Callable[[Any, float], float | None] = lambda scheduler, eta: None


def _always(scheduler: Any, eta: float) -> bool:
    return True


def _if_asked(scheduler: Any, eta: float) -> bool:
    return eta > 0


def _if_sde(scheduler: Any, eta: float) -> bool:
    return scheduler.config.algorithm_type.startswith("sde")


def _if_flow_is_stochastic(scheduler: Any, eta: float) -> bool:
    return scheduler.config.stochastic_sampling


def _as_given(scheduler: Any, eta: float) -> float:
    return eta


def _ancestral(scheduler: Any, eta: float) -> float:
    return 1.0


def _unless_flow_is_stochastic(scheduler: Any, eta: float) -> float | None:
    return None if scheduler.config.stochastic_sampling else eta


def _if_variance_is_small(scheduler: Any, eta: float) -> float | None:
    return 1.0 if scheduler.config.variance_type == "fixed_small" else None


def _even(scheduler: Any, call: int) -> bool:
    return call % 2 == 0


def _pndm(scheduler: Any, call: int) -> bool:
    if scheduler.config.skip_prk_steps:
        return call != 1
    return call >= len(scheduler.prk_timesteps) or call % 4 == 0


def _first_order(scheduler: Any, call: int) -> bool:
    # a run that begins inside a group of steps begins at first order: it has no history yet
    return call == 0 or scheduler.order_list[(scheduler.begin_index or 0) + call] == 1


KINDS = {
    "DDIMScheduler": Kind("vp", draws=_if_asked, eta="own", dial=_as_given),
    "DDPMScheduler": Kind("vp", draws=_always, dial=_if_variance_is_small),
    "DEISMultistepScheduler": Kind("ratio", ("model_outputs",)),
    "DPMSolverMultistepScheduler": Kind("ratio", ("model_outputs",), _if_sde),
    "DPMSolverSinglestepScheduler": Kind("ratio", ("model_outputs", "sample"), _if_sde, _first_order),
    "EulerAncestralDiscreteScheduler": Kind("ve", draws=_always, dial=_ancestral),
    "EulerDiscreteScheduler": Kind("ve", draws=_if_asked, eta="added", dial=_as_given),
    "FlowMatchEulerDiscreteScheduler": Kind(
        "flow", draws=_if_flow_is_stochastic, eta="added", dial=_unless_flow_is_stochastic
    ),
    "FlowMatchHeunDiscreteScheduler": Kind("flow", ("prev_derivative", "sample"), first=_even),
    "HeunDiscreteScheduler": Kind("ve", ("prev_derivative", "sample"), first=_even),
    "LCMScheduler": Kind("vp", draws=_always),
    "LMSDiscreteScheduler": Kind("ve", ("derivatives",)),
    "PNDMScheduler": Kind("vp", ("ets", "cur_sample", "cur_model_output"), first=_pndm),
    "TCDScheduler": Kind("vp", draws=_if_asked, eta="own"),
    "UniPCMultistepScheduler": Kind("ratio", ("model_outputs", "last_sample")),
}


def kind_of(scheduler: Any) -> Kind:
    """What is known about a scheduler, looked up along the bases of its class.

    Raises ValueError for a class that is not known: what it remembers between steps could not be gathered.
    """
    for base in type(scheduler).__mro__:
        if base.__name__ in KINDS:
            return KINDS[base.__name__]
    name = type(scheduler).__name__
    close = difflib.get_close_matches(name, KINDS, n=1)
    hint = f" The closest is {close[0]}." if close else ""
    raise ValueError(f"scheduler {name} is not supported; expected one of {', '.join(KINDS)}.{hint}")


def looks(scheduler: Any, skipped: int = 0) -> list[int]:
    """The numbers of those calls of `step` that open a noise level, after `set_timesteps`: one look each.

    skipped  how many timesteps the run leaves out at its start; calls count from the first one made
    """
    first = kind_of(scheduler).first
    return [call for call in range(len(scheduler.timesteps) - skipped) if first(scheduler, call)]


def draws_noise(scheduler: Any, eta: float | None) -> bool:
    """Whether a run draws noise, for the eta that its steps are taken with."""
    kind, eta = kind_of(scheduler), eta or 0.0
    return kind.draws(scheduler, eta) or (kind.eta == "added" and eta > 0)


def check_eta(scheduler: Any, eta: float | None) -> None:
    """Raises ValueError for an eta outside [0, 1], and for eta > 0 where no first-order transition can take it."""
    name = type(scheduler).__name__
    if not eta:
        return
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}: expected 0 (deterministic) <= eta <= 1 (ancestral).")
    kind = kind_of(scheduler)
    if kind.eta == "none" or (kind.eta == "added" and kind.draws(scheduler, 0.0)):
        why = "draws its own noise" if kind.draws(scheduler, 0.0) else "keeps a history that added noise would spoil"
        raise ValueError(
            f"eta = {eta} with {name}, which {why}; leave eta=None, or use DDIMScheduler, EulerDiscreteScheduler or a "
            "flow-matching Euler scheduler, whose steps are first-order and noiseless."
        )


def check_noise(scheduler: Any, eta: float | None) -> None:
    """Raises ValueError if a run with this eta draws no noise: particles that are equal would stay equal."""
    if not draws_noise(scheduler, eta):
        raise ValueError(
            f"{type(scheduler).__name__} with eta = {eta or 0} draws no noise, so equal particles stay equal and a "
            "search between steps has nothing to choose from. Pass eta > 0 (DDIM, Euler, flow Euler), use an SDE "
            "scheduler such as EulerAncestralDiscreteScheduler, or best_of_n, which chooses at the end."
        )
