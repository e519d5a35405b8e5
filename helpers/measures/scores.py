"""What classifiers score on the same images: accuracy and negative log-likelihood, with an error by the jackknife.

Networks that were built differently are compared on the same images, since most of what varies from image to image
varies for all of them alike: an easy scene is easy for each.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.measures.distributed import Share
from helpers.measures.streams import at_least_two
from helpers.networks.inputs import labelled, normalise
from helpers.networks.taps import evaluating
from helpers.uncertainty import GROUPS, delete_one


@torch.inference_mode()
def scores(models: Mapping[str, nn.Module], batches: Iterable, groups: int = GROUPS) -> pd.DataFrame:
    """Accuracy and negative log-likelihood of classifiers on labelled images.

    ``models``: name → classifier, run in eval mode, its modes restored. ``batches``: of (images (n, 3, H, W), labels
    (n,)). ``groups``: of images for the jackknife, at least 2; image i is in group i mod ``groups``.

    Returns a table with a row for each network, once for all images (``left_out`` −1) and once without each group:
    ``network``, ``accuracy`` (points), ``nll`` (nats).

    Raises ``ValueError`` for no network, fewer than two groups or fewer images than groups, batches without a label for
    each image, a network that gives no logits (n, classes).
    """
    at_least_two(groups)
    if not models:
        raise ValueError("there is no network to score")
    found: dict[int, list[Tensor]] = {}  # number of a batch → what each network scores on each image (networks, 2, n)
    share = Share()
    with evaluating(*models.values()):
        for number, batch in share.dealt(batches):
            images, labels = labelled(batch)
            scored = []
            for name, model in models.items():
                logits = model(normalise(model, images))
                if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] <= int(labels.max()):
                    raise ValueError(f"{name} gives no logits (n, classes) of the classes that the labels count")
                logits = logits.cpu().double()
                right = 100 * (logits.argmax(1) == labels).double()
                scored.append(torch.stack([right, F.cross_entropy(logits, labels, reduction="none")]))
            found[number] = [torch.stack(scored)]
    parts = share.in_order(found)
    if (count := sum(part.shape[2] for part in parts)) < groups:
        raise ValueError(f"{groups} groups need as many images; got {count}")
    each, group = torch.cat(parts, 2).numpy(), np.arange(count) % groups  # (networks, 2, N)

    def measure(left_out: int | None) -> dict[str, np.ndarray]:
        accuracy, nll = each[:, :, group != (-1 if left_out is None else left_out)].mean(2).T
        return {"accuracy": accuracy, "nll": nll}

    return delete_one(pd.DataFrame({"network": list(models)}), measure, range(groups))


def gain(table: pd.DataFrame, network: str, control: str, of: str = "accuracy") -> float:
    """A network's score minus its control's, for one choice of images: rows of ``scores``; claims P18 and P21.

    Raises ``KeyError`` for a network that was not scored.
    """
    score = table.set_index("network")[of]
    return float(score[network] - score[control])


def over_best(table: pd.DataFrame, network: str, others: Iterable[str], of: str) -> float:
    """A network's score minus the lowest of some others' (claim P11), for one choice of images."""
    score = table.set_index("network")[of]
    return float(score[network] - min(score[other] for other in others))
