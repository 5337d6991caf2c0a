"""The sampler's step by the kernel `transition` is the step; test_kernel_interpreter.py runs this with kernels too.

Where nothing is interpreted the op's reference stands for its kernel: how `solve` asks for it is tested all the same.
"""

import subprocess
import sys
from importlib import import_module
from itertools import pairwise, product

import pytest
import torch
from kernel_cases import agree, tolerance
from steer_kernels import operator, serving, transition
from steer_kernels.launch import INTERPRETED, Launch
from torch.testing import assert_close

from steer.diffusion import solve
from steer.diffusion.loop import sample
from steer.diffusion.schedule import flow, karras, vp

DTYPES, STEPS = (torch.float16, torch.bfloat16, torch.float32), 5


class Serving:
    """In the place of `serving.kernel`: as if tensors on the CPU were on a GPU; counts what it serves."""

    def __init__(self):
        self.on, self.served, self.launched = True, 0, 0

    def __call__(self, name, *inputs):
        module = import_module(f"steer_kernels.{name}")
        if not (self.on and module.OP.fits(*inputs)):
            return None
        self.served += 1
        return getattr(module, name)


@pytest.fixture
def kernels(monkeypatch):
    asking, run = Serving(), Launch.run

    def counted(launch):
        asking.launched += 1
        run(launch)

    monkeypatch.setattr(serving, "kernel", asking)
    monkeypatch.setattr(Launch, "run", counted)
    return asking


def three(dtype, *shape):
    """x, x0 and noise."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).to(dtype) for _ in range(3)]


def steps(schedule):
    """Every level, the next one, and the deviation of the noise between them at three etas."""
    for (level, to), eta in product(pairwise(schedule), (0.0, 0.5, 1.0)):
        yield level, to, solve.noise_scale(level, to, eta)


@pytest.mark.parametrize("drawn", [True, False], ids=["with noise", "its mean"])
@pytest.mark.parametrize("schedule", [vp(4), flow(4), karras(4)], ids=["vp", "flow", "ve"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_step_by_the_kernel_is_the_step(dtype, schedule, drawn, kernels):
    """As near to the step in float64 as the dtype allows, from pure noise to the clean sample."""
    x, x0, noise = three(dtype, 3, 4, 5, 7)
    taken = 0
    for level, to, scale in steps(schedule):
        given = noise if drawn and scale > 0 else None
        found = solve.transition(x, x0, level, to, scale, given)
        taken += 1
        assert kernels.served == taken
        wide = None if given is None else given.double()
        expected = solve.transition(x.double(), x0.double(), level, to, scale, wide)
        assert found.dtype == dtype
        a = (to.sigma**2 - scale**2) ** 0.5 / level.sigma
        terms = ((a, x), (to.alpha - a * level.alpha, x0), (scale, noise))
        agree(found, expected, terms=4, scale=sum(abs(c) * float(t.abs().max()) for c, t in terms))
    assert kernels.served == taken  # none of those in float64
    assert kernels.launched == taken * INTERPRETED


def test_what_the_kernel_does_not_take_is_done_as_before(kernels):
    """Mixed dtypes, float64, and shapes that only broadcasting brings together: bit for bit."""
    level, to = vp(4)[1:3]
    (x, x0, noise), double, scale = three(torch.float16, 2, 6), three(torch.float64, 2, 6), 0.3
    odd = [(x, x0.float(), noise), (x, x0, noise.double()), double, (x, x0[:1], noise), (x, x0, noise[:1])]
    for x, x0, noise in odd:
        kernels.on = True
        found = solve.transition(x, x0, level, to, scale, noise)
        kernels.on = False
        expected = solve.transition(x, x0, level, to, scale, noise)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    assert kernels.served == 0


def test_gradients_are_those_of_the_step(kernels):
    (level, to), given = flow(4)[1:3], [t.requires_grad_() for t in three(torch.float32, 3, 8)]

    def slopes():
        moved = solve.transition(given[0], given[1], level, to, 0.2, given[2])
        return torch.autograd.grad(moved.square().sum(), given)

    found = slopes()
    assert kernels.served == 1
    assert kernels.launched == 0  # the op has no gradient by kernels
    kernels.on = False
    for have, want in zip(found, slopes(), strict=True):
        assert_close(have, want, atol=float(want.abs().max()) * tolerance(4, torch.float32), rtol=0)


def run(n):
    """(n, 2, 6) the finished particles of two prompts, where the network makes half of x of every x."""
    options = {"n": n, "generator": torch.Generator().manual_seed(3), "prompts": ("a", "b")}
    *_, last = sample(lambda x, level, cond: x / 2, (6,), flow(STEPS), **options)
    return last.grouped(last.x).transpose(0, 1)


def test_particles_keep_their_noise(kernels):
    """A run by kernels is the run; more particles leave the earlier ones as they were, bit for bit."""
    four, two = run(4), run(2)
    assert kernels.served == 2 * STEPS
    assert torch.equal(four[:2], two)
    kernels.on = False
    plain = run(4)
    assert_close(four, plain, atol=STEPS * float(plain.abs().max()) * tolerance(4, torch.float32), rtol=0)


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("enabled", [True, False])
def test_kernels_are_asked_for_on_a_gpu_alone(enabled, monkeypatch):
    monkeypatch.setattr(operator, "ENABLED", enabled)
    x, double = (t.as_subclass(OnGpu) for t in (torch.zeros(2, 3), torch.zeros(2, 3).double()))
    assert serving.kernel("transition", x, x) is (transition.transition if enabled else None)
    assert serving.kernel("transition", double, double) is None
    assert serving.kernel("transition", torch.zeros(2, 3), torch.zeros(2, 3)) is None


CPU = """
import sys, torch
from steer.diffusion.loop import sample
from steer.diffusion.schedule import flow
*_, last = sample(lambda x, level, cond: x / 2, (6,), flow(3), n=2)
print(last.finished, [name for name in sys.modules if name.startswith(("triton", "steer_kernels."))])
"""


def test_a_step_on_a_cpu_imports_no_kernel():
    child = subprocess.run([sys.executable, "-c", CPU], capture_output=True, text=True)
    assert child.stdout.strip() == "True ['steer_kernels.serving']", child.stderr
