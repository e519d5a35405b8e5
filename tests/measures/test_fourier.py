"""Spectra of feature maps: sinusoids, white noise, a delta, Parseval, numpy's radial average, and real networks."""

import numpy as np
import pytest
import timm
import torch
from scipy import fft
from torch import Tensor, nn

from helpers.images.sources import batches, scene_images
from helpers.measures.feature_variance import feature_variance
from helpers.measures.fourier import EPSILON, Spectra, amplitudes, frequencies, shuffled_pixels, spectra, summary
from helpers.measures.stream_maps import Place
from helpers.networks import zoo
from helpers.networks.inputs import normalise
from helpers.networks.taps import Tap, capture

CONFIG = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 64, 64), "fixed_input_size": False}


def of(maps: Tensor) -> Spectra:
    """The spectra of one place, from its maps (n, d, h, w)."""
    found = {name: value.double()[None] for name, value in amplitudes(maps.double()).items()}
    count = torch.tensor([len(maps)], dtype=torch.double)
    return Spectra([Place(Tap("place", "place"), 0, "block", False)], [found["log"]], [found["power"]], count)


def row(maps: Tensor):
    return of(maps).table().iloc[0]


def wave(side: int, k: int, mean: float = 0.0) -> Tensor:
    """A cosine of k periods along rows and along columns (1, 1, side, side)."""
    turn = 2 * np.pi * k * torch.arange(side, dtype=torch.double) / side
    return mean + torch.cos(turn[:, None] + turn[None, :])[None, None]


