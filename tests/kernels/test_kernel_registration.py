"""Ops as torch sees them: torch.library's own checks, torch.compile, torch.export, and where the reference serves."""

import os
import subprocess
import sys

import pytest
import torch
from all_cases import CASES
from kernel_cases import agree, gradients
from steer_kernels import adain, operator, resample, score_select, steer_add, transition
from steer_kernels.operator import Operator
from torch import nn
from torch.utils._pytree import tree_map

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def first(case):
    return next(inputs for _, inputs in case.inputs(torch.float32))


@pytest.fixture(autouse=True)
def forgotten():
    """torch.compile counts how often one function was compiled, over all cases."""
    torch.compiler.reset()


def fresh(inputs):
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)


def results(function, inputs):
    """What a function returns or, of an op that works in place, what it leaves."""
    inputs = fresh(inputs)
    found = function(*inputs)
    return inputs[0] if found is None else found


class Module(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, *inputs):
        return self.op(*inputs)


@EVERY
def test_torch_library_finds_no_fault(case):
    torch.library.opcheck(case.op.OP.registered, first(case))


@EVERY
def test_compiled_and_exported_ops_are_the_op(case):
    op, inputs = case.op.OP.registered, first(case)
    expected = results(op, inputs)
    compiled = torch.compile(Module(op), backend="aot_eager", fullgraph=True)
    agree(results(compiled, inputs), expected, terms=0)
    exported = torch.export.export(Module(op), fresh(inputs))
    assert f"steer.{case.name}" in str(exported.graph)
    agree(results(exported.module(), inputs), expected, terms=0)


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=lambda case: case.name)
def test_gradients_of_the_registered_op_are_those_of_its_reference(case):
    inputs = tree_map(lambda leaf: leaf.double() if isinstance(leaf, torch.Tensor) else leaf, first(case))
    expected = gradients(case.op.reference, inputs, case.gradients)
    agree(gradients(case.op.OP.registered, inputs, case.gradients), expected, terms=case.terms(*inputs))
    compiled = torch.compile(case.op.OP.registered, backend="aot_eager", fullgraph=True)
    agree(gradients(compiled, inputs, case.gradients), expected, terms=case.terms(*inputs))


def toy(name, **rules):
    """An op whose kernels, of which there are none, would give x + 2 and whose reference gives x + 1."""
    return Operator(name, "(Tensor x) -> Tensor", lambda x: x + 1, lambda x: (x + 2, []), **rules)


def test_kernels_serve_what_they_can(monkeypatch):
    x, wanted = torch.zeros(3), torch.zeros(3, requires_grad=True)
    op = toy("toys.plain", fits=lambda x: len(x) < 5)
    assert op(x)[0] == 1  # no GPU
    monkeypatch.setattr(operator, "INTERPRETED", True)
    monkeypatch.setattr(operator, "ENABLED", True)
    assert op(x)[0] == 2
    assert op(torch.zeros(5))[0] == 1  # outside the kernels' range
    assert op(wanted)[0] == 1  # no gradient by kernels
    assert op(wanted).requires_grad
    with torch.no_grad():
        assert op(wanted)[0] == 2
    monkeypatch.setattr(operator, "ENABLED", False)
    assert op(x)[0] == op.registered(x)[0] == 1


def test_a_gradient_by_kernels_is_used(monkeypatch):
    op = toy("toys.graded", gradient=(lambda ctx, inputs, output: None, lambda ctx, grad: 5 * grad))
    monkeypatch.setattr(operator, "INTERPRETED", True)
    monkeypatch.setattr(operator, "ENABLED", True)
    x = torch.zeros(3, requires_grad=True)
    assert op(x)[0] == 2
    assert torch.autograd.grad(op(x).sum(), x)[0].tolist() == [5, 5, 5]


def test_dispatch_is_compiled_whole_and_kernels_stay_one_node(monkeypatch):
    op, graphs = toy("toys.compiled"), []
    monkeypatch.setattr(operator, "INTERPRETED", True)
    monkeypatch.setattr(operator, "ENABLED", True)

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    assert torch.compile(lambda x: op(x) * 3, backend=backend, fullgraph=True)(torch.zeros(3))[0] == 6
    assert len(graphs) == 1
    assert "steer.compiled" in graphs[0]


def test_public_ops_are_compiled_whole():
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    calls = [
        lambda: adain.adain(x, x[:1] + 1, 0.5),
        lambda: resample.resample(x[0, 0], "systematic", seed=3),
        lambda: transition.transition(x, x, (0.5, 0.8), (0.8, 0.5), eta=1.0, noise=transition.Key(1, 2)),
        lambda: steer_add.steer_add(x[0].clone(), x[0, 0, :1], torch.ones(1)),
        lambda: tuple(score_select.score_select(x[0], x[0, :, 0], x[0])),
    ]
    for call in calls:
        agree(torch.compile(call, backend="aot_eager", fullgraph=True)(), call(), terms=4)


def test_ranges_end_where_they_should():
    for n, inside in ((resample.MOST, True), (resample.MOST + 1, False)):
        assert resample.OP.fits(torch.zeros(1, n), "top_k", 1, None, 0, 0) == inside
        assert resample.resample(torch.arange(n).float()[None], "top_k").tolist() == [[n - 1] * n]
    for d, inside in ((steer_add.WIDEST, True), (steer_add.WIDEST + 1, False)):
        assert steer_add.OP.fits(torch.zeros(1, 1, d)) == inside
    for module in (adain, transition, steer_add):
        assert module.OP.fits(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), 1.0)
        assert not module.OP.fits(torch.zeros(1, 1, 2, 3).double(), torch.zeros(1, 1, 2, 3), 1.0)


CHILD = """
import sys, torch
sys.path.insert(0, {tests!r})
{before}
from all_cases import CASES
for case in CASES:
    inputs = next(inputs for _, inputs in case.inputs(torch.float32))
    assert not case.op.OP.serves(*inputs)
    case.op.OP(*inputs)
    print(case.name)
"""


@pytest.mark.parametrize(
    ("before", "environment"),
    [("sys.modules['triton'] = None", {}), ("", {"STEER_KERNELS": "0", "TRITON_INTERPRET": "1"})],
    ids=["without Triton", "turned off"],
)
def test_references_serve(before, environment):
    code = CHILD.format(tests=os.path.dirname(__file__), before=before)
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert child.stdout.split() == [case.name for case in CASES], child.stderr
