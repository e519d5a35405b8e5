"""A masked autoencoder (He et al. 2022): a ViT sees a quarter of the patches and a small decoder draws the others.

Nothing tells it a class. Its encoder is any timm ViT with one position embedding a token; the decoder is thrown away
once the encoder has learnt.
"""

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F

SEEN = 0.25  # share of the patches that the encoder sees


class MaskedAutoencoder(nn.Module):
    """An encoder, and a decoder of two narrow blocks that predicts the pixels of the patches the encoder did not see.

    Args:
        encoder: a ViT of timm with a CLS token; its classifier is not used.
        width: of the decoder's tokens, with heads of 16 dimensions.
        depth: blocks of the decoder.
    """

    def __init__(self, encoder: Any, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.encoder: Any = encoder
        patches, (high, wide) = encoder.patch_embed.num_patches, encoder.patch_embed.patch_size
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.pos_embed = nn.Parameter(0.1 * torch.randn(1, patches, width))
        self.blocks = nn.Sequential(*(Block(width, width // 16, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * high * wide)

    def forward(self, images: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Predicted pixels (B, N, 3·P²) of the N patches of normalised images (B, 3, H, W); ``seen`` as ``choose``."""
        encoder, width = self.encoder, self.mask_token.shape[-1]
        places = encoder.pos_embed[:, 1:]
        tokens = _gather(encoder.patch_embed(images) + places, seen)  # (B, K, D)
        cls_token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = encoder.norm(encoder.blocks(torch.cat([cls_token, tokens], 1)))[:, 1:]
        embedded = self.embed(tokens)  # (B, K, W)
        canvas = self.mask_token.to(embedded.dtype).expand(len(images), places.shape[1], width)
        canvas = canvas.scatter(1, seen[..., None].expand(-1, -1, width), embedded)
        return self.pixels(self.norm(self.blocks(canvas + self.pos_embed)))

    def loss(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error over the pixels of unseen patches, each patch normalised by its own mean and deviation."""
        count = self.encoder.patch_embed.num_patches
        seen, unseen = choose(len(images), count, generator)
        predicted = self(images, seen.to(images.device)).float()
        wanted = F.unfold(images, self.encoder.patch_embed.patch_size, stride=self.encoder.patch_embed.patch_size)
        wanted = wanted.transpose(1, 2)  # (B, N, 3·P²)
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-3).sqrt()
        return (predicted - wanted).square().mean(-1).gather(1, unseen.to(images.device)).mean()


def choose(images: int, patches: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """For each image the indices of the patches that are seen (B, K) and unseen (B, N - K), chosen at random."""
    order = torch.rand(images, patches, generator=generator).argsort(1)
    kept = max(1, round(SEEN * patches))
    return order[:, :kept], order[:, kept:]


def _gather(tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The chosen (B, K) of tokens (B, N, D): (B, K, D)."""
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
