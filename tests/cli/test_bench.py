"""`steer bench`: equal rows, rows that resume and replay, curves, and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steer import bench
from steer.bench import BASELINE, METHODS, Cell, Entry, cells_of, method, run
from steer.bench.cells import Peak
from steer.bench.prompts import prompts_of
from steer.bench.report import curves_of, goal_of, points_of, reaches
from steer.bench.spec import specs
from steer.bench.tables import ahead_of
from steer.cli import main, record
from steer.diffusion.controllers import best_of_n
from steer.rewards import Compressibility

TOY = ["--models", "toy-normal", "--methods", "code:block=2", "--steps", "4", "--seeds", "2", "--prompts", "2"]
TOY_CELLS = 2 * 5 * 2  # methods, budgets, seeds


def search(out, *more: str) -> list[dict]:
    main(["bench", "search", *TOY, "--out", str(out), *more])
    return record.Rows(out / "results.jsonl").rows


def fails(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *args])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    return out, search(out)


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if not entry.guided])
def test_every_method_spends_what_its_row_says(name):
    """The ledger's rows are the foretold ones, backward rows twice: the most that fit the budget."""
    spec, steps, budget = specs(name)[-1], 11, 60
    row, found = run(Cell("toy-normal", spec, "quadratic", budget, 1.0, steps=steps, prompts=2)), method(spec)
    size = found.size(budget, steps, 1)
    assert row["n"] == size.n
    assert found.rows(size._replace(n=size.n + 1)) > budget >= found.rows(size)
    if name == "rollover":  # how much of its quota it spends depends on the scores
        assert 0.5 * budget < row["cost"] <= found.rows(size)
    else:  # a toy starts from pure noise, where there is no gradient
        assert row["cost"] == found.rows(size) - (2 * size.n if name == "universal-guidance" else 0)


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.guided])
def test_what_is_saved_on_guidance_buys_particles(name):
    spec, budget = specs(name)[0], 30
    row, found = run(Cell("emoji-sd", spec, "sharpness", budget, steps=4, prompts=2)), method(spec)
    size = found.size(budget, 4, 2)
    assert row["n"] == size.n > method("code:block=1").size(budget, 4, 2).n
    assert row["cost"] == 2 * found.rows(size)
    cells, left_out = cells_of(["toy-normal"], [name])
    assert {cell.method for cell in cells} == {BASELINE}
    assert f"{spec} saves on guidance, and toy-normal has none at 1.0" in left_out


def test_the_baseline_is_always_there_and_rows_replay(done):
    rows = done[1]
    assert len(rows) == TOY_CELLS
    assert {row["cell"]["method"] for row in rows} == {BASELINE, "code:block=2"}
    assert {row["cell"]["budget"] for row in rows} == {4, 8, 16, 32, 64}
    assert {"versions", "commit", "controllers", "judge", "divergence", "diversity", "seconds", "peak_mb"} <= set(
        rows[0]
    )
    for row in rows[::7]:
        assert run(Cell(**row["cell"]))["target"] == row["target"]


def test_search_pays(done):
    curves = curves_of(next(iter(points_of(done[1]).values())))
    code, base = (curves[name][-1].target for name in ("code", BASELINE))
    assert code.low > base.high
    assert reaches(curves["code"], goal_of(curves, BASELINE)) < curves[BASELINE][-1].cost


def test_what_is_ahead_is_measured_not_interpolated(done):
    points = next(iter(points_of(done[1]).values()))
    curves = curves_of(points)
    best = max(curves[BASELINE], key=lambda point: point.target.mean)
    first = next(point for point in curves["code"] if point.target.mean >= best.target.mean)
    ours, theirs = ahead_of(points, BASELINE)
    assert (ours["method"], ours["rows"]) == ("code:block=2", f"{first.cost:.0f}")
    assert ours["of the rows"] == f"{first.cost / best.cost:.2f}"
    assert float(ours["of the rows"]) < 1
    difference = (first.judged - best.judged).mean()
    assert ours[f"judge - {BASELINE}"].startswith(f"{difference:.3f} [")
    assert (theirs["method"], theirs["of the rows"], theirs[f"judge - {BASELINE}"]) == (BASELINE, "1.00", "")


