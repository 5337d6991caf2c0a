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
# # Steer or fine-tune?
#
# Both raise a reward. A search pays for every picture again; a training pays once, and then a picture costs what it did
# before. So it depends on how many pictures will be made. This notebook trains the embedded flow model for half a
# minute by DRaFT-K (arXiv 2309.17400), steers the untrained one by the same reward, and works out from how many
# pictures on the training pays, and what it costs beside rows.
#
# **All numbers here are of a tiny run:** four prompts, two pictures of each, one seed. `python -m benchmarks.tune` and
# `steer bench compare` are made for measuring.

# %%
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from IPython.display import Image, Markdown, display

import steer
from steer import measure, rewards, zoo
from steer.bench import breakeven
from steer.bench.report import Panel, Point
from steer.draw import contact_sheet
from steer.rewards.jpeg import SmoothCompressibility
from steer.training import Run, tune
from steer.training.diffusion import DiffusionTask
from steer.training.export import export, load
from steer.training.methods import method
from steer.training.weights.report import snapshot
from steer.zoo.data import caption, captions

STEPS, IMAGES = 8, 2
pipe = steer.load("emoji-flow")
pipe.set_progress_bar_config(disable=True)
CALL = {
    "num_inference_steps": STEPS,
    "guidance_scale": 3.0,
    "sigmas": [1 - k / STEPS for k in range(STEPS)],
    **zoo.CALLS["emoji-flow"],
}
names = [caption(row["name"]) for row in captions()]
TRAIN, HELD = names[::2], names[1::2][::37]
print(f"{len(TRAIN)} prompts to train on; held out:", ", ".join(HELD))

# %% [markdown]
# ## The task
#
# The reward is how small a picture is as a JPEG file, in kilobytes with a minus. That has no gradient, so the training
# follows a smooth estimate of it; all results are measured by the real size, on prompts that were not trained on.
# DRaFT-K sends the gradient of the reward through the last K = 2 steps of the sampler alone. The steps are spaced so
# that the last one begins at a sigma of 1 / 8: the pipeline's own begin it at 0.001, where nothing is left to change.

# %%
reward = rewards.Compressibility()
task = DiffusionTask.of(pipe, TRAIN, SmoothCompressibility(reward.quality), **CALL)


def measured(name, controllers=(), n=1, eta=None, seed=0):
    """A point of the comparison, and its pictures."""
    generator = torch.Generator().manual_seed(seed)
    out = steer.Steered(pipe, controllers, eta=eta)(
        HELD, n=n, num_images_per_prompt=IMAGES, generator=generator, **CALL
    )
    prompts = [prompt for prompt in HELD for _ in range(IMAGES)]
    x, cost = rewards.to_tensor(out.images), {key: one / len(prompts) for key, one in out.ledger.row().items()}
    scores, judged = (by(x, prompts).view(-1, IMAGES) for by in (reward, rewards.Judge()))
    apart = measure.kid(x, rewards.to_tensor(reference), paired=True) if reference else 0.0
    point = Point(
        spec=name,
        budget=n * STEPS,
        seeds=1,
        target=measure.interval(scores),
        judge=measure.interval(judged),
        diversity=measure.interval(measure.diversity(x.unflatten(0, (-1, IMAGES)))),
        divergence=measure.Interval(apart, apart, apart),
        kid=None,
        cost=cost["rows"],
        **{key: cost[key] for key in ("rows", "decodes", "reward_calls", "seconds")},
        peak_mb=None,
        judged=judged,
    )
    print(f"{name:22} {point.target.mean:7.3f} kB   judge {point.judge.mean:.3f}   rows a picture {point.cost:5.1f}")
    return point, out.images


reference = None
reference = measured("other seeds", seed=1)[1]  # drift is the distance from these

# %% [markdown]
# ## Steering
#
# Without training, n particles a picture: best-of-n with the flow's own deterministic sampler, and CoDe, which chooses
# at every second step and needs a sampler that draws noise (`eta = 1`); both at the same rows. A row is one particle at
# one step in one branch of guidance, so that a picture by itself costs 16.

# %%
steered = [measured("untrained")]
code = steer.code(reward, block=2, common_start=False)
for n in (2, 4, 8):
    steered.append(measured(f"best of {n}", steer.best_of_n(reward), n))
for n in (2, 4):
    steered.append(measured(f"CoDe, n = {n}", code, n, eta=1.0))

