import pytest

from gcond.engine.trainer import WarmupCosine


def test_warm_up_and_cosine_by_hand() -> None:
    rate = WarmupCosine(peak=1.0, final=0.1, warmup_steps=4, total_steps=12)
    assert [rate(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rate(5) == pytest.approx(0.1 + 0.9 * (1 + 0.5**0.5) / 2)  # a quarter of the way: cos(pi / 4)
    assert rate(7) == pytest.approx(0.55)  # half the way
    assert rate(11) == pytest.approx(0.1)
    assert all(rate(step) > rate(step + 1) for step in range(3, 11))


def test_without_warm_up_the_cosine_starts_at_once() -> None:
    rate = WarmupCosine(peak=1.0, final=0.0, warmup_steps=0, total_steps=2)
    assert [rate(0), rate(1)] == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"final": 2.0}, "scale.final_lr"),
        ({"final": -0.1}, "scale.final_lr"),
        ({"warmup_steps": 12}, "scale.warmup_epochs"),
        ({"warmup_steps": -1}, "scale.warmup_epochs"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(changed: dict, key: str) -> None:
    with pytest.raises(ValueError, match=f"`{key}`"):
        WarmupCosine(**{"peak": 1.0, "final": 0.0, "warmup_steps": 2, "total_steps": 12} | changed)
