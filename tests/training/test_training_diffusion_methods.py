"""Every row of the table on random pipelines: it trains, changes only what it says, and resumes bit for bit."""

import inspect

import pytest
import torch
from diffusion_toys import bright, pipeline_task

from steer.rewards import FromCallable
from steer.training import Run, fit, tune
from steer.training.diffusion import METHODS

SMALL = {
    "batch": 2,
    "levels": 2,
    "prompts": 2,
    "each": 2,
    "rank": 2,
    "tokens": 2,
    "block": 4,
    "losses": 1,
    "seeds": 1,
    "lr": 1e-3,
}
DECODES = FromCallable(bright, prompts=False)  # without a gradient
TABLE = {
    **{name: "epsilon" for name in METHODS},
    **{"draft": "flow_prediction", "prdp": "v_prediction", "sft": "flow_prediction", "softrepa": "flow_prediction"},
    **{"nft": "flow_prediction", "refl": "v_prediction", "coft_sft": "flow_prediction"},
}
BLACK_BOX = ("ddpo", "dpok", "texforce", "prdp", "nft")
WHOLE = ("refl", "emu", "style_tailoring", "ant")


def small(name: str):
    dials = inspect.signature(METHODS[name]).parameters
    return METHODS[name](**{dial: value for dial, value in SMALL.items() if dial in dials})


def task_of(name: str, kind: str):
    return pipeline_task(kind, reward=DECODES if name in BLACK_BOX else None, steps=3)


def modules_of(task) -> list[torch.nn.Module]:
    return [part for part in task.denoiser.denoise.pipe.components.values() if isinstance(part, torch.nn.Module)]


def values(modules) -> list[dict[str, torch.Tensor]]:
    return [{key: value.clone() for key, value in module.state_dict().items()} for module in modules]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def train(task, name, steps, folder=None, until=None):
    """What `tune` does, up to a step."""
    (phase,) = small(name).phases
    handle = phase.parametrise(task)
    masks = {} if phase.select is None else phase.select(handle, task)
    optimiser, loss = phase.optim(handle, masks), phase.objective(handle, task)
    log = fit(handle, loss, optimiser, Run(steps=steps), folder, until)
    return handle, [{key: value for key, value in row.items() if key != "seconds"} for row in log]


@pytest.mark.parametrize("name", METHODS)
def test_a_row_trains_what_it_says_and_resumes_bit_for_bit(name, tmp_path):
    task, killed, resumed = (task_of(name, TABLE[name]) for _ in range(3))
    modules = modules_of(task)
    before = values(modules)
    handle, log = train(task, name, 2)
    assert any(not torch.equal(value, handle.start[key]) for key, value in handle.weights().items())
    assert len(log) == 2
    assert all(row["rows"] > 0 and row["backward_rows"] > 0 for row in log)

    train(killed, name, 2, tmp_path, until=1)
    again, noted = train(resumed, name, 2, tmp_path)
    assert equal(handle.weights(), again.weights())
    assert log == noted

    if name in WHOLE:
        assert handle.count == sum(parameter.numel() for parameter in task.model.parameters())
    else:
        handle.detach()
    for module, was in zip(modules, before):
        assert equal(was, module.state_dict()) == (name not in WHOLE or module is not task.model)


KINDS = ("epsilon", "v_prediction", "flow_prediction")
OTHERS = [(n, k) for n in ("draft_lv", "ddpo", "nft", "sft", "softrepa") for k in KINDS if TABLE[n] != k]


@pytest.mark.parametrize(("name", "kind"), OTHERS)
def test_the_main_parts_train_every_kind_of_prediction(name, kind):
    handle, log = train(task_of(name, kind), name, 1)
    assert len(log) == 1
    assert any(not torch.equal(value, handle.start[key]) for key, value in handle.weights().items())


def test_texforce_trains_the_text_encoder_alone():
    task, method = task_of("texforce", "epsilon"), small("texforce")
    tuned = tune(task, method, Run(steps=1))
    assert tuned.handle.model is task.text
    assert all("_proj" in n for n in tuned.handle.parameters)
    assert not any(parameter.requires_grad for parameter in task.model.parameters())


def test_the_table_has_papers():
    assert all(method().paper.replace(".", "").isdigit() for method in METHODS.values())
    assert all(name == method.__name__ for name, method in METHODS.items())
