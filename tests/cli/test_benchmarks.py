"""The benchmarks run at a small size, resume, and write rows that say what made them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

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
