"""The formulas, the style network and the dual encoder: values by hand or by the library, gradients by differences."""

import io

import pytest
import torch
from PIL import Image
from small_models import PROMPTS

from steer.rewards import (
    ClipScore,
    Colour,
    Compressibility,
    EdgeSimilarity,
    Judge,
    Sharpness,
    StyleMatch,
    to_pil,
    to_tensor,
)  # fmt: skip
from steer.rewards.style import gram
from steer.zoo.data import COLOURS, STYLES


def flat(*rgb):
    return torch.tensor(rgb)[None, :, None, None].expand(1, 3, 16, 16).contiguous()


def test_compressibility_is_minus_the_size_of_the_file(pictures, tmp_path):
    found = Compressibility(quality=80)(pictures, PROMPTS)
    for k, picture in enumerate(to_pil(pictures)):
        picture.save(tmp_path / f"{k}.jpg", quality=80)
        assert found[k].item() == pytest.approx(-(tmp_path / f"{k}.jpg").stat().st_size / 1000)
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert Compressibility()(noise, [""]) < Compressibility()(noise.mean().expand(1, 3, 64, 64), [""])


@pytest.mark.parametrize("quality", [0, 101, 2.5])
def test_jpeg_quality_is_checked(quality):
    with pytest.raises(ValueError, match="from 1 to 100"):
        Compressibility(quality)


def test_sharpness_by_hand():
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    checkers = ((rows + columns) % 2).float().expand(1, 3, 8, 8)
    ramp = (columns / 8).expand(1, 3, 8, 8)
    found = Sharpness()(torch.cat([checkers, ramp, ramp * 0]), [""] * 3)
    assert found.tolist() == pytest.approx([4, 0, 0], abs=1e-6)
    with pytest.raises(ValueError, match="at least 3 x 3"):
        Sharpness()(torch.zeros(1, 3, 2, 8), [""])


def test_colour_by_hand():
    images = torch.cat([flat(*COLOURS["red"]), flat(1.0, 1.0, 1.0)])
    expected = -sum((1 - part) ** 2 for part in COLOURS["red"]) / 3
    assert Colour("red")(images, ["", ""]).tolist() == pytest.approx([0, expected], abs=1e-6)
    assert Colour((1.0, 1.0, 1.0))(images, ["", ""]).tolist() == pytest.approx([expected, 0], abs=1e-6)
    with pytest.raises(ValueError, match="Did you mean 'purple'"):
        Colour("purpel")
    with pytest.raises(ValueError, match="each in"):
        Colour((1.0, 2.0, 0.0))


def test_edges_see_structure_and_not_contrast(pictures):
    reward = EdgeSimilarity(pictures[2])
    pale, blank = pictures[2:3] / 2 + 0.2, torch.full((1, 3, 64, 64), 0.5)
    found = reward(torch.cat([pictures[2:3], pale, blank]), [""] * 3)
    assert found.tolist() == pytest.approx([1, 1, 0], abs=1e-4)
    others = reward(pictures, PROMPTS)
    assert others.argmax() == 2
    assert ((others >= 0) & (others <= 1 + 1e-6)).all()


def test_style_is_a_log_probability(pictures, style_net):
    found = torch.stack([StyleMatch(style)(pictures, PROMPTS) for style in STYLES])
    torch.testing.assert_close(found.exp().sum(0), torch.ones(6))
    torch.testing.assert_close(found, style_net(pictures).log_softmax(-1).T)
    twice = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(StyleMatch("noto")(twice, PROMPTS), found[0], atol=0.05, rtol=0)


def test_gram_distance(pictures, style_net):
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert gram(features).tolist() == [[[2.5, 5.5], [5.5, 12.5]]]
    found = StyleMatch(pictures[1])(pictures, PROMPTS)
    ours, theirs = style_net.features(pictures[:1]), style_net.features(pictures[1:2])
    apart = [(gram(a) - gram(b)).norm() ** 2 / gram(b).norm() ** 2 for a, b in zip(ours, theirs)]
    assert found[0].item() == pytest.approx(-sum(apart).item() / 4, rel=1e-4)
    assert found[1].item() == pytest.approx(0, abs=1e-6)
    assert found.argmax() == 1