def test_a_stopped_suite_goes_on(done, tmp_path, monkeypatch):
    """What is finished is kept as it is, half a line is dropped, and only what is missing is run."""
    lines = (done[0] / "results.jsonl").read_text().splitlines()
    half = lines[-1][: lines[-1].index("}") + 1]  # ends like a whole line
    (tmp_path / "results.jsonl").write_text("\n".join([*lines[:-3], half]))
    ran = []
    monkeypatch.setattr(bench, "run", lambda cell, device: ran.append(cell) or run(cell, device))
    again = search(tmp_path)
    assert len(ran) == 3
    assert [row["target"] for row in again] == [row["target"] for row in done[1]]


def test_a_failed_cell_is_left_for_the_next_run(capsys, tmp_path, monkeypatch):
    def break_one(cell, device):
        if cell.budget == 16 and cell.seed == 1:
            raise RuntimeError("out of luck")
        return run(cell, device)

    monkeypatch.setattr(bench, "run", break_one)
    assert "out of luck" in fails(capsys, "search", *TOY, "--out", str(tmp_path))
    assert len(record.Rows(tmp_path / "results.jsonl").rows) == TOY_CELLS - 2
    monkeypatch.undo()
    assert len(search(tmp_path)) == TOY_CELLS


def test_the_suite_goes_where_it_is_told(tmp_path, monkeypatch):
    seen = []

    def recorded(work, tasks, *how):
        seen.append(how)
        return ((task, work(task)) for task in tasks)

    monkeypatch.setattr(bench, "finished", recorded)
    search(tmp_path / "pool", "--workers", "3")
    search(tmp_path / "cluster", "--ray", "local", "--cpus", "2", "--gpus", "0.5")
    assert seen == [(3, None, 1.0, 0.0), (1, "local", 2.0, 0.5)]


def test_report_draws_and_writes_tables(done, tmp_path):
    from PIL import Image

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- steer bench report -->\nold\n<!-- end of steer bench report -->\nafter\n")
    main(["bench", "report", "--out", str(done[0]), "--into", str(page)])
    for name in ("reward-rows.png", "reward-divergence.png"):
        with Image.open(done[0] / name) as picture:
            assert picture.size[0] > 300
    table = (done[0] / "table.md").read_text()
    assert "| code:block=2 |" in table
    assert f"| {BASELINE} |" in table
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    ahead = table.partition("what reaches best-of-n-ode at its best\n")[2]  # of two tables the page has the second
    assert ahead.count("\n| ") == 4
    assert ahead in text
    assert "largest budget" in table
    assert "largest budget" not in text
    assert "old" not in text


def test_curves_take_the_best_setting_at_each_budget(done):
    def other(row):  # the same method at a setting that is worse on small budgets and better on large ones
        cell = {**row["cell"], "method": "code:block=1"}
        return {**row, "cell": cell, "target": [t + (1 if cell["budget"] > 16 else -1) for t in row["target"]]}

    rows = [row for row in done[1] if row["cell"]["method"] == "code:block=2"]
    points = curves_of(next(iter(points_of([*rows, *map(other, rows)]).values())))["code"]
    assert [p.spec for p in points] == ["code:block=2"] * 3 + ["code:block=1"] * 2
    half = points[0].target.mean / 2 + points[1].target.mean / 2
    assert reaches(points, half) == pytest.approx((points[0].cost * points[1].cost) ** 0.5)
    assert reaches(points, 10.0) is None


def test_on_the_embedded_pipeline(tmp_path, monkeypatch):
    """One method of our own, in one line, beside the baseline: rows counted with both branches of guidance."""
    options = ["--models", "emoji-sd", "--rewards", "sharpness", "--steps", "2", "--prompts", "2", "--seeds", "1"]
    METHODS["mine"] = Entry(lambda reward, size: [best_of_n(reward)])
    try:
        main(
            [
                "bench",
                "search",
                *options,
                "--methods",
                "mine",
                "--budgets",
                "8",
                "--guidance",
                "3",
                "--out",
                str(tmp_path),
            ]
        )
    finally:
        del METHODS["mine"]
    rows = record.Rows(tmp_path / "results.jsonl").rows
    assert [row["cell"]["method"] for row in rows] == [BASELINE, "mine"]
    for row in rows:
        assert (row["n"], row["rows"], row["decodes"], row["reward_calls"]) == (2, 2 * 2 * 2, 2, 2)
        assert {"kid", "divergence", "judge"} <= set(row)
    assert rows[0]["target"] != rows[1]["target"]


