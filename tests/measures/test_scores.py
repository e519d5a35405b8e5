"""Scores of classifiers whose logits are known; differences on the same images."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers import uncertainty
from helpers.measures.scores import gain, over_best, scores


class Known(nn.Module):
    """Logits of two classes that a picture's first pixel decides: 0 and ``slope`` times what it is above one half."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (1.0,) * 3}

    def forward(self, x):
        second = self.slope * x[:, 0, 0, 0]
        return torch.stack([torch.zeros_like(second), second], 1)


def data():
    images = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0, 0, 0] > 0.5).long()
    labels[:4] = 1 - labels[:4]
    return images, labels


def test_scores_are_those_of_the_formulas():
    images, labels = data()
    batches = list(zip(images.split(7), labels.split(7), strict=True))
    table = scores({"right": Known(10), "wrong": Known(-10), "undecided": Known(0)}, batches, groups=4)
    found = uncertainty.whole(table).set_index("network")
    assert found["accuracy"].tolist() == pytest.approx([90, 10, 100 * float((labels == 0).double().mean())])
    x, y = (images[:, 0, 0, 0].double() - 0.5) * 10, labels.double()
    assert found.loc["right", "nll"] == pytest.approx(float((torch.log1p(x.exp()) - y * x).mean()), abs=1e-5)
    assert found.loc["undecided", "nll"] == pytest.approx(math.log(2))


def test_the_error_of_a_difference_is_that_of_its_mean_over_images():
    images, labels = data()
    table = scores({"a": Known(10), "b": Known(-3)}, [(images, labels)], groups=40)
    value, error = uncertainty.jackknife(lambda rows: gain(rows, "a", "b"), table)
    each = np.where(np.arange(40) < 4, -100.0, 100.0)
    assert value == pytest.approx(each.mean()) and error == pytest.approx(each.std(ddof=1) / math.sqrt(40))


def test_the_best_of_the_others_is_the_lowest():
    table = uncertainty.whole(scores({"a": Known(10), "b": Known(-3), "c": Known(0)}, [data()], groups=2))
    nll = table.set_index("network")["nll"]
    assert over_best(table, "b", ["a", "c"], "nll") == pytest.approx(nll["b"] - nll["a"])
    assert over_best(table, "a", ["b", "c"], "nll") == pytest.approx(nll["a"] - nll["c"])
    with pytest.raises(KeyError, match="d"):
        gain(table, "d", "a")


def test_what_cannot_be_scored_is_refused():
    images, labels = data()
    with pytest.raises(ValueError, match="no network"):
        scores({}, [(images, labels)])
    with pytest.raises(ValueError, match="need labels"):
        scores({"a": Known(1)}, [images])
    with pytest.raises(ValueError, match="a gives no logits"):
        scores({"a": Known(1)}, [(images, labels + 1)])
    for batches, count in (([(images, labels)], 40), ([], 0)):
        with pytest.raises(ValueError, match=f"as many images; got {count}"):
            scores({"a": Known(1)}, batches, groups=41)
    with pytest.raises(ValueError, match="two jackknife groups"):
        scores({"a": Known(1)}, [(images, labels)], groups=1)
