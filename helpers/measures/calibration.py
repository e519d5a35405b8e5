"""How well a classifier knows how sure it may be: reliability, expected calibration error, and that error's own bias.

A classifier is calibrated if, of all images that it names with confidence 0.8, it names four fifths rightly. The
expected calibration error (ECE; Naeini et al. 2015, Guo et al. 2017) is the mean gap between confidence and accuracy
over bins of confidence. It is a mean of absolute values of noisy numbers, so that even a calibrated classifier has one
above zero: how large it is for the images at hand, ``calibrated_errors`` tells.
"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from helpers.uncertainty import GROUPS, delete_one

BINS = 15


def confidences(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The confidence (N,) in [0, 1] of each answer, its largest probability, and whether (N,) it is right.

    ``logits`` (N, classes), ``labels`` (N,). Raises ValueError for shapes that do not fit, or logits not finite.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(logits):
        raise ValueError(f"logits are (N, classes) and labels (N,); got {tuple(logits.shape)}, {tuple(labels.shape)}")
    if not bool(logits.isfinite().all()):
        raise ValueError("logits are not finite")
    most, answer = torch.softmax(logits.cpu().double(), 1).max(1)
    return most.numpy(), (answer == labels.cpu()).numpy()


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """A reliability diagram's numbers: for each bin of confidence that is not empty its mean confidence and accuracy.

    Args:
        confidence: (N,) in [0, 1].
        right: (N,) whether the answer is right.
        bins: equal in width, each with its upper end and without its lower.

    Returns:
        Columns ``low``, ``high`` (ends of the bin), ``count``, ``confidence``, ``accuracy``.

    Raises:
        ValueError: arrays that are empty or not of one length, confidences outside [0, 1], no bin.
    """
    sure, hits = _checked(confidence, right, bins)
    table = pd.DataFrame({"bin": _bin(sure, bins), "confidence": sure, "accuracy": hits})
    found = table.groupby("bin").agg(
        count=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    found = found.reset_index()
    return found.assign(low=found["bin"] / bins, high=(found["bin"] + 1) / bins)[
        ["low", "high", "count", "confidence", "accuracy"]
    ]


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """Mean over images of the gap of accuracy and confidence in their bin; arguments and errors as ``reliability``."""
    sure, hits = _checked(confidence, right, bins)
    gaps = np.bincount(_bin(sure, bins), hits - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def calibrated_errors(confidence: ArrayLike, bins: int = BINS, times: int = 1000, seed: int = 0) -> np.ndarray:
    """The calibration errors (times,) of a calibrated classifier with these confidences (N,), on as many images.

    Each answer is right with the probability of its confidence. The mean of these is the bias of the error for such a
    classifier, and an error within them is none that could be seen. Errors as ``reliability``.
    """
    sure, _ = _checked(confidence, np.zeros(len(np.atleast_1d(confidence))), bins)
    of, rng = _bin(sure, bins), np.random.default_rng(seed)
    onehot = np.eye(bins)[of]  # (N, bins)
    errors = []
    for start in range(0, times, 100):
        hits = rng.random((min(100, times - start), len(sure))) < sure
        errors.append(np.abs((hits - sure) @ onehot).sum(1) / len(sure))
    return np.concatenate(errors)


def summary(
    confidence: ArrayLike, right: ArrayLike, bins: int = BINS, groups: int = GROUPS, seed: int = 0
) -> pd.DataFrame:
    """Accuracy, confidence and errors of all images and of all but each group, as ``uncertainty.jackknife`` takes them.

    Args:
        confidence: (N,) in [0, 1].
        right: (N,) whether the answer is right.
        bins: as ``reliability``.
        groups: image i is in group i mod ``groups``.
        seed: of ``calibrated_errors``.

    Returns:
        Columns ``left_out``, ``accuracy``, ``confidence`` (its mean), ``error`` (the expected calibration error) and
        ``fair`` (the mean of the errors that a calibrated classifier with these confidences has).

    Raises:
        ValueError: as ``reliability``, and for fewer images than groups, or fewer than two groups.
    """
    sure, hits = _checked(confidence, right, bins)
    if not 2 <= groups <= len(sure):
        raise ValueError(
            f"{len(sure)} images can't be dealt to {groups} groups; give 2 groups or more of an image or more"
        )
    group = np.arange(len(sure)) % groups

    def measured(left_out: int | None) -> dict[str, float]:
        kept = group != (-1 if left_out is None else left_out)
        error = expected_calibration_error(sure[kept], hits[kept], bins)
        fair = float(calibrated_errors(sure[kept], bins, 200, seed).mean())
        return {"accuracy": hits[kept].mean(), "confidence": sure[kept].mean(), "error": error, "fair": fair}

    return delete_one(pd.DataFrame(index=[0]), measured, range(groups))


def _checked(confidence: ArrayLike, right: ArrayLike, bins: int) -> tuple[np.ndarray, np.ndarray]:
    sure, hits = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    if sure.ndim != 1 or sure.shape != hits.shape or not len(sure):
        raise ValueError(f"confidence and right are (N,) each, N > 0; got {sure.shape} and {hits.shape}")
    if not bool(((sure >= 0) & (sure <= 1)).all()):
        raise ValueError("a confidence is a probability, from 0 to 1: give softmax probabilities, not logits")
    if bins < 1:
        raise ValueError(f"there is to be a bin or more; got {bins}")
    return sure, hits


def _bin(sure: np.ndarray, bins: int) -> np.ndarray:
    """The bin (N,) of each confidence, from 0: bin b reaches from b / bins, itself not in it, to (b + 1) / bins."""
    return np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
