"""The commands that take pictures, and what a user is told who gives them the wrong ones."""

from __future__ import annotations

import functools
import os

import pytest
import torch
from PIL import Image
from test_cli import fails

import steer
from steer.cli import main, pictures, record
from steer.cli.edit import alignment
from steer.zoo.data import STYLES, compose, glyphs, rgba

LOAD = functools.cache(steer.load)  # the embedded pipeline is read once for all tests
FAST = ("--steps", "3")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A square file, a wide one, one that is no picture, and a mask of the left half."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (128, 128), "red").save(folder / "square.png")
    Image.new("RGB", (128, 64), "red").save(folder / "wide.png")
    Image.new("RGB", (64, 64)).save(folder / "dark.png")
    left = Image.new("RGB", (64, 64))
    left.paste("white", (0, 0, 32, 64))
    left.save(folder / "left.png")
    (folder / "no.png").write_text("no picture")
    return folder


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(steer, "load", LOAD)


def test_an_emoji_comes_with_its_caption_and_matte():
    given = pictures.picture("noto:Red Apple")
    every, names, _ = glyphs()
    glyph = every[STYLES.index("noto"), names.index("red apple")]
    assert given.caption == "red apple, noto style"
    assert torch.equal(given.pixels, compose(glyph))
    assert torch.equal(given.matte, rgba(glyph)[3:])


def test_a_file_is_resized_and_a_mask_is_where_it_is_bright(files):
    given = pictures.picture(str(files / "square.png"))
    assert given.caption == ""
    assert given.at((64, 64)).shape == (3, 64, 64)
    assert torch.allclose(given.at((64, 64))[:, 5, 5], torch.tensor([1.0, 0, 0]), atol=1e-6)
    mask = pictures.mask(str(files / "left.png"), (64, 64))
    assert (mask[:, :32] == 1).all()
    assert (mask[:, 32:] == 0).all()
    assert torch.equal(pictures.mask("noto:fox", (64, 64)), (pictures.picture("noto:fox").matte[0] > 0.5).float())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.png", "no picture 'none.png': give the path of a file, or STYLE:NAME as in noto:fox"),
        (
            "notto:fox",
            "unknown style 'notto': expected one of noto, twemoji, fluent-flat, fluent. Did you mean 'noto'?",
        ),
        ("noto:apple", "no emoji is called 'apple'; did you mean 'red apple'"),
        ("noto:foxx", "did you mean 'fox'"),
        ("noto:", "no emoji is called ''"),
        ("/nowhere/a:b.png", "no picture"),
    ],
)
def test_names_that_lead_nowhere(capsys, tmp_path, name, said):
    """Every command says the same, before the pipeline is loaded: there is none of that name here."""
    for command in (["style", "noto:fox", name], ["style", name, "noto:fox"], ["edit", name, "a cat"]):
        assert said in fails(capsys, *command, "--model", "no-model", "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["style", "noto:fox"], "no style: give at least one"),
        (["style", "noto:fox", "noto:cat face", "--gamma", "2"], "0 <= gamma <= 1"),
        (["style", "noto:fox", "noto:cat face", "--strength", "0"], "above 0"),
        (["style", "noto:fox", "noto:cat face", "--steps", "0"], "at least 1"),
        (["edit", "noto:fox", " "], "target prompt is empty"),
        (["edit", "{}/square.png", "a cat"], "--caption"),
        (["edit", "noto:fox", "a cat", "--self", "1.5"], "--self 1.5: expected a share of the run"),
        (["edit", "noto:fox", "a cat", "--method", "inpaint"], "inpaint needs one"),
        (["edit", "noto:fox", "a cat", "--mask", "noto:fox"], "a mask goes with inpaint"),
        (["maps", " "], "prompt is empty"),
        (["maps", "a fox", "--words", "fix"], "unknown word of the prompt 'fix': expected one of a, fox. Did you mean"),
        (["maps", "a fox", "--start", "0.5", "--stop", "0.5"], "0 <= start < stop <= 1"),
        (["maps", "a fox", "--images", "0"], "at least 1"),
    ],
)
def test_bad_options_are_found_before_the_work(capsys, tmp_path, files, args, said):
    args = [arg.format(files) for arg in args]
    assert said in fails(capsys, *args, "--model", "no-model", "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["style", "{}/wide.png", "noto:fox"], "128 x 64 pixels, and the pipeline makes 64 x 64; crop it"),
        (["style", "noto:fox", "noto:cat face", "--mask", "{}/wide.png"], "128 x 64 pixels"),
        (["style", "noto:fox", "noto:cat face", "--mask", "{}/dark.png"], "dark everywhere"),
        (["style", "noto:fox", "{}/no.png"], "cannot be read as a picture"),
        (["edit", "{}/wide.png", "a cat", "--method", "pnp"], "128 x 64 pixels"),
        (["maps", "a fox", "--layers", "nothing"], "layers = 'nothing'"),
        (["maps", "a fox", "--sides", "7", "--steps", "1"], "no maps of sides (7,)"),
    ],
)
def test_what_does_not_fit_the_pipeline(capsys, tmp_path, files, args, said):
    assert said in fails(capsys, *(arg.format(files) for arg in args), "--out", str(tmp_path))


