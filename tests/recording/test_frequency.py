"""Recordings of feature maps over frequency and depth, and of noise: small networks, and the book's own.

The last needs the weights and the photographs: set VIT_BOOK_WEIGHTS and VIT_BOOK_IMAGES to their folders.
"""

import os

import numpy as np
import pytest
import torch
from samples import noise, pair

from helpers.images.sources import ImageSet, batches, folder_images, scene_images
from helpers.measures.feature_variance import feature_variance
from helpers.measures.fourier import spectra
from helpers.measures.frequency_noise import BANDS, UnderNoise, answers_under_noise
from helpers.networks import local_weights, zoo
from helpers.recorded import recorded_arrays, recorded_table
from helpers.recording import frequency


def test_maps_of_small_networks_are_recorded(tmp_path):
    networks, images = pair(patch=8, cut=True), noise(18)
    frequency.attempt_maps(networks, torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
    frequency.maps(networks, images, tmp_path)
    table, sidecar = recorded_table("spectra", tmp_path)
    assert set(table["model"]) == set(networks) and set(table["images"]) == {"as they are", "shuffled pixels"}
    assert set(table["left_out"]) == set(range(-1, 16)) and sidecar["images"]["count"] == 18
    for name, network in networks.items():
        own = table[(table["model"] == name) & (table["images"] == "as they are")].reset_index(drop=True)
        known = spectra(network, batches(images, 1)).table()
        np.testing.assert_allclose(own["top"], known["top"], rtol=1e-5, atol=1e-6)
        variance, _ = recorded_table("feature_variance", tmp_path)
        own = variance[(variance["model"] == name) & (variance["images"] == "as they are")]
        known = feature_variance(network, batches(images, 1)).table()
        np.testing.assert_allclose(own["variance"], known["variance"], rtol=1e-6)
    curves, _ = recorded_table("spectra_curves", tmp_path)
    whole = table[table["left_out"] == -1]
    last = curves[curves["frequency"] == 1].set_index(["model", "images", "place"])["amplitude"]
    wanted = whole.set_index(["model", "images", "place"])["nyquist"]
    np.testing.assert_allclose(last, wanted.loc[last.index], rtol=1e-6, atol=1e-8)
    frequency.maps_untrained(networks, images, tmp_path)
    assert set(recorded_table("spectra_untrained", tmp_path)[0]["images"]) == {"as they are"}


def named(classes: list[str]) -> ImageSet:
    """Twelve images of two classes of these names; every second one is named as a true validation image."""
    images = noise(12)
    names = [f"{frequency.TRUE}_{i}.JPEG" if i % 2 else f"n_{i}.JPEG" for i in range(12)]
    about = {"source": "noise", "size": 64}
    return ImageSet(12, images.__getitem__, about, names, [i % 3 % 2 for i in range(12)], classes)


@pytest.mark.parametrize(
    ("classes", "scored"), [(["val/n01440764", "val/n02102040"], "labels"), (["one", "two"], "own answers")]
)
def test_noise_on_true_validation_images_alone_is_scored_by_what_is_known(classes, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(frequency, "BATCH", 4)
    images, networks = named(classes), pair(patch=8)
    networks["headless"] = pair(cut=True)["resnet"]
    frequency.noise(networks, images, tmp_path)
    table, sidecar = recorded_table("frequency_noise", tmp_path)
    assert set(table["network"]) == {"vit", "resnet"} and sidecar["scored_by"] == scored
    assert sidecar["images"]["of_these"] == 6 and sidecar["images"]["true_validation"]
    found = UnderNoise.stored(recorded_arrays("frequency_noise", tmp_path), "vit", sidecar["strengths"])
    assert found.noisy.shape == (len(sidecar["strengths"]), BANDS, 6)
    if scored == "labels":
        assert found.truth.tolist() == [[0, 217][images.labels[i]] for i in range(1, 12, 2)]
    else:
        assert found.labels is None
    assert 0 <= min(sidecar["agree_with_float32"].values()) <= 1
    np.testing.assert_allclose(table.loc[table["network"] == "vit", "lost"], found.table()["lost"], atol=1e-6)


def test_networks_without_classifier_are_refused():
    with pytest.raises(ValueError, match="gives no scores of classes"):
        frequency.attempt_noise({"cut": pair(cut=True)["resnet"]}, torch.zeros(4, 3, 64, 64, dtype=torch.uint8))


def test_scenes_without_sensor_noise_are_the_same_scenes():
    noisy, without = scene_images(3), frequency.noiseless_scenes(3)
    for i in range(3):
        (a, label), (b, same) = noisy[i], without[i]
        difference = (a.float() - b.float()) / 255
        assert label == same and 0.03 < difference.std() < 0.045 and abs(difference.mean()) < 2e-3
    assert without.describe()["source"].endswith("without sensor noise")


def test_noise_on_scenes_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(frequency, "answers_under_noise", lambda model, loader: few(model, loader))

    def few(model, loader):
        return answers_under_noise(model, loader, strengths=[0.1], bands=2)

    frequency.noise_on_scenes(tmp_path, ["vit-small", "no network of the zoo"], count=4)
    table, sidecar = recorded_table("frequency_noise_scenes", tmp_path)
    assert set(table["network"]) == {"vit-small/scenes"} and list(sidecar["models"]) == ["vit-small"]
    assert len(sidecar["models"]["vit-small"]["sha256"]) == 64 and len(table) == 2


@pytest.mark.parametrize("suffix", ["", "_untrained"])
def test_the_books_own_maps_hang_together(suffix):
    spectra_table, sidecar = recorded_table(f"spectra{suffix}")
    variance, _ = recorded_table(f"feature_variance{suffix}")
    keys = ["place", "block", "after", "opens", "left_out", "model", "images"]
    both = spectra_table.merge(variance, on=keys)
    assert len(both) == len(spectra_table) == len(variance) and sidecar["images"]["count"] == frequency.MAP_IMAGES
    np.testing.assert_allclose(both["ac"], both["relative"], atol=1e-4)  # Parseval
    np.testing.assert_allclose(both["top"], both["log_top"] - both["log_dc"], atol=1e-6)
    whole = both[(both["left_out"] == -1) & (both["images"] == "as they are")]
    assert whole.groupby("model").size().to_dict() == {"resnet50": 1 + 13, "vit_tiny_patch16_224": 1 + 24}
    vit, resnet = (whole[whole["model"] == name] for name in ("vit_tiny_patch16_224", "resnet50"))
    assert set(vit["rows"]) == {14} and vit["top_frequency"].iloc[0] == pytest.approx(6 / 7)
    assert list(resnet.loc[resnet["opens"], "place"]) == ["layer1.0", "layer2.0", "layer3.0"]
    assert resnet["rows"].tolist() == [56] * 4 + [28] * 4 + [14] * 6
    curves, _ = recorded_table(f"spectra_curves{suffix}")
    last = curves[(curves["frequency"] == 1) & (curves["images"] == "as they are")].set_index(["model", "place"])
    np.testing.assert_allclose(
        last["amplitude"], whole.set_index(["model", "place"])["nyquist"].loc[last.index], atol=1e-6
    )


@pytest.mark.skipif(
    not {local_weights.WEIGHTS_VARIABLE, "VIT_BOOK_IMAGES"} <= set(os.environ),
    reason="set VIT_BOOK_WEIGHTS and VIT_BOOK_IMAGES to compute recorded numbers again",
)
def test_the_first_groups_give_the_recorded_maps_again():
    """All images but those of one group are what the table has without it: so a group is what is left of all."""
    table, sidecar = recorded_table("spectra")
    images = folder_images(os.environ["VIT_BOOK_IMAGES"])
    assert images.describe()["sha256"] == sidecar["images"]["sha256"], "these are not the photographs of the recording"
    count, name = sidecar["images"]["count"], "vit_tiny_patch16_224"
    size = count // sidecar["groups"]
    again = spectra(zoo.load(name), [next(iter(batches(images, size)))[0]]).table()
    own = table[(table["model"] == name) & (table["images"] == "as they are")]
    for column in ("log_top", "log_dc"):  # means over images
        of_all, without = (own.loc[own["left_out"] == group, column].to_numpy() for group in (-1, 0))
        first = (count * of_all - (count - size) * without) / size
        np.testing.assert_allclose(again[column], first, atol=2e-3)
