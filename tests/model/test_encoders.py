import pytest
import timm
import torch

from gcond.model import encoders

MOBILE = ["mobilenetv3_small_100", "mobilenetv3_small_050"]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("convnext_tiny", "convnextv2_base", "resnet50")]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("stride", "channels"), [(8, 3), (16, 1), (32, 3)])
@pytest.mark.parametrize("name", MOBILE + LARGE)
def test_one_map_at_the_stride_and_no_idle_parameter(name: str, stride: int, channels: int) -> None:
    encoder = encoders.build(name, channels, stride)
    features = encoder(torch.randn(2, channels, 64, 64))
    assert features.shape == (2, encoder.width, 64 // stride, 64 // stride)
    features.square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


def test_the_cut_gives_the_values_of_the_whole_network() -> None:
    whole = timm.create_model("mobilenetv3_small_100", features_only=True).eval()
    cut = encoders.build("mobilenetv3_small_100", channels=3, stride=16).eval()
    cut.net.load_state_dict({key: whole.state_dict()[key] for key in cut.net.state_dict()})
    images = torch.randn(2, 3, 64, 64)
    expected = next(features for features in whole(images) if features.shape[-1] == 4)
    torch.testing.assert_close(cut(images), expected, atol=1e-5, rtol=1e-4)


def test_mobilenet_computes_in_channels_last_whatever_the_input() -> None:
    features = encoders.build("mobilenetv3_small_100", channels=1, stride=16)(torch.randn(2, 1, 64, 64))
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert features.shape[1] == 48


def test_what_timm_does_not_have_is_refused_with_what_it_has() -> None:
    with pytest.raises(ValueError, match=r"`encoder`.*mobilenetv3_smal.*mobilenetv3_small"):
        encoders.build("mobilenetv3_smal", channels=3, stride=16)
    with pytest.raises(ValueError, match=r"`stride` = 64: .* 2, 4, 8, 16, 32"):
        encoders.build("mobilenetv3_small_100", channels=3, stride=64)
