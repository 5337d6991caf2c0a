from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from kernel_cases import Case, Inputs, agree, exact, meta, poisoned
from steer_kernels import transition
from torch import Tensor

DIFFUSION = transition.coefficients((0.2, 0.98), (0.5, 0.87), "epsilon", 1.0)
FLOW = transition.coefficients((0.1, 0.9), (0.2, 0.8), "flow_prediction", 0.5)
LAST = transition.coefficients((0.9, 0.1), (1.0, 0.0), "v_prediction", 1.0)
FIRST = transition.coefficients((1e-3, 1.0), (0.02, 0.9998), "epsilon", 0.0)  # a and b of some 20, that nearly cancel


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    key = (2**40 + 3, 7)
    shape = (6, 4, 5, 7)
    ancestors = torch.tensor([[2, 2, 0], [0, 1, 1]])
    particles = torch.tensor([0, 0, 5, 3, 2**32 - 1, 1])
    three = make(*shape), make(*shape), make(*shape)
    yield "all", (*three, None, particles, ancestors, 7.5, *DIFFUSION, *key)
    yield "no guidance", (three[0], three[1], None, None, None, None, 1.0, *FLOW, 1, 1)
    yield "given noise", (*three, make(*shape), None, ancestors.view(1, 6), 3.0, *FLOW, 0, 0)
    yield "no noise", (*three, make(*shape), None, None, 3.0, *LAST, *key)
    yield "first step", (three[0], three[1], None, None, None, ancestors, 1.0, *FIRST, *key)
    yield "long", (make(2, 1030), make(2, 1030), None, None, None, None, 1.0, *DIFFUSION, *key)
    yield "strided", (*map(poisoned, three), poisoned(make(*shape)), None, None, 7.5, *DIFFUSION, 0, 0)
    channels_last = three[0].to(memory_format=torch.channels_last)
    yield "channels last", (channels_last, three[1], three[2].float(), None, None, None, 0.0, *FLOW, *key)


def check(op: ModuleType, inputs: Inputs, found: Tensor) -> None:
    x, prediction, unconditional, _, _, _, guidance, a, b, scale, _, _ = inputs
    parts = [abs(a) * x, abs(b * guidance) * prediction, abs(scale) * 6 * torch.ones(1)]
    if unconditional is not None:
        parts.append(abs(b * (1 - guidance)) * unconditional)
    # errors are relative to the terms of the sum: what cancels in it does not cancel in them
    largest = sum(float(part.abs().max()) for part in parts)
    expected = transition.reference(*exact(inputs))
    assert found.is_contiguous()
    agree(found, expected, terms=4, scale=largest)


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    sizes = {"SD1.5": (16, 4, 64, 64), "SDXL": (16, 4, 128, 128), "FLUX": (16, 4096, 64)}
    particles, ancestors = meta(16, dtype=torch.int64), meta(4, 4, dtype=torch.int64)
    found = {}
    for name, shape in sizes.items():
        x = meta(*shape, dtype=dtype)
        unconditional = None if name == "FLUX" else x  # FLUX's guidance is distilled
        found[name] = (x, x, unconditional, None, particles, ancestors, 7.5, *DIFFUSION, 2**62, 10)
    return found


CASE = Case(
    op=transition,
    inputs=inputs,
    terms=lambda *inputs: 4,
    dtypes=(torch.float16, torch.bfloat16, torch.float32),
    typical=typical,
    check=check,
    mutations=(
        ("base + guidance * (value - base)", "value + guidance * (value - base)"),
        ("slot // n * n + ancestor", "ancestor"),
        ("tl.load(noise + slot * L + cell", "tl.load(noise + source * L + cell"),
        ("slot if particles is None else tl.load(particles + slot)", "slot"),
        ("normals(quad, particle, seed, step, 0)", "normals(quad, particle, seed, 0, 0)"),
        ("tl.program_id(1) * QUADS", "tl.program_id(0) * QUADS"),
        ("cell = tl.program_id(1).to(tl.int64) * 4 * QUADS", "cell = tl.program_id(1).to(tl.int64) * QUADS"),
    ),
)
