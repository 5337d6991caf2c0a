"""Every row of the table on texts: it runs, it learns, it goes on after a stop, and its model comes back."""

import re

import pytest
import torch
from core_toys import same
from text_toys import task

from steer.training import Run, fit, tune
from steer.training.text import METHODS

RUN = Run(steps=6, seed=1, save_every=0.0)
SMALL = {"rank": 2, "lr": 1e-2}
DIALS = {
    "grpo": {"prompts": 2, "each": 2, "updates": 2, "beta": 0.1},
    "sft_grpo": {"prompts": 2, "each": 2, "share": 0.5},
    "data_diet": {"share": 0.5, "batch": 2},
    "dynamic_subset": {"warm": 1, "cycle": 1, "batch": 3},
}


def tuned(name, folder=None, run=RUN):
    return tune(task(), METHODS[name](**SMALL, **DIALS.get(name, {})), run, folder)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_its_paper_and_trains_a_lora_that_detaches_bit_for_bit(name):
    made = METHODS[name]()
    assert re.fullmatch(r"\d{4}\.\d{5}", made.paper)
    found = tuned(name)
    assert all("lora" in parameter for parameter in found.handle.parameters)
    assert not same(found.last, found.handle.start)
    assert all(row["tokens"] > 0 for row in found.log)
    assert same(dict(found.handle.detach().state_dict()), dict(task().model.state_dict()))


@pytest.mark.parametrize("name", METHODS)
def test_a_row_stopped_after_any_step_goes_on_to_the_same_weights(name, tmp_path, monkeypatch):
    expected, stops = tuned(name), 5

    def until(handle, loss, optimiser, run, folder):
        """Some steps at a time, and then as if the process had ended."""
        nonlocal stops
        log = fit(handle, loss, optimiser, run, folder, until=6 - stops)
        if stops and len(log) < run.steps:
            stops -= 1
            raise KeyboardInterrupt
        return log

    monkeypatch.setattr("steer.training.method.fit", until)
    found = None
    while found is None:
        try:
            found = tuned(name, tmp_path)
        except KeyboardInterrupt:
            continue
    assert same(found.last, expected.last)


def test_learning_answers_makes_them_likelier():
    for name in ("text_sft", "dft", "dynamic_subset"):
        one = task()
        with torch.no_grad():
            before = one.loss(one.model, one.rows).item()
        tune(one, METHODS[name](**SMALL), Run(steps=20))
        with torch.no_grad():
            assert one.loss(one.model, one.rows).item() < before - 0.5, name


def test_grpo_raises_its_reward():
    log = tune(task(), METHODS["grpo"](rank=4, lr=2e-2, prompts=4, each=16), Run(steps=25)).log
    first, last = (sum(row["reward"] for row in part) / 5 for part in (log[:5], log[-5:]))
    assert last > first + 0.2
