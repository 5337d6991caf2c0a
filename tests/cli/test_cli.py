"""The command line: what a user sees when something is wrong, and that results can be replayed from themselves."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from steer import zoo
from steer.cli import main, record
from steer.cli.demo import PROMPTS, Demo
from steer.cli.page import Part


def fails(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_version(capsys):
    from importlib.metadata import version

    main(["--version"])
    assert capsys.readouterr().out.strip() == f"steer {version('steer')}"


@pytest.mark.parametrize("command", [[], ["demo"], ["generate"], ["world"], ["world", "build"], ["world", "check"]])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "xample" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["a fox", "--reward", "clipp"], "clip"),
        (["a fox", "--model", "emojy"], "emoji"),
        (["a fox", "--model", "emoji-judge"], "emoji"),
        (["a fox", "-n", "0"], "at least 1"),
        (["a fox", "--block", "9", "--steps", "4", "-n", "2"], "1 <= block <= steps"),
        (["  "], "prompt is empty"),
        (["a fox", "--reward", "colour:rde"], "red"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, tmp_path, args, expected):
    assert expected in fails(capsys, "generate", *args, "--out", str(tmp_path))


def test_unwritable_folder_is_found_before_the_work(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    message = fails(capsys, "generate", "a fox", "--out", str(tmp_path / "file" / "out"))
    assert "cannot write" in message
    assert "--out" in message


def test_corrupt_weights_are_named(capsys, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(zoo.folder("emoji-sd"), broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = fails(capsys, "generate", "a fox", "--model", str(broken), "--out", str(tmp_path / "out"))
    assert str(broken) in message
    assert "cannot be read" in message


def test_generate_writes_pictures_and_rows_that_replay(tmp_path):
    options = ["--steps", "4", "-n", "2", "--block", "2", "--images", "2", "--reward", "compressibility"]
    for out in ("one", "two"):
        main(["generate", "a fox", *options, "--out", str(tmp_path / out)])
    one, two = (record.Rows(tmp_path / out / "results.jsonl").rows for out in ("one", "two"))
    assert [row["reward"] for row in one] == [row["reward"] for row in two]
    assert one[0]["ledger"]["rows"] == 2 * 2 * (2 * (4 - 1) + 1)  # branches, pictures, n (T - 1) + 1
    assert {"prompt", "seed", "versions", "commit", "block"} <= set(one[0])
    made = set(os.listdir(tmp_path / "one"))
    assert {"0.png", "1.png", "candidates.png", "lineage.png", "results.jsonl"} <= made


def test_demo_spends_the_same_rows_on_every_method(tmp_path):
    Demo(n=2, steps=4, block=2, images=2, out=tmp_path).run()
    rows = record.Rows(tmp_path / "results.jsonl").rows
    assert {(row["reward"], row["method"]) for row in rows} == {
        (reward, method) for reward in ("clip", "compressibility") for method in ("plain", "best-of-n", "code")
    }
    assert {row["rows"] for row in rows} == {2 * len(PROMPTS) * 2 * 2 * 4}
    assert {"contact-sheet.png", "lineage.png"} <= set(os.listdir(tmp_path))


def added(path, rows: list[dict]) -> record.Rows:
    found = record.Rows(path)
    for row in rows:
        found.add(row)
    return found


def test_a_row_is_appended(tmp_path):
    """What is on the disk stays there untouched, however long it has become."""
    path = tmp_path / "r.jsonl"
    rows = added(path, [{"a": 1}])
    before = path.stat().st_ino
    rows.add({"a": 2})
    assert path.stat().st_ino == before
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows.rows == [{"a": 1}, {"a": 2}]
    assert rows.find(a=2) == [{"a": 2}]


def test_a_run_killed_at_any_byte_loses_and_doubles_nothing(tmp_path):
    path, rows = tmp_path / "r.jsonl", [{"a": 1}, {"a": "é\u2028\x85"}, {"a": {"b": 3}}]
    added(path, rows)
    text = path.read_bytes()
    for cut in range(len(text) + 1):
        path.write_bytes(text[:cut])
        kept = record.Rows(path).rows
        assert len(kept) >= text[:cut].count(b"\n")
        assert path.read_bytes() == text[:cut]  # to read is not to write: the run may be going on
        added(path, [*rows[len(kept) :], {"a": 4}])
        assert path.read_bytes() == text + b'{"a": 4}\n'


def test_a_broken_line_that_no_kill_leaves_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl, line 3 is no JSON.* run again"):
        record.Rows(path)


def test_a_part_of_a_page_is_replaced_and_the_rest_stays_as_it_is_by_then(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n")
    part = Part(page, "x")
    page.write_text(page.read_text().replace("b", "c"))
    for text in ("new\n", "newer\n"):
        part.write(text)
        assert page.read_text() == f"a\n<!-- x -->\n{text}<!-- end of x -->\nc\n"
    for place in (page, tmp_path / "none.md"):
        with pytest.raises(ValueError, match=r"no place for the tables: write the lines '<!-- y -->' and"):
            Part(place, "y")
