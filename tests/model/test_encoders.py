import pytest
import timm
import torch

from gcond.model import encoders

NAMED = ["mobilenetv3_small_100", "mobilenetv3_small_050", "convnext_tiny", "convnextv2_base", "resnet50"]
FAMILIES = ["beit_base_patch16_224", "davit_tiny", "efficientnet_b0", "ghostnet_100", "hiera_tiny_224"]
FAMILIES += ["mixer_b16_224", "mobilenetv4_conv_small", "pvt_v2_b0", "regnety_002", "swin_tiny_patch4_window7_224"]
FAMILIES += ["vgg11", "vit_tiny_patch16_224"]  # which no config names


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        *((name, 16, 1) for name in FAMILIES),
        *((name, *shape) for name in NAMED[:2] for shape in ((8, 3), (16, 1), (32, 3))),
        *(pytest.param(name, *shape, marks=pytest.mark.slow) for name in NAMED[2:] for shape in ((8, 3), (32, 1))),
    ],
)
def test_one_map_at_the_stride_and_no_idle_parameter(name: str, stride: int, channels: int) -> None:
    """On the meta device a network costs neither memory nor arithmetic."""
    with torch.device("meta"):
        encoder = encoders.build(name, channels, stride, image_size=96)
        features = encoder(torch.zeros(2, channels, 96, 96))
    assert features.shape == (2, encoder.width, 96 // stride, 96 // stride)
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


@pytest.mark.parametrize(("name", "why"), [("inception_v3", r"\[1, 768, 2, 2\]"), ("pit_ti_224", "54 of its weights")])
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
