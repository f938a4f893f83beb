import pytest
from engine.runs import config

from gcond.engine.settings import Settings


def test_an_epoch_is_what_the_scale_says_or_one_pass_without_the_incomplete_window() -> None:
    one_pass = Settings(config("scale=smoke", "scale.steps_per_epoch=null"))  # windows of 2 x 2 images
    assert [one_pass.steps_per_epoch(images) for images in (4, 7, 8, 13)] == [1, 1, 2, 3]
    with pytest.raises(ValueError, match=r"`scale.steps_per_epoch`: .*3 images do not fill a window of 4"):
        one_pass.steps_per_epoch(3)
    assert Settings(config("scale=smoke", "scale.steps_per_epoch=5")).steps_per_epoch(3) == 5


@pytest.mark.parametrize(("strategy", "peak"), [("baseline", 2e-4), ("gcond_lion", 1e-5)])  # the paper's Table 5
def test_the_paper_schedule(strategy: str, peak: float) -> None:
    rate = Settings(config("scale=paper", f"strategy={strategy}")).schedule(steps_per_epoch=100)
    assert rate(199) == pytest.approx(peak)  # the end of 2 epochs of warm-up
    assert rate(198) == pytest.approx(peak * 199 / 200)
    assert rate(849) == pytest.approx((peak + 1e-6) / 2)  # half of the remaining 13
    assert rate(1499) == pytest.approx(1e-6)  # the last step of 15


def test_patches_follow_from_the_sizes() -> None:
    assert Settings(config("scale=paper")).patches == 64
    assert Settings(config("scale=smoke", "scale.patch_size=32")).patches == 4
