"""Fine-tuning methods as compositions of parts, to compare with steering at equal compute."""

from steer.training.handle import Handle, adapted, own
from steer.training.loop import Run, fit
from steer.training.method import Method, Phase, Task, Tuned, tune

__all__ = ["Handle", "Method", "Phase", "Run", "Task", "Tuned", "adapted", "fit", "own", "tune"]
