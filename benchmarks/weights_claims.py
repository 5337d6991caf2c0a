"""What the papers claim of methods, as far as the runs of `benchmarks.weights` bear on it.

They do not on these: Emu on a model that was trained on damaged pictures, Style Tailoring beside one style after the
other, the sum of two LT-SFT differences, ANT beside a reversal from the start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.weights_checks import BASE, Check, Found
from steer.training.diffusion.denoising import exponential


def more(method: str, other: str, claim: str = "", bound: float = 0.0) -> Check:
    value = lambda found: found.learnt(method) - found.learnt(other)  # noqa: E731
    return Check(method, claim or f"learns more than {other}", value, bound)


def keeps(method: str, other: str) -> Check:
    """At the other's learning rate that learns most nearly as much."""
    value = lambda found: found.forgot(other, like=method) - found.forgot(method)  # noqa: E731
    return Check(method, f"forgets less than {other} where that learns alike", value)


def angles(method: str) -> Check:
    return Check(
        method, "angles between neurons are kept: W W^T moves by", lambda f: f.of(method, "gram").max(), 1e-4, True
    )


def weighted(found: Found) -> Tensor:
    weights = exponential(1.0)(torch.tensor(found.base["rewards"], dtype=torch.float64))
    return weights * (found.learnt("weighted_sft") - found.learnt("sft"))


def steadier(found: Found) -> Tensor:
    """Standard deviations over seeds of what was learnt."""
    runs = [found.chosen(name) for name in ("full", "cgnc")]
    if min(map(len, runs)) < 2:
        raise ValueError("asks for several --seeds")
    full, cgnc = (torch.stack([found.gain(row).mean() for row in rows]).std() for rows in runs)
    return full - cgnc


CHECKS: tuple[Check, ...] = (
    Check("full", "the rank of its change less that of lora", lambda f: f.of("full", "ranks") - f.of("lora", "ranks")),
    more("lion", "full", "learns as much as AdamW, to 1 %", -1.0),
    Check("lora", "learns less than full", lambda f: f.learnt("full") - f.learnt("lora")),
    Check("lora", "forgets less than full", lambda f: f.forgot("full") - f.forgot("lora")),
    keeps("lora", "full"),
    more("lora of rank 64", "lora of rank 4"),
    Check("qlora", "learns from a base in 4 bits", lambda f: f.learnt("qlora")),
    Check("ia3", "learns", lambda f: f.learnt("ia3")),
    Check(
        "ia3",
        "numbers trained, of those of lora of rank 4",
        lambda f: f.of("ia3", "trained") / f.of("lora of rank 4", "trained"),
        1.0,
        True,
    ),
    Check("t_few", "learns from choices", lambda f: f.learnt("t_few")),
    more("corda", "lora"),
    keeps("corda, kpm", "corda"),
    Check("lora_one", "its first step lowers the loss", lambda f: f.learnt("lora_one", "start")),
    more("lora_one", "lora"),
    more("lora_pro", "lora"),
    Check("chain_of_lora", "directions of its change beyond 4", lambda f: f.of("chain_of_lora", "directions") - 4),
    more("chain_of_lora", "lora of rank 4"),
    more("diablo", "lora"),
    angles("oft"),
    keeps("oft", "lora"),
    angles("boft"),
    more("boft", "oft"),
    more("gps", "random, a row"),
    more("speft", "random, 1 %"),
    more("lt_sft", "random, 1 %"),
    more("gmt", "full"),
    more("cgnc", "full"),
    Check("cgnc", "spreads less over seeds than full", steadier),
    more("prograd", "lora by sgd"),
    keeps("prograd", "lora by sgd"),
    Check("mixout", "stays nearer to the start than full", lambda f: f.of("full", "moved") - f.of("mixout", "moved")),
    keeps("mixout", "full"),
    more("sparse_mezo", "mezo"),
    Check(
        "supermerge",
        "gains on the mean and sums of its models",
        lambda f: f.learnt("supermerge") - f.learnt("supermerge", "start"),
    ),
    Check("sft", "learns", lambda f: f.learnt("sft")),
    Check("weighted_sft", "learns more than sft where the reward is high", weighted),
    Check("emu", "learns, on names that it was not shown", lambda f: f.learnt("emu")),
    Check("emu", "NAME-R@5 of plain prompts falls by less than 0.03", lambda f: f.gained("emu", "named"), -0.03),
    Check(
        "style_tailoring",
        "NAME-R@5 in the style above emu's",
        lambda f: f.of("style_tailoring", "styled") - f.of("emu", "styled"),
    ),
    Check(
        "style_tailoring",
        "flatness in squares, beside before, less 0.9 of emu's",
        lambda f: f.gained("style_tailoring", "flat") - 0.9 * f.gained("emu", "flat"),
    ),
    angles("oft_sft"),
    keeps("oft_sft", "sft"),
    keeps("coft_sft", "oft_sft"),
    Check("softrepa", "own captions found, beside before", lambda f: f.gained("softrepa", "retrieved"), 0.05),
    Check(
        "softrepa",
        "share of the model that is trained",
        lambda f: f.of("softrepa", "trained") / f.base["size"],
        0.01,
        True,
    ),
    Check(
        "ant",
        "NAME-R@5 of the concept, less 0.3 of that before",
        lambda f: f.of("ant", "concept") - 0.3 * f.of(BASE, "concept"),
        0.0,
        True,
    ),
    Check("ant", "NAME-R@5 of other names falls by less than 0.03", lambda f: f.gained("ant", "named"), -0.03),
)
