"""What decoding cost, counted exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """Exact cost of a call.

    tokens           rows x columns that the model has processed, padding and both branches of `cfg` counted
    amateur_tokens   as many of the amateur of `contrastive`
    backward_tokens  rows x columns through which a gradient was taken
    reward_calls     texts scored
    seconds          wall-clock time
    """

    tokens: int = 0
    amateur_tokens: int = 0
    backward_tokens: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def row(self) -> dict[str, float]:
        """A flat dictionary, for result tables."""
        return asdict(self)
