"""What a run cost, counted exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """Exact cost of a run.

    rows           denoiser rows evaluated; with classifier-free guidance each branch is a row
    backward_rows  rows through which a gradient was taken
    decodes        pictures decoded from latents
    reward_calls   pictures scored
    seconds        wall-clock time of the run, without what its caller does between two states
    """

    rows: int = 0
    backward_rows: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def row(self) -> dict[str, float]:
        """A flat dictionary, for result tables."""
        return asdict(self)
