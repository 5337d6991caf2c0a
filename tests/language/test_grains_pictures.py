"""Attributions as pictures: the right colours at the right places, and text that stays text."""

import re
from dataclasses import replace

import pytest
import torch

from steer.draw import save_png
from steer.language.data import Pair
from steer.language.grains import Attribution, figure, html, patches

WORDS = ("<s>", "Is", " <b>", " good", "\n", " $x$", " bad")
SCORES = (0.0, 0.5, 0.0, 2.0, 0.1, 0.0, -2.0)


def found(words=WORDS, scores=SCORES, image=()):
    count = len(words)
    mask = torch.tensor([k in image for k in range(count)])
    allowed = torch.tensor([k > 0 for k in range(count)])
    pair = Pair("a", " Yes", " No")
    return Attribution(
        pair, words, torch.arange(count), torch.tensor(scores), allowed, mask, 1.25, 0.25, 0.031, 20, "ig", "prompt"
    )


def test_html_shows_tokens_in_the_colours_of_their_scores():
    page = html(found())
    spans = re.findall(r'<span style="background:(#\w{6})[^"]*" title="([^"]*)">([^<]*)</span>', page)
    assert [text for *_, text in spans] == ["&lt;s&gt;", "Is", " &lt;b&gt;", " good", "↵", " $x$", " bad"]
    colours = [tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5)) for colour, *_ in spans]
    assert colours[0] == colours[2] == (255, 255, 255)
    assert colours[3][0] > colours[3][2]  # red
    assert colours[6][2] > colours[6][0]  # blue
    assert sum(colours[3]) < sum(colours[1])
    assert [score for _, score, _ in spans][3] == "+2.0000"
    assert page.count("<br>") == 1
    assert "3.1%" in page
    assert "+1.250" in page


def test_a_figure_is_red_where_html_is(tmp_path):
    from PIL import Image

    path = save_png(figure(found()), tmp_path / "heat.png")
    shown = Image.open(path).convert("RGB")
    pixels = {colour for _, colour in shown.getcolors(1 << 24)}
    assert any(r > 200 and g < 120 for r, g, b in pixels)
    assert any(b > 200 and r < 120 for r, g, b in pixels)
    plain = save_png(figure(found(scores=(0.0,) * 7)), tmp_path / "plain.png")
    assert not any(r > 200 and g < 120 for _, (r, g, b) in Image.open(plain).convert("RGB").getcolors(1 << 24))


def test_long_prompts_take_more_lines():
    short, long = (figure(found((" word",) * n, (1.0,) * n)) for n in (5, 200))
    assert long.get_figheight() > 3 * short.get_figheight()
    assert long.get_figwidth() == short.get_figwidth()


def test_an_image_is_one_block_in_text():
    page = html(found(image=(1, 2, 3)))
    assert "[image, 3 tokens]" in page
    assert " good" not in page


def test_patches_are_bright_where_the_score_is():
    picture = torch.full((3, 16, 16), 0.5)
    given = found(("a", "i", "i", "i", "i", "b"), (9.0, 0.0, 4.0, -3.0, 1.0, 0.0), image=(1, 2, 3, 4))
    for towards, place in (("positive", (12, 3)), ("negative", (3, 12))):
        shown = patches(given, picture, towards=towards).convert("L")
        light = {(x, y): shown.getpixel((x, y)) for x in (3, 12) for y in (3, 12)}
        assert max(light, key=light.get) == place


def test_bad_grids():
    picture = torch.zeros(3, 8, 8)
    with pytest.raises(ValueError, match="0 image tokens"):
        patches(found(), picture)
    with pytest.raises(ValueError, match="3 image tokens do not fill"):
        patches(found(image=(1, 2, 3)), picture)
    assert patches(found(image=(1, 2, 3)), picture, (1, 3)).size == (8, 8)
    with pytest.raises(ValueError, match="towards"):
        patches(found(image=(1, 2, 3)), picture, (1, 3), "up")


def test_scores_that_are_all_zero_have_no_colour():
    assert "#ffffff" in html(replace(found(), scores=torch.zeros(7)))
    assert "nan" not in html(replace(found(), gap=float("nan")))
