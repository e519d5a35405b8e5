"""What the paper's networks take: counted again by closed forms, and the table that the page shows."""

import re

import pandas as pd
import pytest
import timm
import torch
from torch import nn

from helpers import results
from helpers.building import lineup
from helpers.building.lineup import LINEUP, Network
from helpers.networks.taps import capture, taps_for

VITS = [name for name in LINEUP if name.startswith("ViT")]


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(LINEUP[name].timm).eval()


@pytest.mark.parametrize("name", VITS)
def test_operations_of_a_vit_are_twice_its_multiplications(name):
    vit, found = on_meta(name), lineup.counted(name)
    d, patch = vit.embed_dim, vit.patch_embed.patch_size[0]
    patches = (found["side"] // patch) ** 2
    t = patches + 1
    block = t * d * 3 * d + 2 * t * t * d + t * d * d + 2 * t * d * 4 * d  # q, k, v; A and A · v; projection; MLP
    macs = patches * 3 * patch**2 * d + len(vit.blocks) * block + d * vit.num_classes
    assert found["flops"] == 2 * macs


@pytest.mark.parametrize("name", [name for name in LINEUP if name not in VITS])
def test_operations_of_others_are_those_of_their_convolutions_and_linear_layers(name):
    network, macs = on_meta(name), 0

    def add(module, args, output):
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.inference_mode():
        network(torch.empty(1, 3, 224, 224, device="meta"))
    assert lineup.counted(name)["flops"] == 2 * macs


def test_what_is_counted_without_numbers_is_what_a_network_with_numbers_has():
    def small():
        return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2)

    with torch.device("meta"):
        found = lineup.count(small().eval(), 32)
    network = small().eval()
    places = taps_for(network)
    with torch.inference_mode(), capture(network, places, lambda x: x.nbytes) as out:
        network(torch.rand(1, 3, 32, 32))
    assert found["places"] == len(places) and found["tapped"] == sum(out.values())
    assert found["largest"] == 4 * (3 * 32 * 32 + 16 * 16)  # of the patch embedding: image and tokens
    assert found["parameters"] == sum(p.numel() for p in network.parameters())


def test_the_table_that_is_kept_is_counted_as_today():
    table = lineup.stored().set_index("network")
    assert table.index.tolist() == list(LINEUP)
    for name, about in LINEUP.items():
        assert table.loc[name, "timm"] == about.timm and table.loc[name, "images"] == about.images
        found = lineup.counted(name)
        assert {key: table.loc[name, key] for key in found} == found
        measured = table.loc[name, ["seconds", "memory"]].astype(float)
        assert (measured > 0).all() if about.images else (measured == 0).all()
    measured = table[table["images"] > 0]
    assert (measured["memory"] > 4 * measured["parameters"] + measured["batch"] * measured["largest"]).all()


def test_every_name_has_weights_at_timms_hub():
    assert {about.timm for about in LINEUP.values()} <= set(timm.list_pretrained())


def test_networks_are_measured_once_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    small = {"one": Network("test_vit", 8, 4), "like it": Network("test_vit", 0)}
    monkeypatch.setattr(lineup, "LINEUP", small)
    asked = []

    class Said:
        def __init__(self, command, **options):
            asked.append(command[-1])
            self.stdout = '{"images": 8, "batch": 4, "seconds": 0.25, "memory": 300000000}'

    monkeypatch.setattr(  # a table that is written makes the tree dirty
        results, "code_version", lambda: {"commit": "c0ffee", "dirty": (tmp_path / "lineup.csv").exists()}
    )
    monkeypatch.setattr(lineup.subprocess, "run", Said)
    lineup.make(where=tmp_path)
    assert not results.read("lineup", tmp_path)[1]["code"]["dirty"]
    lineup.make(where=tmp_path)
    table = lineup.stored(tmp_path)
    assert asked == ["one"] and table["seconds"].tolist() == [0.25, 0] and table["images"].tolist() == [8, 0]
    own, other = (lineup.like(table, row) for row in table.itertuples())
    assert own.network == other.network == "one"
    seconds, memory = lineup.at_scale(own)
    assert seconds == 0.25 * 204_800
    assert memory == 4 * own.parameters + 1024 * own.largest + 8 * own.places * 1024**2
    lineup.make(again=True, where=tmp_path)
    assert asked == ["one", "one"]
    with pytest.raises(ValueError, match="was not measured, nor a network like it"):
        lineup.like(table.assign(images=0), next(table.assign(images=0).itertuples()))


def test_a_measurement_gives_what_the_table_keeps(monkeypatch):
    monkeypatch.setitem(LINEUP, "small", Network("test_vit", 8, 4))
    found = lineup.measure("small")
    assert list(found) == lineup.MEASURED and found["images"] == 8 and 0 < found["seconds"] < 60
    assert found["memory"] > 1e6


def test_the_page_shows_the_table():
    text, table = lineup.text(), lineup.stored()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    lines = [line for line in lines if line[0] != ":--"]
    shown = pd.DataFrame(lines[1 : 1 + len(table)], columns=lines[0])
    assert shown["Network"].tolist() == table["network"].tolist()
    assert [float(value) for value in shown["GFLOPs an image"]] == pytest.approx(list(table["flops"] / 1e9), abs=0.051)
    measured, (_, *others) = lines[1 + len(table) : 2 + 2 * len(table)], lines[2 + 2 * len(table) :]
    seconds = [float(line[2]) for line in measured[1:]]
    own = [lineup.like(table, row).seconds for row in table.itertuples()]
    assert [line[0] for line in measured[1:]] == table["network"].tolist() and seconds == pytest.approx(own, abs=0.0051)
    figures = {line[0]: float(line[2].replace(",", "")) for line in others}
    assert set(figures) == set(lineup.FIGURES)
    flops = table.set_index("network")["flops"]
    own = sum(flops[name] * images for name, images in lineup.FIGURES["3 and 4"].items())
    assert figures["3 and 4"] == pytest.approx(own / 1e15, abs=0.051)
    assert re.search(r"on one thread of .+, torch \d", " ".join(text.split()))
