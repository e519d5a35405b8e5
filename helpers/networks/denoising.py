"""A denoiser: a ViT sees an image with noise in it and says what the noise is. Nothing tells it a class.

This is how diffusion models learn to draw (Ho et al. 2020, equation 14): an image x becomes
cos(πt/2) · x + sin(πt/2) · ε with normal noise ε and a time t, drawn evenly from 0 (the image) to 1 (noise alone), and
the network predicts ε. It is not told t, which the image shows, so that its encoder is a plain ViT.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Denoiser(nn.Module):
    """An encoder, any ViT of timm, and a linear map from each of its last tokens to the noise in its patch."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder: Any = encoder
        high, wide = encoder.patch_embed.patch_size
        self.noise = nn.Linear(encoder.embed_dim, 3 * high * wide)

    def forward(self, images: Tensor) -> Tensor:
        """Predicted noise (B, N, 3·P²) in the N patches of normalised images (B, 3, H, W)."""
        return self.noise(self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :])

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the noise, each image at a time of its own; to say 0 everywhere costs 1."""
        time = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        predicted = self(noisy(images, noise, time)).float()
        patch = self.encoder.patch_embed.patch_size
        return F.mse_loss(predicted, F.unfold(noise, patch, stride=patch).transpose(1, 2))


def noisy(images: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Images (B, 3, H, W) at times (B, 1, 1, 1) from 0, the image, to 1, the noise; of unit variance if both are."""
    angle = math.pi / 2 * time
    return angle.cos() * images + angle.sin() * noise
