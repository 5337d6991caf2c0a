"""Every kernel compiles for every target without a GPU, spills nothing and fits in shared memory."""

import pytest
import torch
from kernel_cases import CASES

pytest.importorskip("triton")

from steer_kernels.aot import SHARED_LIMIT, TARGETS, resources


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.name}-{d}") for c in CASES for d in c.dtypes]
)  # fmt: skip
def test_compiles_without_spills(case, dtype, target):
    for launch in case.op.plan(*case.meta(dtype))[1]:
        found = resources(launch, target)
        assert found.spilled == 0, found
        assert found.shared <= SHARED_LIMIT[target], found
        assert 0 < found.registers <= 255, found


def test_a_spill_is_seen():
    case = CASES[0]
    launch = case.op.plan(*case.meta(torch.float32))[1][0]
    greedy = launch._replace(meta={**launch.meta, "ROWS": 16}, warps=1)
    assert resources(greedy, 90).spilled > 0


def test_sizes_beyond_32_bits_compile():
    case = CASES[0]
    image, text, latents = case.meta(torch.float16)
    launch = case.op.plan(image.as_strided(image.shape, (2**32, 768, 1)), text, latents)[1][0]
    assert resources(launch, 80).spilled == 0
