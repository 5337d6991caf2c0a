"""Driver 1: a stock diffusers pipeline, run by its own code, under controllers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from steer.diffusion.control import Chain, Controller, as_chain
from steer.diffusion.pipelines.schedulers import check_eta, check_noise, kind_of
from steer.diffusion.pipelines.session import Session


@contextmanager
def attach(
    pipe: Any,
    controllers: Controller | Sequence[Controller] = (),
    n: int = 1,
    eta: float | None = None,
    exact: bool = False,
    chunk: int | None = None,
) -> Iterator[Session]:
    """Run every call of a pipeline inside the `with` under controllers, with n particles for each image.

    pipe   a diffusers pipeline, see `FAMILIES`; call it with num_images_per_prompt = n (times the images wanted)
    eta    0 <= eta <= 1: noise dial. Goes to the `step` of DDIM and TCD in place of the pipeline's own `eta`; for Euler
           and flow Euler, which draw no noise, eta > 0 puts the stochastic transition in place of their step
    exact  call network and decoder in batches of the plain call's shape: then no particle's result depends on n, bit
           for bit. Otherwise results for different n agree to rounding; the noise is bit-identical in either case
    chunk  the most particles in one call of network or decoder, for memory's sake; None: all. Results for different
           chunks agree to rounding

    Yields a Session: state, entered, ledger, lineage, trace and candidates of the latest call, readable after the exit
    too. The pipeline returns all particles, those of an image one after the other; after a greedy search all of them
    are the winner. With n = 1 and no edits its result is bit-identical to the plain call's. At the exit, an exception
    included, the pipeline is as it was before.

    Raises ValueError for an unsupported pipeline or scheduler, n < 1, an eta that the scheduler cannot take, chunk < 1
    or together with `exact`, a pipeline that is attached already, and a search between steps over a solver that draws
    no noise (at the first step where it is the pipeline's own `eta` that decides).
    """
    control = as_chain(controllers)
    session = Session(pipe, control, n, eta, exact, chunk)
    check(pipe, control, n, eta)
    _check_chunk(chunk, exact)
    masked = [(pipe, "prepare_mask_latents", session.prepare_mask_latents)]
    shortened = [(pipe, "get_timesteps", session.get_timesteps)]
    with ExitStack() as stack:
        for owner, name, method in (
            (pipe, "check_inputs", session.check_inputs),
            (pipe, "encode_prompt", session.encode_prompt),
            (pipe.scheduler, "set_timesteps", session.set_timesteps),
            *(shortened if session.family.reference else []),
            (pipe, "prepare_latents", session.prepare_latents),
            *(masked if hasattr(pipe, "prepare_mask_latents") else []),
            (pipe.vae, "decode", lambda original, *args, **kwargs: session.decoder(*args, **kwargs)),
            (getattr(pipe, session.family.network), "forward", session.forward),
            (pipe.scheduler, "step", session.step),
        ):
            stack.enter_context(replaced(owner, name, method))
        yield session


def check(pipe: Any, control: Chain, n: int, eta: float | None) -> None:
    """Raises ValueError for what can be known to be wrong before the pipeline is called."""
    kind = kind_of(pipe.scheduler)
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n = {n!r}: expected a whole number of particles, n >= 1.")
    check_eta(pipe.scheduler, eta)
    if n > 1 and control.needs_noise and (kind.eta != "own" or eta is not None):
        check_noise(pipe.scheduler, eta)
    if hasattr(pipe.prepare_latents, "steered"):
        raise ValueError("the pipeline is attached already; put all controllers into one list for one `attach`.")


def _check_chunk(chunk: int | None, exact: bool) -> None:
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk = {chunk!r}: expected a whole number of particles, chunk >= 1, or None for all.")
    if chunk is not None and exact:
        raise ValueError(f"chunk = {chunk} and exact: an exact run makes calls of the plain call's shape; give one.")


@contextmanager
def replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """While active `owner.name(...)` is `method(original, ...)`; its signature and the owner's attributes are kept."""
    original, own = getattr(owner, name), vars(owner).get(name)

    @functools.wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return method(original, *args, **kwargs)

    stand_in.steered = True
    object.__setattr__(owner, name, stand_in)  # the owners' own __setattr__ would register it
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, own)
