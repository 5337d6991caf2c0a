"""The benchmarks run at a small size, resume, and write rows that say what made them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from steer.cli.record import Rows

ROOT = Path(__file__).parents[2]


def bench(name: str, *options: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def place(page: Path, name: str) -> Path:
    """A page with an empty place for the table of a benchmark."""
    page.write_text(f"before\n<!-- python -m benchmarks.{name} -->\n<!-- end of python -m benchmarks.{name} -->\n")
    return page


def test_code_compares_at_equal_rows_and_resumes(tmp_path, monkeypatch):
    options = ["--prompts", "3", "--seeds", "2", "--n", "2", "--steps", "2", "--block", "1", "--out", str(tmp_path)]
    options += ["--results", str(tmp_path)]
    bench("code", *options)
    found = tmp_path / "results.jsonl"
    rows = Rows(found).rows
    assert len(rows) == 3 * 2 * 3 * 2  # prompts, seeds, methods, rewards
    assert {row["rows"] for row in rows} == {2 * 2 * 2}  # branches, n, steps
    first = json.loads((tmp_path / "code.json").read_text())["table"]
    assert {(entry["reward"], entry["method"]) for entry in first} == {(row["reward"], row["method"]) for row in rows}
    for entry in first:
        mean, low, high = entry["target - plain"]
        assert low <= mean <= high
        assert entry["method"] != "plain" or mean == low == high == 0
    found.write_bytes(found.read_bytes()[:-3000])  # as a killed run leaves it, in the middle of the second seed
    kept = Rows(found).rows
    assert len(rows) / 2 < len(kept) < len(rows)
    bench("code", *options, "--into", str(place(tmp_path / "page.md", "code")))
    again = Rows(found).rows
    assert again[: len(kept)] == kept
    assert [(row["prompt"], row["target"]) for row in again] == [(row["prompt"], row["target"]) for row in rows]
    second = json.loads((tmp_path / "code.json").read_text())["table"]
    assert [entry["judge"] for entry in second] == [entry["judge"] for entry in first]
    assert (tmp_path / "page.md").read_text().count("\n| ") == 2 + len(first)
    monkeypatch.syspath_prepend(ROOT)
    code = import_module("benchmarks.code")
    with pytest.raises(ValueError, match=r"was made with n \{2\}"):
        code.fill(code.Code(prompts=3, seeds=2, n=3, steps=2, block=1), [], Rows(found))


def test_overhead_is_a_ratio_of_alternating_runs(tmp_path):
    said = bench("overhead", "--n", "2", "--steps", "5", "--rounds", "2", "--results", str(tmp_path))
    found = json.loads((tmp_path / "overhead.json").read_text())
    assert f"{found['ratio']:.3f}" in said
    assert found["ratio"] > 0.3


def test_order_makes_the_same_choices_for_fewer_rows(tmp_path):
    page = place(tmp_path / "page.md", "order")
    options = ["--n", "2", "--steps", "4", "--blocks", "1", "--rounds", "2", "--results", str(tmp_path)]
    bench("order", *options, "--into", str(page))
    table = json.loads((tmp_path / "order.json").read_text())["table"]
    assert [line["reward"] for line in table] == ["darkness of x0", "compressibility"]
    for line in table:
        assert line["same choices"]
        assert line["rows"] == [2 * (2 * 3 + 1), 2 * 2 * (4 + 3)]
        assert line["ratio"] > 0.3
        assert f"| {line['reward']} | 1 | yes | [14, 28] | {line['ratio']:.4g} | [" in page.read_text()


def test_chunks_make_the_same_choices(tmp_path):
    bench(
        *("chunks", "--n", "4", "--chunks", "1", "4", "--steps", "3", "--block", "1", "--rounds", "1"),
        *("--results", str(tmp_path)),
    )
    table = json.loads((tmp_path / "chunks.json").read_text())["table"]
    assert [line["chunk"] for line in table] == [1, 4]
    assert all(line["same choices"] and line["pixels differ by"] < 1e-4 for line in table)
    assert all(line["rows a second"] > 0 for line in table)


def test_maps_are_held_against_mattes_and_controls(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    maps, page = import_module("benchmarks.maps"), place(tmp_path / "page.md", "maps")
    maps.main(maps.Maps(names=8, styles=2, steps=2, results=tmp_path, into=page))
    found = json.loads((tmp_path / "maps.json").read_text())
    assert [(line["side"], line["step"]) for line in found["table"]] == [
        (side, step) for side in ("16", "8", "4", "2", "all") for step in (0, 1)
    ]
    for line in found["table"]:
        mean, low, high = line["noun"]
        assert 0 <= low <= mean <= high <= 1
        assert line["noun - everything"][0] == pytest.approx(mean - line["everything"], abs=1e-6)
        assert 0 <= line["order, noun"] <= 1
    assert found["best"] in found["table"]
    assert page.read_text().count("\n| ") == 2 + len(found["table"])
    with pytest.raises(ValueError, match="expected 4 to 297 names"):
        maps.items_of(maps.Maps(names=2))


def test_a_map_that_is_its_matte_is_right_and_the_opposite_is_wrong(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    maps = import_module("benchmarks.maps")
    mattes = torch.zeros(1, 4, 4, dtype=torch.bool)
    mattes[:, 1:3, 1:3] = True
    heat = 0.2 + 0.1 * mattes.float()
    every = maps.ious(torch.cat([heat, -heat]), mattes)  # (thresholds, 2)
    assert every.max(0).values.tolist() == pytest.approx([1.0, 4 / 16])  # the opposite does best as everything
    assert every[0].tolist() == pytest.approx([4 / 16, 4 / 16])
    both = mattes.expand(3, -1, -1)
    assert maps.order(torch.cat([heat, -heat, 0 * heat]), both).tolist() == [1.0, 0.0, 0.5]
    assert maps.order(heat, ~mattes | True).isnan().all()  # nothing lies outside


def test_edits_are_held_against_what_one_would_do_without(tmp_path):
    page = place(tmp_path / "page.md", "edit")
    bench("edit", "--pictures", "2", "--steps", "2", "--results", str(tmp_path), "--into", str(page))
    table = json.loads((tmp_path / "edit.json").read_text())["table"]
    assert {line["check"] for line in table} == {"edits", "holes", "avoided"}
    for line in table:
        mean, low, high = line["value"]
        assert low - 1e-6 <= mean <= high + 1e-6
        reference = line["method"] in ("resample", "mean colour", "negative prompt")
        assert not reference or line["minus the other's"] == [0, 0, 0]
    rows = {(line["check"], line["method"]): line["value"][0] for line in table if line["measure"] == "rows"}
    assert rows["edits", "resample"] == rows["holes", "noise"] == rows["avoided", "plain"] == 2 * 2
    assert rows["edits", "plug-and-play"] == 2 * 2 * 2
    assert rows["holes", "patch swap"] == 2 * 1  # the first step is the fill's
    assert page.read_text().count("\n| ") == 2 + len(table)
    assert all((tmp_path / f"edit-{check}.png").stat().st_size > 0 for check in ("edits", "holes", "avoided"))


def test_style_measures_every_method_and_resumes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    style = import_module("benchmarks.style")
    options = style.Style(pairs=2, steps=2, dials=(1.0,), repeats=0, memory=False, out=tmp_path, results=tmp_path)
    style.main(options)
    rows = Rows(tmp_path / "results.jsonl").rows
    assert len(rows) == 2 * (10 * 2 + 2 + 1)  # methods at two settings, truth and content, inversions
    first = json.loads((tmp_path / "style.json").read_text())
    full = {line["method"]: line for line in first["full"]}
    assert full["content"]["content"] == pytest.approx(1)
    assert full["styleid .75"]["rows"] == 1 + 3  # the noisiest step is without references
    assert full["styleid .75, prompt"]["rows"] == 2 * full["styleid .75"]["rows"]
    assert {line["content"] for line in first["equal"]} == {0.5, 0.65, 0.8}
    assert (tmp_path / "style.png").stat().st_size > 10_000
    style.main(options)
    assert Rows(tmp_path / "results.jsonl").rows == rows
    with pytest.raises(ValueError, match="was made with steps = 2"):
        style.main(replace(options, steps=3))
    with pytest.raises(ValueError, match="expected 2 to"):
        style.pairs_of(1)


def test_memory_of_style_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    found = import_module("benchmarks.style_memory").measured((32, 32, 64, 64), 16)
    # four sites in up blocks 2 and 3: two of 64 tokens and two of 256, 32 wide; queries, keys and values; 50 steps
    assert found["stored_mb"] == pytest.approx(50 * 3 * 4 * 32 * 2 * (64 + 256) / 1e6)
    if found["plain_mb"] is not None:
        assert found["above_mb"] == found["styleid_mb"] - found["plain_mb"]


def test_dials_are_compared_where_they_keep_as_much(monkeypatch):
    """Two methods on one straight line are equal at equal content, however far their dials go."""
    monkeypatch.syspath_prepend(ROOT)
    dials = import_module("benchmarks.dials")
    lines = {"strong": (0.0, 0.9), "weak": (0.0, 0.2, 0.4), "better": (0.0, 0.5)}
    rows = [
        {"method": method, "dial": dial, "name": str(k), "content": 1 - dial - 0.01 * k, "style": dial + 0.1 * k}
        for method, settings in lines.items()
        for dial in settings
        for k in range(4)
    ]
    rows = [row | {"style": row["style"] + 0.3 * (row["method"] == "better") * row["dial"]} for row in rows]
    curves = dials.Curves.of(rows, ("style",))
    assert curves.ahead("strong", "weak", "style", 0.7) == pytest.approx([0, 0, 0])
    mean, low, high = curves.ahead("better", "weak", "style", 0.7)
    assert mean == pytest.approx(0.3 * (1 - 0.7 - 0.015))
    assert low <= mean <= high
    assert curves.ahead("strong", "weak", "style", 0.3) is None
    assert curves.difference("strong", "better", "style") == pytest.approx([0.9 - 0.65] * 3)
