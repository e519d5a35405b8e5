"""The book's own recordings: that they hang together, and that they can be computed again.

The last needs the weights and the photographs: set VIT_BOOK_WEIGHTS and VIT_BOOK_IMAGES to their folders.
"""

import os

import numpy as np
import pytest
import torch

from helpers import results
from helpers.images.sources import batches, folder_images
from helpers.measures import structure
from helpers.measures.localization import hit_rate
from helpers.measures.massive_tokens import VIEWS
from helpers.networks import zoo
from helpers.networks.inputs import normalise
from helpers.networks.places import STREAM
from helpers.networks.taps import capture, taps_for
from helpers.recorded import recorded_arrays, recorded_cka, recorded_fields

CKA_RECORDINGS = (
    "similarity",
    "similarity_untrained",
    "token_similarity",
    "similarity_batch1024",
    "similarity_batch128",
)


@pytest.mark.parametrize("name", CKA_RECORDINGS)
def test_recorded_heat_maps_hang_together(name):
    result, sidecar = recorded_cka(name)
    matrix = result.matrix
    alive = np.isfinite(np.diag(matrix))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(matrix)[alive], 1)
    assert np.abs(matrix[np.ix_(alive, alive)]).max() < 1 + 1e-6
    assert result.n_images >= 2560 and result.estimator.startswith("HSIC, unbiased")
    assert len(sidecar["images"]["sha256"]) == 64
    assert all({"source", "complete", "trained_on"} <= set(card) for card in sidecar["models"].values())


@pytest.mark.parametrize("name", results.names(results.RECORDED))
def test_recordings_were_made_from_code_under_version_control(name):
    code = results.recorded(name)[1]["code"]
    assert code["commit"] and not code["dirty"], f"record {name} again from a clean commit"


def test_the_map_covers_every_place_and_its_control_is_zero():
    result, sidecar = recorded_cka("similarity")
    vit, *resnets = result.models
    assert len(structure.places(result, vit).index) == 1 + 2 * 12
    assert [len(structure.places(result, name).index) for name in resnets] == [1 + 13, 1 + 47]
    assert result.n_images == sidecar["images"]["count"] and result.batch == 256
    assert np.abs(result.control.matrix).mean() < 0.02


def test_token_sizes_are_those_of_the_tapped_places():
    sizes, _ = results.recorded("token_sizes")
    result, _ = recorded_cka("token_similarity")
    assert len(result.models) == len(VIEWS) + 1
    assert list(sizes["tap"]) == list(result.taps["name"].iloc[: len(sizes)])
    assert sizes["massive_share"].between(0, 1).all() and (sizes["largest_norm"] >= sizes["median_norm"]).all()


def test_recorded_layers_hang_together():
    fields, maps, sidecar = recorded_fields()
    assert sidecar["images"]["count"] >= 32
    depth = fields[fields["left_out"] < 0].set_index(["model", "name"])["depth"]
    assert depth["resnet50", "layer3.5"] == pytest.approx(13 / 16)  # along the complete network
    assert depth["resnet152", "layer3.32"] == pytest.approx(44 / 50) and depth["resnet50", "stem"] == 0
    assert fields["share"].between(0, 1).all() and (fields["radius"] > 0).all()
    for name, rows in fields[fields["left_out"] < 0].groupby("model"):
        assert maps[name].shape == (len(rows), 56, 56) and torch.allclose(
            maps[name].mean((1, 2)), torch.tensor(1.0), atol=1e-2
        )
    skips, sidecar = results.recorded("skip_ratios")
    assert sidecar["images"]["count"] >= 1024
    assert skips.groupby(["model", "sublayer", "tokens"])["left_out"].nunique().eq(17).all()
    whole = skips[skips["left_out"] < 0]
    assert whole[whole["tokens"] == "all"].groupby("model").size().to_dict() == {
        "resnet152": 47,
        "resnet50": 13,
        "vit_tiny_patch16_224": 24,
    }
    assert (whole["ratio"] > 0).all() and whole[["cos_skip", "cos_branch", "cos_between"]].abs().le(1).to_numpy().all()
    tokens, _ = results.recorded("skip_tokens")
    means = tokens[tokens["token"] > 0].groupby("sublayer")["ratio"].mean()
    patches = whole[whole["tokens"] == "patches"].set_index("sublayer")["ratio"]
    np.testing.assert_allclose(means, patches.loc[means.index], rtol=1e-6)