@pytest.mark.parametrize("side", [8, 14, 9])
def test_a_single_sinusoid_stands_at_its_frequency_alone(side):
    k = (side - 1) // 2
    maps = wave(side, k, mean=0.5)
    found = row(maps)
    power = found["power_top"]
    assert found["top_frequency"] == pytest.approx({8: 0.75, 14: 6 / 7, 9: 8 / 9}[side])  # 0.857 at 14 × 14
    assert found["top"] == pytest.approx(0, abs=1e-5) == power  # amplitude N² / 2 there, and N² / 2 at zero
    assert found["ac"] == pytest.approx(2 / 3)  # two places of (N² / 2)² beside one
    assert found["high"] == pytest.approx(1)
    curve = of(maps).curve("place")
    assert curve["frequency"].tolist() == [2 * i / side for i in range(side // 2 + 1)]
    assert (curve["amplitude"].iloc[1:k] < -10).all() and curve["amplitude"].iloc[0] == 0
    assert row(wave(side, 1))["high"] == pytest.approx(0, abs=1e-12)


def test_the_half_diagonal_of_the_published_code_stops_below_nyquist():
    """As the published code shifts and cuts it, on numpy's transform."""
    maps = torch.randn(3, 5, 14, 14, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    log = np.log(np.abs(np.fft.fft2(maps.numpy())) + EPSILON).mean((0, 1))
    half = np.diagonal(np.roll(log, (7, 7), (0, 1)))[7:]
    found = of(maps)
    assert row(maps)["top"] == pytest.approx(half[-1] - half[0])
    assert row(maps)["nyquist"] == pytest.approx(log[7, 7] - log[0, 0])
    np.testing.assert_allclose(found.curve("place")["amplitude"].iloc[:7], half - half[0])


def test_a_delta_is_flat_and_a_constant_is_nothing_but_its_mean():
    delta = torch.zeros(1, 2, 8, 8)
    delta[:, :, 3, 5] = 2
    found = row(delta)
    assert found["top"] == pytest.approx(0, abs=1e-6) and found["nyquist"] == pytest.approx(0, abs=1e-6)
    assert found["ac"] == pytest.approx(63 / 64) and found["log_dc"] == pytest.approx(np.log(2), abs=1e-5)
    constant = row(torch.full((1, 2, 8, 8), 3.0))
    assert constant["ac"] == 0 and constant["high"] == 0
    nothing = row(torch.zeros(1, 2, 8, 8))
    assert nothing["top"] == nothing["power_top"] == nothing["ac"] == 0


def test_white_noise_seems_to_rise_by_half_the_logarithm_of_two():
    """Real places of a spectrum (zero, Nyquist) have the logarithms of χ² with one degree, all others with two."""
    maps = torch.randn(40, 100, 8, 8, generator=torch.Generator().manual_seed(0))
    found = row(maps)
    assert found["top"] == pytest.approx(np.log(2) / 2, abs=0.05)
    assert found["nyquist"] == pytest.approx(0, abs=0.06) and found["power_top"] == pytest.approx(0, abs=0.05)
    gamma = np.euler_gamma
    assert found["log_top"] == pytest.approx(np.log(8) - gamma / 2, abs=0.03)
    assert found["log_dc"] == pytest.approx(np.log(8) - (gamma + np.log(2)) / 2, abs=0.05)
    assert found["ac"] == pytest.approx(63 / 64, abs=0.003)
    assert found["high"] == pytest.approx((frequencies((8, 8)) > 0.5).sum() / 63, abs=0.01)


def test_a_change_of_the_mean_moves_the_difference_and_no_frequency():
    maps = torch.randn(10, 20, 8, 8, generator=torch.Generator().manual_seed(0))
    before, after = row(maps), row(maps + 3)
    assert after["log_top"] == pytest.approx(before["log_top"], abs=1e-4) and after["high"] == pytest.approx(
        before["high"]
    )
    assert after["top"] < before["top"] - 2


def test_what_a_scale_and_a_shift_in_space_change():
    maps = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    same = row(maps)[["top", "nyquist", "power_top", "ac", "high"]].to_numpy(float)
    for changed in (5 * maps, maps.roll((2, 3), (2, 3)), maps.flip(2, 3), maps.transpose(2, 3)):
        np.testing.assert_allclose(
            row(changed)[["top", "nyquist", "power_top", "ac", "high"]].to_numpy(float), same, atol=1e-4
        )
    assert row(5 * maps)["log_top"] == pytest.approx(row(maps)["log_top"] + np.log(5), abs=1e-4)
    smoothed = (maps + maps.roll(1, 2) + maps.roll(1, 3) + maps.roll((1, 1), (2, 3))) / 4  # a 2 × 2 box
    assert row(smoothed)["top"] < row(maps)["top"] - 1 and row(smoothed)["high"] < row(maps)["high"]


def test_rings_are_numpys_radial_average():
    maps = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    log = np.fft.fftshift(np.log(np.abs(np.fft.fft2(maps.numpy())) + EPSILON).mean((0, 1)))
    y, x = np.indices(log.shape) - 4
    ring = np.rint(np.sqrt(x**2 + y**2)).astype(int).ravel()
    radial = np.bincount(ring, log.ravel()) / np.bincount(ring)
    np.testing.assert_allclose(of(maps).curve("place", rings=True)["amplitude"], radial[:5] - radial[0])


def test_maps_that_are_not_square_have_a_table_and_no_diagonal():
    maps = torch.randn(2, 3, 6, 10)
    found, log = row(maps), np.log(np.abs(np.fft.fft2(maps.double().numpy())) + EPSILON).mean((0, 1))
    assert found["top"] == pytest.approx(log[2, 4] - log[0, 0]) and found["nyquist"] == pytest.approx(
        log[3, 5] - log[0, 0]
    )
    assert (found["rows"], found["columns"], found["top_frequency"]) == (6, 10, pytest.approx(4 / 6))  # along rows
    with pytest.raises(ValueError, match=r"square maps, and these are \(6, 10\)"):
        of(maps).curve("place")
    with pytest.raises(ValueError, match="no place 'blocks.9'; there are place"):
        of(maps).curve("blocks.9")


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {
        "vit": timm.create_model("test_vit", img_size=64, depth=2, num_classes=3),
        "resnet": timm.create_model("test_resnet", num_classes=3, zero_init_last=False),
    }
    for model in made.values():
        model.eval().pretrained_cfg = CONFIG
    return made


def test_parseval_on_real_networks_and_the_numbers_of_a_place_by_hand():
    images = torch.rand(6, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for name, model in reversed(networks().items()):
        images = images[..., :64, :64] if name == "vit" else images
        found = spectra(model, [images[:4], images[4:]], groups=2)
        table, variance = found.table(), feature_variance(model, [images[:4], images[4:]], groups=2).table()
        assert list(table["left_out"].unique()) == [-1, 0, 1] and list(table["place"]) == list(variance["place"])
        for power, place in zip(found.powers, found.places, strict=True):
            total = power.sum(0) / 6
            ac = float(total.sum() - total[0, 0]) / total.numel() ** 2
            at = (variance["place"] == place.tap.name) & (variance["left_out"] == -1)
            assert variance.loc[at, "variance"].item() == pytest.approx(ac, rel=1e-4), place.tap.name
        np.testing.assert_allclose(table["ac"], variance["relative"], rtol=1e-4)
        place = found.places[-1].tap
        with torch.inference_mode(), capture(model, [place]) as out:
            model((images - 0.5) / 0.25)
        x = out[place.name].double()
        x = x[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) if name == "vit" else x
        for left_out, kept in ((-1, x), (0, x[4:]), (1, x[:4])):
            at = (table["place"] == place.name) & (table["left_out"] == left_out)
            assert table.loc[at, "top"].item() == pytest.approx(row(kept)["top"], abs=1e-3)
            assert table.loc[at, "high"].item() == pytest.approx(row(kept)["high"], rel=1e-3)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_books_own_networks_by_timms_maps_and_scipys_transform(name):
    """Neither our taps nor our transform: timm's own ``forward_intermediates``, SciPy's FFT and NumPy's variance.

    Of the ViT after every block, of the ResNet at the end of every stage; means over channels and images as the
    published code takes them, whose variance divides by the number of positions less one.
    """
    model, images = zoo.load(name), torch.stack([scene_images(8)[i][0] for i in range(8)])
    with torch.inference_mode():
        x = normalise(model, images)
        maps = (
            model.forward_intermediates(x, norm=False, intermediates_only=True)
            if name == "vit"
            else model.forward_intermediates(x, intermediates_only=True)[1:]
        )
    loader = list(batches(scene_images(8), 4))
    table = spectra(model, loader).table().merge(feature_variance(model, loader).table())
    rows = table[table["left_out"] == -1].reset_index(drop=True)
    if name == "vit":
        rows = rows[rows["after"] == "MLP"]
    else:
        starts = rows.index[rows["opens"]].tolist()
        rows = rows.loc[[*(start - 1 for start in starts[1:]), len(rows) - 1]]
    assert len(rows) == len(maps) > 2
    for (_, found), of_place in zip(rows.iterrows(), maps, strict=True):
        x = of_place.double().numpy()
        amplitude = np.abs(fft.fft2(x))
        log, power, last = np.log(amplitude + 1e-6).mean((0, 1)), (amplitude**2).mean((0, 1)), (x.shape[2] - 1) // 2
        assert found["top"] == pytest.approx(log[last, last] - log[0, 0], abs=1e-3), found["place"]
        assert found["log_dc"] == pytest.approx(log[0, 0], abs=1e-3)
        assert found["ac"] == pytest.approx(1 - power[0, 0] / power.sum(), rel=1e-3)
        positions = x.shape[2] * x.shape[3]
        published = x.var((2, 3), ddof=1).mean()
        assert found["variance"] == pytest.approx(published * (positions - 1) / positions, rel=1e-3)


def test_shuffled_pixels_keep_the_colours_of_an_image_and_lose_its_spectrum():
    turn = torch.linspace(0, 1, 32)
    images = (255 * (turn[:, None] + turn) / 2).to(torch.uint8).expand(3, 3, 32, 32).contiguous()
    images[:, 1] = 255 - images[:, 1]
    once, again = (torch.cat(list(shuffled_pixels([(images[:2], 0), images[2:]], seed))) for seed in (0, 0))
    assert torch.equal(once, again) and not torch.equal(once[0], once[1])
    key = lambda x: (x[:, 0].int() * 256 + x[:, 1]).flatten(1).sort(1).values  # noqa: E731
    assert torch.equal(key(once), key(images)) and once.dtype == torch.uint8
    assert row(images.double())["high"] < 0.1 and row(once.double())["high"] == pytest.approx(0.75, abs=0.05)


def test_a_summary_is_the_row_of_a_table():
    maps = torch.randn(3, 2, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    for name, value in summary(maps).items():
        assert value == pytest.approx(row(maps)[name]), name
    for wrong in (maps[0], maps[:0], maps[..., :2]):
        with pytest.raises(ValueError, match=r"maps are \(n, d, h, w\)"):
            summary(wrong)


def test_maps_that_are_too_small_for_a_frequency_are_refused():
    small = timm.create_model("test_vit", img_size=32, depth=1, num_classes=3).eval()
    small.pretrained_cfg = {**CONFIG, "input_size": (3, 32, 32)}
    with pytest.raises(ValueError, match=r"embed: 2 × 2 positions, and 3 rows and columns are needed"):
        spectra(small, [torch.rand(1, 3, 32, 32)])
