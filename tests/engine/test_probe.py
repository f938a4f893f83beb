import math

import pytest
import torch
from torch import Tensor, nn

from gcond.engine.trainer import StepProbe
from gcond.strategy import GradientConductor, Joint, Linear, Raw

RATE = 0.5


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, 2.0, 0.0, 0.0]))


@pytest.fixture
def conductor(weight: nn.Parameter) -> GradientConductor:
    """After a step whose resolved gradient is (3, 4, 0, 0), of length 5."""

    def losses(batch: object, tasks: list[str]) -> dict[str, Tensor]:
        values = {"a": 3 * weight[0], "b": 4 * weight[1]}
        return {task: values[task] for task in tasks}

    conductor = GradientConductor([weight], {"a": 1.0, "b": 1.0}, Joint(1), Linear(), Raw())
    conductor.step([None], losses, diagnose=True)
    return conductor


def test_plain_gradient_descent_steps_along_the_gradient(weight: nn.Parameter, conductor: GradientConductor) -> None:
    probe = StepProbe(conductor)
    torch.optim.SGD([weight], lr=RATE).step()
    measured = probe.measure(RATE)
    assert measured["step_rms_over_lr"] == pytest.approx(5 / math.sqrt(4))  # |g| / sqrt(P)
    assert measured["cosine_step_resolved"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("descent", "rms", "cosine"),
    [
        ((4.0, -3.0, 0.0, 0.0), 2.5, 0.0),
        ((-3.0, -4.0, 0.0, 0.0), 2.5, -1.0),
        ((3.0, 0.0, 4.0, 0.0), 2.5, 9 / 25),
        ((1.0, 1.0, 1.0, 1.0), 1.0, 7 / 10),
        ((0.0, 0.0, 0.0, 0.0), 0.0, math.nan),
    ],
)
def test_any_step_by_hand(weight: nn.Parameter, conductor: GradientConductor, descent, rms, cosine) -> None:
    probe = StepProbe(conductor)
    with torch.no_grad():
        weight -= RATE * torch.tensor(descent)
    assert probe.measure(RATE) == pytest.approx(
        {"step_rms_over_lr": rms, "cosine_step_resolved": cosine}, nan_ok=True, abs=1e-7
    )
