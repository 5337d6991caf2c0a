"""The pictures and captions: splits are fixed, mattes are exact, the training batches respect what is held out."""

from __future__ import annotations

import pytest
import torch

from steer.zoo import data
from steer.zoo.build import pictures, words


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_name_is_drawn_in_every_style():
    glyphs, names, styles = data.glyphs()
    assert glyphs.shape == (len(styles), len(names), 4, 64, 64)
    assert len(set(names)) == len(names) >= 290
    assert (glyphs[:, :, 3].flatten(2).amax(-1) == 255).all()


def test_splits_are_written_down_and_are_what_the_hash_says():
    for row in data.captions():
        assert row["held_out_style"] == data.held_out_style(row["name"])
    held = (~data.split()).sum(0)
    assert held.max() == 1
    assert 0.08 < held.float().mean() < 0.2
    assert data.held_out_pair("fox", "owl") == data.held_out_pair("owl", "fox")


def test_compose_is_the_matte():
    picture = torch.tensor([1.0, 0.0, 0.0, 0.25])[:, None, None].expand(4, 2, 2)
    assert torch.allclose(data.compose(picture, (0.0, 0.0, 1.0))[:, 0, 0], torch.tensor([0.25, 0.0, 0.75]))
    rgba = torch.rand(3, 4, 5, 5, generator=seeded()) * 0.9 + 0.1
    assert torch.allclose(data.straight(data.premultiplied(rgba)), rgba, atol=1e-6)


def test_scene_puts_things_where_the_caption_says():
    red, blue = (
        torch.cat([torch.tensor(c)[:, None, None].expand(3, 64, 64), torch.ones(1, 64, 64)])
        for c in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    )
    left = data.scene(red, blue, "to the left of")
    assert left[0, 32, 16] == 1
    assert left[2, 32, 48] == 1
    above = data.scene(red, blue, "above")
    assert above[0, 16, 32] == 1
    assert above[2, 48, 32] == 1
    with pytest.raises(ValueError, match="relation"):
        data.scene(red, blue, "under")


def test_training_never_shows_what_is_held_out():
    _, which = pictures.draw_glyphs(4000, seeded())
    assert data.split()[which[:, 0], which[:, 1]].all()
    names = {row["name"] for row in data.captions()}
    _, texts = pictures.draw_captioned(400, seeded())
    coloured = [text for text in texts if text.startswith("a ") and text.split(",")[0][2:] not in names]
    colours = [text[2:].split(",")[0].partition(" ") for text in coloured if not any(r in text for r in data.RELATIONS)]
    assert colours
    assert not any(data.held_out_colour(colour, name) for colour, _, name in colours)


def test_batches_are_pictures_and_repeat_with_the_generator():
    one, other = pictures.draw_captioned(24, seeded(3)), pictures.draw_captioned(24, seeded(3))
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]
    assert one[0].shape == (24, 3, 64, 64)
    assert one[0].min() >= 0
    assert one[0].max() <= 1


def test_every_caption_word_is_one_token_and_the_end_is_the_highest():
    tokenizer = words.tokenizer()
    assert len(tokenizer("a red apple, noto style").input_ids) == 2 + 6
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    longest = max(data.captions(), key=lambda row: len(tokenizer(row["name"]).input_ids))["name"]
    text = data.scene_caption(longest, "to the left of", longest, "fluent-flat")
    assert len(tokenizer(text).input_ids) <= words.CONTEXT
