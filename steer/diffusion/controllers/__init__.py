"""Controllers: what steers a run."""

from steer.diffusion.controllers.search import Search, best_of_n, code, fk, svdd

__all__ = ["Search", "best_of_n", "code", "fk", "svdd"]
