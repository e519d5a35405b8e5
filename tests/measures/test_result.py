"""A result gives its table, is drawn, and comes back from its file as it was."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from helpers import results
from helpers.measures import figures
from helpers.measures.attention import attention_distance
from helpers.measures.result import Result
from helpers.measures.skip_ratios import skip_ratios
from helpers.networks import zoo


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def measured():
    """Two measures of a small network on 4 images, as they come."""
    vit, batch = zoo.load("vit-small", pretrained=False), torch.rand(4, 3, 64, 64)
    return {
        "attention_distance": attention_distance(vit, batch.split(2), groups=2),
        "skip_ratios": skip_ratios(vit, batch.split(2), 2).table(),
    }


def lines(ax):
    """The points of the lines on axes, those that stand for a level left out."""
    return [line.get_xydata() for line in ax.lines if len(line.get_xdata()) > 2]


@pytest.mark.parametrize("name", ["attention_distance", "skip_ratios"])
def test_what_is_saved_is_loaded(measured, name, tmp_path):
    made = Result(name, measured[name], provenance={"models": {"vit-small": {"seed": 0}}, "groups": 2})
    assert made.save(tmp_path) == tmp_path / f"{name}.csv"
    again = Result.load(tmp_path, name)
    pd.testing.assert_frame_equal(again.to_frame(), made.to_frame(), rtol=1e-8, check_dtype=False)
    assert again.units == ({"distance": "px", "plain": "px", "uniform": "px", "prefix": "share of attention"}
                           if name == "attention_distance" else dict.fromkeys(again.units, "1"))  # fmt: skip
    assert again.provenance["models"] == {"vit-small": {"seed": 0}} and again.provenance["groups"] == 2
    kept = results.mapping(tmp_path / f"{name}.json", "")
    told = {**kept, "date": "2021-08-19", "version": "0.1", "versions": {"torch": "1"}}  # as of long ago
    (tmp_path / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")
    Result.load(tmp_path, name).save(tmp_path / "elsewhere")
    assert results.mapping(tmp_path / "elsewhere" / f"{name}.json", "") == told


def test_a_copy_of_the_table_is_handed_out(measured):
    made = Result("skip_ratios", measured["skip_ratios"])
    table = made.to_frame()
    table["ratio"] = 0.0
    assert (made.table["ratio"] > 0).all()


def test_a_table_of_one_network_is_drawn(measured):
    table = measured["skip_ratios"]
    (ax,) = Result("skip_ratios", table).plot().axes
    (drawn,) = lines(ax)
    expected = table[(table["left_out"] == -1) & (table["tokens"] == "all")]["ratio"].to_numpy()
    np.testing.assert_allclose(drawn[:, 1], expected)
    np.testing.assert_allclose(drawn[:, 0], np.linspace(0, 1, len(expected)))
    assert ax.get_yscale() == "log" and ax.get_legend() is None


def test_heads_are_drawn_beside_those_of_equal_grids(measured):
    table = measured["attention_distance"]
    other, larger = table.assign(distance=table["distance"] / 2), table.assign(uniform=2 * table["uniform"])
    every = pd.concat([table.assign(model="a"), other.assign(model="b"), larger.assign(model="c")])
    left, right = Result("attention_distance", every).plot().axes
    first, second = lines(right)
    whole = table[table["left_out"] == -1]
    np.testing.assert_allclose(first[:, 1], whole.groupby("block")["distance"].mean())
    np.testing.assert_allclose(second[:, 1], first[:, 1] / 2)
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["a", "b"]
    heads = np.concatenate([line[:, 1] for line in lines(left)]) if lines(left) else np.array([])
    assert set(heads.round(6)) <= set(whole["distance"].round(6))


@pytest.mark.parametrize("name", figures.NAMES)
def test_the_books_own_recordings_are_drawn(name):
    """Of networks that were measured on photographs long before; what is drawn is what the table says."""
    found = Result.load(results.RECORDED, name)
    drawn = found.plot()
    if name == "attention_distance":
        assert len(drawn.axes) == 2
        return
    y, every = figures.points(name, found.table)
    assert (
        every["depth"].between(0, 1).all() and "pixels" not in set(every["model"]) and drawn.axes[0].get_ylabel() == y
    )
    assert len(lines(drawn.axes[0])) == every["model"].nunique()
    for line, (_, rows) in zip(lines(drawn.axes[0]), every.groupby("model", sort=False), strict=True):
        np.testing.assert_allclose(line, rows[["depth", y]].to_numpy(float))


def test_the_radius_is_drawn_as_a_share_where_the_images_are_known():
    table = Result.load(results.RECORDED, "receptive_fields").to_frame()
    (plain, of_plain), (shared, of_share) = (
        figures.points("receptive_fields", rows) for rows in (table, table.assign(side=224))
    )
    assert plain == "radius (px)" and shared == "radius (share of the image's side)"
    np.testing.assert_allclose(of_plain[plain], 224 * of_share[shared])


def test_what_does_not_do_is_refused(measured, tmp_path):
    with pytest.raises(
        ValueError, match="'rises' has no usual figure; there is one of attention_distance, .*helpers.plots"
    ):
        Result("rises", measured["skip_ratios"]).plot()
    with pytest.raises(ValueError, match="this is no table of spectra: it has no column 'top'"):
        Result("spectra", measured["skip_ratios"]).plot()
    with pytest.raises(ValueError, match="give units"):
        Result("rises", pd.DataFrame({"rise": [0.5]})).save(tmp_path)
    with pytest.raises(FileNotFoundError, match="no result 'spectra' in .*; there is none"):
        Result.load(tmp_path, "spectra")
    Result("rises", pd.DataFrame({"rise": [0.5]}), units={"rise": "nat"}).save(tmp_path)
    with pytest.raises(FileNotFoundError, match="no result 'spectra' in .*; there are rises"):
        Result.load(tmp_path, "spectra")
