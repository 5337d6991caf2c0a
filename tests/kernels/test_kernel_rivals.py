"""The other ways that the benchmark times make what the op makes; without a compiler, which changes how, not what."""

import pytest
import torch
from all_cases import CASES

from benchmarks.kernels import RIVALS

WAYS = [(case, way) for case in CASES for way in RIVALS.get(case.name, {})]


@pytest.mark.parametrize(("case", "way"), WAYS, ids=[f"{case.name}-{way}" for case, way in WAYS])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_rivals_agree_with_the_reference(case, way):
    with torch.compiler.set_stance("force_eager"):
        for _, inputs in case.inputs(torch.float32):
            case.verify(case.op, inputs, RIVALS[case.name][way](*inputs), case.op.reference(*inputs))
