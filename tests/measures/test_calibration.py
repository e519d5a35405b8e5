"""Reliability and calibration error, against torchmetrics and against what is known of calibrated classifiers."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from helpers import uncertainty
from helpers.measures import calibration


def classified(count=500, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_error_is_that_of_torchmetrics(bins):
    logits, labels = classified()
    ours = calibration.expected_calibration_error(*calibration.confidences(logits, labels), bins)
    theirs = multiclass_calibration_error(logits.softmax(1), labels, 5, n_bins=bins, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-5)


def test_confidence_is_the_largest_probability():
    confidence, right = calibration.confidences(
        torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])), torch.tensor([0, 1])
    )
    assert confidence == pytest.approx([0.7, 0.4]) and right.tolist() == [True, False]


def test_reliability_by_hand():
    found = calibration.reliability([0.5, 0.45, 0.9, 1.0], [True, False, True, False], bins=2)
    assert found["low"].tolist() == [0, 0.5] and found["high"].tolist() == [0.5, 1]
    assert found["count"].tolist() == [2, 2]
    assert found["confidence"].tolist() == pytest.approx([0.475, 0.95])
    assert found["accuracy"].tolist() == [0.5, 0.5]
    error = calibration.expected_calibration_error([0.5, 0.45, 0.9, 1.0], [True, False, True, False], bins=2)
    assert error == pytest.approx((0.025 + 0.45) / 2)


def test_the_error_is_the_gap_of_the_diagram_weighted_by_its_counts():
    confidence, right = calibration.confidences(*classified())
    found = calibration.reliability(confidence, right)
    gap = (found["count"] * (found["accuracy"] - found["confidence"]).abs()).sum() / found["count"].sum()
    assert calibration.expected_calibration_error(confidence, right) == pytest.approx(gap)
    assert found["count"].sum() == len(right)


def test_a_calibrated_classifier_has_an_error_too():
    """In one bin it is the mean deviation of a binomial share: about √(2 p (1 − p) / π N)."""
    count, p = 1000, 0.8
    errors = calibration.calibrated_errors(np.full(count, p), bins=1, times=2000)
    assert errors.shape == (2000,) and errors.mean() == pytest.approx(
        math.sqrt(2 * p * (1 - p) / (math.pi * count)), rel=0.05
    )
    many = calibration.calibrated_errors(np.full(4 * count, p), bins=1, times=2000)
    assert many.mean() == pytest.approx(errors.mean() / 2, rel=0.07)
    assert calibration.calibrated_errors(np.ones(50)).max() == 0


def test_a_simulated_calibrated_classifier_lies_within_its_own_errors():
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.3, 1, 3000)
    errors = calibration.calibrated_errors(confidence, seed=1)
    seen = calibration.expected_calibration_error(confidence, rng.random(3000) < confidence)
    assert np.quantile(errors, 0.001) < seen < np.quantile(errors, 0.999)
    sure = calibration.expected_calibration_error(confidence, rng.random(3000) < confidence - 0.1)
    assert sure > errors.max()


def test_a_summary_leaves_out_each_group():
    confidence, right = calibration.confidences(*classified(120))
    found = calibration.summary(confidence, right, bins=5, groups=4)
    assert found["left_out"].tolist() == [-1, 0, 1, 2, 3]
    for left_out, row in found.set_index("left_out").iterrows():
        kept = np.arange(120) % 4 != left_out
        assert row["accuracy"] == pytest.approx(right[kept].mean())
        assert row["confidence"] == pytest.approx(confidence[kept].mean())
        assert row["error"] == pytest.approx(calibration.expected_calibration_error(confidence[kept], right[kept], 5))
        assert row["fair"] == pytest.approx(calibration.calibrated_errors(confidence[kept], 5).mean(), rel=0.1)
    with pytest.raises(ValueError, match="3 images can't be dealt to 16 groups"):
        calibration.summary(confidence[:3], right[:3])


def test_the_difference_of_two_errors_lies_in_its_interval_as_often_as_it_should():
    """An under-confident classifier (by 0.15) and a calibrated one, on the same images, many times."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(40):
        sure = rng.uniform(0.3, 0.8, 256)
        tables = [calibration.summary(sure, rng.random(256) < sure + shift) for shift in (0.15, 0)]
        value, reach = uncertainty.estimate(lambda a, b: a["error"].iloc[0] - b["error"].iloc[0], *tables)
        inside.append(abs(value - (0.15 - tables[1]["fair"].iloc[0])) < reach)
    assert 0.85 < np.mean(inside) <= 1


@pytest.mark.parametrize(
    "confidence, right, bins, message",
    [
        ([], [], 15, "N > 0"),
        ([0.5], [True, False], 15, "each"),
        ([1.5], [True], 15, "softmax probabilities"),
        ([float("nan")], [True], 15, "softmax probabilities"),
        ([0.5], [True], 0, "a bin or more"),
    ],
)
def test_what_is_no_confidence_is_refused(confidence, right, bins, message):
    for measure in (calibration.reliability, calibration.expected_calibration_error):
        with pytest.raises(ValueError, match=message):
            measure(confidence, right, bins)


def test_logits_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="classes"):
        calibration.confidences(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        calibration.confidences(torch.full((2, 3), torch.nan), torch.zeros(2))
