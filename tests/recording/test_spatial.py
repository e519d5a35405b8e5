"""Recordings of spatial information: probes of networks with grids and tokens of several kinds."""

import pytest
from samples import noise, pair

from helpers import results
from helpers.images.sources import ImageSet
from helpers.recording import spatial as record_spatial


@pytest.mark.parametrize(
    ("options", "grid", "reads"),
    [
        ({"patch": 16}, [2, 2], {"cls"}),
        ({"patch": 32}, [2, 2], {"cls"}),
        ({"patch": 8, "cut": True}, [4, 4], {"cls"}),
        ({"class_token": False, "global_pool": "avg"}, [2, 2], set()),
        ({"class_token": False, "global_pool": "avg", "reg_tokens": 2}, [2, 2], set()),
    ],
)
def test_probes_of_networks_with_other_grids_and_tokens(options, grid, reads, tmp_path, monkeypatch):
    for name, value in {"SHOTS": 2, "DRAWS": 2}.items():
        monkeypatch.setattr(record_spatial, name, value)
    record_spatial.probes(pair(**options), noise(12), tmp_path, train=noise(24))
    table, sidecar = results.read("probes", tmp_path)
    assert sidecar["grid"] == grid and max(sidecar["single_tokens"]) < grid[0] * grid[1]
    assert len(set(sidecar["single_tokens"])) == len(sidecar["single_tokens"])
    assert set(table["read_out"]) == {"mean token", "tokens"} | reads


def test_the_rows_and_columns_of_single_tokens_are_those_of_the_stored_recording():
    assert list(record_spatial._spread(14)) == [1, 5, 8, 12] and list(record_spatial._spread(7)) == [1, 2, 4, 5]
    assert list(record_spatial._spread(2)) == [0, 1] and list(record_spatial._spread(1)) == [0]


@pytest.mark.fault(
    "Recording", "probes, and classes with few photographs to learn from", "refused at once, naming them"
)
def test_classes_with_few_images_to_learn_from_are_named():
    """Also the last one, if all its images are beyond the limit."""
    labels = [0] * 11 + [1] * 10
    train = ImageSet(21, lambda i: None, {}, labels=labels, classes=["cat", "dog", "owl"])
    assert record_spatial.lacking(train).endswith("there are fewer of dog, owl")
    assert "one class" in record_spatial.lacking(ImageSet(3, lambda i: None, {}, labels=[0] * 3))
    enough = ImageSet(22, lambda i: None, {}, labels=[0, 1] * 11, classes=["cat", "dog"])
    assert record_spatial.lacking(enough) == ""