@pytest.mark.parametrize("command", ["style", "edit", "maps"])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "Example: steer " in capsys.readouterr().out


def test_maps_draws_a_heat_map_a_word(tmp_path):
    main(
        [
            "maps",
            "a palm tree, noto style",
            "--words",
            "palm tree",
            "Noto",
            "--images",
            "2",
            *FAST,
            "--out",
            str(tmp_path),
        ]
    )
    rows = record.Rows(tmp_path / "results.jsonl").rows
    assert [list(row["shares"]) for row in rows] == [["palm tree", "noto"]] * 2
    assert all(0 < share < 1 for row in rows for share in row["shares"].values())
    assert rows[0]["ledger"]["rows"] == 2 * 2 * 3  # branches, pictures, steps
    assert {"0.png", "1.png", "maps.png"} <= set(os.listdir(tmp_path))
    sheet, tile = Image.open(tmp_path / "maps.png"), Image.open(tmp_path / "0.png").width * 2
    assert sheet.width == 2 * 16 + 3 * tile + 2 * 8


def test_style_draws_every_style_at_every_strength(tmp_path):
    options = ["--strength", "0.5", "1", *FAST, "--mask", "noto:fox", "--out", str(tmp_path)]
    main(["style", "noto:fox", "fluent:teddy bear", "twemoji:cat face", *options])
    rows = record.Rows(tmp_path / "results.jsonl").rows
    assert [(row["by"], row["at"]) for row in rows] == [
        (style, strength) for style in ("fluent:teddy bear", "twemoji:cat face") for strength in (0.5, 1.0)
    ]
    assert {"styles.png", *(row["file"] for row in rows)} <= set(os.listdir(tmp_path))
    made = [(tmp_path / row["file"]).read_bytes() for row in rows]
    assert len(set(made)) == len(rows)
    assert all(row["psnr"]["content"] > 5 and row["inversion rows"] == 2 * 3 for row in rows)


@pytest.mark.parametrize("method", ["p2p", "masactrl", "pnp", "inpaint"])
def test_edit_draws_source_way_back_and_edit(tmp_path, method):
    extra = ["--mask", "noto:red apple"] if method == "inpaint" else []
    main(
        [
            "edit",
            "noto:red apple",
            "a green apple, noto style",
            "--method",
            method,
            *extra,
            *FAST,
            "--out",
            str(tmp_path),
        ]
    )
    (row,) = record.Rows(tmp_path / "results.jsonl").rows
    assert row["caption"] == "red apple, noto style"
    assert row["method"] == method
    assert {"edited.png", "edit.png", "results.jsonl"} <= set(os.listdir(tmp_path))
    assert Image.open(tmp_path / "edited.png").size == (64, 64)


def test_prompts_are_aligned_over_all_that_a_network_reads():
    """Texts of two tokenizers in a row, as SD3 reads them, and zeros in the place of the second."""
    import tiny

    class Pipe:
        tokenizer = tiny.tokenizer()
        tokenizer_3 = None

    found = alignment(Pipe(), "a cat", "a dog", 16 + 5)
    assert found.matrix.shape == (21, 21)
    assert torch.equal(found.matrix[16:, 16:], torch.eye(5))
    Pipe.tokenizer_3 = tiny.tokenizer()
    both = alignment(Pipe(), "a cat", "a dog", 32)
    assert torch.equal(both.matrix[:16, :16], both.matrix[16:, 16:])