def test_gradients_need_a_reward_that_has_one(monkeypatch):
    monkeypatch.setitem(METHODS, "downhill", Entry(lambda reward, size: [best_of_n(reward)], gradient=True))
    cells, left_out = cells_of(["emoji-sd"], ["downhill"], ["sharpness", "compressibility"], guidance=[3.0], seeds=1)
    assert {(cell.method, cell.reward) for cell in cells} == {
        (BASELINE, "sharpness"),
        (BASELINE, "compressibility"),
        ("downhill", "sharpness"),
    }
    assert left_out == ["downhill takes gradients, and compressibility has none"]
    assert not Compressibility().differentiable


def test_a_method_that_does_not_choose_is_told(monkeypatch):
    monkeypatch.setitem(METHODS, "idle", Entry(lambda reward, size: []))
    with pytest.raises(ValueError, match="end with a search"):
        run(Cell("toy-normal", "idle", "quadratic", 8, 1.0, steps=4, prompts=2))


@pytest.mark.parametrize("which", ["names", "held-out-colours", "held-out-pairs"])
def test_prompt_sets(which):
    from steer.zoo.data import held_out_colour, held_out_pair

    prompts = prompts_of(which, 64)
    assert len(set(prompts)) == 64
    if which == "held-out-colours":
        assert all(held_out_colour(*prompt.removeprefix("a ").split(" ", 1)) for prompt in prompts)
    if which == "held-out-pairs":
        between = (" to the left of ", " above ", " and ")
        for prompt in prompts:
            text, word = prompt.split(",")[0], next(word for word in between if word in prompt)
            assert held_out_pair(*text.split(word))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--methods", "cod"], "Did you mean 'code'"),
        (["--methods", "code:blok=2"], "expected the options ['block']"),
        (["--methods", "code:block"], "no option=value"),
        (["--methods", "fk:every=2"], "['beta'] given a value"),
        (["--rewards", "quadratik"], "Did you mean 'quadratic'"),
        (["--models", "toy-norml"], "Did you mean 'toy-normal'"),
        (["--budgets", "3"], "smaller than one trajectory"),
        (["--images", "1"], "2 images"),
        (["--workers", "0"], "at least 1"),
        (["--workers", "2", "--ray", "local"], "beside a cluster"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, tmp_path, args, expected):
    assert expected in fails(capsys, "search", *TOY, "--out", str(tmp_path), *args)


def test_other_bad_input(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails(capsys, "search", *TOY, "--out", str(tmp_path / "file" / "out"))
    assert "steer bench search" in fails(capsys, "report", "--out", str(tmp_path))
    with pytest.raises(ValueError, match="prompt set"):
        prompts_of("nams", 4)
    with pytest.raises(ValueError, match="expected 2 to"):
        prompts_of("names", 1)
    with pytest.raises(ValueError, match="does not pay for one trajectory"):
        run(Cell("toy-normal", "code", "quadratic", 3, 1.0, steps=4))


def test_a_page_without_a_place_for_tables_is_left_alone(capsys, done, tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    assert "no place" in fails(capsys, "report", "--out", str(done[0]), "--into", str(tmp_path / "page.md"))
    assert (tmp_path / "page.md").read_text() == "nothing"


@pytest.mark.parametrize("command", [["bench"], ["bench", "search"], ["bench", "report"]])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "xample" in capsys.readouterr().out


def test_the_peak_is_of_what_came_after(monkeypatch):
    torch.zeros(2**25).fill_(1)  # 134 MB, gone again
    peak = Peak("cpu")
    before = peak.megabytes()
    if before is None:
        pytest.skip("nobody keeps count of memory here")
    torch.zeros(2**24).fill_(1)
    assert 60 < peak.megabytes() - before < 80
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError))
    assert Peak("cpu").megabytes() is None


def test_seeds_are_apart():
    rows = [run(Cell("toy-normal", "svdd", "quadratic", 16, 1.0, seed, steps=4, prompts=2)) for seed in (0, 1)]
    assert rows[0]["target"] != rows[1]["target"]
    assert torch.tensor(rows[0]["target"]).shape == (2,)
