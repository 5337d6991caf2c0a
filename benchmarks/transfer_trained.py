"""Checks of `benchmarks.transfer` that train networks: style prediction without an art style, and norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from benchmarks.pairs import ALPHAS, Line, chunked, compared, line, pairs_of, rising
from steer import zoo
from steer.transfer.losses import content_distance, gram, gram_distance
from steer.transfer.prediction import Arbitrary, Layer
from steer.transfer.prediction import Transfer as Net
from steer.zoo.build.fit import Fit, Loss, fit, seeded
from steer.zoo.build.transfer import GRAM_WEIGHT, PAIRS, arbitrary, draw, stylization
from steer.zoo.data import STYLES, compose, glyphs

if TYPE_CHECKING:
    from benchmarks.transfer import Transfer

UNSEEN = len(STYLES) - 1  # the art style that the prediction network never sees
SHOTS = 20  # pictures of the unseen style that the probe is given


def check_prediction(bench: Transfer, encoder: Any) -> list[Line]:
    """A style that was never seen, what the code knows of art styles, and interpolation."""
    seen = [k for k in range(len(STYLES)) if k != UNSEEN]
    config = Fit(steps=bench.prediction_steps, seed=0)
    with torch.enable_grad():
        net = fit(f"prediction-{config.steps}", arbitrary(), stylization(encoder, seen), config, bench.out)
    pairs = pairs_of(bench.pairs)
    content, own = compose(pairs.content), glyphs()[0][:, pairs.wanted[:, 1]]
    known = torch.tensor(seen)[torch.arange(bench.pairs) % len(seen)]
    familiar, unknown = compose(own[known, torch.arange(bench.pairs)]), compose(own[UNSEEN])
    near = nearest(encoder, unknown, compose(glyphs()[0][seen].flatten(0, 1)[::7]))
    losses = [style_loss(net, encoder, content, given, goal) for given, goal in
              ((unknown, unknown), (familiar, familiar), (near, unknown))]  # fmt: skip
    ratio = losses[0].mean() / losses[1].mean()
    codes, colours = probe(lambda x: net.predictor(x)), probe(lambda x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1))
    goal, logits = pairs.wanted[:, 0], []
    for w in ALPHAS:
        made = chunked(lambda c, s, w=w: net(c, [s], [1.0], w), content, compose(pairs.style))
        logits.append(zoo.style_net()(made).gather(1, goal[:, None]).mean())
    slope = rising(torch.stack(logits))
    return [
        line("prediction (a)", "style loss unseen / seen, at most 1.5", ratio, 1.5, ratio <= 1.5),
        compared("prediction (a)", "its style loss, against the nearest seen picture's", losses[0], losses[2], -1),
        line("prediction (b)", "probe of art style on codes, against colours", codes, colours, codes > colours),
        line("prediction (c)", "Spearman of the style's logit and alpha, at least 0.9", slope, 0.9, slope >= 0.9),
    ]  # fmt: skip


def style_loss(net: Arbitrary, encoder: Any, content: Tensor, given: Tensor, goal: Tensor) -> Tensor:
    """Gram distance (pairs,) to `goal` of the content in the style of `given`."""
    return chunked(lambda c, s, g: gram_distance(encoder(net(c, [s], [1.0])), encoder(g)), content, given, goal)


def nearest(encoder: Any, wanted: Tensor, among: Tensor) -> Tensor:
    """Of pictures `among`, the one with the least Gram distance to each wanted one."""

    def vectors(images: Tensor) -> Tensor:  # their squared distances are `gram_distance`
        return torch.cat([gram(f).flatten(1) / f.shape[1] for f in encoder(images)], 1)

    return among[torch.cdist(chunked(vectors, wanted), chunked(vectors, among)).argmin(1)]


def probe(features: Any, ridge: float = 1e-2) -> float:
    """Accuracy of least squares from features of a picture to its art style, on the second half of the names.

    It is fitted on the first half of the seen styles' names and on `SHOTS` pictures of the unseen one, weighed alike.
    """
    pictures, names, _ = glyphs()
    half = len(names) // 2
    x = torch.stack([chunked(features, compose(pictures[k])) for k in range(len(STYLES))])
    x = (x - x.mean((0, 1))) / x.std((0, 1)).clamp_min(1e-4)
    x = torch.cat([x, torch.ones_like(x[..., :1])], 2).double()
    labels = torch.eye(len(STYLES)).double()[:, None].expand(-1, len(names), -1)
    weights = torch.ones(len(STYLES), half).double()
    weights[UNSEEN, SHOTS:] = 0
    weights /= weights.sum(1, keepdim=True)
    a, b, w = x[:, :half].flatten(0, 1), labels[:, :half].flatten(0, 1), weights.flatten()[:, None]
    solution = torch.linalg.solve(a.T @ (w * a) + ridge * torch.eye(a.shape[1]).double(), a.T @ (w * b))
    return float(((x[:, half:] @ solution).argmax(2) == torch.arange(len(STYLES))[:, None]).float().mean())


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization in the place of an `InstanceNorm`."""

    def forward(self, x: Tensor, style: None = None, mask: None = None) -> Tensor:
        return super().forward(x)


def check_norm(bench: Transfer, encoder: Any) -> list[Line]:
    """One network for one style, with instance and with batch normalization: loss on new contents, and contrast."""
    content, style = compose(pairs_of(bench.pairs, seed=3).content), compose(glyphs()[0][0, 7:8])
    found = []
    for seed in range(bench.seeds):
        for batch in (False, True):
            name = f"{'batch' if batch else 'instance'}-{seed}-{bench.steps}"
            config, loss = Fit(steps=bench.steps, seed=seed), single_style(encoder, style)
            with torch.enable_grad():
                net = fit(name, single(seed, batch), loss, config, bench.out).eval()
            made, faint = (chunked(net, x) for x in (content, 0.5 * content + 0.25))
            found.append(torch.stack([distance(encoder, made, content, style).mean(), (made - faint).abs().mean()]))
    losses, shifts = torch.stack(found).unflatten(0, (-1, 2)).unbind(2)  # (seeds, norms) each
    every = f"{bench.seeds} of {bench.seeds} seeds"
    return [
        line("norm (a)", f"{name}, IN below BN, {every}", x[:, 0].mean(), x[:, 1].mean(), (x[:, 0] < x[:, 1]).all())
        for name, x in (("loss on new contents", losses), ("change of the output at half the contrast", shifts))
    ]


def single(seed: int, batch: bool) -> Net:
    """A transfer network that holds one style's parameters itself."""
    with seeded(seed):
        net = Net(styles=1)
    for layer in net.modules():
        if batch and isinstance(layer, Layer):
            layer.norm = BatchNorm(layer.norm.channels)
    return net


def single_style(encoder: Any, style: Tensor) -> Loss:
    """The training loss of a network for one style."""

    def loss(net: nn.Module, generator: Generator, progress: float) -> Tensor:
        content, _ = draw(PAIRS, generator)
        return distance(encoder, net(content).float(), content, style).mean()

    return loss


def distance(encoder: Any, made: Tensor, content: Tensor, style: Tensor) -> Tensor:
    """Content and Gram distance, (b,)."""
    found, wanted = encoder(made), [f.expand(len(made), -1, -1, -1) for f in encoder(style)]
    return content_distance(found, encoder(content)) + GRAM_WEIGHT * gram_distance(found, wanted)
