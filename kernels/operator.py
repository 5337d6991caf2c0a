"""An op as torch knows it: kernels where they serve, the reference elsewhere; torch.compile and torch.export take it.

STEER_KERNELS=0 in the environment, read when this module is imported, turns all kernels off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from steer_kernels.launch import INTERPRETED, Launch, run, triton
from torch import Tensor
from torch.utils._pytree import tree_leaves

ENABLED = triton is not None and os.environ.get("STEER_KERNELS") != "0"


class Operator:
    """Reference and plan as one op, registered with torch.library as steer::<last part of `module`>.

    Kernels serve tensors on a GPU that `fits` accepts, if no gradient is asked for or `gradient` says how to take one.

    module     the __name__ of the op's module
    schema     of torch.library, as "(Tensor x, float alpha) -> Tensor"; every input has a place, none a default
    fits       the same inputs -> whether they are inside the kernels' range
    gradient   (setup_context, backward) of `torch.library.register_autograd`; backward calls Operators or plain torch
    changes    the name of the first input if the op changes it in place: `registered` then returns nothing, while plan
               and reference return its new value

    `registered` is torch's own operator: opaque to torch.compile and torch.export, with the planned outputs as its fake
    implementation. It too runs the reference where kernels do not serve.
    """

    def __init__(
        self,
        module: str,
        schema: str,
        reference: Callable[..., Any],
        plan: Callable[..., tuple[Any, list[Launch]]],
        *,
        fits: Callable[..., bool] = lambda *inputs: True,
        gradient: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
        changes: str | None = None,
    ):
        self.reference, self.plan, self.fits, self.gradient = reference, plan, fits, gradient
        name, body = f"steer::{module.rpartition('.')[2]}", self._change if changes else self._outputs
        mutated = (changes,) if changes else ()
        self.registered = torch.library.custom_op(name, body, mutates_args=mutated, schema=schema)
        self.registered.register_fake(lambda *inputs: None if changes else _plain(plan(*inputs)[0]))
        if gradient is not None:
            setup, backward = gradient
            self.registered.register_autograd(backward, setup_context=setup)

    def __call__(self, *inputs: Any) -> Any:
        asked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(inputs))
        kernels = self.serves(*inputs) and (self.gradient is not None or not asked)
        return self.registered(*inputs) if kernels else self.reference(*inputs)

    def serves(self, *inputs: Any) -> bool:
        """Whether kernels take these inputs, gradients aside."""
        return ENABLED and (_tensors(inputs)[0].is_cuda or INTERPRETED) and self.fits(*inputs)

    def _outputs(self, *inputs: Any) -> Any:
        return _plain(run(self.plan(*inputs)) if self.serves(*inputs) else self.reference(*inputs))

    def _change(self, first: Tensor, *rest: Any) -> None:
        changed = self._outputs(first, *rest)
        if changed is not first:
            first.copy_(changed)


def _tensors(inputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _plain(outputs: Any) -> Any:
    """A named tuple as the tuple that torch.library hands out."""
    return tuple(outputs) if isinstance(outputs, tuple) else outputs
