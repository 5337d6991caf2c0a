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
# # Style and composition
#
# What a diffusion network attends to can be read, and it can be changed while it runs. This notebook reads where a
# picture looks at the words of its prompt, lends a picture the style of another, pushes a run towards both of two
# things, and edits a picture by its prompt. Nothing is trained. All of it are controllers in a list, on the pipeline as
# it is.

# %%
import torch
from diffusers import DDIMScheduler
from IPython.display import display

import steer
from steer import compose, edit, style
from steer.cli.pictures import picture
from steer.diffusion.controllers import Maps
from steer.draw import contact_sheet, overlay
from steer.rewards import StyleMatch

pipe = steer.load("emoji")
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # without noise, so that runs can be inverted
network, tokenizer, STEPS = pipe.unet, pipe.tokenizer, 25


def seed(number=0):
    return torch.Generator().manual_seed(number)


def tokens(prompt, word):
    """Where the tokens of a word stand in its prompt."""
    return list(compose.positions(tokenizer, prompt, compose.Phrase(word, prompt.index(word))))


def heat(maps, prompt, word):
    """(h, w) the map of a word of the first particle."""
    return maps.mean()[0, tokens(prompt, word)].mean(0)


# %% [markdown]
# ## Where a picture looks at its words
#
# `Maps` keeps the attention that every place of the picture pays to every token, averaged over heads, layers and steps.
# It edits nothing. From a shell: `steer maps "a red apple, noto style"`. Whether such maps are right is measured
# against exact mattes, which these emoji have, by `python -m benchmarks.maps`.

# %%
prompt, words = "a red apple, noto style, on a blue background", ["red", "apple", "noto", "blue", "background"]
maps = Maps(network)
out = steer.Steered(pipe, maps)(prompt, n=1, num_inference_steps=STEPS, guidance_scale=3.0, generator=seed())
drawn = [overlay(out.images[0], heat(maps, prompt, word)) for word in words]
display(contact_sheet([out.images[0], *drawn], column_labels=["picture", *words]))

# %% [markdown]
# ## The style of another picture
#
# StyleID (arXiv 2312.09008) inverts both pictures to noise and draws the content anew. Its queries stay for the most
# part ($\gamma$), but keys and values are those of the style picture, and the noise gets that one's statistics. The
# references run beside the particle, in the same call of the network, so no features are stored. First the way back
# without any style: what the inversion costs bounds what can follow.

# %%
content, *styles = [picture(name) for name in ("noto:fox", "fluent:teddy bear", "twemoji:cat face")]
source, *references = [
    steer.invert(pipe, one.pixels[None], num_inference_steps=STEPS, repeats=3) for one in (content, *styles)
]
back = steer.reconstruct(pipe, source)[0]
print(f"the fox and back: {float(-10 * (back - content.pixels).square().mean().log10()):.1f} dB")

# %%
STRENGTHS = (0.25, 0.5, 1.0)
tiles = []
for one, reference in zip(styles, references):
    tiles += [content.pixels, one.pixels]
    for strength in STRENGTHS:
        control = style.style_id(network, source, reference, strength=strength)
        out = steer.Steered(pipe, control)("", n=1, num_inference_steps=STEPS, guidance_scale=1.0)
        tiles += out.images
labels = ["content", "style", *(f"strength {strength:g}" for strength in STRENGTHS)]
display(contact_sheet(tiles, 5, row_labels=[one.name for one in styles], column_labels=labels))

# %% [markdown]
# The dial is on what is injected; `gamma` is a second one, 0.3 for more style. A mask confines it:
# `style_id(..., mask=content.matte[0])`. From a shell: `steer style noto:fox "fluent:teddy bear" "twemoji:cat face"`.
#
# ## Two things in one picture
#
# Networks forget one of two things. Attend-and-Excite (arXiv 2301.13826) moves the latents, in the first half of the
# run, to where the word that is looked at least has a brighter peak. `compose` reads the things from the prompt. The
# maps of both nouns say what it did.

# %%
pair = "fox and house, twemoji style"
WAYS = {"plain": []} | {
    f"attend-and-excite, {strength:g}": [
        compose.attend_and_excite(network, tokenizer, strength, thresholds={}, side=16, padding=False)
    ]
    for strength in (5.0, 20.0)
}
print("read from the prompt:", *map(str, compose.parse(pair).entities), sep="\n    ")
tiles, rows = [], {}
for name, controllers in WAYS.items():
    out = steer.Steered(pipe, controllers)(
        pair, n=1, num_images_per_prompt=4, num_inference_steps=STEPS, guidance_scale=3.0, generator=seed(1)
    )
    tiles += out.images
    rows[name] = f"{out.ledger.rows} rows, {out.ledger.backward_rows} backward"
display(contact_sheet(tiles, 4, row_labels=[f"{name}\n{cost}" for name, cost in rows.items()]))

# %% [markdown]
# Four pictures of one prompt are an illustration, and `strength` belongs to a model's latents: it has to be swept.
# `python -m benchmarks.compose` measures the presence of both things over many prompts, at equal rows.
#
# ## Edit by prompt
#
# Prompt-to-Prompt (arXiv 2208.01626) takes the maps of the words that both prompts share from the source, and lets only
# the new word act. Plug-and-play (arXiv 2211.12572) keeps the source's structure instead, MasaCtrl (arXiv 2304.08465)
# its looks.

# %%
apple, target = picture("noto:red apple"), "green apple, noto style"
inverted = steer.invert(pipe, apple.pixels[None], apple.caption, num_inference_steps=STEPS, repeats=3)
prompts = edit.aligned(tokenizer, apple.caption, target)
EDITS = {
    "no control": [],
    "prompt-to-prompt": edit.prompt_to_prompt(network, inverted, prompts),
    "plug-and-play": edit.plug_and_play(network, inverted),
    "MasaCtrl": edit.masactrl(network, inverted),
}
tiles = [apple.pixels]
for controller in EDITS.values():
    out = steer.Steered(pipe, controller)(
        target, n=1, num_inference_steps=STEPS, guidance_scale=3.0, latents=inverted.noise
    )
    tiles += out.images
display(contact_sheet(tiles, column_labels=[apple.caption, *EDITS]))

# %% [markdown]
# ## With a search
#
# Controllers compose. Here StyleAligned (arXiv 2312.02133) shares the attention of a recorded run with eight particles,
# and CoDe keeps those that a style classifier likes best. A search needs noise: `eta=1`.

# %%
reference = steer.record(
    pipe, "a butterfly, fluent style", num_inference_steps=STEPS, guidance_scale=3.0, generator=seed()
)
share, search = style.style_aligned(network, reference, strength=0.5), steer.code(StyleMatch("fluent"), block=5)
tiles, captions = list(steer.denoiser_of(pipe, "").decode(reference.latents)), [""]
for controllers in ([], [share], [search], [share, search]):
    n = 8 if search in controllers else 1
    out = steer.Steered(pipe, controllers, eta=1.0)(
        "a rocket", n=n, num_inference_steps=STEPS, guidance_scale=3.0, generator=seed(2)
    )
    tiles += out.images
    score = StyleMatch("fluent")(steer.rewards.to_tensor(out.images), ["a rocket"])
    captions.append(f"log p(fluent) = {float(score):.2f}")
labels = ["reference", "plain", "shared attention", "CoDe", "both"]
display(contact_sheet(tiles, column_labels=labels, captions=captions))
