"""Accuracies are counted rightly."""

import pytest
import torch
from torch import nn

from helpers.images.scenes import Corpus, render, split
from helpers.networks.accuracy import accuracy, measure
from helpers.networks.colours import ColourHistogram


class Answers(nn.Module):
    """A "network" that knows the scenes' labels and answers with ``change`` of them."""

    pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}

    def __init__(self, corpus, count, change):
        super().__init__()
        drawn = render(corpus, split("test", count))
        self.key = {image.numpy().tobytes(): label for image, label in zip(drawn.images, drawn.label, strict=True)}
        self.change, self.weight = change, nn.Parameter(torch.zeros(1))

    def forward(self, images):
        pixels = (images * 255).round().to(torch.uint8)
        labels = torch.stack([self.key[image.numpy().tobytes()] for image in pixels])
        return nn.functional.one_hot(self.change(labels), 32).float()


@pytest.mark.parametrize(
    "change, pair, shape, texture",
    [
        (lambda label: label, 1, 1, 1),
        (lambda label: label // 4 * 4 + (label + 1) % 4, 0, 1, 0),  # the right shape, always another texture
        (lambda label: (label + 4) % 32, 0, 0, 1),
        (lambda label: (label + 5) % 32, 0, 0, 0),
    ],
)
def test_accuracy_counts_pair_shape_and_texture(change, pair, shape, texture):
    found = accuracy(Answers(Corpus(), 48, change), Corpus(), 48, batch=20)
    assert found == {"pair": pair, "shape": shape, "texture": texture}


def test_measure_ablates_each_cue_in_turn():
    torch.manual_seed(0)
    table = measure(ColourHistogram(32), Corpus(), 16)
    assert list(table) == ["all cues", "without shape", "without texture", "without palette"]
    assert all(set(row) == {"pair", "shape", "texture"} for row in table.values())