# %% [markdown]
# ## Fine-tuning
#
# A LoRA of rank 8 beside the attention layers. Every update makes four pictures; the rows of the two last steps carry a
# gradient, and such a row counts for three. We stop after 12 updates, look, and go on from the checkpoint to 24.
#
# A tuned pipeline is a pipeline as any other, so it can be steered: CoDe on top of the first stop.

# %%
base, folder = snapshot(task.model), TemporaryDirectory()
finetuned = []
for updates in (12, 24):
    tuned = tune(task, method("draft_k", k=2, rank=8, lr=2e-3), Run(steps=updates), folder.name)
    training = sum(row["rows"] + 2 * row["backward_rows"] for row in tuned.log)
    print(f"{updates} updates of {tuned.count:,} numbers for {training:,.0f} rows")
    finetuned.append((*measured(f"tuned, {updates}"), training))
    if updates == 12:
        finetuned.append((*measured("tuned, 12, CoDe, n = 4", code, 4, eta=1.0), training))
        export(tuned.handle, base, Path(folder.name, "tuned"), pipe)
        tuned.handle.detach()

# %%
rows = [steered[0], steered[3], steered[5], *finetuned]
pictures = [image for _, images, *_ in rows for image in images]
sizes = [f"{-score:.2f} kB" for score in reward(rewards.to_tensor(pictures), [""] * len(pictures)).tolist()]
display(contact_sheet(pictures, len(HELD) * IMAGES, row_labels=[point.spec for point, *_ in rows], captions=sizes))

# %% [markdown]
# ## From how many pictures on?
#
# A tuned picture costs its own 16 rows and its share of the training. Steering costs what it takes to reach the same
# reward, if it gets there at all. They are equal at
#
# $$N = \frac{\text{rows of the training}}{\text{rows a picture, steered} - \text{rows a picture, tuned}}$$

# %%
points = [point for point, _ in steered]
models = [breakeven.Tuned(point, training) for point, _, training in finetuned]


def table(lines):
    head = list(lines[0])
    rows = [head, ["---"] * len(head), *([line[key] for key in head] for line in lines)]
    display(Markdown("\n".join(f"| {' | '.join(row)} |" for row in rows)))


table(breakeven.quality(models, points))
table(breakeven.at_equal_rows(models, points))

# %%
panel = Panel("emoji-flow", "compressibility", CALL["guidance_scale"], "names", STEPS, len(HELD), IMAGES, "float32")
breakeven.figure({panel: (models, points)}).savefig(drawn := BytesIO(), dpi=80)
display(Image(drawn.getvalue()))

# %% [markdown]
# To the left, reward for rows: the black line is the best that steering does; a tuned model stands at its one reward,
# ever cheaper for 1, 100 and 10,000 pictures. To the right, rows a picture over the number of pictures: solid is tuned,
# dashed is what steering needs for the same reward, and where they cross is the break-even.
#
# ## What it costs beside rows
#
# Reward and rows are not all. `forgetting` is how much less the judge, which none of them has seen, makes of the
# pictures; `diversity` how different two pictures of a prompt are; `drift` how far all of them are from what the model
# makes by itself (KID x 1000; of eight pictures it is known to some hundreds, and only the last row stands out).
#
# After 12 updates the training has kept the pictures: they are the untrained ones in flatter colours, they differ as
# those do, and the judge sees no loss. After 24 the reward is far above what any search here reaches, and is not worth
# having: the files are small since the pictures fade, and a grid comes through. A search cannot go there, as it only
# picks from what the model makes; what it gives up is diversity, since the winners of a prompt are alike.
#
# So, in this run: for a few pictures steer, for hundreds fine-tune a little, and steer on top. The intervals say that
# four prompts cannot settle it. A reward that can be gamed was gamed by training, and not by search.
#
# ## Keep it, and take it off
#
# What was learnt is a file. `load` puts it on a pipeline, as `steer generate --tuned FOLDER` does for a folder that
# `steer train` wrote; detached, the pipeline is the old one bit for bit.

# %%
tuned.handle.detach()
assert all(torch.equal(base[name], value) for name, value in pipe.transformer.named_parameters())
handle = load(Path(folder.name, "tuned"), pipe)
print([f"{file.name}, {file.stat().st_size / 1e6:.2f} MB" for file in Path(folder.name, "tuned").glob("*.safetensors")])
again, _ = measured("loaded")
handle.detach()
assert again.target == finetuned[0][0].target
