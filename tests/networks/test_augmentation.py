"""Strong augmentation: what is in an image is what its target says, and a seed decides all of it."""

import pytest
import torch

from helpers.networks import augmentation
from helpers.networks.augmentation import SMOOTHING, strong

CLASSES = 5
SEEDS = range(12)


@pytest.fixture
def unchanged(monkeypatch):
    """Images are mixed, and nothing else is done to them."""
    monkeypatch.setattr(augmentation, "_EACH", lambda image: image)


def noise(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def weights(targets: torch.Tensor) -> torch.Tensor:
    """Targets before they were smoothed."""
    return (targets - SMOOTHING / CLASSES) / (1 - SMOOTHING)


@pytest.mark.parametrize("seed", SEEDS)
def test_targets_are_smoothed_shares_of_an_image_and_the_one_before_it(seed):
    images, targets = strong(noise(), torch.tensor([0, 1, 2, 3, 4, 0]), CLASSES, seed)
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.uint8 and targets.shape == (6, CLASSES)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert targets.min() == pytest.approx(SMOOTHING / CLASSES)
    found = weights(targets)
    own = float(found[1, 1])
    wanted = torch.zeros(6, CLASSES)
    for i, label in enumerate([0, 1, 2, 3, 4, 0]):
        wanted[i, label] += own
        wanted[i, [0, 0, 1, 2, 3, 4][i]] += 1 - own  # the labels of those before; the last one stands before the first
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_seed_decides_everything_and_the_global_random_state_is_left_alone():
    labels = torch.arange(6) % CLASSES
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, again, other = (strong(noise(), labels, CLASSES, seed) for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, one, again)) and not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_what_is_given_is_not_changed():
    images, labels = noise(), torch.arange(6) % CLASSES
    strong(images, labels, CLASSES, 0)
    assert torch.equal(images, noise()) and torch.equal(labels, torch.arange(6) % CLASSES)


def test_both_ways_to_mix_are_drawn_and_a_label_has_the_share_that_the_image_shows(unchanged):
    """Of black and white images mixup makes a grey, of λ, and CutMix a rectangle, of its area."""
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[1] = 255
    kinds = set()
    for seed in SEEDS:
        mixed, targets = strong(images, torch.tensor([0, 1]), CLASSES, seed)
        black = weights(targets)[0]
        levels = mixed[0].unique().tolist()
        kinds.add("mixup" if len(levels) == 1 and levels[0] not in (0, 255) else "cutmix")
        white = mixed[0].double().mean() / 255
        assert float(black[1]) == pytest.approx(float(white), abs=0.5 / 255 + 1e-6)  # a grey is a whole number
        assert float(black[0]) == pytest.approx(1 - float(black[1]), abs=1e-6)
        if kinds and len(levels) == 2:
            assert levels == [0, 255]
            rows, columns = (mixed[0, 0].any(axis).nonzero().flatten() for axis in (1, 0))
            sides = [int(line[-1] - line[0]) + 1 for line in (rows, columns)]
            assert sides[0] * sides[1] == int((mixed[0, 0] == 255).sum())  # one rectangle
    assert kinds == {"mixup", "cutmix"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mixed_image_lies_between_its_two(unchanged, seed):
    images = noise()
    mixed, _ = strong(images, torch.arange(6) % CLASSES, CLASSES, seed)
    before = images.roll(1, 0)
    assert (mixed >= torch.minimum(images, before)).all() and (mixed <= torch.maximum(images, before)).all()


def test_each_image_is_recoloured_and_one_in_four_loses_a_rectangle(monkeypatch):
    """Without the mixing, on grey images: colours change by image, and what is erased is mid-grey."""
    changed = []
    monkeypatch.setattr(augmentation.v2, "RandomChoice", lambda _: lambda images, labels: (images, one_hot(labels)))
    images = torch.tensor([60, 90, 200], dtype=torch.uint8).view(1, 3, 1, 1).expand(40, 3, 32, 32)
    for seed in range(5):
        changed.append(strong(images, torch.zeros(40, dtype=torch.long), CLASSES, seed)[0])
    shown = torch.cat(changed).flatten(2)  # (200, 3, 1024)
    grey = (shown == augmentation.GREY).all(1)
    erased = grey.any(1)
    share = grey[erased].float().mean(1)
    assert 0.15 < erased.float().mean() < 0.35
    assert 0.01 < share.min() and share.max() < 0.36  # 2 to 33 % of the area, in whole pixels
    colours = {tuple(colour) for colour in shown[~erased][:, :, 0].tolist()}
    assert len(colours) > 100
    assert all(len(image.unique(dim=1)[0]) == 1 for image in shown[~erased])  # evenly: colours, and no places


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).float()
