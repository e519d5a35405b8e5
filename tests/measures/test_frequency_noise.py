"""Noise in bands: their energy and where it lies, and what it costs classifiers of which the answer is known."""

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from torch import nn

from helpers.measures.frequency_noise import (
    BANDS,
    UnderNoise,
    answers_under_noise,
    band_noise,
    band_of,
    over_strengths,
    paired,
    paired_table,
)

CONFIG = {"mean": (0.5,) * 3, "std": (0.25, 0.5, 0.25), "input_size": (3, 64, 64)}


@pytest.mark.parametrize("shape", [(64, 64), (48, 64), (63, 63)])
def test_every_frequency_but_zero_is_in_one_band_by_its_larger_part(shape):
    band = band_of(shape)
    assert band[0, 0] == -1 and (band.flatten()[1:] >= 0).all() and band.max() == BANDS - 1
    for u, v in ((0, 1), (3, 0), (7, 20), (shape[0] // 2, 1), (shape[0] - 7, 20)):
        part = max(2 * min(u, shape[0] - u) / shape[0], 2 * min(v, shape[1] - v) / shape[1])
        assert band[u, v] == next(b for b in range(BANDS) if part <= (b + 1) / BANDS + 1e-9), (u, v)


@pytest.mark.parametrize("shape", [(64, 64), (48, 64)])
def test_noise_has_its_energy_in_its_band_and_the_same_in_each(shape):
    noise = band_noise(3, shape, seed=1)
    assert noise.shape == (BANDS, 3, 3, *shape)
    assert torch.allclose(noise.square().mean((2, 3, 4)), torch.ones(BANDS, 3))
    power, band = np.abs(np.fft.fft2(noise.double().numpy())) ** 2, band_of(shape).numpy()
    for b in range(BANDS):
        assert power[b][..., band == b].sum() / power[b].sum() > 1 - 1e-6
        assert abs(noise[b].mean()) < 1e-6  # of each image too, since frequency zero is in none
    assert abs(float((noise[0] * noise[7]).mean())) < 1e-6  # bands are at right angles


def test_noise_of_an_image_does_not_depend_on_its_batch():
    whole, part = band_noise(4, (32, 32), 5, seed=2), band_noise(2, (32, 32), 5, seed=2, first=2)
    assert torch.equal(whole[:, 2:], part)
    assert not torch.allclose(whole[:, 0], whole[:, 1]) and not torch.allclose(
        whole, band_noise(4, (32, 32), 5, seed=3)
    )


class Edges(nn.Module):
    """Answers whether an image alternates between neighbouring columns: all it sees is the highest frequency."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = CONFIG
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        sign = torch.ones(x.shape[-1])
        sign[1::2] = -1
        score = (x * sign).mean((1, 2, 3)).abs()
        return torch.stack([torch.full_like(score, 0.02), score], 1)


def test_a_network_that_sees_the_highest_frequency_alone_is_hurt_there_alone():
    images = torch.full((12, 3, 64, 64), 128, dtype=torch.uint8)
    images[6:, ..., ::2] = 138
    labels = torch.tensor([0] * 6 + [1] * 6)
    loader = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    model = Edges()
    found = answers_under_noise(model, loader, [0.05, 3.0], seed=0)
    table = found.table()
    assert found.noisy.shape == (2, BANDS, 12) and torch.equal(found.labels, labels) and found.right().all()
    assert table.loc[(table["strength"] == 3) & (table["band"] < 9), "lost"].eq(0).all()
    assert table.loc[(table["strength"] == 3) & (table["band"] == 9), "lost"].item() > 20
    added = (model.seen[1] - model.seen[0]) * torch.tensor(CONFIG["std"])[:, None, None]  # in units of pixels
    assert torch.allclose(added.square().mean((1, 2, 3)).sqrt(), torch.tensor(0.05), atol=1e-5)
    assert torch.allclose(added, 0.05 * band_noise(5, (64, 64))[0], atol=1e-5)
    assert table["low"].iloc[9] == pytest.approx(0.9) and table["high"].iloc[9] == pytest.approx(1)
    alone = answers_under_noise(model, [images], [0.05], seed=0)
    assert alone.labels is None and torch.equal(alone.noisy, found.noisy[:1])  # whatever the batches


def answers(clean: list[int], noisy: list[list[int]], labels: list[int] | None = None) -> UnderNoise:
    """One strength, a band for each list of ``noisy``."""
    truth = None if labels is None else torch.tensor(labels)
    return UnderNoise(torch.tensor(clean), torch.tensor(noisy)[None], truth, (0.1,))


def test_losses_count_what_was_right_before():
    found = answers([1, 1, 0, 0], [[1, 0, 1, 0], [1, 1, 1, 1]], labels=[1, 1, 1, 0])
    assert found.right().tolist() == [True, True, False, True]
    assert found.lost()[0].tolist() == [[0, 1, -1, 0], [0, 0, -1, 1]]  # noise that helps counts too
    table = found.table()
    assert table["lost"].tolist() == [0, 0] and table["accuracy"].tolist() == [0.75, 0.75]
    own = answers([1, 1, 0, 0], [[1, 0, 1, 0]])
    assert own.right().all() and own.table()["lost"].item() == 50


def test_answers_are_stored_and_read_again():
    for labels in (None, [1, 1, 1, 0]):
        found = answers([1, 1, 0, 0], [[1, 0, 1, 0], [1, 1, 1, 1]], labels)
        arrays = found.arrays("vit")
        again = UnderNoise.stored(arrays, "vit", [0.1])
        assert torch.equal(again.noisy, found.noisy) and again.strengths == (0.1,)
        assert torch.equal(again.truth, found.truth) and (again.labels is None) == (labels is None)
    with pytest.raises(ValueError, match="no answers of 'resnet' are stored; there are those of vit"):
        UnderNoise.stored(arrays, "resnet", [0.1])


def test_pairs_are_of_images_that_both_name_rightly():
    labels = [0, 0, 1, 1]
    first = answers([0, 0, 1, 0], [[0, 1, 1, 1]], labels)
    second = answers([0, 0, 0, 1], [[1, 1, 1, 1]], labels)
    assert paired(first, second)[0].tolist() == [[1, 0]]  # of the first two images
    assert paired_table(first, second)["lost"].item() == 50
    assert (paired(second, first) == -paired(first, second)).all()
    with pytest.raises(ValueError, match="not shown the same images"):
        paired(first, answers([0], [[0]], [0]))
    with pytest.raises(ValueError, match="not shown the same images"):
        paired(first, answers([0, 0, 1, 0], [[0, 1, 1, 1]], [1, 0, 1, 1]))
    with pytest.raises(ValueError, match="no image is named rightly by both"):
        paired(first, answers([1, 1, 0, 0], [[0, 1, 1, 1]], labels))


def random_answers(seed: int, chance: list[float], n: int = 400) -> UnderNoise:
    generator = torch.Generator().manual_seed(seed)
    zeros = torch.zeros(n, dtype=torch.long)
    noisy = torch.stack([(torch.rand(n, generator=generator) < p).long() for p in chance])
    return UnderNoise(zeros, torch.stack([noisy, noisy]), zeros, (0.1, 0.2))


def test_the_statistic_of_the_claim_and_its_interval():
    pair = random_answers(0, [0.1, 0.1]), random_answers(10, [0.1, 0.5])
    value, (low, high) = over_strengths(*pair, band=1)
    each = 100 * paired(*pair)[:, 1].mean(0).numpy()
    assert value == pytest.approx(each.mean()) and low < 40 < high
    assert high - value == pytest.approx(value - low) == pytest.approx(stats.norm.ppf(0.975) * stats.sem(each))
    none, (low, high) = over_strengths(*pair, band=0)
    assert low < 0 < high and abs(none) < 7


def test_real_networks_and_what_is_refused():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    for name, options in {"test_vit": {"img_size": 64}, "test_resnet": {}}.items():
        model = timm.create_model(name, num_classes=5, **options).train()
        model.pretrained_cfg = CONFIG
        found = answers_under_noise(model, [images], [0.1], bands=4)
        assert found.noisy.shape == (1, 4, 3) and found.noisy.max() < 5 and model.training
    headless = timm.create_model("test_resnet", num_classes=0)
    headless.pretrained_cfg, headless.num_classes = CONFIG, 1000
    with pytest.raises(ValueError, match="gives no scores of classes"):
        answers_under_noise(headless, [images], [0.1])
    with pytest.raises(ValueError, match="no images"):
        answers_under_noise(model, [], [0.1])
    with pytest.raises(ValueError, match="above 0"):
        answers_under_noise(model, [images], [0.1, -1.0])
    with pytest.raises(ValueError, match="no frequency in some of 10 bands"):
        band_of((8, 8))
