"""The result of a heat-map: its parts, its tables, its file."""

import numpy as np
import pytest
from test_heatmap import loader, make, vit
from torch import nn

from helpers.measures.cka_result import CKAResult
from helpers.measures.heatmap import cka_heatmap


@pytest.fixture(scope="module")
def pair() -> dict[str, nn.Module]:
    return {"vit": vit(), "resnet": make("resnet18")}


def test_parts_of_a_result(pair):
    result = cka_heatmap(pair, loader(), ["resid_post", "mlp", "stem", "block"])
    part = result.between("vit", "resnet")
    assert part.matrix.shape == part.stderr.shape == (4, 9)
    np.testing.assert_array_equal(part.matrix, result.matrix[:4, 4:])
    np.testing.assert_array_equal(part.stderr, result.stderr[:4, 4:])
    assert list(part.to_frame().index) == [f"blocks.{i}.{kind}" for i in (0, 1) for kind in ("mlp", "resid_post")]
    assert part.labels[0] == "vit/blocks.0.mlp" and list(part.y["name"])[0] == "stem"
    np.testing.assert_allclose(part.x["depth"], [0, 1 / 3, 2 / 3, 1])
    assert part.between("vit", kinds=["mlp"]).matrix.shape == (2, 2)
    value, stderr = part.statistic(lambda matrix: matrix.mean())
    assert value == part.matrix.mean() and 0 < stderr < 1
    table = part.to_table()
    columns = [f"{column}_{side}" for side in "xy" for column in ("model", "name", "kind", "depth")]
    assert list(table.columns) == [*columns, "cka", "stderr"]
    line = table[(table["name_x"] == "blocks.1.mlp") & (table["name_y"] == "layer2.0")]
    assert line["cka"].item() == part.to_frame().loc["blocks.1.mlp", "layer2.0"] and len(table) == 36
    axes = part.plot()
    drawn = np.asarray(axes.collections[0].get_array()).reshape(part.matrix.shape)
    np.testing.assert_array_equal(drawn, part.matrix)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("resnet stage", "vit block")
    with pytest.raises(ValueError, match=r"no model 'resnett' \(nearest: resnet\); there are vit, resnet"):
        result.between("vit", "resnett")
    with pytest.raises(ValueError, match=r"resnet has no tap of kind \['mlp'\]; it has stem, block"):
        result.between("vit", "resnet", kinds=["mlp"])


def test_a_result_survives_the_disk(pair, tmp_path):
    result = cka_heatmap(pair, loader(), ["resid_post", "block"], shuffle=3).between("vit", "resnet")
    again = CKAResult.load(result.save(tmp_path / "cka.safetensors"))
    assert again.info == result.info and again.taps.equals(result.taps) and again.shuffle == 3
    turned = [r.between("resnet", "vit") for r in (again, result)]
    for one, other in ((again, result), (again.control, result.control), turned):
        np.testing.assert_array_equal(one.matrix, other.matrix)
        np.testing.assert_array_equal(one.stderr, other.stderr)
    assert again.to_table().equals(result.to_table())
    plain = cka_heatmap(pair, loader(), ["resid_post", "block"], batches=1)
    assert CKAResult.load(plain.save(tmp_path / "plain.safetensors")).control is None
    first = (tmp_path / "plain.safetensors").read_bytes()
    assert plain.save(tmp_path / "plain.safetensors").read_bytes() == first
