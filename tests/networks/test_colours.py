"""The colour baseline sees colours and nothing else."""

from dataclasses import replace

import pytest
import torch

from helpers.images.scenes import Corpus, render
from helpers.networks.accuracy import accuracy
from helpers.networks.colours import ColourHistogram, fit_colours


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
