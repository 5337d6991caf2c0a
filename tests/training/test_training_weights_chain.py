"""The chain of updates: what a mask freezes, what a link changes, and that all of it is still a torch optimizer."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from weights_toys import examples, net, tokens

from steer.training import Run, fit, tune
from steer.training.weights.attach import lora, weights
from steer.training.weights.chain import Chain, aligned, clip_each, masked, top_gradient, update
from steer.training.weights.losses import keeping, supervised
from steer.training.weights.methods import METHODS

ADAMW = partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1)


def given(seed: int, model: nn.Module) -> None:
    """Gradients that are drawn."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def steps(make, count: int = 3):
    """A net after some steps with drawn gradients, from weights so small that old + (new - old) is not new."""
    model = net(4, 6, 2)
    for parameter in model.parameters():
        parameter.data *= 1e-3
    chain = make(model)
    for seed in range(count):
        given(seed, model)
        chain.step()
    return model


def test_under_a_changing_mask_what_is_frozen_in_a_step_stays_in_it():
    """The trap: with momentum and decay, zero gradients move."""
    model = net(4, 6, 2)
    named = dict(model.named_parameters())
    chain = Chain(ADAMW(model.parameters()), named, masks=partial(top_gradient, fraction=0.3))
    for seed in range(5):
        given(seed, model)
        masks = top_gradient(named, 0.3)
        before = {name: p.detach().clone() for name, p in named.items()}
        chain.step()
        for name, p in named.items():
            assert torch.equal(p[~masks[name]], before[name][~masks[name]])
            assert (p[masks[name]] != before[name][masks[name]]).all()
            assert int(masks[name].sum()) == -(-3 * p.numel() // 10)


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_a_mask_of_all_is_plain_training_bit_for_bit(where):
    top = partial(top_gradient, fraction=1.0)

    def chained(model):
        handle = dict(model.named_parameters())
        links = [masked(top)(None)] if where == "gradient" else []
        return Chain(ADAMW(model.parameters()), handle, links, top if where == "update" else None)

    plain = steps(lambda model: ADAMW(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(steps(chained).parameters(), plain.parameters()))


def test_a_masked_gradient_freezes_sgd_but_not_adamw():
    """GMT as in its paper is not sparse under AdamW; its mask of the update is."""
    top = partial(top_gradient, fraction=0.5)
    moved = {}
    for name, rule in {"sgd": partial(torch.optim.SGD, lr=0.1), "adamw": ADAMW}.items():
        model = net(4, 6, 2)
        named = dict(model.named_parameters())
        chain = Chain(rule(model.parameters()), named, [masked(top)(None)])
        for seed in range(2):
            given(seed, model)
            off = {name: ~mask for name, mask in top(named).items()}
            before = {name: p.detach().clone() for name, p in named.items()}
            chain.step()
        moved[name] = sum(int((named[n] != before[n])[off[n]].sum()) for n in named)
    assert moved["sgd"] == 0
    assert moved["adamw"] > 0


def test_gmt_masks_by_the_gradient_of_all_that_was_accumulated():
    """Two micro-batches give the mask of both together."""
    task = examples()
    seen = []

    def spied(parameters):
        seen.append(top_gradient(parameters, 0.3))
        return seen[-1]

    handle = weights()(task)
    chain = Chain(ADAMW(handle.parameters.values()), handle.parameters, masks=spied)
    fit(handle, supervised(8)(handle, task), chain, Run(steps=1, accumulate=2, clip=None))
    other, generator = examples(), torch.Generator().manual_seed(0)
    together = [torch.cat(both) for both in zip(*(other.batch(generator, 8) for _ in range(2)))]
    other.loss(other.model, together).backward()
    wanted = {name: p for name, p in other.model.named_parameters() if "weight" in name}
    assert all(torch.equal(mask, seen[0][name]) for name, mask in top_gradient(wanted, 0.3).items())


def test_each_tensor_is_clipped_by_its_own_norm():
    model = net(4, 6, 2)
    named = dict(model.named_parameters())
    given(0, model)
    named["0.weight"].grad *= 100
    named["2.bias"].grad *= 1e-4
    before = {name: p.grad.clone() for name, p in named.items()}
    clip_each(0.5)(None)(named)
    for name, p in named.items():
        norm = before[name].norm()
        wanted = before[name] * min(1.0, 0.5 / (norm + 1e-6))
        assert torch.allclose(p.grad, wanted, rtol=1e-6, atol=0)
        assert p.grad.norm() <= 0.5 * (1 + 1e-6)
        if norm < 0.5:
            assert torch.equal(p.grad, before[name])
    assert torch.equal(named["2.bias"].grad, before["2.bias"])  # a global clip would have cut it


def test_cgnc_leaves_the_runs_clip_out():
    """Else the loudest tensor would scale the others down first."""
    clips = [tune(examples(), METHODS["cgnc"](lr=0.01), Run(steps=2, clip=clip)) for clip in (1e-3, None)]
    assert all(torch.equal(w, clips[1].last[name]) for name, w in clips[0].last.items())
    others = [tune(examples(), METHODS["prograd"](lr=0.1), Run(steps=2, clip=clip)) for clip in (1e-3, None)]
    assert not all(torch.equal(w, others[1].last[name]) for name, w in others[0].last.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prograd_removes_what_opposes(dtype):
    """g - <g, k> k / |k|^2 where they oppose, then never against k; g bit for bit where they do not."""
    task = examples(dtype)
    handle = weights()(task)
    generator = torch.Generator().manual_seed(0)
    kinds = set()
    for _ in range(50):
        keep = {n: torch.randn(p.shape, generator=generator, dtype=dtype) for n, p in handle.parameters.items()}
        handle.extra["keep"] = keep
        given(int(torch.randint(1000, (), generator=generator)), task.model)
        before = {name: p.grad.clone() for name, p in handle.parameters.items()}
        aligned(1.0)(handle)(handle.parameters)
        assert not handle.extra
        for name, p in handle.parameters.items():
            g, k = before[name], keep[name]
            along = (g * k).sum()
            kinds.add(bool(along < 0))
            wanted = g - along * k / (k * k).sum() if along < 0 else g
            assert torch.equal(p.grad, g) or along < 0
            assert torch.allclose(p.grad, wanted, rtol=0, atol=10 * torch.finfo(dtype).eps * g.abs().max())
            assert (p.grad * k).sum() >= -1e-6 * g.norm() * k.norm()
    assert kinds == {True, False}


@pytest.mark.parametrize("make", [examples, tokens])
def test_the_gradient_that_keeps_is_that_of_the_divergence(make):
    """As from a backward pass of its own; zero at the start, summed over the losses of a step."""
    task = make()
    handle = lora(2, 2)(task)
    objective = keeping(4)(handle, task)
    objective(torch.Generator().manual_seed(0), 0)
    assert all(g.abs().max() < 1e-6 for g in handle.extra.pop("keep").values())
    handle.load({name: w + 0.1 for name, w in handle.start.items()})
    for seed in (0, 1):
        objective(torch.Generator().manual_seed(seed), 0)
    found = handle.extra.pop("keep")
    for seed in (0, 1):
        batch = task.batch(torch.Generator().manual_seed(seed), 4)
        with torch.no_grad(), handle.using(handle.start):
            p = task.logits(handle.model, batch).softmax(-1)
        q = task.logits(handle.model, batch).softmax(-1)
        (p * (p.log() - q.log())).sum(-1).mean().backward()
    for name, parameter in handle.parameters.items():
        assert torch.allclose(parameter.grad, found[name], rtol=1e-4, atol=1e-5)


def test_lion_is_its_formula():
    """timm's, three steps with decay, in float64; sign(0) is 0."""
    from timm.optim import Lion

    w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64))
    lion = Lion([w], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    theta, m = w.detach().clone(), torch.zeros(4, dtype=torch.float64)
    for g in ([1.0, -1.0, 0.0, 0.0], [-20.0, 3.0, 0.0, 1.0], [0.1, 0.0, 5.0, -1.0]):
        w.grad = torch.tensor(g, dtype=torch.float64)
        lion.step()
        theta = theta - 0.1 * (torch.sign(0.9 * m + 0.1 * w.grad) + 0.5 * theta)
        m = 0.99 * m + 0.01 * w.grad
        assert torch.allclose(w, theta, rtol=1e-14, atol=1e-14)


def test_lion_then_mask_and_mask_then_lion_differ_where_momentum_or_decay_is_not_zero():
    from timm.optim import Lion

    keep = torch.tensor([True, False, False, True])
    ends = {}
    for order in ("before", "after"):
        w = nn.Parameter(torch.tensor([1.0, 1.0, 0.0, 2.0]))
        rule, masks = Lion([w], lr=0.1, weight_decay=0.1), lambda parameters: {"w": keep}
        chain = Chain(rule, {"w": w}, [masked(masks)(None)] * (order == "before"), masks if order == "after" else {})
        w.grad = torch.ones(4)
        chain.step()
        ends[order] = w.detach()
    assert (ends["before"] != ends["after"]).tolist() == [False, True, False, False]
    assert ends["after"].tolist()[1:3] == [1.0, 0.0]


def test_it_is_an_optimizer_with_a_state():
    """A schedule drives it, and from its state another goes on bit for bit."""

    class Doubled:
        """A link that remembers."""

        def __init__(self):
            self.calls = 0

        def __call__(self, parameters):
            self.calls += 1
            for parameter in parameters.values():
                parameter.grad *= self.calls

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    def chained(model):
        mask = {"0.weight": model[0].weight > 0}
        return Chain(ADAMW(model.parameters()), dict(model.named_parameters()), [Doubled()], mask)

    model = net(4, 6, 2)
    chain = chained(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(chain, lambda step: 0.5**step)
    assert isinstance(chain, torch.optim.Optimizer)
    given(0, model)
    chain.step()
    schedule.step()
    assert chain.param_groups[0]["lr"] == 0.025
    other = net(4, 6, 2)
    other.load_state_dict(model.state_dict())
    again = chained(other)
    again.masks = chain.masks
    again.load_state_dict(deepcopy(chain.state_dict()))
    for one, each in ((model, chain), (other, again)):
        given(1, one)
        each.step()
    assert again.param_groups[0]["lr"] == 0.025
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert not torch.equal(model[0].weight, net(4, 6, 2)[0].weight)


def test_a_trainer_of_transformers_takes_it(tmp_path):
    """Masked training inside of one, without a subclass."""
    from transformers import Trainer, TrainingArguments

    task = tokens()
    handle = weights()(task)
    masks = {
        name: torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) < 0.1 for name, p in handle.start.items()
    }
    chain = update(ADAMW)(handle, masks)
    settings = TrainingArguments(str(tmp_path), max_steps=3, report_to=[], use_cpu=True, save_strategy="no")
    rows = [{"input_ids": row, "labels": row} for row in task.ids]
    Trainer(task.model, settings, train_dataset=rows, optimizers=(chain, None)).train()
    for name, p in handle.parameters.items():
        assert torch.equal(p[~masks[name]], handle.start[name][~masks[name]])
        assert (p != handle.start[name])[masks[name]].any()
