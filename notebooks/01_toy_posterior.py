# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Steering beside the exact answer
#
# Steering asks a sampler for its own distribution $p(x)$, tilted by a reward: $p(x)\,e^{\beta r(x)}$. On pictures
# nobody knows that tilted distribution. On two toys it is known exactly, so every method of `steer` can be held against
# it: what it reaches, how far it strays, what it costs. The same controllers run on a real pipeline unchanged.

# %%
import math

import matplotlib.pyplot as plt
import torch

from steer import Controller, best_of_n, code, finished, fk, sample, svdd
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import vp
from steer.draw import lineage_tree

plt.rcParams |= {"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False, "font.size": 10}


def run(prior, controllers=(), n=1, groups=400, steps=100, seed=0):
    """`groups` independent searches of n particles each, as so many prompts."""
    generator = torch.Generator().manual_seed(seed)
    shape = prior.means.shape[1:]
    return finished(sample(prior, shape, vp(steps), controllers, n=n, prompts=[""] * groups, generator=generator))


# %% [markdown]
# ## One dimension: a Gaussian and a quadratic reward
#
# The prior is $N(0, 1)$ and $r(x) = -\tfrac34 (x - 2)^2$. Their product $p(x)\,e^{r(x)}$ is again a Gaussian: its
# precision is $1 + 2 \cdot \tfrac34 = 2.5$, so its variance is $0.4$ and its mean $3 / 2.5 = 1.2$.
# A `GaussianMixture` is its own exact denoiser, so there is no network and no training.

# %%
gaussian = GaussianMixture(torch.zeros(1, 1), torch.ones(1), torch.ones(1))


def quadratic(x, prompts):
    return -0.75 * (x[:, 0] - 2) ** 2


METHODS = {
    "prior (n = 1)": ((), 1),
    "best of 8": (best_of_n(quadratic), 8),
    "code, block 50": (code(quadratic, block=50), 8),
    "code, block 20": (code(quadratic, block=20), 8),
    "code, block 5": (code(quadratic, block=5), 8),
    "code, block 1": (code(quadratic, block=1), 8),
    "svdd, beta 1": (svdd(quadratic, beta=1.0), 8),
    "fk diff, beta 1": (fk(quadratic, beta=1.0), 64),
}
states = {name: run(gaussian, search, n, groups=400 if n < 64 else 50) for name, (search, n) in METHODS.items()}

# %% [markdown]
# A search that picks one winner leaves it in every slot; Feynman-Kac steering leaves a weighted population.
# `weights` treats both alike.


# %%
def weights(state):
    """(P n,) how much each particle counts, summing to one over all."""
    return torch.softmax(state.grouped(state.logw), -1).flatten() / len(state.run.prompts)


grid = torch.linspace(-3.5, 3.5, 400)
figure, axes = plt.subplots(2, 4, figsize=(13, 5), sharex=True, layout="constrained")
for panel, (name, state) in zip(axes.flat, states.items()):
    bins = torch.linspace(-3.5, 3.5, 57)
    panel.hist(state.x[:, 0], bins, weights=weights(state), density=True, color="#8ab4d8")
    for mean, variance, style in ((0, 1, {"color": "#999999", "linestyle": ":"}), (1.2, 0.4, {"color": "#b3261e"})):
        density = torch.exp(-((grid - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        panel.plot(grid, density, linewidth=1.8, **style)
    panel.set(title=name, ylim=(0, 1.4), yticks=[])
figure.suptitle("dotted: prior     red: exact tilted posterior     blue: what the method draws")
plt.show()

# %% [markdown]
# Rows are the network evaluations of one search, counted exactly; the paper's common start saves n - 1 of them.

# %%
print(f"{'':18}{'mean':>8}{'variance':>10}{'reward':>9}{'rows':>7}")
print(f"{'exact, beta 1':18}{1.2:8.2f}{0.4:10.2f}{-0.75 * (0.8**2 + 0.4):9.2f}{'-':>7}")
for name, state in states.items():
    w, x = weights(state), state.x[:, 0]
    mean, reward = (w * x).sum(), (w * quadratic(state.x, None)).sum()
    rows = state.run.ledger.rows // len(state.run.prompts)
    print(f"{name:18}{mean:8.2f}{(w * (x - mean) ** 2).sum():10.2f}{reward:9.2f}{rows:7d}")

# %% [markdown]
# What to see:
#
# - **Feynman-Kac steering samples the tilted posterior**, up to the number of particles. It is the method to ask for
#   when the answer must keep the spread that the prior has.
# - **An arg max goes past it.** With shorter blocks CoDe runs to the peak of the reward at 2 and gives up all spread:
#   good for one best picture, wrong for a sample.
# - **SVDD's softmax lands between**: it takes $r(\hat x_0)$ for the log of the expected $e^{r}$, which is flatter.
#   With unlimited particles its mean here would be 1.53.
#
# The family tree of one CoDe run: each look keeps one particle, and all slots continue it.

# %%
lineage_tree(
    run(gaussian, code(quadratic, block=20), n=8, groups=1).trace, title="CoDe, 8 particles, a block of 20 steps"
)

# %% [markdown]
# ## Two dimensions: reward, divergence, cost
#
# The case study of the CoDe paper: three modes, and a reward $e^{-\lVert x - (7, 7) \rVert}$ beside one of them. More
# particles and shorter blocks buy reward with divergence from the prior. The bound on it is
# $(\ln n - \tfrac{n - 1}{n})$ for each block. No method can have more reward at a given divergence than the exact tilt
# $p(x)\,e^{\beta r(x)}$ at some $\beta$: the dashed line, from a million exact samples of the prior.

# %%
mixture = GaussianMixture(torch.tensor([[2.0, 8.0], [5.0, 2.0], [8.0, 8.0]]), torch.ones(3), torch.full((3,), 1 / 3))


def corner(x, prompts):
    return torch.exp(-(x - 7).norm(dim=-1))


def divergence(x, prior, k=4):
    """KL(samples || prior): Kozachenko and Leonenko's nearest-neighbour entropy, and the prior's exact density."""
    count = torch.tensor(float(len(x)))
    x = x.double()
    area = math.pi * (x[:, None] - x).square().sum(-1).kthvalue(k + 1).values
    entropy = torch.digamma(count) - torch.digamma(torch.tensor(float(k))) + area.log().mean()
    return float(-entropy - prior.log_prob(x).mean())


SEARCHES = {
    "best of n": lambda: best_of_n(corner),
    "code, block 50": lambda: code(corner, block=50),
    "code, block 10": lambda: code(corner, block=10),
    "code, block 1": lambda: code(corner, block=1),
    "svdd, beta 8": lambda: svdd(corner, beta=8.0),
}
curves, clouds = {}, {}
for name, search in SEARCHES.items():
    for n in (1, 2, 4, 8):
        state = run(mixture, search(), n, groups=800)
        x = clouds[name] = state.grouped(state.x)[:, 0]
        point = float(corner(x, None).mean()), divergence(x, mixture), state.run.ledger.rows // 800
        curves.setdefault(name, []).append(point)

# %%
exact = mixture.sample(1_000_000, torch.Generator().manual_seed(1))
scores = corner(exact, None).double()
frontier = []
for beta in torch.linspace(0, 40, 81):
    best = float((torch.softmax(beta * scores, 0) * scores).sum())
    frontier.append((beta * best - torch.logsumexp(beta * scores, 0) + math.log(len(scores)), best))

figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), sharey=True, layout="constrained")
for name, points in curves.items():
    rewards, kls, rows = zip(*points)
    left.plot(kls, rewards, "o-", label=name)
    right.plot(rows, rewards, "o-", label=name)
left.plot(*zip(*frontier), "--", color="black", label="exact tilt", zorder=0)
left.set(xlabel="KL from the prior (nats)", ylabel="mean reward")
right.set(xlabel="network evaluations for one sample", xticks=range(100, 801, 100))
left.legend(frameon=False, loc="lower right")
plt.show()

# %%
tilted = fk(corner, beta=8.0)
population = run(mixture, tilted, n=64, groups=60)
draw = torch.Generator().manual_seed(2)
clouds["fk diff, beta 8"] = population.x[torch.multinomial(weights(population), 800, replacement=True, generator=draw)]
accepted = torch.rand(len(scores), generator=draw, dtype=torch.float64) < torch.exp(8 * (scores - 1))
clouds["exact, beta 8"] = exact[accepted][:800]

shown = ["best of n", "code, block 50", "code, block 10", "svdd, beta 8", "fk diff, beta 8", "exact, beta 8"]
figure, axes = plt.subplots(1, 6, figsize=(13, 2.5), sharex=True, sharey=True, layout="constrained")
for panel, (name, x) in zip(axes, ((name, clouds[name]) for name in shown)):
    panel.scatter(*x.T, s=4, alpha=0.4, linewidths=0, rasterized=True)
    panel.plot(7, 7, "+", color="#b3261e", markersize=12, markeredgewidth=2)
    panel.set(title=name, aspect="equal", xlim=(-1, 11), ylim=(-1, 11))
plt.show()

# %%
print(f"{'n = 8':18}{'reward':>8}{'KL':>7}{'bound':>8}{'rows':>7}")
for name, blocks in {"best of n": 1, "code, block 50": 2, "code, block 10": 10, "code, block 1": 100}.items():
    reward, kl, rows = curves[name][-1]
    print(f"{name:18}{reward:8.3f}{kl:7.2f}{blocks * (math.log(8) - 7 / 8):8.2f}{rows:7d}")

w = torch.softmax(8 * scores, 0)
print(f"\nmean reward at beta 8: fk diff {(weights(population) * corner(population.x, None)).sum():.3f},", end=" ")
print(f"exact {(w * scores).sum():.3f}")

# %% [markdown]
# The curve of every method stays under that of the exact tilt, and close to it: with an arg max, more particles and
# shorter blocks move along the curve, and cost decides between them. Best of n diverges by exactly its bound, up to the
# error of the estimate; from ten blocks on the bound is loose. Feynman-Kac steering draws the exact cloud, far modes
# included, up to its 64 particles.
#
# ## Your own controller
#
# A controller has three stations, and each does nothing unless you say so: `start` (the initial noise), `wrap` (around
# the network) and `look` (at every step, when x0 is fresh). This one pushes x0 along the gradient of the reward
# (diffusion posterior sampling, arXiv 2209.14687):

# %%
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402


@dataclass(frozen=True)
class Push(Controller):
    reward: Any
    strength: float = 1.0
    blur: float = 0.0

    def wrap(self, denoiser):
        def pushed(x, level, cond):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                x0 = denoiser(x, level, cond)
                (slope,) = torch.autograd.grad(self.reward(x0, None).sum(), x)
            size = self.strength * level.sigma**2 / max(level.alpha, 1e-3) / (1 + self.blur * level.sigma**2)
            return x0.detach() + size * slope

        return pushed


# %% [markdown]
# Test it by laws. At strength 0 it must be the plain run, bit for bit; and here the exact answer says what it does at
# strength 1: it overshoots the mean and loses spread, since $r(\hat x_0)$ is steeper than the true log of the expected
# $e^r$. Dividing by $1 + 2 \cdot \tfrac34 \sigma^2$ mends that: given x, the clean sample has variance $\sigma^2$.

# %%
assert torch.equal(run(gaussian, Push(quadratic, 0.0)).x, run(gaussian).x)

for controller in (Push(quadratic), Push(quadratic, blur=1.5)):
    x = run(gaussian, controller, groups=4000).x[:, 0]
    print(f"blur {controller.blur}: mean {x.mean():.2f}, variance {x.var():.2f}     exact: 1.20, 0.40")

# %% [markdown]
# The same object steers a pipeline: `steer.Steered(pipe, [Push(my_reward), steer.code(my_reward)])`.
