"""Recordings of feature maps over frequency and depth, and of noise: small networks, and the book's own.

The last two need the weights and the photographs: set VIT_BOOK_WEIGHTS and VIT_BOOK_IMAGES to their folders. Noise
was recorded on the folder that holds this folder of photographs beside others of the same classes.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import noise, pair
from scipy import stats
from sklearn.metrics import accuracy_score

from helpers.images.sources import ImageSet, batches, folder_images, scene_images
from helpers.measures.feature_variance import feature_variance
from helpers.measures.fourier import spectra
from helpers.measures.frequency_noise import BANDS, STRENGTHS, UnderNoise, answers_under_noise
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


NOISE = {"frequency_noise": frequency.NOISE_IMAGES, "frequency_noise_scenes": frequency.NOISE_SCENES}
each_noise = pytest.mark.parametrize("name", list(NOISE))
on_scenes = pytest.mark.parametrize("recording", [name for name in NOISE if name.endswith("_scenes")])


@each_noise
def test_the_books_own_noise_hangs_together(name):
    """The table is counted again from the answers that are stored, by NumPy and scikit-learn."""
    table, sidecar = recorded_table(name)
    count, arrays, strengths = NOISE[name], recorded_arrays(name), sidecar["strengths"]
    assert strengths == list(STRENGTHS) and sidecar["scored_by"] == "labels"
    networks = {key.rpartition("/")[0] for key in arrays}
    assert networks == set(table["network"]) and len(table) == len(networks) * len(strengths) * BANDS
    for network, rows in table.groupby("network"):
        clean, noisy, labels = (arrays[f"{network}/{part}"] for part in ("clean", "noisy", "labels"))
        assert clean.shape == labels.shape == (count,) and noisy.shape == (len(strengths), BANDS, count)
        assert rows[["strength", "band"]].to_numpy().tolist() == [[s, b] for s in strengths for b in range(BANDS)]
        again = [accuracy_score(labels, answers) for answers in noisy.reshape(-1, count)]
        np.testing.assert_allclose(rows["accuracy"], again, atol=1e-6)
        np.testing.assert_allclose(rows["lost"], 100 * (accuracy_score(labels, clean) - np.array(again)), atol=1e-4)
        each = (clean == labels).astype(float) - (noisy == labels).astype(float)
        np.testing.assert_allclose(rows["error"], 196 * each.std(2).ravel() / np.sqrt(count), rtol=1e-3, atol=1e-6)
        if name == "frequency_noise_scenes":
            shown = scene_images(count)
            assert labels.tolist() == [shown[i][1] for i in range(count)]
        else:
            assert len(np.unique(labels)) == 10
    if name == "frequency_noise":
        assert sidecar["images"]["true_validation"] and sidecar["images"]["of_these"] == count
        assert min(sidecar["agree_with_float32"].values()) > 0.95


@on_scenes
def test_networks_without_noise_are_as_good_as_their_cards(recording):
    arrays = recorded_arrays(recording)
    names = {key.rpartition("/")[0] for key in arrays if key.endswith("/scenes/labels")}
    assert {"vit/scenes", "vit-seed1/scenes", "resnet/scenes", "resnet-seed1/scenes"} <= names
    for name in names:
        right = (arrays[f"{name}/clean"] == arrays[f"{name}/labels"]).sum()
        known = zoo.card(name.removesuffix("/scenes"))["accuracy"]["all cues"]["pair"]
        assert stats.binomtest(int(right), len(arrays[f"{name}/labels"]), known).pvalue > 1e-3, name


@on_scenes
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_first_scenes_give_the_recorded_answers_again(recording, name):
    """Answers of networks to a few scenes under two strengths; noise depends on the scene's number alone."""
    _, sidecar = recorded_table(recording)
    assert zoo.card(name)["sha256"] == sidecar["models"][name]["sha256"], f"record the noise again: {name} is another"
    strengths = sidecar["strengths"]
    for kind, images in (("scenes", scene_images(12)), ("without sensor noise", frequency.noiseless_scenes(12))):
        stored = UnderNoise.stored(recorded_arrays(recording), f"{name}/{kind}", strengths)
        again = answers_under_noise(zoo.load(name), batches(images, 12), strengths[1::2])
        assert torch.equal(again.labels, stored.labels[:12]) and torch.equal(again.clean, stored.clean[:12])
        assert (again.noisy == stored.noisy[1::2, :, :12]).double().mean() > 0.99  # a tie may fall the other way


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


@pytest.mark.skipif(
    not {local_weights.WEIGHTS_VARIABLE, "VIT_BOOK_IMAGES"} <= set(os.environ),
    reason="set VIT_BOOK_WEIGHTS and VIT_BOOK_IMAGES to compute recorded numbers again",
)
def test_the_first_photographs_give_the_recorded_answers_again():
    _, sidecar = recorded_table("frequency_noise")
    images = folder_images(Path(os.environ["VIT_BOOK_IMAGES"]).parent)
    assert images.describe()["sha256"] == sidecar["images"]["sha256"], "these are not the photographs of the recording"
    chosen = [i for i, name in enumerate(images.names) if name.startswith(frequency.TRUE)][:8]
    pictures, name = torch.stack([images[i][0] for i in chosen]), "vit_tiny_patch16_224"
    stored = UnderNoise.stored(recorded_arrays("frequency_noise"), name, sidecar["strengths"])
    again = answers_under_noise(zoo.load(name), [pictures], sidecar["strengths"][1::2])  # in single precision
    assert (again.clean == stored.clean[:8]).sum() >= 7
    assert (again.noisy == stored.noisy[1::2, :, :8]).double().mean() > 0.9
