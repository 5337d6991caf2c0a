"""The benchmark of methods about weights at a small size: it resumes, says why a method did not run, and compares."""

from dataclasses import replace

import pytest
import torch

from benchmarks.weights import SMALL, Weights, main
from benchmarks.weights_checks import Check, Found
from benchmarks.weights_claims import CHECKS
from benchmarks.weights_methods import ENTRIES, missing
from benchmarks.weights_world import PARTS, names, world_of
from steer.cli.record import Rows


def test_methods_are_run_beside_the_model_before(tmp_path):
    """Two phases with a selection between them, and a base that is not in 4 bits."""
    options = {**SMALL, "methods": ("qlora", "lt_sft"), "budget": 100, "out": tmp_path, "results": tmp_path}
    page = tmp_path / "page.md"
    page.write_text("<!-- python -m benchmarks.weights -->\n<!-- end of python -m benchmarks.weights -->\n")
    main(Weights(**options, into=page))
    rows = Rows(tmp_path / "results.jsonl").rows
    base, refused, tuned = rows
    assert [row["method"] for row in rows] == ["base", "qlora", "lt_sft"]
    assert base["changed"] == 0
    assert 0 < tuned["changed"] <= tuned["trained"]
    assert tuned["cost"] == 3 * 8 * tuned["steps"] <= 100
    assert len(base["new"]) == len(tuned["new"]) == len(tuned["known"]) == 4
    assert "4 bits" in refused["failed"] or "bitsandbytes" in refused["failed"]
    assert "not run" in page.read_text()
    model, before = world_of(Weights(**options).size).task.model, world_of(Weights(**options).size).base
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    main(Weights(**options))
    assert Rows(tmp_path / "results.jsonl").rows == rows
    with pytest.raises(ValueError, match="was made with budget"):
        main(replace(Weights(**options), budget=200))


def row(method: str, seed: int = 0, valid: float = 1.0, new: float = 1.0, known: float = 1.0) -> dict:
    """A run with the same losses for all pictures but a little."""
    more = torch.tensor([0.99, 1.0, 1.01]).double()
    return {"method": method, "seed": seed, "valid": [valid], "new": (new * more).tolist(), "known": [known] * 3}


def test_the_best_rate_stands_and_forgetting_is_compared_where_both_learnt_alike():
    rows = [row("base"), row("a", valid=0.9, new=0.8, known=1.1), row("a", valid=0.7, new=0.6, known=1.5)]
    found = Found([*rows, row("b", valid=0.8, new=0.82, known=1.3), {**row("c"), "failed": "no such thing"}])
    assert found.learnt("a").mean() == pytest.approx(40)
    assert found.forgot("a").mean() == pytest.approx(50)
    assert found.forgot("a", like="b").mean() == pytest.approx(10)
    with pytest.raises(ValueError, match="no such thing"):
        found.learnt("c")


def test_a_claim_is_met_if_its_whole_interval_is_on_the_right_side():
    found = Found([row("base")])
    sides = {"clear": [1.0, 1.1, 1.2], "none": [-1.0, 0.0, 1.1], "against": [-1.0, -1.1, -1.2]}
    for below in (False, True):
        met = [Check("a", "", lambda f, v=v: torch.tensor(v), below=below).line(found)["met"] for v in sides.values()]
        assert met == ([False, False, True] if below else [True, False, False])
    line = Check("a", "", lambda f: f.learnt("a")).line(found)
    assert line["met"] is None
    assert "a was not run" in line["note"]


def test_every_row_is_run_but_those_that_a_reward_drives():
    rewarded = {
        "draft",
        "draft_k",
        "draft_lv",
        "alignprop",
        "refl",
        "imagerefl",
        "ddpo",
        "dpok",
        "texforce",
        "prdp",
        "nft",
    }
    assert missing() == rewarded
    compared = {name for name in ENTRIES if " " in name} | {"mezo"}
    assert set(ENTRIES) - compared == {check.method for check in CHECKS} - compared


def test_no_name_is_in_two_parts():
    parts = [set(names(part, 1000)) for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 297 - 4
    assert all(len(part) >= 48 for part in parts)
