"""Tables with provenance: what is written is read again, and what is missing or out of step says so."""

import json

import numpy as np
import pandas as pd
import pytest

from helpers import results


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def table():
    values = np.random.default_rng(0).normal(size=4).astype(np.float32)
    return pd.DataFrame({"layer": ["embed", "NA", "", "blocks.0"], "cka": values, "images": [10, 20, 30, 40]})


def write(table, name="02_representation/within", **more):
    return results.write(name, table, what="CKA within one model", units={"cka": "1"}, **more)


def test_a_float32_table_comes_back_exactly_with_its_provenance(folder, table):
    path = write(table, images={"source": "scenes", "count": 2560}, seed=7, estimator="unbiased")
    assert path == folder / "02_representation" / "within.csv"
    again, sidecar = results.read("02_representation/within")
    assert list(again["layer"]) == list(table["layer"])  # neither "NA" nor an empty name turns into NaN
    np.testing.assert_array_equal(again["cka"].to_numpy(np.float32), table["cka"])
    assert sidecar["what"] and sidecar["units"] == {"cka": "1"} and sidecar["rows"] == 4
    assert sidecar["images"]["count"] == 2560 and sidecar["seed"] == 7 and sidecar["estimator"] == "unbiased"
    assert {"python", "torch", "timm", "numpy"} <= set(sidecar["versions"])
    assert set(sidecar["code"]) in ({"commit", "dirty"}, set()) and sidecar["date"].endswith("+00:00")


def test_undefined_numbers_survive(folder, table):
    write(table.assign(cka=[0.5, np.nan, -0.01, 1.0]))
    assert results.read("02_representation/within")[0]["cka"].isna().tolist() == [False, True, False, False]


def test_the_same_table_is_the_same_file(folder, table):
    first = write(table).read_bytes()
    assert write(table).read_bytes() == first


def test_models_are_noted_by_the_hash_of_their_weights(folder, table, monkeypatch):
    from helpers import zoo

    monkeypatch.setattr(zoo, "card", lambda name: {"sha256": f"hash of {name}", "curve": [1, 2, 3]})
    write(table, models=["vit", "resnet"])
    sidecar = results.read("02_representation/within")[1]
    assert sidecar["models"]["vit"] == {"source": "zoo", "sha256": "hash of vit"}
    write(table, models={"resnet50": {"source": "a folder"}})
    assert results.read("02_representation/within")[1]["models"] == {"resnet50": {"source": "a folder"}}
    with pytest.raises(ValueError, match="list of names"):
        write(table, models="vit")


def test_a_changed_table_is_noticed(folder, table):
    path = write(table)
    path.write_text(path.read_text().replace("40", "41"))
    with pytest.raises(ValueError, match=r"out of step.*notebooks/02_representation\.ipynb"):
        results.read("02_representation/within")


def test_missing_tables_say_what_makes_them(folder, table, tmp_path, monkeypatch):
    write(table)
    with pytest.raises(
        FileNotFoundError, match=r"there is 02_representation/within.*notebooks/02_representation\.ipynb"
    ):
        results.read("02_representation/withn")
    with pytest.raises(FileNotFoundError, match="one of the chapters"):
        results.read("elsewhere")
    with pytest.raises(FileNotFoundError, match="make record"):
        results.recorded("no-such-recording")
    (folder / "02_representation" / "within.json").unlink()
    with pytest.raises(FileNotFoundError, match="no sidecar"):
        results.read("02_representation/within")


@pytest.mark.parametrize("name", ["Within", "../within", "/within", "claims/02", "a b", ""])
def test_names_that_would_not_do(folder, table, name):
    with pytest.raises(ValueError, match="no name for a table"):
        write(table, name)


def test_what_cannot_be_written_as_it_is(folder, table):
    with pytest.raises(ValueError, match=r"give units=.*\['extra'\]"):
        write(table.assign(extra=0.5))
    with pytest.raises(ValueError, match="no columns"):
        results.write("x", table, what="", units={"cka": "1", "chk": "1"})
    with pytest.raises(ValueError, match="reset_index"):
        write(table.set_index("layer"))
    with pytest.raises(ValueError, match="no rows"):
        write(table.iloc[:0])
    with pytest.raises(TypeError):
        write(table, model=object())
    assert results.names() == []  # none of these left half a table behind


def test_names_lists_what_is_there(folder, table, tmp_path):
    write(table)
    write(table, "01_similarity/bias")
    write(table, "elsewhere", where=tmp_path / "other")
    assert results.names() == ["01_similarity/bias", "02_representation/within"]
    assert results.names(tmp_path / "other") == ["elsewhere"]
    assert results.read("elsewhere", tmp_path / "other")[1]["rows"] == 4


def test_what_is_recorded_is_whole(root):
    """Every table in data/recorded fits its sidecar, which says what it was made with and names no machine's path."""
    for name in results.names(results.RECORDED):
        _, sidecar = results.recorded(name)
        assert {"what", "images", "versions", "code", "date"} <= set(sidecar), name
        text = json.dumps(sidecar)
        assert "/home/" not in text and "/tmp/" not in text and str(root) not in text, name
