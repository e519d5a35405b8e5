"""The baseline that every network has to beat: what the colours of an image alone give away.

It is a linear map of an image's colour histogram, which sees no form at all, fitted to the scenes that the networks are
trained on and measured as they are.
"""

import torch
from torch import nn

from helpers.networks.inputs import normalise

HISTOGRAM_BINS = 6  # for each of red, green and blue


class ColourHistogram(nn.Module):
    """Class scores from the colours of an image alone: a linear map of the square roots of their shares.

    Images (B, 3, H, W) in [0, 1] → scores (B, classes). Colours are counted in bins³ boxes of RGB.
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
    """Fit the baseline to images (N, 3, H, W) uint8 and labels (N,) by logistic regression, in place; returns it.

    Raises ValueError if a class has no image.
    """
    from sklearn.linear_model import LogisticRegression  # here, so that building a network does not wait for it

    features = torch.cat([model.features(normalise(model, part)) for part in images.split(512)])
    fitted = LogisticRegression(C=10.0, max_iter=500).fit(features.numpy(), labels.numpy())
    if len(fitted.classes_) != model.linear.out_features:
        raise ValueError(f"{len(images)} scenes hold {len(fitted.classes_)} of {model.linear.out_features} classes")
    model.linear.weight.copy_(torch.from_numpy(fitted.coef_))
    model.linear.bias.copy_(torch.from_numpy(fitted.intercept_))
    return model.eval()
