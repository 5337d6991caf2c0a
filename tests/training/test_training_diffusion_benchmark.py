"""The benchmark of tuning runs at a small size, resumes, and refuses rows of other options."""

from dataclasses import replace

import pytest

from benchmarks.tune import SMALL, Tune, main, sampled
from benchmarks.tune_runs import names
from steer.cli.record import Rows


def test_a_tuned_model_is_measured_beside_the_one_before(tmp_path):
    options = {**SMALL, "methods": ("draft_lv",), "budget": 10, "out": tmp_path, "results": tmp_path}
    main(Tune(**options))
    rows = Rows(tmp_path / "results.jsonl").rows
    assert [row["method"] for row in rows] == ["base", "draft_lv"]
    base, tuned = rows
    assert base["cost"] == 0
    assert tuned["cost"] == tuned["rows"] + 2 * tuned["backward_rows"] >= 10
    assert tuned["drift"] > 0
    for how in sampled(Tune(**options)):
        assert len(tuned[how]["reward"]) == len(tuned[how]["judge"]) == len(tuned[how]["diversity"]) == 2
    assert sampled(Tune(guidance=3.0)) == ("guided", "unguided")
    main(Tune(**options))
    assert Rows(tmp_path / "results.jsonl").rows == rows
    with pytest.raises(ValueError, match="was made with budget"):
        main(replace(Tune(**options), budget=20))


def test_no_name_is_in_both_halves():
    assert not set(names(True)) & set(names(False))
    assert len(names(True)) >= 64
