"""The table of all methods: what is in it, and what it refuses."""

import inspect
import re

import pytest

from steer.rewards import Colour, Compressibility
from steer.rewards.jpeg import SmoothCompressibility
from steer.training import Method, methods
from steer.training.methods import METHODS, TABLES, followed, method


def test_every_method_of_every_table_is_in_it_once():
    assert sorted(METHODS) == sorted(name for table in TABLES.values() for name in table)
    assert all(METHODS[name].kind == kind for kind, table in TABLES.items() for name in table)


def test_two_methods_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(methods, "TABLES", {"mine": {"lora": METHODS["lora"].make}, **TABLES})
    with pytest.raises(ValueError, match="two methods are called 'lora': of mine and of weights"):
        methods._rows()


@pytest.mark.parametrize("name", METHODS)
def test_a_line_has_a_paper_an_explanation_and_dials_with_defaults(name):
    row = METHODS[name]
    assert re.fullmatch(r"\d{4}\.\d{5}", row.paper)
    assert row.about.endswith(".")
    assert inspect.Parameter.empty not in row.dials.values()
    made = method(name)
    assert isinstance(made, Method)
    assert made.dials == row.dials
    assert sum(phase.share for phase in made.phases) == pytest.approx(1)


def test_the_defaults_are_of_the_types_that_are_asked_for():
    for name, row in METHODS.items():
        method(name, **row.dials)


def test_dials_are_set():
    assert method("draft_k", k=3).dials == {**METHODS["draft_k"].dials, "k": 3}
    assert method("alignprop", target=1).dials["target"] == 1
    assert method("dft", targets=("q_proj",)).dials["targets"] == ("q_proj",)


def test_what_follows_a_gradient_is_given_one_where_there_is_a_stand_in():
    assert followed(method("draft"), Compressibility(60)) == SmoothCompressibility(60)
    assert followed(method("ddpo"), Compressibility(60)) == Compressibility(60)
    assert followed(method("draft"), Colour("red")) == Colour("red")


@pytest.mark.parametrize(
    ("name", "dials", "expected"),
    [
        ("drft", {}, "unknown method 'drft'.*Did you mean .*'draft'"),
        ("draft_k", {"kk": 3}, "unknown dial of draft_k 'kk': expected one of k, batch, .*Did you mean 'k'"),
        ("draft_k", {"k": 1.5}, r"dial k = 1\.5 of draft_k: expected int"),
        ("draft_k", {"k": True}, "expected int"),
        ("alignprop", {"target": "b"}, "expected float or None"),
        ("grpo", {"spread": "grop"}, "expected 'group' or 'batch' or 'none'"),
        ("dft", {"targets": [1]}, "expected several str"),
    ],
)
def test_what_is_not_in_the_table_is_refused(name, dials, expected):
    with pytest.raises(ValueError, match=expected):
        method(name, **dials)
