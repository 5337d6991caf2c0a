"""Runs the table of methods."""

import pytest
from cases import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_its_law(name):
    METHODS[name].law(METHODS[name].make)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.oracle])
def test_its_oracle(name):
    METHODS[name].oracle(METHODS[name].make)