def test_a_reference_is_a_value_whatever_it_came_as(pictures, tmp_path):
    image = to_pil(pictures[:1])[0]
    image.save(tmp_path / "reference.png")
    same = [EdgeSimilarity(given) for given in (image, tmp_path / "reference.png", to_tensor([image])[0])]
    assert len({repr(reward) for reward in same}) == len(set(same)) == 1
    assert EdgeSimilarity(pictures[1]) != same[0]
    assert repr(same[0]).startswith("EdgeSimilarity(reference=Picture(name='64x64 ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda folder: StyleMatch("notto"), "unknown style 'notto'.*Did you mean 'noto'"),
        (lambda folder: EdgeSimilarity(folder / "missing.png"), "cannot be read as a picture"),
        (lambda folder: EdgeSimilarity(3), "a picture is a int"),
        (lambda folder: EdgeSimilarity(torch.full((3, 4, 4), 9.0)), r"expected \[0, 1\]"),
    ],
)
def test_references_are_checked(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        wrong(tmp_path)


def test_clip_score_is_open_clips_own(pictures, clip_folder):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_folder}")(PROMPTS)
    seen = torch.stack([preprocess(picture) for picture in to_pil(pictures)])
    expected = (model.eval().encode_image(seen, normalize=True) * model.encode_text(tokens, normalize=True)).sum(-1)
    found = ClipScore(clip_folder)(pictures, PROMPTS)
    # PIL resizes in whole bytes: a half of 1/255, over the std of 0.2, in every input
    torch.testing.assert_close(found, expected.detach(), atol=2e-3, rtol=0)
    assert expected.std() > 0.02, "the tolerance would hide a wrong score"
    assert torch.equal(ClipScore(clip_folder, batch=4)(pictures, PROMPTS).argsort(), found.argsort())
    torch.testing.assert_close(ClipScore(f"local-dir:{clip_folder}")(pictures, PROMPTS), found)


def test_what_the_resize_overshoots_is_clamped_as_pil_does(clip_folder, monkeypatch):
    from steer.rewards.clip import encoder

    seen, known = [], encoder(str(clip_folder), None, "cpu")
    normalise = known._normalise
    monkeypatch.setattr(known, "_normalise", lambda images: seen.append(images) or normalise(images))
    edge = (torch.arange(16) < 8).float().expand(1, 3, 16, 16)
    ClipScore(clip_folder)(edge, ["a"])
    assert (seen[0].min(), seen[0].max()) == (0, 1)


def test_texts_are_embedded_once(pictures, clip_folder, monkeypatch):
    from steer.rewards.clip import encoder

    reward, asked = ClipScore(clip_folder), []
    known = encoder(str(clip_folder), None, "cpu")
    tokenizer = known._tokenizer
    monkeypatch.setattr(known, "_texts", {})
    monkeypatch.setattr(known, "_tokenizer", lambda texts: asked.extend(texts) or tokenizer(texts))
    reward(pictures, PROMPTS)
    reward(pictures, ["a cat", *PROMPTS[1:]])
    assert asked == ["red apple", "blue cat", "a cat"]


def test_the_judge_scores_and_offers_no_gradient(pictures, clip_folder):
    images = pictures.clone().requires_grad_()
    found = Judge(clip_folder)(images, PROMPTS)
    assert not found.requires_grad
    torch.testing.assert_close(found, ClipScore(clip_folder)(pictures, PROMPTS))
    assert (ClipScore.embedded, Judge.embedded) == ("emoji-clip", "emoji-judge")


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-23", None, "unknown open_clip model 'ViT-B-23'.*Did you mean 'ViT-B-32'"),
        ("ViT-B-32", None, "without weights is a random network: pass pretrained="),
        ("ViT-B-32", "nothing", "open_clip cannot read ViT-B-32"),
        ("local-dir:/no/such/folder", None, "cannot read local-dir:/no/such/folder"),
    ],
)
def test_models_that_cannot_be_read(model, pretrained, message, pictures):
    with pytest.raises(ValueError, match=message):
        ClipScore(model, pretrained)(pictures, PROMPTS)


def test_a_folder_without_weights_is_not_a_random_model(clip_folder, tmp_path, pictures):
    (tmp_path / "open_clip_config.json").write_text((clip_folder / "open_clip_config.json").read_text())
    with pytest.raises(ValueError, match="could not be loaded"):
        ClipScore(tmp_path)(pictures, PROMPTS)


DIFFERENTIABLE = {
    "sharpness": lambda clip, reference: Sharpness(),
    "colour": lambda clip, reference: Colour("blue"),
    "edges": lambda clip, reference: EdgeSimilarity(reference),
    "style": lambda clip, reference: StyleMatch("twemoji"),
    "gram": lambda clip, reference: StyleMatch(reference),
    "clip": lambda clip, reference: ClipScore(clip),
    "sum": lambda clip, reference: 0.7 * ClipScore(clip) - 0.3 * Colour("red"),
}


@pytest.mark.parametrize("make", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
def test_the_gradient_is_the_derivative(make, pictures, clip_folder, style_net):
    reward = make(clip_folder, pictures[5])
    assert reward.differentiable
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = (0.25 + 0.3 * pictures[:1] + 0.2 * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, ["red apple"]).sum(), images)
    step = gradient / gradient.norm() * 0.01
    with torch.no_grad():
        change = reward(images + step, ["red apple"]) - reward(images - step, ["red apple"])
    assert change.item() == pytest.approx(2 * (gradient * step).sum().item(), rel=0.05)
    assert change.item() > 0


def test_pictures_round_trip_through_pil(pictures):
    back = to_tensor(to_pil(pictures))
    assert (back - pictures).abs().max() <= 0.5 / 255 + 1e-6
    file = io.BytesIO()
    to_pil(pictures[:1])[0].save(file, format="PNG")
    torch.testing.assert_close(to_tensor([Image.open(file)]), back[:1])
    with pytest.raises(ValueError, match="all of one size"):
        to_tensor([pictures[0], pictures[0, :, 1:]])
