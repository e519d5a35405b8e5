"""Accuracies are counted rightly, and the colour baseline sees colours and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.evaluation import ColourHistogram, accuracy, fit_colours, measure
from helpers.scenes import Corpus, render, split


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


def test_a_colour_histogram_counts_colours():
    images = torch.zeros(1, 3, 4, 4)
    images[0, 0, :2] = 1.0  # half red, half black
    features = ColourHistogram(32).features(images)
    assert features.shape == (1, 216) and features[0, 5 * 36] == pytest.approx(0.5**0.5) == features[0, 0]
    assert features.square().sum() == pytest.approx(1.0)


def test_a_colour_histogram_sees_no_form():
    images = render(Corpus(), range(4)).images.float() / 255
    shuffled = images.flatten(2)[:, :, torch.randperm(64 * 64)].view_as(images)
    model = ColourHistogram(32)
    assert torch.allclose(model.features(images), model.features(shuffled), atol=1e-6)


@pytest.mark.parametrize("palette, low, high", [(1.0, 0.3, 0.8), (0.0, 0.0, 0.12)])
def test_the_baseline_learns_what_the_palette_tells(palette, low, high):
    corpus = replace(Corpus(), palette=palette)
    drawn = render(corpus, range(1500))
    model = fit_colours(ColourHistogram(32), drawn.images, drawn.label)
    assert low <= accuracy(model, corpus, 500)["pair"] <= high


def test_the_baseline_wants_every_class():
    drawn = render(Corpus(), range(20))
    with pytest.raises(ValueError, match="20 scenes hold .* of 32 classes"):
        fit_colours(ColourHistogram(32), drawn.images, drawn.label)
