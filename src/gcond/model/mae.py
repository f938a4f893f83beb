"""Masked autoencoder: an encoder from timm and a small Transformer decoder (He et al., arXiv:2111.06377).

B batch, C channels, S image size, p patch size, N = (S / p)^2 patches, H hidden patches, D width.
"""

import torch
from torch import Tensor, nn

from gcond.model import encoders
from gcond.model.patches import blank, hidden_mask, select


class MaskedAutoencoder(nn.Module):
    """Predicts the pixels of the hidden patches from the visible ones.

    Hidden patches of the input are set to 0, the data set's mean in z-space; the encoder's map, one position per patch,
    goes through a linear layer; tokens at hidden positions give way to a learned mask token; learned positions, `depth`
    pre-norm Transformer blocks and a linear layer to pixels follow. The paper's model has width 256 and depth 2.

    No content of a hidden patch reaches the prediction, but the *place* of the hidden patches does: convolutions,
    squeeze-and-excitation (means over the whole map) and BatchNorm (statistics over whole images) see the zeros, and
    through them the visible features depend on the mask. So it is with timm's ViT, which attends to blank patches; that
    of He et al., which drops hidden patches, has no such dependence. It is the same for every strategy.

    With `classes`, a linear layer on the mean of the encoder's map gives logits; without it there is no such layer.

    Nothing here draws random numbers at `forward`: the mask is an argument, and there is no dropout.
    """

    def __init__(
        self,
        encoder: str,
        image_size: int,
        patch_size: int,
        channels: int,
        width: int = 256,
        depth: int = 2,
        heads: int = 8,
        classes: int | None = None,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"`image_size` must be a multiple of `patch_size`, found {image_size} and {patch_size}")
        if width % heads:
            raise ValueError(f"`width` must be a multiple of `heads`, found {width} and {heads}")
        with encoders.not_importable("wandb"):  # as in encoders.build, which comes too late
            from timm.models.vision_transformer import Block  # seconds to import

        self.patch_size = patch_size
        self.channels = channels
        self.patches = (image_size // patch_size) ** 2

        self.encoder = encoders.build(encoder, channels, stride=patch_size, image_size=image_size)
        self.embed = nn.Linear(self.encoder.width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.positions = nn.Parameter(torch.randn(self.patches, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio=4, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, channels * patch_size**2)
        self.classifier = nn.Linear(self.encoder.width, classes) if classes else None  # last: the rest starts the same

    def forward(self, images: Tensor, hidden: Tensor, classify: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Images [B, C, S, S] and indices `hidden` [B, H] (row-major) -> predictions [B, H, C, p, p].

        Both in z-space. Predictions stand in the order of `hidden`. With `classify`, logits [B, classes] come second.
        """
        mask = hidden_mask(hidden, self.patches)

        # Encode the visible pixels: one token per patch
        features = self.encode(images, mask)
        tokens = self.embed(features.flatten(2).transpose(1, 2))

        # Decode
        tokens = torch.where(mask[..., None], self.mask_token, tokens) + self.positions
        tokens = select(self.blocks(tokens), hidden)
        predictions = self.head(self.norm(tokens)).unflatten(-1, (self.channels, self.patch_size, self.patch_size))
        if not classify:
            return predictions
        assert self.classifier is not None
        return predictions, self.classifier(features.mean((2, 3)))

    def encode(self, images: Tensor, mask: Tensor) -> Tensor:
        """The encoder's map [B, D, S / p, S / p] of what is visible; `mask` bool [B, N], True = hidden."""
        features: Tensor = self.encoder(blank(images, mask, self.patch_size))
        return features

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """A partition of all parameters, with names. "head" is the last layer that both losses share (GradNorm's W).

        "classifier" is there with `classes` only.
        """
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"encoder": [], "body": [], "head": []}
        groups |= {"classifier": []} if self.classifier is not None else {}
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            groups[part if part in groups else "body"].append((name, parameter))
        return groups
