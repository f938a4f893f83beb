"""Convolutional encoders from timm, cut at the stage whose stride is asked for."""

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """The layers of a timm network up to one feature map: images [B, C, S, S] -> [B, D, S / stride, S / stride].

    `width` is D. The network starts from timm's random initialisation; nothing is downloaded.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.width = net.feature_info.channels()[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[-1]


def build(name: str, channels: int, stride: int) -> Encoder:
    """The timm network `name` for images of `channels` channels, cut where its stride is `stride`.

    Layers behind the cut are removed, so that no parameter exists that never gets a gradient: it would count in memory
    and in the parameter vector, and weight decay would still move it. Only the map of the last kept stage is returned;
    MobileNetV3's conv_head, which timm applies after global pooling, is not part of it.

    Tested with mobilenetv3_small_100, mobilenetv3_small_050, convnext_tiny, convnextv2_atto, convnextv2_base and
    resnet50 at strides 8, 16 and 32.
    Raises ValueError for a name that timm does not know and for a stride that the network does not have.
    """
    with not_importable("wandb"):  # timm would import it in case somebody calls its logging
        import timm  # seconds to import, and tables and data preparation do without

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"`encoder` must be the name of a timm model, found {name!r}; similar: {', '.join(close) or '-'}"
        )
    with torch.device("meta"):  # no memory, no random numbers
        strides = timm.create_model(name, pretrained=False, features_only=True).feature_info.reduction()
    if stride not in strides:
        raise ValueError(f"`stride` = {stride}: {name} has feature maps at strides {', '.join(map(str, strides))}")
    net = timm.create_model(
        name, pretrained=False, features_only=True, out_indices=(strides.index(stride),), in_chans=channels
    )
    _drop_later_blocks(net)
    if name.startswith("mobilenet"):
        # 1.6 to 1.8 times as fast on a CPU; ConvNeXt gains nothing
        net = net.to(memory_format=torch.channels_last)
    return Encoder(net)


@contextmanager
def not_importable(package: str) -> Iterator[None]:
    """Inside, importing `package` raises ImportError, as if it were not installed; unless it has been imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def _drop_later_blocks(net: nn.Module) -> None:
    """timm prunes ConvNeXt to the stage asked for, but builds and computes all stages of the MobileNet family."""
    stage, _, index = net.feature_info.module_name()[-1].partition(".")
    if stage == "blocks":
        net.blocks = net.blocks[: int(index) + 1]
