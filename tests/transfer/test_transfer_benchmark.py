"""The benchmark of style transfer runs all of its checks, and does none of them twice."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from steer import zoo
from steer.transfer import AdaIN
from steer.transfer.losses import gram_distance
from steer.zoo.build import transfer as build
from steer.zoo.data import glyphs


@pytest.fixture
def benchmarks(monkeypatch):
    """The modules transfer, transfer_trained and pairs of the folder of benchmarks, which is not installed."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return [importlib.import_module(f"benchmarks.{name}") for name in ("transfer", "transfer_trained", "pairs")]


@pytest.fixture
def untrained(monkeypatch, benchmarks):
    """Networks with random weights in the place of those that ship, and little work."""
    torch.manual_seed(0)
    net = AdaIN((8, 8, 16)).eval().requires_grad_(False)
    monkeypatch.setattr(zoo, "adain_net", lambda: net)
    for module in (build, benchmarks[1]):
        monkeypatch.setattr(module, "PAIRS", 2)
    pictures, names, styles = glyphs()
    for module in benchmarks:
        monkeypatch.setattr(module, "glyphs", lambda: (pictures[:, :40], names[:40], styles))
    return benchmarks[0]


def test_it_runs_and_resumes(untrained, tmp_path, monkeypatch):
    bench = untrained
    options = bench.Transfer(pairs=3, seeds=2, steps=1, prediction_steps=1, out=tmp_path, results=tmp_path)
    bench.main(options)
    table = json.loads((tmp_path / "transfer.json").read_text())["table"]
    assert {line["check"].split()[0] for line in table} == {"AdaIN", "region", "prediction", "norm"}
    exact = {line["what"]: line for line in table}
    assert exact["values outside that changed"]["value"] == 0
    assert exact["a mask of ones against none, within 1e-5"]["passed"]
    monkeypatch.setattr(bench, "check_adain", None)
    bench.main(options)
    assert json.loads((tmp_path / "transfer.json").read_text())["table"] == table


def test_unknown_checks_are_told_what_there_is(benchmarks, tmp_path):
    bench = benchmarks[0]
    with pytest.raises(ValueError, match="expected some of"):
        bench.main(bench.Transfer(checks=("adane",), out=tmp_path, results=tmp_path))


def test_pairs_differ_in_name_and_style(benchmarks):
    bench = benchmarks[2]
    pairs = bench.pairs_of(50)
    assert (pairs.which != pairs.wanted).all()
    assert torch.equal(bench.pairs_of(50).which, pairs.which)


def test_a_matte_lies_where_the_left_object_does(benchmarks):
    pairs = benchmarks[2].pairs_of(2)
    mask = benchmarks[0].matte(pairs.content[0])
    assert mask[..., 32:].sum() == 0
    assert 0 < mask[..., :32].mean() < 1


def test_the_nearest_picture_has_the_least_gram_distance(benchmarks):
    torch.manual_seed(0)
    encoder = AdaIN((8, 8, 16)).encoder.requires_grad_(False)
    wanted, among = torch.rand(2, 3, 16, 16), torch.rand(5, 3, 16, 16)
    found = benchmarks[1].nearest(encoder, wanted, among)
    for picture, chosen in zip(wanted, found):
        apart = gram_distance(encoder(among), [f.expand(5, -1, -1, -1) for f in encoder(picture[None])])
        assert torch.equal(chosen, among[apart.argmin()])
