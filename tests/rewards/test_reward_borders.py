"""Callables, Hugging Face pipelines, TRL, names, and what `import steer.rewards` may load."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import PROMPTS

import steer.rewards
from steer.rewards import (
    Colour,
    Compressibility,
    Judge,
    Sharpness,
    StyleMatch,
    ZScored,
    adapt,
    as_trl,
    named,
    to_pil,
)  # fmt: skip


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_any_callable_is_a_reward(kind, pictures):
    def length(images, prompts):
        assert images.shape[1:] == (3, 64, 64)
        return kind([float(len(prompt)) for prompt in prompts])

    reward = adapt(length, batch=4)
    assert reward(pictures, PROMPTS).tolist() == [9, 8, 9, 8, 9, 8]
    assert repr(reward).endswith("batch=4, name='length')")
    assert adapt(reward) is reward


def test_a_callable_on_pil_images_without_prompts(pictures):
    reward = adapt(lambda images: [image.size[0] for image in images], pil=True, prompts=False)
    assert (2 * reward)(pictures, PROMPTS).tolist() == [128] * 6


def test_a_callable_keeps_its_gradient_where_it_says_so(pictures):
    images = pictures.clone().requires_grad_()
    assert adapt(lambda x, prompts: x.mean((1, 2, 3)), differentiable=True)(images, PROMPTS).requires_grad
    assert not adapt(lambda x, prompts: x.mean((1, 2, 3)))(images, PROMPTS).requires_grad
    with pytest.raises(ValueError, match="no gradient"):
        adapt(print, pil=True, differentiable=True)
    with pytest.raises(ValueError, match="3 cannot be called"):
        adapt(3)


def test_an_image_classification_pipeline(classifier, pictures):
    inputs = classifier.image_processor(images=to_pil(pictures), return_tensors="pt")
    with torch.no_grad():
        expected = classifier.model(**inputs).logits.log_softmax(-1)
    for k in range(7):
        torch.testing.assert_close(adapt(classifier, label=f"kind {k}")(pictures, PROMPTS), expected[:, k])
    with pytest.raises(ValueError, match=r"unknown label 'kind 9'.*Did you mean"):
        adapt(classifier, label="kind 9")


def test_a_zero_shot_pipeline(zero_shot, pictures):
    own = adapt(zero_shot, against=("noto style", "a"))(pictures, PROMPTS)
    for k, picture in enumerate(to_pil(pictures)):
        rows = zero_shot(picture, candidate_labels=[PROMPTS[k], "noto style", "a"])
        expected = next(row["score"] for row in rows if row["label"] == PROMPTS[k])
        assert own[k].exp().item() == pytest.approx(expected, rel=1e-4)
    one, other = (
        adapt(zero_shot, label=x, against=("noto style", "a"))(pictures, PROMPTS).exp() for x in ("noto style", "a")
    )
    torch.testing.assert_close(one + other, torch.ones(6))
    with pytest.raises(ValueError, match="against="):
        adapt(zero_shot)


def test_other_pipelines_are_named(classifier, monkeypatch):
    monkeypatch.setattr(classifier, "task", "image-segmentation")
    with pytest.raises(ValueError, match=r"unknown pipeline task.*'image-segmentation'"):
        adapt(classifier)


def test_a_reward_serves_trl(pictures):
    function = as_trl(Colour("red"))
    expected = Colour("red")(pictures, PROMPTS).tolist()
    assert function(prompts=PROMPTS, completions=list(pictures), completion_ids=None, step=3) == expected
    assert function(prompts=PROMPTS, completions=["text"] * 6, images=list(pictures)) == expected
    assert function.__name__ == "Colour(target='red')"
    chat = [
        {"role": "system", "content": "draw"},
        {"role": "user", "content": [{"type": "image"}, {"text": "red cat"}]},
    ]
    length = as_trl(adapt(lambda x, prompts: [len(prompt) for prompt in prompts]))
    assert length(["apple", [{"role": "user", "content": "a cat"}], chat], to_pil(pictures[:3])) == [5, 5, 7]


def test_rewards_by_name():
    assert named("sharpness") == Sharpness()
    assert named("compressibility:75") == Compressibility(75)
    assert named(" colour:red ") == Colour("red")
    assert named("style:noto") == StyleMatch("noto")
    assert named("judge") == Judge()
    assert named("sharpness, colour:red").rewards == (ZScored(Sharpness()), ZScored(Colour("red")))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sharpnes", "unknown reward 'sharpnes'.*Did you mean 'sharpness'"),
        ("", "unknown reward ''"),
        ("clip,", "unknown reward ''"),
        ("colour", "expected colour:<a colour>."),
        ("colour:", "expected colour:<a colour>."),
        ("colour:rde", "Did you mean 'red'"),
        ("sharpness:3", "expected sharpness."),
        ("compressibility:high", "expected a JPEG quality"),
        ("compressibility:", "or compressibility alone"),
    ],
)
def test_wrong_names_are_explained(spec, message):
    with pytest.raises(ValueError, match=message):
        named(spec)


def test_the_import_is_light():
    code = (
        "import sys, steer.rewards\n"
        "heavy = 'open_clip', 'transformers', 'diffusers', 'PIL', 'torchvision', 'triton'\n"
        "print(*(m for m in heavy if m in sys.modules))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [], child.stdout


def test_rewards_depend_on_the_zoo_and_the_kernels_alone():
    for path in Path(steer.rewards.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "steer":
                names = [node.module] if "." in node.module else [f"steer.{alias.name}" for alias in node.names]
                assert {name.split(".")[1] for name in names} <= {"rewards", "zoo"}, path
