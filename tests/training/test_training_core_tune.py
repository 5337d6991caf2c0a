"""A method: its phases one after the other, what each leaves behind, and a run that was stopped in any of them."""

from dataclasses import dataclass, replace

import pytest
import torch
from core_toys import Regression, net, same
from peft import LoraConfig
from torch import nn

from steer.training import Method, Phase, Run, adapted, own, tune
from steer.training.handle import Handle

RUN = Run(steps=6, save_every=0.0, seed=2)


@dataclass
class Toy:
    """What there is to learn: a net."""

    model: nn.Module


def whole(task: Toy) -> Handle:
    return own(task.model)


def lora(task: Toy) -> Handle:
    return adapted(task.model, LoraConfig(r=2, target_modules=["0"]))


def regress(handle: Handle, task: Toy) -> Regression:
    return Regression(task.model)


def adamw(handle: Handle, masks: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(handle.parameters.values()), lr=0.05)


PHASE = Phase(regress, adamw, whole)


def two(end: str, share: float = 0.5, **second) -> Method:
    return Method(
        "0000.00000", (replace(PHASE, share=share, end=end), Phase(regress, adamw, share=1 - share, **second))
    )


def seeing(seen: list):
    """A choice of nothing that notes the handle and the values a phase begins with."""

    def select(handle: Handle, task: Toy) -> dict:
        seen.append((handle, handle.weights()))
        return {}

    return select


@pytest.mark.parametrize("end", ["keep", "merge", "rewind"])
def test_what_the_next_phase_begins_with(end):
    seen, task = [], Toy(net())
    first = tune(Toy(net()), Method("0", (PHASE,)), replace(RUN, steps=3)).handle.weights()
    tuned = tune(task, two(end, select=seeing(seen)), RUN)
    ((handle, begun),) = seen
    assert handle is tuned.handle
    assert same(begun, dict(net().named_parameters()) if end == "rewind" else first)
    assert same(handle.start, first if end == "merge" else dict(net().named_parameters()))
    assert len(tuned.log) == 6
    assert same(tuned.last, handle.weights())


def test_a_phase_that_merges_leaves_the_models_own_layers():
    task = Toy(net())
    tuned = tune(task, Method("0", (replace(PHASE, parametrise=lora, end="merge"),)), RUN)
    assert task.model.state_dict().keys() == net().state_dict().keys()
    assert not same(dict(task.model.state_dict()), dict(net().state_dict()))
    assert all("lora" in name for name in tuned.last)


def test_a_phase_may_train_something_else_than_the_one_before():
    phases = (replace(PHASE, parametrise=lora, share=0.5, end="merge"), replace(PHASE, parametrise=lora, share=0.5))
    tuned = tune(Toy(net()), Method("0", phases), RUN)
    assert not tuned.handle.start["0.lora_B.default.weight"].any()
    assert tuned.last["0.lora_B.default.weight"].any()


def test_a_rewound_phase_says_where_training_had_come():
    tuned = tune(Toy(net()), Method("0", (replace(PHASE, end="rewind"),)), RUN)
    assert same(tuned.handle.weights(), tuned.handle.start)
    assert same(tuned.last, tuned.handle.reached)
    assert not same(tuned.last, tuned.handle.start)


@pytest.mark.parametrize(
    ("steps", "shares", "expected"),
    [
        (6, (0.5, 0.5), [3, 3]),
        (5, (0.5, 0.5), [2, 3]),
        (100, (1 / 3, 1 / 3, 1 / 3), [33, 34, 33]),
        (10, (0.1, 0.9), [1, 9]),
        (4, (1.0,), [4]),
    ],
)
def test_all_steps_are_shared_out(steps, shares, expected):
    first, *others = shares
    phases = (replace(PHASE, share=first), *(Phase(regress, adamw, share=share) for share in others))
    log = tune(Toy(net()), Method("0", phases), replace(RUN, steps=steps, save_every=1e9)).log
    began = [k for k, row in enumerate(log) if row["step"] == 1]
    assert [b - a for a, b in zip(began, [*began[1:], len(log)])] == expected


@pytest.mark.parametrize("shares", [(0.5, 0.3), (0.5, 0.8), (0.01, 0.99)])
def test_shares_that_are_not_the_whole_and_empty_phases_are_refused(shares):
    phases = (replace(PHASE, share=shares[0]), Phase(regress, adamw, share=shares[1]))
    with pytest.raises(ValueError, match=r"6 steps over phases of .*expected at least one each, and all of them"):
        tune(Toy(net()), Method("0", phases), RUN)


def test_a_first_phase_must_say_what_is_trained():
    with pytest.raises(ValueError, match="a first phase, and that must say what is trained"):
        Method("0", (Phase(regress, adamw),))
    with pytest.raises(ValueError, match="a first phase"):
        Method("0", ())


class Stop(Exception):
    pass


def stopping(at: int):
    """An objective whose run ends at its `at`-th batch of all phases."""
    calls = []

    def objective(handle: Handle, task: Toy):
        class Stopped(Regression):
            def __call__(self, generator, step):
                calls.append(step)
                if len(calls) == at:
                    raise Stop
                return super().__call__(generator, step)

        return Stopped(task.model)

    return objective


@pytest.mark.parametrize("end", ["keep", "merge", "rewind"])
@pytest.mark.parametrize("at", range(1, 7))
def test_a_run_stopped_in_any_phase_goes_on_to_the_same_weights(end, at, tmp_path):
    def method(objective):
        phases = two(end).phases
        return Method("0", tuple(replace(phase, objective=objective) for phase in phases))

    expected = tune(Toy(net()), two(end), RUN)
    with pytest.raises(Stop):
        tune(Toy(net()), method(stopping(at)), RUN, tmp_path)
    found = tune(Toy(net()), two(end), RUN, tmp_path)
    assert same(found.last, expected.last)
    assert [row["loss"] for row in found.log] == [row["loss"] for row in expected.log]


def test_a_longer_run_of_two_phases_is_what_it_is_without_the_shorter_one(tmp_path):
    longer = replace(RUN, steps=10)
    expected = tune(Toy(net()), two("keep"), longer).last
    tune(Toy(net()), two("keep"), RUN, tmp_path)
    assert same(tune(Toy(net()), two("keep"), longer, tmp_path).last, expected)


def test_adapters_begin_with_the_runs_seed_whatever_was_drawn_before():
    method = Method("0", (replace(PHASE, parametrise=lora),))
    state = torch.get_rng_state()
    one = tune(Toy(net()), method, RUN)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    other, third = tune(Toy(net()), method, RUN), tune(Toy(net()), method, replace(RUN, seed=9))
    assert same(one.handle.start, other.handle.start)
    assert not same(one.handle.start, third.handle.start)
