"""How well a model tells the scenes apart, and the baseline that any of them has to beat.

Every model of the zoo is measured in the same way: on the same held-out scenes, once with all cues and
once with each cue ablated. The baseline is measured so too: a linear map of an image's colour
histogram, which sees no form at all. What it gets right is what colours alone give away.
"""

import torch
from torch import nn

from helpers.images import normalise
from helpers.scenes import Corpus, render, split

TEST_SCENES = 4096  # held-out scenes on which a card's accuracies are measured
CUES = ("shape", "texture", "palette")
HISTOGRAM_BINS = 6  # for each of red, green and blue


def measure(model: nn.Module, corpus: Corpus, count: int = TEST_SCENES) -> dict[str, dict[str, float]]:
    """Accuracies on the test split: of the pair, of the shape and of the texture; as it is and with each cue ablated.

    ``{"all cues": {"pair": …, "shape": …, "texture": …}, "without shape": …, "without texture": …,
    "without palette": …}``. An answer is scored against the scene's label; where a cue is ablated the
    label says nothing about it, so that its score falls to what the other cues give away.
    """
    table = {"all cues": accuracy(model, corpus, count)}
    for cue in CUES:
        table[f"without {cue}"] = accuracy(model, corpus.without(cue), count)
    return table


@torch.inference_mode()
def accuracy(model: nn.Module, corpus: Corpus, count: int = TEST_SCENES, batch: int = 256) -> dict[str, float]:
    """Share of ``count`` test scenes whose label, label's shape and label's texture the model names."""
    kinds, right = len(corpus.textures), torch.zeros(3)
    indices = split("test", count)
    for start in range(0, count, batch):
        drawn = render(corpus, indices[start : start + batch])
        answer = model(normalise(model, drawn.images)).argmax(1).cpu()
        same = (answer == drawn.label, answer // kinds == drawn.label // kinds, answer % kinds == drawn.label % kinds)
        right += torch.stack([hit.sum() for hit in same])
    shares = [round(hits / count, 4) for hits in right.tolist()]
    return dict(zip(("pair", "shape", "texture"), shares, strict=True))


class ColourHistogram(nn.Module):
    """Class scores from the colours of an image alone: a linear map of the square roots of their shares.

    Images (B, 3, H, W) in [0, 1] → scores (B, classes). Colours are counted in ``bins``³ boxes of RGB.
    """

    pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # it takes images in [0, 1], as they are

    def __init__(self, classes: int, bins: int = HISTOGRAM_BINS):
        super().__init__()
        self.bins, self.linear = bins, nn.Linear(bins**3, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Square roots of the shares of the colours: images (B, 3, H, W) in [0, 1] → (B, bins³), unit vectors."""
        red, green, blue = (images * self.bins).long().clamp(max=self.bins - 1).flatten(2).unbind(1)  # (B, H·W) each
        box = (red * self.bins + green) * self.bins + blue
        counts = images.new_zeros(len(images), self.bins**3)
        counts.scatter_add_(1, box, torch.ones_like(box, dtype=counts.dtype))
        return (counts / box.shape[1]).sqrt()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(images))


@torch.inference_mode()
def fit_colours(model: ColourHistogram, images: torch.Tensor, labels: torch.Tensor) -> ColourHistogram:
    """Fit the baseline to images (N, 3, H, W) uint8 and labels (N,) by logistic regression, in place; returns it."""
    from sklearn.linear_model import LogisticRegression

    features = torch.cat([model.features(normalise(model, part)) for part in images.split(512)])
    fitted = LogisticRegression(C=10.0, max_iter=500).fit(features.numpy(), labels.numpy())
    if len(fitted.classes_) != model.linear.out_features:
        raise ValueError(f"{len(images)} scenes hold {len(fitted.classes_)} of {model.linear.out_features} classes")
    model.linear.weight.copy_(torch.from_numpy(fitted.coef_))
    model.linear.bias.copy_(torch.from_numpy(fitted.intercept_))
    return model.eval()
