"""The masked autoencoder: images and a mask in, predictions of the hidden patches out."""

from gcond.model.mae import MaskedAutoencoder

__all__ = ["MaskedAutoencoder"]
