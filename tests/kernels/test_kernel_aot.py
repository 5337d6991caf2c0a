"""Every kernel compiles for every target without a GPU, spills nothing and fits in shared memory."""

import pytest
import torch
from all_cases import CASES
from steer_kernels import score_select

pytest.importorskip("triton")

from steer_kernels.aot import SHARED_LIMIT, TARGETS, resources

# dtypes share their code, so that each size is compiled for one of them, in turn
COMPILED = [
    pytest.param(case, case.dtypes[k % len(case.dtypes)], size, id=f"{case.name}-{size}")
    for case in CASES
    for k, size in enumerate(case.typical(case.dtypes[0]))
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("case", "dtype", "size"), COMPILED)
def test_compiles_without_spills(case, dtype, size, target):
    for k, launch in enumerate(case.op.plan(*case.typical(dtype)[size])[1]):
        found = resources(launch, target)
        assert found.spilled == 0, found
        assert found.shared <= SHARED_LIMIT[target], found
        assert 0 < found.registers <= 255, found
        expected = case.tensor_cores and dtype != torch.float32 and k == 0
        assert found.tensor_cores or not expected, found


def test_a_spill_is_seen():
    launch = score_select.plan(*inputs(torch.float32))[1][0]
    greedy = launch._replace(meta={**launch.meta, "ROWS": 16}, warps=1)
    assert resources(greedy, 90).spilled > 0


def test_sizes_beyond_32_bits_compile():
    image, text, latents = inputs(torch.float16)
    launch = score_select.plan(image.as_strided(image.shape, (2**32, 768, 1)), text, latents)[1][0]
    assert resources(launch, 80).spilled == 0


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return next(case for case in CASES if case.op is score_select).typical(dtype)["SD1.5"]
