"""Recordings of what happens layer by layer: depths of networks of which some blocks are left out or not read."""

import numpy as np
from samples import noise, pair

from helpers.networks.taps import taps_for
from helpers.recorded import recorded_fields
from helpers.recording import layers as record_layers


def test_depths_of_receptive_fields_run_along_the_complete_network(tmp_path, monkeypatch):
    for name, value in {"FIELD_IMAGES": 16, "FIELD_CHANNELS": 1, "LENGTH": {"resnet": 8}}.items():
        monkeypatch.setattr(record_layers, name, value)
    networks = {"resnet": pair(cut=True)["resnet"]}
    blocks = taps_for(networks["resnet"], ["block"])
    for many, read in ((40, range(1, len(blocks) + 1)), (2, range(4, len(blocks) + 1, 4))):
        monkeypatch.setattr(record_layers, "MANY_BLOCKS", many)
        record_layers.receptive_fields(networks, noise(16), tmp_path)
        table, _, _ = recorded_fields(tmp_path)
        depth = table[(table["left_out"] < 0) & (table["kind"] == "block")]["depth"]
        np.testing.assert_allclose(depth, [i / 8 for i in read])
