"""Networks that timm does not know, as a reader would hand them to a report; not a test."""

import torch
from torch import nn

from helpers.networks.adapter import Adapter

SIZE, PATCH, WIDTH = 48, 8, 16
IMAGES = {"size": SIZE, "mean": (0.5,) * 3, "std": (0.25,) * 3}


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 1 + (SIZE // PATCH) ** 2, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x):
        x = self.cut(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        return self.encoder(x)[:, 0]


def tokens(pretrained=True, seed=0):
    torch.manual_seed(seed + 100 * pretrained)
    network = Tokens()
    return Adapter(network, network.encoder.layers, patch=PATCH, prefix=1, **IMAGES)


def maps(pretrained=True, seed=0):
    torch.manual_seed(seed + 100 * pretrained)
    blocks = [nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GELU()) for _ in range(3)]
    network = nn.Sequential(nn.Conv2d(3, WIDTH, 4, 4), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Adapter(network, blocks, **IMAGES)


def nothing(pretrained=True, seed=0):
    return {}
