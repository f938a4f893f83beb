"""Encoders from timm, cut at the stage whose stride is asked for."""

import difflib
import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

EXPECTED = (
    "`encoder`: expected a timm network (features_only=True) with a map of one position per patch, no part of which is "
    "idle: of most convolutional families (ConvNeXt, EfficientNet, MobileNet, RegNet, ResNet, …) and vision "
    "transformers (ViT, BEiT, DeiT, Swin, PVT, Hiera, …)"
)


class Encoder(nn.Module):
    """The layers of a timm network up to one feature map: images [B, C, S, S] -> [B, D, S / stride, S / stride].

    `width` is D. The network starts from timm's random initialisation; nothing is downloaded. `arguments` are those of
    timm.create_model that make it.
    """

    def __init__(self, net: nn.Module, arguments: Mapping[str, Any]):
        super().__init__()
        self.net = net
        self.width = net.feature_info.channels()[-1]
        self.arguments = arguments
        self._channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"  # Swin's

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)[-1]
        return features.permute(0, 3, 1, 2) if self._channels_last else features


def build(name: str, channels: int, stride: int, image_size: int) -> Encoder:
    """The timm network `name` for images of `channels` channels, cut behind its last map of this stride.

    Layers behind the cut are removed, so that no parameter exists that never gets a gradient: it would count in memory
    and in the parameter vector, and weight decay would still move it. Only the map of the last kept stage is returned;
    MobileNetV3's conv_head, which timm applies after global pooling, is not part of it.

    A network for images of one size (ViT, Swin) is made for `image_size`. None drops anything in training.

    Raises ValueError for a name that timm does not know, for a stride that the network does not have, and for a network
    that gives no feature map of width D at that stride.
    """
    with not_importable("wandb"):  # timm would import it in case somebody calls its logging
        import timm  # seconds to import, and tables and data preparation do without

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"`encoder` must be the name of a timm model, found {name!r}; similar: {', '.join(close) or '-'}"
        )
    arguments = _arguments(name, channels, stride, image_size)
    net = timm.create_model(**arguments)
    _drop_later_blocks(net)
    for layer in net.modules():  # what draws random numbers in training: a stochastic depth, in Swin for one
        if isinstance(layer, timm.layers.DropPath):
            layer.drop_prob = 0.0
        elif isinstance(layer, nn.Dropout):
            layer.p = 0.0
    if name.startswith("mobilenet"):
        # 1.6 to 1.8 times as fast on a CPU; ConvNeXt gains nothing
        net = net.to(memory_format=torch.channels_last)
    return Encoder(net, arguments)


@functools.cache
def _arguments(name: str, channels: int, stride: int, image_size: int) -> Mapping[str, Any]:
    """Those of timm.create_model, proved on images without content."""
    import timm

    arguments = {"model_name": name, "features_only": True, "in_chans": channels}
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        arguments["img_size"] = image_size
    try:
        with torch.device("meta"), torch.enable_grad():  # no memory, no random numbers
            maps = timm.create_model(**arguments).feature_info
            strides = maps.reduction()
            if stride in strides:
                last = len(strides) - 1 - strides[::-1].index(stride)
                arguments["out_indices"] = (maps.out_indices[last],)
                net = timm.create_model(**arguments)
                _drop_later_blocks(net)
                encoder = Encoder(net.eval(), arguments)
                features = encoder(torch.zeros(1, channels, image_size, image_size))
                features.sum().backward()
    except Exception as error:  # of any kind, from a network that is not made for this
        raise ValueError(f"{EXPECTED}; found {name}, which fails with {type(error).__name__}: {error}") from error
    if stride not in strides:
        raise ValueError(f"`stride` = {stride}: {name} has feature maps at strides {', '.join(map(str, strides))}")
    found, side = list(features.shape), image_size // stride
    if found != [1, encoder.width, side, side]:
        raise ValueError(f"{EXPECTED}; found {name}, whose map is {found} where {side} x {side} patches are")
    if idle := [key for key, parameter in encoder.net.named_parameters() if parameter.grad is None]:
        raise ValueError(
            f"{EXPECTED}; found {name}, whose map does not depend on {len(idle)} of its weights, {idle[0]}"
        )
    return arguments


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
    if stage == "blocks" and hasattr(net, "blocks"):
        net.blocks = net.blocks[: int(index) + 1]
