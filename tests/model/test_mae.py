import pytest
import torch
from torch import Tensor, nn

from gcond.model import MaskedAutoencoder
from gcond.model.masking import draw_hidden
from gcond.model.patches import patchify, unpatchify

ALL = [
    "mobilenetv3_small_100",
    "mobilenetv3_small_050",
    "convnext_tiny",
    pytest.param("convnextv2_base", marks=pytest.mark.slow),
]  # not resnet50: timm starts with a gain of 0 at the end of each residual block, behind which gradients begin at 0


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(channels: int = 1, **options: int) -> MaskedAutoencoder:
    return MaskedAutoencoder("mobilenetv3_small_050", 64, 16, channels, width=options.pop("width", 32), **options)


def draw(batch: int, patches: int = 16) -> Tensor:
    return draw_hidden(batch, patches, 0.75, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("patch_size", "channels"), [(16, 1), (32, 3), (8, 1)])
def test_predictions_stand_in_the_order_of_hidden_and_no_random_number_is_drawn(patch_size: int, channels: int) -> None:
    model = MaskedAutoencoder("mobilenetv3_small_050", 64, patch_size, channels, width=32)
    images, hidden = torch.randn(2, channels, 64, 64), draw(2, model.patches)
    state = torch.get_rng_state()
    assert model(images, hidden).shape == (2, hidden.shape[1], channels, patch_size, patch_size)
    assert torch.equal(state, torch.get_rng_state())
    model.eval()
    torch.testing.assert_close(model(images, hidden.flip(1)), model(images, hidden).flip(1))


@pytest.mark.parametrize(
    ("encoder", "channels", "encoder_size", "decoder_size"),  # millions
    [
        # counted at 256 px, patch 32 by a throwaway script that did not use this package
        ("mobilenetv3_small_100", 1, 0.927, 2.008),
        ("mobilenetv3_small_100", 3, 0.927, 2.534),
        ("convnext_tiny", 1, 27.816, 2.057),
        ("convnext_tiny", 3, 27.819, 2.583),
        # torchvision's 25.557 M without the classifier's 2.049 M; 49 x 64 x 2 fewer for one channel. The decoder is
        # MobileNetV3's with a projection from 2048 channels, not 576, to 256.
        ("resnet50", 1, 23.502, 2.384),
        ("resnet50", 3, 23.508, 2.911),
        pytest.param("convnextv2_base", 1, 87.687, 2.122, marks=pytest.mark.slow),
        pytest.param("convnextv2_base", 3, 87.691, 2.649, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts(encoder: str, channels: int, encoder_size: float, decoder_size: float) -> None:
    with torch.device("meta"):
        model = MaskedAutoencoder(encoder, 256, 32, channels)
    sizes = {name: sum(p.numel() for _, p in group) / 1e6 for name, group in model.parameter_groups().items()}
    assert sizes["encoder"] == pytest.approx(encoder_size, abs=5.1e-4)
    assert sizes["body"] + sizes["head"] == pytest.approx(decoder_size, abs=5.1e-4)


def test_parameter_groups_are_a_partition_and_head_is_the_last_layer() -> None:
    model = small(channels=3)
    groups = model.parameter_groups()
    assert list(groups) == ["encoder", "body", "head"]
    ids = [id(p) for group in groups.values() for _, p in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    assert [(name, tuple(p.shape)) for name, p in groups["head"]] == [
        ("head.weight", (3 * 16 * 16, 32)),
        ("head.bias", (3 * 16 * 16,)),
    ]


@pytest.mark.parametrize("encoder", ALL)
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(encoder: str) -> None:
    model = MaskedAutoencoder(encoder, 64, 16, channels=1, width=32)
    model(torch.randn(4, 1, 64, 64), draw(4)).square().mean().backward()
    bad = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert bad == []


@pytest.mark.parametrize("training", [True, False])
def test_hidden_pixels_do_not_reach_the_prediction_and_visible_ones_do(training: bool) -> None:
    model = small().train(training)
    images, hidden = torch.randn(2, 1, 64, 64), draw(2)
    visible = [sorted(set(range(16)) - set(row)) for row in hidden.tolist()]

    def changed(indices: list[list[int]]) -> Tensor:
        patches = patchify(images, 16).clone()
        for image, row in zip(patches, indices, strict=True):
            image[row] = 1e3
        return unpatchify(patches)

    with torch.no_grad():
        predictions = model(images, hidden)
        torch.testing.assert_close(model(changed(hidden.tolist()), hidden), predictions, atol=0, rtol=0)
        assert not torch.allclose(model(changed(visible), hidden), predictions, atol=1e-3)


def test_hidden_positions_carry_the_mask_token_and_their_position() -> None:
    model = small(depth=0).eval()  # without blocks a hidden token sees nothing else
    with torch.no_grad():
        tokens = model.norm(model.mask_token + model.positions[[3, 5]])
        expected = (tokens @ model.head.weight.T + model.head.bias).view(1, 2, 1, 16, 16)
        torch.testing.assert_close(model(torch.randn(1, 1, 64, 64), torch.tensor([[3, 5]])), expected)


def test_visible_tokens_stand_at_the_patch_they_describe() -> None:
    model = small().eval()
    model.encoder = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(1, 24, 1))  # a map that holds each patch's mean
    images, hidden = torch.randn(1, 1, 64, 64), torch.tensor([[5, 9]])
    captured = []
    model.blocks.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0][0]))
    with torch.no_grad():
        model(images, hidden)
        for patch in range(16):
            row, column = divmod(patch, 4)
            mean = images[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].mean().view(1, 1, 1, 1)
            token = model.embed(model.encoder[1](mean).flatten()) if patch not in (5, 9) else model.mask_token
            torch.testing.assert_close(captured[0][patch], token + model.positions[patch])


@pytest.mark.parametrize(
    ("size", "patch", "width", "message"),
    [
        (60, 16, 32, "`image_size` must be a multiple of `patch_size`, found 60 and 16"),
        (64, 16, 30, "`width` must be a multiple of `heads`, found 30 and 8"),
        (64, 64, 32, "`stride` = 64"),
    ],
)
def test_impossible_sizes_are_refused(size: int, patch: int, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedAutoencoder("mobilenetv3_small_050", size, patch, 1, width=width)
