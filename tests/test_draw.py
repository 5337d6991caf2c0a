"""Pictures of results: right places, readable labels, files that are whole or not there."""

import math
import os

import pytest
import torch
from PIL import Image

from steer.diffusion.state import Look
from steer.draw import contact_sheet, lineage_tree, overlay, save_png

COLOURS = ["red", "lime", "blue", "yellow", "cyan", "magenta"]


def tiles(size: int = 16) -> list[Image.Image]:
    return [Image.new("RGB", (size, size), colour) for colour in COLOURS]


def found(sheet: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) that holds every pixel of one colour."""
    rgb = torch.tensor(Image.new("RGB", (1, 1), colour).getpixel((0, 0)))
    y, x = (
        (torch.tensor(list(sheet.get_flattened_data())).reshape(sheet.height, sheet.width, 3) == rgb)
        .all(-1)
        .nonzero(as_tuple=True)
    )
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def test_pictures_stand_in_rows_and_are_enlarged_by_a_whole_factor():
    boxes = [found(contact_sheet(tiles(), 3), colour) for colour in COLOURS]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(112, 112)}
    assert [box[1] for box in boxes] == sorted(box[1] for box in boxes)
    assert len({box[0] for box in boxes}) == 3
    assert len({box[1] for box in boxes}) == 2


def test_labels_and_captions_make_room_and_are_written():
    plain = contact_sheet(tiles(), 3)
    labels = {
        "row_labels": ["one", "two\nlines"],
        "column_labels": ["left, with many words to wrap", "", "right"],
        "captions": list("abcdef"),
    }
    for name, given in labels.items():
        sheet = contact_sheet(tiles(), 3, **{name: given})
        assert sheet.size != plain.size
        blank = contact_sheet(tiles(), 3, **{name: [" " * len(label) for label in given]})
        assert sum(sheet.convert("L").histogram()[:150]) > sum(blank.convert("L").histogram()[:150])


def test_winners_are_framed():
    assert found(contact_sheet(tiles(), 3, framed=[1]), "#d1242f")[0] == found(contact_sheet(tiles(), 3), "lime")[0] - 4


def test_tensors_and_pictures_look_the_same():
    tensors = [torch.tensor(list(t.get_flattened_data())).reshape(16, 16, 3).permute(2, 0, 1) / 255 for t in tiles()]
    assert contact_sheet(tensors, 3).tobytes() == contact_sheet(tiles(), 3).tobytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"images": []}, "no pictures"),
        ({"images": tiles(), "columns": 0}, "columns = 0"),
        ({"images": tiles(), "columns": 3, "row_labels": ["a"]}, "1 row_labels came; expected 2"),
        ({"images": tiles(), "columns": 3, "column_labels": ["a"]}, "1 column_labels came; expected 3"),
        ({"images": tiles(), "captions": ["a"]}, "1 captions came; expected 6"),
        ({"images": [torch.zeros(1, 3, 4, 4)]}, r"\(1, 3, 4, 4\).*\(3, h, w\)"),
    ],
)
def test_bad_sheets_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        contact_sheet(**arguments)


SCORES = torch.tensor([[[0.0, 1, 2], [5, 5, 5]], [[1.0, 3, 0], [5, 5, 5]], [[4.0, -math.inf, 2], [5, 5, 5]]])
INDEX = torch.tensor([[[2, 2, 1], [0, 0, 0]], [[1, 0, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
TRACE = tuple(Look(4 * (j + 1), SCORES[j], INDEX[j]) for j in range(3))
ROWS = [
    {"step": look.i, "image": p, "particle": k, "score": float(look.scores[p, k]), "ancestor": int(look.index[p, k])}
    for look in TRACE
    for p in range(2)
    for k in range(3)
]


@pytest.mark.parametrize("trace", [TRACE, ROWS])
def test_the_tree_shows_who_continued_whom(trace):
    axes = lineage_tree(trace, title="a red apple").axes[0]
    *lines, winner = ([(int(x), int(y)) for x, y in line.get_xydata()] for line in axes.lines)
    assert winner == [(0, 2), (1, 2), (2, 1), (3, 0)]  # 0 at the end continued 1, which continued 2
    assert sorted(lines) == [
        [(0, 0), (1, 0)],
        [(0, 1), (1, 1)],
        [(0, 2), (1, 2)],
        [(1, 1), (2, 2)],
        [(1, 2), (2, 0)],
        [(1, 2), (2, 1)],
        [(2, 1), (3, 0)],
        [(2, 1), (3, 2)],  # slot 1 has been pruned at the end
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["start", "4", "8", "12"]
    assert axes.get_title(loc="left") == "a red apple"


def test_the_tree_takes_pictures_of_the_last_particles(tmp_path):
    figure = lineage_tree(TRACE, images=[torch.zeros(3, 8, 8), *tiles()[:2]])
    assert save_png(figure, tmp_path / "tree.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"trace": ()}, "trace is empty"),
        ({"trace": TRACE, "image": 2}, "image 2"),
        ({"trace": ROWS, "image": 2}, "image 2"),
        ({"trace": TRACE, "images": tiles()}, "6 pictures came.*3 particles"),
        (
            {"trace": [Look(1, torch.full((1, 2), -math.inf), torch.zeros(1, 2, dtype=torch.long))]},
            "no look has a finite score",
        ),
    ],
)
def test_bad_trees_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        lineage_tree(**arguments)


def test_heat_is_bright_where_it_is_large_and_lies_over_the_picture():
    heat = torch.zeros(4, 4)
    heat[1, 2] = 0.03
    drawn = overlay(Image.new("RGB", (32, 16), "white"), heat)
    light = torch.tensor(list(drawn.convert("L").get_flattened_data())).reshape(16, 32)
    assert drawn.size == (32, 16)
    y, x = divmod(int(light.argmax()), 32)
    assert (y // 4, x // 8) == (1, 2)
    assert light.max() > light.min() + 80
    assert overlay(torch.ones(3, 16, 32), heat).tobytes() == drawn.tobytes()
    bare = overlay(tiles()[0], heat, opacity=0.0)
    assert bare.tobytes() == tiles()[0].convert("L").convert("RGB").tobytes()
    assert len(set(overlay(tiles()[0], torch.ones(4, 4)).get_flattened_data())) == 1  # even heat, even picture


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"heat": torch.zeros(1, 4, 4)}, r"\(1, 4, 4\).*\(rows, columns\)"),
        ({"heat": torch.full((4, 4), math.nan)}, "finite"),
        ({"heat": torch.zeros(4, 4), "opacity": 1.5}, "opacity = 1.5"),
    ],
)
def test_bad_heat_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        overlay(tiles()[0], **arguments)


def test_files_are_whole_or_not_there(tmp_path):
    class Breaks:
        def save(self, path, format):
            path.write_bytes(b"half")
            raise RuntimeError("disk")

    path = save_png(tiles()[0], tmp_path / "new" / "a.png")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="disk"):
        save_png(Breaks(), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["a.png"]
    assert Image.open(path).size == (16, 16)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to the folder .*file"):
        save_png(tiles()[0], tmp_path / "file" / "a.png")


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'a.jpg'.*a.png"):
        save_png(tiles()[0], tmp_path / "a.jpg")
