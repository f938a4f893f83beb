import pytest
import timm
import torch

from gcond.model import encoders

MOBILE = ["mobilenetv3_small_100", "mobilenetv3_small_050"]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("convnext_tiny", "convnextv2_base", "resnet50")]
FAMILIES = ["beit_base_patch16_224", "davit_tiny", "efficientnet_b0", "ghostnet_100", "hiera_tiny_224"]
FAMILIES += ["mixer_b16_224", "mobilenetv4_conv_small", "pvt_v2_b0", "regnety_002", "swin_tiny_patch4_window7_224"]
FAMILIES += ["vgg11", "vit_tiny_patch16_224"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("stride", "channels"), [(8, 3), (16, 1), (32, 3)])
@pytest.mark.parametrize("name", MOBILE + LARGE)
def test_one_map_at_the_stride_and_no_idle_parameter(name: str, stride: int, channels: int) -> None:
    encoder = encoders.build(name, channels, stride, image_size=64)
    features = encoder(torch.randn(2, channels, 64, 64))
    assert features.shape == (2, encoder.width, 64 // stride, 64 // stride)
    features.square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_timm_that_no_config_names(name: str) -> None:
    """Shapes alone: on the meta device a network costs neither memory nor arithmetic."""
    with torch.device("meta"):
        encoder = encoders.build(name, channels=1, stride=16, image_size=96)
        features = encoder(torch.zeros(2, 1, 96, 96))
    assert features.shape == (2, encoder.width, 6, 6)
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_transformer_gives_the_last_map_of_its_stride_channels_first(name: str) -> None:
    """timm's forward_intermediates gives all maps of the same weights so."""
    torch.manual_seed(0)
    encoder = encoders.build(name, channels=3, stride=16, image_size=64).eval()
    torch.manual_seed(0)
    every = timm.create_model(name, img_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    maps = every.forward_intermediates(images, intermediates_only=True, norm=False)
    expected = [each for each in maps if each.shape[-1] == 4][-1]
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
    state = torch.get_rng_state()
    encoder.train()(images)  # timm's Swin drops residual branches by default
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "why"),
    [("inception_v3", r"\[1, 768, 2, 2\]"), ("pit_ti_224", "54 of its weights")],
)
def test_a_network_without_a_map_of_the_patches_or_with_idle_weights_is_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"`encoder`: .*ConvNeXt.*ViT.*{name}.*{why}"):
        encoders.build(name, channels=1, stride=16, image_size=64)


def test_the_cut_gives_the_values_of_the_whole_network() -> None:
    whole = timm.create_model("mobilenetv3_small_100", features_only=True).eval()
    cut = encoders.build("mobilenetv3_small_100", channels=3, stride=16, image_size=64).eval()
    cut.net.load_state_dict({key: whole.state_dict()[key] for key in cut.net.state_dict()})
    images = torch.randn(2, 3, 64, 64)
    expected = next(features for features in whole(images) if features.shape[-1] == 4)
    torch.testing.assert_close(cut(images), expected, atol=1e-5, rtol=1e-4)


def test_mobilenet_computes_in_channels_last_whatever_the_input() -> None:
    features = encoders.build("mobilenetv3_small_100", 1, 16, 64)(torch.randn(2, 1, 64, 64))
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert features.shape[1] == 48


def test_what_timm_does_not_have_is_refused_with_what_it_has() -> None:
    with pytest.raises(ValueError, match=r"`encoder`.*mobilenetv3_smal.*mobilenetv3_small"):
        encoders.build("mobilenetv3_smal", 3, 16, 64)
    with pytest.raises(ValueError, match=r"`stride` = 64: .* 2, 4, 8, 16, 32"):
        encoders.build("mobilenetv3_small_100", 3, 64, 64)
