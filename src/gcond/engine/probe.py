"""What a step did to the parameters. Holds a copy of them for one step, so it is taken every n steps only."""

from __future__ import annotations

from torch import Tensor

from gcond.strategy import GradientConductor


class StepProbe:
    """Construct before `optimizer.step()`, `measure` after it."""

    def __init__(self, conductor: GradientConductor) -> None:
        self._conductor = conductor
        self._before = conductor.gradients.flatten()

    def measure(self, learning_rate: float) -> dict[str, float]:
        """Root mean square of the step over the learning rate; cosine of the descent step with `resolved_gradient`."""
        gradients = self._conductor.gradients
        step: Tensor = self._before - gradients.flatten()
        resolved = self._conductor.resolved_gradient
        assert resolved is not None
        square = float(gradients.dot(step, step))
        lengths = (square * float(gradients.dot(resolved, resolved))) ** 0.5
        cosine = float(gradients.dot(step, resolved)) / lengths if lengths > 0 else float("nan")
        return {"step_rms_over_lr": (square / gradients.size) ** 0.5 / learning_rate, "cosine_step_resolved": cosine}
