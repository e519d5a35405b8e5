"""Each measure of a report on each family of networks: a right number, or a reason; and the page that lists them."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers.building import families
from helpers.building.families import BATCH, FAMILIES, MEASURES
from helpers.measures.attention_maps import attention_maps
from helpers.measures.cka import cka
from helpers.measures.fourier import spectra
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.receptive_field import uniform_radius
from helpers.networks.inputs import normalise
from helpers.networks.places import STREAM
from helpers.networks.taps import capture, taps_for
from helpers.uncertainty import whole

PLAIN = [name for name, family in FAMILIES.items() if family.options.get("patch_size") == 8]  # one grid of 8 px patches
CNNS = ("ConvNeXt", "ResNet", "ResNetV2-BiT", "RegNet", "EfficientNet", "DenseNet", "MobileNetV3")
WITHOUT_ATTENTION = {*CNNS, "MLP-Mixer", "ResMLP"}
MIXED_HEADS, WINDOWS_OR_STAGES = {"CaiT"}, {"Swin", "PiT", "CoAtNet"}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_measure_gives_the_number_that_is_kept_or_its_reason(name):
    found = families.battery(name)
    kept = families.stored().query("family == @name")
    assert found["measure"].tolist() == kept["measure"].tolist() == list(MEASURES)
    assert found["reason"].tolist() == kept["reason"].tolist()
    np.testing.assert_allclose(found["value"], kept["value"], rtol=0.02)  # machines add in other orders

    network, images = families.build(FAMILIES[name]), families.pictures(FAMILIES[name].size)
    value = dict(zip(found["measure"], found["value"], strict=True))
    taps = taps_for(network, STREAM)
    with torch.inference_mode(), capture(network, taps) as out:
        network(normalise(network, images))
    raw = {place: x.double() for place, x in out.items()}
    first, last = taps[0].name, taps[-1].name
    matrix = cka_heatmap({"": network}, [images], [taps[0], taps[-1]]).matrix
    assert matrix[0, 1] == pytest.approx(cka(raw[first], raw[last]), abs=1e-4)
    assert -1 <= value["CKA"] <= 1

    assert 0 < value["Receptive field"] <= 1.5 * uniform_radius(FAMILIES[name].size)
    table = whole(spectra(network, images.split(BATCH), 2).table())
    assert table["ac"].iloc[-1] == pytest.approx(value["Variance"], rel=1e-3)  # Parseval's theorem
    if name in CNNS:  # no tokens: a probe reads the mean of a map, whose variance is that over rows and columns
        maps = raw[last]
        assert value["Probes"] == maps.shape[1]
        shares = maps.var((2, 3), correction=0).mean() / maps.square().mean()
        assert value["Variance"] == pytest.approx(float(shares), rel=1e-3)


@pytest.mark.parametrize("name", PLAIN)
def test_attention_that_is_nearly_uniform_looks_as_far_as_closed_forms_say(name):
    """With queries and keys of nothing, attention is uniform: its distance is the mean over pairs of patches."""
    family = FAMILIES[name]
    network, images = families.build(family), families.pictures(family.size)[:4]
    for module in network.modules():
        for part in ("qkv", "q", "k", "q_proj", "k_proj"):
            if isinstance(layer := getattr(module, part, None), nn.Linear):
                nn.init.zeros_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for part in ("q_bias", "relative_position_bias_table"):
            if isinstance(values := getattr(module, part, None), nn.Parameter):
                nn.init.zeros_(values)
    try:
        with torch.inference_mode(), attention_maps(network) as maps:
            network(normalise(network, images))
    except ValueError:
        assert name in MIXED_HEADS
        return
    (one,) = {x.shape[-1] for x in maps.values()}
    assert all(torch.allclose(x, torch.full_like(x, 1 / one), atol=1e-6) for x in maps.values())
    rows, columns = (side // 8 for side in family.size)
    patches = list(itertools.product(range(rows), range(columns)))
    expected = 8 * np.mean([math.dist(a, b) for a in patches for b in patches])
    assert MEASURES["Attention distance"][1](network, families.pictures(family.size)) == pytest.approx(
        expected, rel=1e-4
    )
    largest = MEASURES["Rollout"][1](network, images)
    assert largest == pytest.approx(1 / len(patches), rel=1e-4)


def test_what_applies_to_whom():
    kept = families.stored().set_index(["measure", "family"])
    applies = {measure: {name for name in FAMILIES if not kept.loc[(measure, name), "reason"]} for measure in MEASURES}
    every = set(FAMILIES)
    for measure in ("CKA", "Receptive field", "Localisation", "Probes", "Spectra", "Variance"):
        assert applies[measure] == every, measure
    assert applies["Attention distance"] == every - WITHOUT_ATTENTION - MIXED_HEADS - {"CoAtNet"}
    assert applies["Rollout"] == every - WITHOUT_ATTENTION - MIXED_HEADS - WINDOWS_OR_STAGES
    assert applies["Class token"] == applies["Rollout"] - {"ViT without class token", "SigLIP"}
    assert applies["Skip ratio"] >= set(PLAIN) - MIXED_HEADS | {"Swin", "PiT", "MLP-Mixer", "ConvNeXt", "ResNet"}
    assert {kept.loc[("Probes", name), "value"] for name in PLAIN} == {24, 48}
    for name in WITHOUT_ATTENTION:
        assert "has no attention" in kept.loc[("Attention distance", name), "reason"]


def test_the_page_shows_every_number_and_every_reason():
    sections, kept = families.sections(), families.stored()
    tables = [text.splitlines() for text in sections if text.startswith("| Family")]
    assert len(tables) == 2 and all(len(table) == len(FAMILIES) + 2 for table in tables)
    cells = {}
    for table in tables:
        head = table[0].strip("| ").split(" | ")
        for line in table[2:]:
            family, *row = line.strip("| ").split(" | ")
            cells |= {(family, measure): cell for measure, cell in zip(head[1:], row, strict=True)}
    reasons = dict(line.removeprefix("- ").split(" ", 1) for line in sections[-1].splitlines())
    for row in kept.itertuples():
        cell = cells[row.family, row.measure]
        assert (cell in reasons) if row.reason else float(cell) == pytest.approx(row.value, abs=0.6, rel=0.01)
    assert len(reasons) == kept["reason"][kept["reason"] != ""].nunique()


def test_what_is_neither_a_number_nor_a_reason_is_an_error(monkeypatch):
    monkeypatch.setattr(families, "MEASURES", {"nothing": ("", lambda network, images: float("nan"))})
    with pytest.raises(ArithmeticError, match="nothing of ViT is nan"):
        families.battery("ViT")
