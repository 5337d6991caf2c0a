# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # CoDe on a real pipeline
#
# `steer.load("emoji")` is a stock `StableDiffusionPipeline`, small enough for two CPU cores. Everything below works the
# same on any other Stable Diffusion pipeline.

# %%
import torch
from IPython.display import display

import steer
from steer import rewards
from steer.draw import contact_sheet, lineage_tree

pipe = steer.load("emoji")
pipe.set_progress_bar_config(disable=True)
seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
settings = {"num_inference_steps": 20, "guidance_scale": 3.0}
pipe("a red apple, noto style", generator=seed(), **settings).images[0].resize((128, 128))

# %% [markdown]
# ## Steer it
#
# CoDe (arXiv 2502.00968) keeps `n` particles. At the end of every block of steps it decodes the network's clean
# estimate of each, scores them, and lets all of them continue the best one. Here the reward is minus the JPEG's size.

# %%
out = steer.Steered(pipe, steer.code(rewards.Compressibility(), block=4))(
    "a butterfly", n=4, num_images_per_prompt=3, generator=seed(), **settings
)
plain = pipe("a butterfly", num_images_per_prompt=3, generator=seed(), **settings).images
scores = rewards.Compressibility()(rewards.to_tensor(plain), ["a butterfly"] * 3)
display(
    contact_sheet(
        [*plain, *out.images],
        columns=3,
        row_labels=["plain", "CoDe"],
        captions=[f"{score:.2f} kB" for score in [*scores.tolist(), *out.rewards.tolist()]],
    )
)
out.ledger

# %% [markdown]
# The ledger is exact: with classifier-free guidance each branch is a row, and the common start of a block is evaluated
# once, so three pictures cost 3 x 2 x (n (T - 1) + 1) = 3 x 2 x (4 x 19 + 1) = 462 rows.
#
# Who descends from whom:

# %%
display(lineage_tree(out.trace, image=0, title="a butterfly, CoDe, block 4"))

# %% [markdown]
# ## Reward, judge, compute
#
# A gain on the optimised reward alone is not a result. `Judge` is a second model that no search sees.

# %%
prompts = ["a butterfly", "a rocket", "a cat face, fluent style"]
for name, controller in {
    "plain": (),
    "best-of-n": steer.best_of_n(rewards.ClipScore()),
    "code": steer.code(rewards.ClipScore(), block=4),
}.items():
    done = steer.Steered(pipe, controller)(prompts, n=4, generator=seed(), output_type="pt", **settings)
    target, judge = (r(done.images, prompts).mean() for r in (rewards.ClipScore(), rewards.Judge()))
    print(f"{name:10} clip {target:.3f}   judge {judge:.3f}   rows {done.ledger.rows}")

# %% [markdown]
# Three prompts are an anecdote; `python -m benchmarks.code` is the measurement, and the README has its table.
#
# ## Several rewards, and a deterministic solver
#
# Rewards add and scale. A solver that draws no noise makes a search between steps idle, and is refused:

# %%
from diffusers import DDIMScheduler  # noqa: E402

reward = rewards.ClipScore().zscored() + 0.5 * rewards.Sharpness().zscored()
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
try:
    steer.Steered(pipe, steer.code(reward))("a fox", n=4, **settings)
except ValueError as error:
    print(error)
steer.Steered(pipe, steer.code(reward), eta=1.0)("a fox", n=4, generator=seed(), **settings).images[0].resize(
    (128, 128)
)
