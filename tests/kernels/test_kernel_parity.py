"""Kernels against their references: on the GPU where there is one, else in a child process under the interpreter."""

import importlib.util
import inspect
import os
import sys

import pytest
import torch
from all_cases import CASES
from kernel_cases import agree, exact, gradients
from steer_kernels.launch import run
from torch import Tensor
from torch.utils._pytree import tree_map

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def agrees(case, op, dtype, only=None):
    for name, inputs in case.inputs(dtype):
        if only in (None, name):
            inputs = tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, Tensor) else leaf, inputs)
            expected = case.op.reference(*exact(inputs))  # before the kernels, which may change their inputs
            case.verify(op, inputs, run(op.plan(*inputs)), expected)
            if case.gradients:
                assert op.OP.serves(*inputs)
                found = gradients(op.OP.registered, inputs, case.gradients)
                expected = gradients(case.op.reference, exact(inputs), case.gradients)
                agree(found, expected, case.terms(*inputs), roundings=case.roundings)


PARITY = [
    pytest.param(case, dtype, name, id=f"{case.name}-{dtype}-{name}".replace("torch.", ""))
    for case in CASES
    for dtype in case.dtypes
    for name, _ in case.inputs(dtype)
]


@pytest.mark.parametrize(("case", "dtype", "name"), PARITY)
def test_kernel_equals_reference(case, dtype, name):
    agrees(case, case.op, dtype, name)


MUTATIONS = [pytest.param(case, *pair, id=f"{case.name}-{pair[0]}") for case in CASES for pair in case.mutations]


@pytest.mark.parametrize(("case", "good", "bad"), MUTATIONS)
def test_a_broken_kernel_is_caught(case, good, bad, tmp_path, monkeypatch):
    sources = {module: inspect.getsource(module) for module in (*case.parts, case.op)}
    assert sum(text.count(good) for text in sources.values()) == 1, "the mutated text must occur once in the kernel"
    for module, text in sources.items():
        path = tmp_path / f"{module.__name__}.py"
        path.write_text(text.replace(good, bad))
        name = "mutant" if module is case.op else module.__name__  # its op is registered as steer::mutant
        spec = importlib.util.spec_from_file_location(name, path)
        mutant = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mutant)
        monkeypatch.setitem(sys.modules, name, mutant)  # what the modules after it import
    with pytest.raises(AssertionError):
        agrees(case, mutant, torch.float32)