@pytest.mark.parametrize("name, count", {"token_patches": 2560, "token_patches_untrained": 640}.items())
def test_recorded_maps_of_tokens_and_patches(name, count):
    table, sidecar = results.recorded(name)
    maps = recorded_arrays(name)
    assert set(table["left_out"]) == set(range(-1, 16)) and sidecar["images"]["count"] >= count
    for row in table[table["left_out"] < 0].itertuples():
        assert hit_rate(maps[f"{row.model}/{row.place}"].astype(float), (14, 14)) == pytest.approx(
            row.hit_rate, abs=0.02
        )
        assert row.shuffled < 0.05


def test_recorded_probes_are_the_means_of_what_was_right():
    table, sidecar = results.recorded("probes")
    hits = recorded_arrays("probes")
    true = hits["true validation"]
    assert sidecar["true_validation"][1] == true.sum()
    for row in table[table["images"] != "true only"].itertuples():
        right = hits[f"{row.model}/{row.place}/{row.read_out}/{row.shots}"].astype(float)
        right = right[:, true] if row.images == "true validation" else right
        assert row.accuracy == pytest.approx(right.mean(), abs=1e-3) and row.low <= row.accuracy <= row.high
        assert right.shape == (10 if str(row.shots) == "10" else 1, row.n)


def hsic_song(k: torch.Tensor, m: torch.Tensor) -> float:
    """The unbiased HSIC as Song et al. (2012, eq. 5) write it, in float64: an independent way to the same number."""
    n = len(k)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    one = torch.ones(n, dtype=torch.double)
    total = (
        torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ m @ one) / (n - 2)
    )
    return float(total / (n * (n - 3)))


@pytest.mark.skipif(
    not {zoo.WEIGHTS_VARIABLE, "VIT_BOOK_IMAGES"} <= set(os.environ),
    reason="set VIT_BOOK_WEIGHTS and VIT_BOOK_IMAGES to compute recorded numbers again",
)
def test_the_first_batch_gives_the_recorded_numbers_again():
    result, sidecar = recorded_cka("similarity")
    images = folder_images(os.environ["VIT_BOOK_IMAGES"])
    assert images.describe()["sha256"] == sidecar["images"]["sha256"], "these are not the photographs of the recording"
    pictures, _ = next(iter(batches(images, result.batch)))
    wanted = {
        result.models[0]: ["embed", "blocks.3.resid_post", "blocks.7.resid_post"],
        result.models[1]: ["layer1.0", "layer3.5"],
    }
    grams, index = [], []
    for name, places in wanted.items():
        model = zoo.load(name)
        taps = [tap for tap in taps_for(model, STREAM) if tap.name in places]
        with torch.inference_mode(), capture(model, taps, lambda x: x.flatten(1).double()) as out:
            model(normalise(model, pictures))
        for tap in taps:
            x = out[tap.name] - out[tap.name].mean(0)
            grams.append(x @ x.T)
            index.append(int(np.flatnonzero((result.taps["model"] == name) & (result.taps["name"] == tap.name))[0]))
    # the first batch is the first group of the jackknife, and sums count each batch by its images
    recorded = result.sums.cross[0][np.ix_(index, index)] / len(pictures)
    again = np.array([[hsic_song(k, m) for m in grams] for k in grams])
    scale = np.sqrt(np.outer(np.diag(again), np.diag(again)))
    np.testing.assert_allclose(recorded / scale, again / scale, atol=1e-3)
