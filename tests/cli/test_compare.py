"""`steer bench compare`: the arithmetic of the break-even, and the whole command on few and short runs."""

import math

import pytest
import torch

from steer.bench.breakeven import Tuned, at_equal_rows, break_even, envelope, quality, steered_at, tuned_of
from steer.bench.report import Point
from steer.bench.tuned import training_method, tuned_rows
from steer.bench.worlds import world_of
from steer.cli import main, record
from steer.cli.running import device_of
from steer.measure import Interval
from steer.training import Run
from steer.zoo import load
from steer.zoo.data import seen


def point(cost: float, target: float, spec: str = "code:block=5", judge: float = 0.5) -> Point:
    one = Interval(0.1, 0.1, 0.1)
    same = {"judge": one, "diversity": one, "divergence": one, "kid": None, "rows": cost, "decodes": 1, "seconds": 1}
    judged = torch.full((3, 2), judge)
    return Point(
        spec,
        round(cost),
        2,
        Interval(target, target, target),
        cost=cost,
        reward_calls=1,
        peak_mb=None,
        judged=judged,
        **same,
    )


STEERED = [point(40, 1.0, "best-of-n-ode"), point(80, 2.0), point(160, 1.5, "svdd"), point(320, 4.0), point(320, 3.0)]


def test_what_a_cheaper_point_equals_is_left_out():
    assert [(p.cost, p.target.mean) for p in envelope(STEERED)] == [(40, 1.0), (80, 2.0), (320, 4.0)]
    assert steered_at(STEERED, 319).cost == 80
    assert steered_at(STEERED, 320).cost == 320
    assert steered_at(STEERED, 39) is None


def test_training_is_shared_by_all_pictures():
    tuned = Tuned(point(40, 2.0), training=8000)
    assert [tuned.cost(k) for k in (1, 100, 10_000)] == [8040, 120, 40.8]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (2.0, 8000 / (80 - 40)),
        (3.0, 8000 / (160 - 40)),  # half way in reward is half way in log rows: sqrt(80 * 320)
        (1.0, math.inf),
        (0.5, math.inf),
        (4.1, None),
    ],
)
def test_the_break_even_is_the_training_over_what_a_picture_saves(target, expected):
    found = break_even(Tuned(point(40, target), 8000), STEERED)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_tables_say_who_is_ahead_at_each_number_of_pictures():
    tuned = [Tuned(point(40, 2.0, "draft", judge=0.3), 8000)]
    lines = at_equal_rows(tuned, STEERED)
    assert [line["rows"] for line in lines] == ["8040", "120", "41"]
    assert [line["steered"] for line in lines] == ["4.000", "2.000", "1.000"]
    assert lines[1]["by"] == "code:block=5, 80 rows"
    *steered, draft = quality(tuned, STEERED)
    assert [line["rows"] for line in steered] == ["40", "80", "320"]
    assert draft["pays from"] == "200"
    assert draft["forgetting"].startswith("0.200")
    assert steered[0]["forgetting"].startswith("0.000")


def test_only_methods_for_pictures_are_trained():
    assert training_method("draft_k:k=3").dials["k"] == 3
    with pytest.raises(ValueError, match="dft is no method for diffusion models"):
        training_method("dft")
    with pytest.raises(ValueError, match="no option=value"):
        training_method("draft_k:k")


def test_the_command_trains_once_and_leaves_the_pipeline_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("steer.bench.worlds._real", lambda: seen(4)[0])  # of which many take long
    monkeypatch.setattr("steer.bench.tuned.REAL", 4)
    args = ["bench", "compare", "--tuned", "draft_k:k=1,batch=2,lr=0.01", "--on-top", "code:block=1", "--seeds", "1"]
    args += ["--methods", "best-of-n-ode", "--budgets", "4", "8", "--steps", "2", "--prompts", "2"]
    args += ["--training-steps", "2"]
    main([*args, "--out", str(tmp_path)])
    rows = record.Rows(tmp_path / "tuned.jsonl").rows
    assert [row["cell"]["method"] for row in rows] == ["best-of-n-ode", "code:block=1"]
    assert rows[0]["training"]["cost"] > 0
    assert rows[0]["training"]["dials"]["k"] == 1
    plain = [row for row in record.Rows(tmp_path / "results.jsonl").rows if row["cell"]["budget"] == 4]
    assert rows[0]["target"] != plain[0]["target"]
    assert {"break-even.png", "break-even.md"} <= {path.name for path in tmp_path.iterdir()}
    before = [(tmp_path / name).read_bytes() for name in ("tuned.jsonl", "results.jsonl")]
    main([*args, "--out", str(tmp_path)])
    main([*args, "--report", "--out", str(tmp_path)])
    assert [(tmp_path / name).read_bytes() for name in ("tuned.jsonl", "results.jsonl")] == before
    assert "pays from" in (tmp_path / "break-even.md").read_text()
    unet, fresh = world_of("emoji-sd", "float32", device_of(None)).pipe.unet, load("emoji-sd").unet
    assert all(torch.equal(one.cpu(), other) for one, other in zip(unet.parameters(), fresh.parameters(), strict=True))
    (panel,) = tuned_of(rows)
    assert panel.reward == "colour:red"


def test_nothing_to_compare_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "compare", "--report", "--out", str(tmp_path)])
    assert "no steered and tuned rows" in " ".join(capsys.readouterr().err.split())


def test_cells_that_differ_in_more_than_how_they_are_sampled_are_refused():
    from steer.bench import Cell

    cells = [Cell("emoji-sd", "best-of-n-ode", name, 4, steps=2, prompts=2) for name in ("clip", "colour:red")]
    with pytest.raises(ValueError, match="differ in method and budget alone"):
        tuned_rows("draft_k", cells, Run(steps=1))
