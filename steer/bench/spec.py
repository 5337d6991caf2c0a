"""Methods by specification, "name:option=value,option=value": what a suite lists and a row is replayed from."""

from __future__ import annotations

import ast
import inspect
from typing import Any, NamedTuple

from steer.bench.methods import METHODS, Entry, Size
from steer.bench.problem import Found, Problem
from steer.diffusion.control import Controller
from steer.rewards.border import unknown


class Method(NamedTuple):
    """A method with its options, read from a specification."""

    name: str
    entry: Entry
    options: dict[str, Any]

    def rows(self, size: Size) -> float:
        """Denoiser rows for a picture in each branch of guidance."""
        asked = inspect.signature(self.entry.rows).parameters
        return self.entry.rows(size, **{name: value for name, value in self.options.items() if name in asked})

    def size(self, budget: int, steps: int, branches: int) -> Size:
        """The most particles that a budget for a picture pays for; n = 0 if not for one."""
        n = 0
        while branches * self.rows(Size(n + 1, steps)) <= budget:
            n += 1
        return Size(n, steps)

    def solve(self, problem: Problem, reward: Any, size: Size) -> Found:
        """Run it."""
        if self.entry.drive is not None:
            return self.entry.drive(problem, reward, size, **self.options)
        return problem.solve(self.controllers(reward, size), size.n, self.entry.eta)

    def controllers(self, reward: Any, size: Size) -> list[Controller]:
        """Its controllers; none for a method that is no controller."""
        return [] if self.entry.make is None else list(self.entry.make(reward, size, **self.options))


def method(spec: str) -> Method:
    """Read "name" or "name:option=value,option=value"; values are Python literals.

    Raises ValueError for an unknown name or option, with what there is, and for an option that is missing.
    """
    name, options = parts(spec)
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    entry = METHODS[name]
    first = 2 if entry.drive is None else 3
    known = list(inspect.signature(entry.drive or entry.make).parameters.values())[first:]
    missing = [p.name for p in known if p.default is p.empty and p.name not in options]
    if missing or not set(options) <= {p.name for p in known}:
        expected = f"the options {[p.name for p in known]}" if known else "no options"
        raise ValueError(f"method {spec!r}: expected {expected}{f', {missing} given a value' if missing else ''}.")
    return Method(name, entry, options)


def parts(spec: str) -> tuple[str, dict[str, Any]]:
    """A specification's name, and its options as Python literals. Raises ValueError for what is no option=value."""
    name, _, rest = spec.partition(":")
    return name, dict(_option(spec, part) for part in rest.split(",") if part)


def specs(name: str) -> list[str]:
    """The specifications that a suite tries for a name: itself if it says its options, else all its settings."""
    if ":" in name or name not in METHODS:
        return [name]
    return [f"{name}:{setting}" if setting else name for setting in METHODS[name].settings]


def _option(spec: str, part: str) -> tuple[str, Any]:
    key, _, value = part.partition("=")
    try:
        return key.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"method {spec!r}: {part!r} is no option=value, as in code:block=5.") from error
