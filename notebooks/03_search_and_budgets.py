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
# # Search and budgets
#
# A search is judged by three numbers at once: the reward it reaches, how far it strays from the model, and how many
# rows of the network it evaluates. This notebook spends the same rows in many ways: on a toy where both of the first
# two are formulas, and on pictures.

# %%
import math

import matplotlib.pyplot as plt
import torch
from IPython.display import display

import steer
from steer import bench, gradients, guidance, rewards
from steer.bench.report import curves_of, points_of
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import vp
from steer.draw import contact_sheet

plt.rcParams |= {"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False, "font.size": 10}

# %% [markdown]
# ## One budget, many searches
#
# The case study of the CoDe paper: three modes, reward $e^{-\lVert x - (7, 7) \rVert}$. `steer.bench` gives every
# method the particles that a budget pays for, and measures what the ledger says was spent. `code-published` is CoDe in
# the order of its own code, which looks ahead with a further network call; `best-of-n-ode` is the honest baseline, a
# deterministic solver and n seeds.

# %%
METHODS = ["best-of-n-ode", "code-published", "code:block=2", "svdd", "smc", "funnel", "beam:block=2", "demon"]
cells, _ = bench.cells_of(["toy-modes"], METHODS, budgets=[20, 40, 80, 160, 320], seeds=2, prompts=8)
panel, every = next(iter(points_of([bench.run(cell) for cell in cells]).items()))

figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), sharey=True, layout="constrained")
for name, points in curves_of(every).items():
    style = "--" if name == bench.BASELINE else "-"
    left.plot([p.cost for p in points], [p.target.mean for p in points], f"o{style}", ms=4, label=name)
    right.plot([p.divergence.mean for p in points], [p.target.mean for p in points], f"o{style}", ms=4)
left.set(xscale="log", xlabel="denoiser rows for a sample", ylabel="mean reward", title=str(panel))
right.set(xlabel="KL from the prior (nats)")
left.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# To the left, reward for rows: high is good. To the right, reward for divergence: high and to the left is good. Greedy
# searches buy reward with divergence. The same suite on the embedded models is `steer bench search`; `steer bench
# report` draws it.
#
# ## When the tilted posterior itself is asked for
#
# Tempered SMC (DAS, arXiv 2501.05803) and twisted SMC (arXiv 2306.17775) sample $p(x)\,e^{\beta r(x)}$, and estimate
# its normaliser $Z$ without bias. For $N(0, 1)$ and $r = -\tfrac34 (x - 2)^2$ all of it is known. DPS, which pushes
# every particle uphill and never weighs it, is cheaper and wrong; `twisted` takes that push back by weights.

# %%
prior = GaussianMixture(torch.zeros(1, 1), torch.ones(1), torch.ones(1))


class Quadratic(rewards.Reward):
    """-0.75 (x - 2)^2 on latents."""

    needs_decode, differentiable = False, True

    def score(self, images, prompts):
        return -0.75 * (images[:, 0] - 2) ** 2


def run(controllers, n, groups, steps=100):
    generator = torch.Generator().manual_seed(0)
    return steer.finished(
        steer.sample(prior, (1,), vp(steps), controllers, n=n, prompts=[""] * groups, generator=generator)
    )


def moments(state):
    """Weighted mean and variance of all particles."""
    w = torch.softmax(state.grouped(state.logw), -1).flatten() / len(state.run.prompts)
    x = state.x[:, 0]
    mean = (w * x).sum()
    return float(mean), float((w * (x - mean) ** 2).sum())


reward = Quadratic()
searches = {"smc": steer.smc(reward, beta=1.0), "twisted": gradients.twisted(reward), "dps": gradients.dps(reward)}
print(f"{'':14}{'n':>5}{'mean':>8}{'variance':>10}{'log Z':>9}{'rows':>7}")
print(f"{'exact':14}{'':5}{1.2:8.2f}{0.4:10.2f}{-0.5 * math.log(2.5) - 0.75 * 4 / 2.5:9.3f}")
for name, search in searches.items():
    for n in (4, 16, 64):
        state = run(search, n, groups=8192 // n)
        z = f"{search.log_z(state).exp().mean().log():9.3f}" if hasattr(search, "log_z") else f"{'':9}"
        mean, variance = moments(state)
        print(f"{name:14}{n:5}{mean:8.2f}{variance:10.2f}{z}{state.run.ledger.rows * n // 8192:7}")

# %% [markdown]
# ## On pictures: where the rows go
#
# CoDe as published pays for a look-ahead, keeps n particles to the end, and evaluates two branches of guidance at every
# step. Three of these are levers: look before the move (the look is free), let the width fall, guide only in the first
# part of the run. All are controllers in a list.

# %%
pipe = steer.load("emoji")
pipe.set_progress_bar_config(disable=True)
seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
settings = {"num_inference_steps": 16, "guidance_scale": 3.0}
reward = rewards.Compressibility()
half = guidance.interval(progress=(0, 0.5))
WAYS = {
    "best-of-n, n = 8": (steer.best_of_n(reward), 8),
    "code, n = 8": (steer.code(reward, block=2), 8),
    "code, n = 8, half guided": ([half, steer.code(reward, block=2)], 8),
    "funnel 8, 6, 4, 2": (steer.funnel(reward, [8, 6, 4, 2], block=4, keep=1), 8),
}
prompt, sheet, captions = "a cat face, fluent style", [], []
for name, (controllers, n) in WAYS.items():
    out = steer.Steered(pipe, controllers)(prompt, n=n, num_images_per_prompt=4, generator=seed(), **settings)
    sheet += out.images
    captions += [f"{score:.2f} kB" for score in out.rewards.tolist()]
    print(f"{name:26} reward {out.rewards.mean():.3f}   rows {out.ledger.rows:5}   decodes {out.ledger.decodes:4}")
display(contact_sheet(sheet, columns=4, row_labels=list(WAYS), captions=captions))

# %% [markdown]
# ## Looking cheaply
#
# A look decodes every particle. `looking` serves all looks but the last by a cheap decoder, here one matrix from a
# latent pixel and its neighbours to RGB, and rescores the finished particles exactly: n decodes, however many looks.

# %%
latents = steer.Steered(pipe)("", n=64, generator=seed(), **settings).candidates.latents[0]
decoder = rewards.LinearDecoder.fit(pipe.vae, latents)
for name, r in {
    "exact looks": rewards.ClipScore(),
    "cheap looks": rewards.looking(rewards.ClipScore(), decoder),
}.items():
    out = steer.Steered(pipe, steer.code(r, block=2))(
        prompt, n=8, num_images_per_prompt=4, generator=seed(), **settings
    )
    print(f"{name:12} clip {out.rewards.mean():.3f}   decodes {out.ledger.decodes:4}   rows {out.ledger.rows}")

# %% [markdown]
# Four pictures of one prompt are an illustration. What the levers are worth together is measured in the README, with
# intervals, on prompts that were held out, and with a judge that no search has seen.
