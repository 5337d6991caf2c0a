"""LoRA by peft, by hand; its starts and the updates of its factors against what defines them."""

from dataclasses import replace
from functools import partial

import peft
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from weights_toys import examples, net, tokens

from steer.training import Run, tune
from steer.training.weights import attach, starts
from steer.training.weights.collect import batches, collect
from steer.training.weights.methods import METHODS
from steer.training.weights.pairs import LoraPro, Pair, adjusted, pairs, preconditioned

RUN = Run(steps=5, clip=None)
TIGHT = 1e-8
# row -> its dials, peft's config by hand, the optimizer by hand
PEERS = {
    "lora": (
        {"rank": 2, "alpha": 4, "lr": 0.01, "decay": 0.1},
        partial(peft.LoraConfig, r=2, lora_alpha=4),
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    ),
    "oft": (
        {"block": 4, "lr": 0.01},
        partial(peft.OFTConfig, oft_block_size=4, use_cayley_neumann=False),
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0),
    ),
    "ia3": (
        {"targets": ("0",), "feedforward": ("2",), "lr": 0.01},
        partial(peft.IA3Config, feedforward_modules=["2"]),
        partial(torch.optim.Adafactor, lr=0.01),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_the_row_is_peft_driven_by_hand(name):
    """peft's own model, an optimizer and a loop, on the same batches: the same weights bit for bit."""
    dials, config, rule = PEERS[name]
    tuned = tune(examples(), METHODS[name](**dials), RUN)
    task = examples()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RUN.seed)
        model = peft.get_peft_model(task.model, config(target_modules=["0", "2"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser, generator = rule(trained), torch.Generator().manual_seed(RUN.seed)
    for _ in range(RUN.steps):
        points, _, labels = task.batch(generator, 8)
        optimiser.zero_grad()
        cross_entropy(model(points), labels).backward()
        optimiser.step()
    assert len(trained) == len(tuned.last)
    assert all(torch.equal(a, b) for a, b in zip(trained, tuned.last.values()))
    assert not all(torch.equal(a, b) for a, b in zip(trained, tuned.handle.start.values()))


def drawn(seed: int = 0, rank: int = 2, out: int = 5, into: int = 4):
    """A pair in float64 with a full gradient g, and what autograd would give for A and B."""
    generator = torch.Generator().manual_seed(seed)
    a, b, g = (
        torch.randn(s, generator=generator, dtype=torch.float64) for s in ((rank, into), (out, rank), (out, into))
    )
    pair = Pair(nn.Parameter(a), nn.Parameter(b), 1.5)
    return pair, g, 1.5 * b.T @ g, 1.5 * g @ a.T


def change(pair, h_a, h_b):
    return pair.scale * (h_b @ pair.a + pair.b @ h_a).detach()


def test_lora_pro_is_the_least_squares_solution():
    """Of min |s (h_B A + B h_A) - g|, solved as one system over (h_A, h_B); and the change of W has its closed form."""
    pair, g, g_a, g_b = drawn()
    h_a, h_b = adjusted(pair, g_a, g_b, damping=0.0)
    a, b = pair.a.detach(), pair.b.detach()
    eye = partial(torch.eye, dtype=torch.float64)
    # row-major vec: vec(B h_A) = (B x I) vec(h_A), vec(h_B A) = (I x A^T) vec(h_B)
    system = pair.scale * torch.cat([torch.kron(b, eye(4)), torch.kron(eye(5), a.T.contiguous())], 1)
    best = torch.linalg.lstsq(system, g.flatten(), driver="gelsd").solution
    found = change(pair, h_a, h_b)
    assert torch.allclose(found.flatten(), system @ best, atol=TIGHT)
    on_b, on_a = b @ torch.linalg.pinv(b), torch.linalg.pinv(a) @ a
    assert torch.allclose(found, on_b @ g + (eye(5) - on_b) @ g @ on_a, atol=TIGHT)
    assert torch.allclose(g - found, (eye(5) - on_b) @ g @ (eye(4) - on_a), atol=TIGHT)
    descent = (g_a * h_a).sum() + (g_b * h_b).sum()
    assert torch.allclose(descent, found.square().sum(), atol=TIGHT)


def test_lora_pro_chooses_the_x_that_is_nearest_to_the_plain_gradients():
    """X is free in the change of W, and no small step of it brings h nearer to g."""
    pair, _, g_a, g_b = drawn(1)
    h_a, h_b = adjusted(pair, g_a, g_b, damping=0.0)
    a, b = pair.a.detach(), pair.b.detach()
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    apart = (h_a + x @ a - g_a).square().sum() + (h_b - b @ x - g_b).square().sum()
    (slope,) = torch.autograd.grad(apart, x)
    assert slope.abs().max() < TIGHT
    other = torch.ones(2, 2, dtype=torch.float64)
    assert torch.allclose(change(pair, h_a + other @ a, h_b - b @ other), change(pair, h_a, h_b), atol=TIGHT)


def test_lora_pro_at_b_zero():
    pair, g, _, g_b = drawn(2)
    pair.b.data.zero_()
    h_a, h_b = adjusted(pair, torch.zeros_like(pair.a), g_b, damping=0.0)
    a = pair.a.detach()
    assert torch.equal(h_a, torch.zeros_like(a))
    assert torch.allclose(h_b, g_b @ torch.linalg.inv(a @ a.T) / 1.5**2, atol=TIGHT)
    assert torch.allclose(change(pair, h_a, h_b), g @ torch.linalg.pinv(a) @ a, atol=TIGHT)


def test_lora_pros_moments_are_adams_of_the_change_of_w():
    """Two steps of the link, by hand: Adam's direction of the change, then adjusted once more."""
    task = examples(torch.float64)
    handle = attach.lora(2, 4)(task)
    handle.load({name: w + 0.1 for name, w in handle.start.items()})
    link = LoraPro(handle, "full")
    pair = next(iter(pairs(task.model)))
    first = second = torch.zeros(12, 8, dtype=pair.a.dtype)
    for t, batch in enumerate(batches(task, 2, 8), 1):
        task.model.zero_grad()
        task.loss(task.model, batch).backward()
        g = change(pair, *adjusted(pair, pair.a.grad, pair.b.grad))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        step = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        wanted = adjusted(pair, pair.scale * pair.b.T @ step, pair.scale * step @ pair.a.T)
        link(handle.parameters)
        for found, value in zip((pair.a.grad, pair.b.grad), wanted):
            assert torch.allclose(found, value, rtol=1e-5, atol=1e-5 * float(value.detach().abs().max()))
    again = LoraPro(handle, "full")
    again.load_state_dict(link.state_dict())
    assert again.step == 2
    assert torch.equal(again.moments[0][0], link.moments[0][0])


def test_the_preconditioner_is_pefts():
    """create_riemannian_optimizer, one step of SGD."""
    from peft.optimizers import create_riemannian_optimizer

    grown = {}
    for ours in (True, False):
        task = examples()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            handle = attach.lora(2, 4)(task)
        handle.load({name: w + 0.1 for name, w in handle.start.items()})
        task.loss(task.model, next(batches(task, 1, 8))).backward()
        if ours:
            preconditioned(0.1)(handle)(handle.parameters)
            torch.optim.SGD(handle.parameters.values(), lr=0.1).step()
        else:
            create_riemannian_optimizer(task.model, torch.optim.SGD, lr=0.1, reg=0.1).step()
        grown[ours] = handle.weights()
    assert all(torch.allclose(w, grown[False][name], rtol=1e-4, atol=1e-6) for name, w in grown[True].items())


@pytest.mark.parametrize("make", [examples, tokens])
def test_lora_one_starts_along_the_svd_of_the_gradient(make):
    """s B A is parallel to the best rank-r part of -G and has the norm s / gamma; the loss falls; with +G it rises."""
    task, rank, gamma = make(), 2, 8.0
    batch = next(batches(task, 1, 16))
    before = float(task.loss(task.model, batch))
    layers = attach.targeted(task.model)
    gradients = collect(task.model, task.loss, [batch], {name: layer.weight for name, layer in layers.items()})[
        "gradient"
    ]
    handle = starts.lora_one(rank, 4, (), gamma, 1, 16, 0)(task)
    assert all(torch.equal(w, handle.start[name]) for name, w in handle.weights().items())
    for name, gradient in gradients.items():
        layer = task.model.get_submodule(name)
        scale = layer.scaling["default"]
        assert scale == pytest.approx(4 / rank**0.5)
        made = scale * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
        u, s, vh = torch.linalg.svd(gradient)
        best = -(u[:, :rank] * s[:rank]) @ vh[:rank]
        assert (made * best).sum() / made.norm() / best.norm() > 1 - 1e-5
        assert torch.linalg.matrix_norm(made, 2) == pytest.approx(scale / gamma, rel=1e-4)
    assert float(task.loss(task.model, batch)) < before
    for name in layers:
        task.model.get_submodule(name).lora_B["default"].weight.data.neg_()
    assert float(task.loss(task.model, batch)) > before


def test_cordas_covariance_is_pefts_own():
    """Its pass over rows (1, n, in), where it can read them: the same adapters and the same rest of the base."""
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    task = tokens()
    handle = starts.corda("ipm", 2, 2, (), 6, 0)(task)
    other = tokens()
    config = peft.LoraConfig(
        r=2,
        lora_alpha=2,
        target_modules=list(attach.targeted(other.model)),
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="ipm"),
    )
    preprocess_corda(other.model, config, lambda: [other.loss(other.model, batch) for batch in batches(other, 6)])
    peer = attach.adapted(other.model, config)
    assert all(torch.equal(w, peer.weights()[name]) for name, w in handle.weights().items())
    assert all(torch.equal(w, other.model.state_dict()[name]) for name, w in task.model.state_dict().items())


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_takes_the_part_that_is_best_under_the_covariance(method):
    """|(W - s B A) C| is what the singular values that were left out say, and no more than for PiSSA's part (ipm)."""
    task, rank = examples(), 2
    weight = task.model[0].weight.detach().double()
    data = list(batches(task, 32))
    x = torch.cat([batch[0] / batch[0].max().abs() for batch in data]).double()
    cov = x.T @ x / len(data)
    cov = cov + 0.01 * cov.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    starts.corda(method, rank, rank, ("0",), 32, 0)(task)
    layer = task.model[0]
    taken = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().double()
    s = torch.linalg.svdvals(weight @ cov)
    left = s[rank:] if method == "ipm" else s[:-rank]
    error = ((weight - taken) @ cov).norm()
    assert error == pytest.approx(float(left.norm()), rel=1e-4)
    u, values, vh = torch.linalg.svd(weight)
    pissa = (u[:, :rank] * values[:rank]) @ vh[:rank]
    assert (error < ((weight - pissa) @ cov).norm()) == (method == "ipm")


def test_a_chain_of_lora_is_the_sum_of_its_links_and_of_higher_rank():
    """W = W0 + sum s B_i A_i, of more than one link's rank; and the links are one LoRA of their ranks together."""
    task, base = examples(), examples().model
    method = METHODS["chain_of_lora"](links=2, rank=1, alpha=2, lr=0.05)
    seen = []

    def watched(objective):
        def watch(handle, task):
            seen.append(handle)
            return objective(handle, task)

        return watch

    phases = tuple(replace(phase, objective=watched(phase.objective)) for phase in method.phases)
    tuned = tune(task, replace(method, phases=phases), Run(steps=8))
    for k in (0, 2):
        parts = [[w for name, w in handle.weights().items() if name.startswith(f"{k}.")] for handle in seen]
        total = sum(2 * b @ a for a, b in parts)
        moved = task.model[k].weight.detach() - base[k].weight.detach()
        assert torch.allclose(moved, total, atol=1e-6)
        together = 2 * torch.cat([b for _, b in parts], 1) @ torch.cat([a for a, _ in parts])
        assert torch.allclose(moved, together, atol=1e-6)
        values = torch.linalg.svdvals(moved)
        assert int((values > 1e-4 * values[0]).sum()) == 2
    assert type(tuned.handle.model[0]) is nn.Linear


def test_bad_input():
    task = examples()
    with pytest.raises(ValueError, match="no LoRA layers"):
        list(pairs(net(3, 3)))
    with pytest.raises(ValueError, match="'factors' or 'full'"):
        LoraPro(attach.lora(2, 4)(task), "half")
    with pytest.raises(ValueError, match="rank 5 of a layer"):
        starts.lora_one(5, 4, (), 8.0, 1, 4, 0)(examples())
    with pytest.raises(ValueError, match="rank 5, and a layer has 4"):
        starts.corda("ipm", 5, 5, (), 4, 0)(examples())
    with pytest.raises(ValueError, match="of zeros gives no direction"):
        starts.halves(torch.zeros(3, 3), 1, 8.0)
    with pytest.raises(
        ValueError, match=r"targets \['q_proj'\]: expected ends of names of linear layers, such as \['0'"
    ):
        attach.lora(2, 4, ("q_proj",))(examples())


def test_qlora_refuses_a_base_that_is_not_in_four_bits_and_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(attach, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        tune(tokens(), METHODS["qlora"](rank=2), RUN)
    monkeypatch.setattr(attach, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="load_in_4bit=True"):
        tune(tokens(), METHODS["qlora"](rank=2), RUN)


def test_qlora_on_a_base_in_four_bits():
    """Two blocks in NF4, with double quantisation: the loss falls and not one code changes."""
    bnb = pytest.importorskip("bitsandbytes")
    task = tokens()
    for name, layer in attach.targeted(task.model).items():
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, False, torch.float32, compress_statistics=True, quant_type="nf4"
        )
        small.load_state_dict(layer.state_dict())
        task.model.set_submodule(name, small.to("cpu"))
    task.model.is_loaded_in_4bit = True
    codes = {name: p.detach().clone() for name, p in task.model.named_parameters() if p.dtype == torch.uint8}
    layers = {id(p): name for name, p in task.model.named_parameters() if p.dtype == torch.uint8}
    held = {layers[id(p)]: p for p in task.model.parameters() if id(p) in layers}
    tuned = tune(task, METHODS["qlora"](rank=4, lr=0.02, size=16), Run(steps=10))
    assert len(codes) == 14
    assert all(torch.equal(p, codes[name]) for name, p in held.items())
    assert tuned.log[-1]["loss"] < tuned.log[0]["loss"]
