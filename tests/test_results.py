"""Tables with provenance: what is written is read again, and what is missing or out of step says so."""

import hashlib
import json
import subprocess
import sys
import tomllib

import numpy as np
import pandas as pd
import pytest
import yaml

import helpers
from helpers import files, results


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


@pytest.mark.fault(
    "Claims and results", 'text such as "007", "NaN" or "True" in a table', "it is read as the text that it was"
)
def test_text_that_looks_like_something_else_comes_back_as_text(folder, table):
    texts = {
        "numbers": ["007", "1e3", "0x10", " 5"],
        "missing": ["NaN", "nan", "", "None"],
        "truths": ["True", "False", "True", "False"],
        "quoted": ["a,b", '"', "a\nb", "é"],
        "class": pd.Categorical(["1", "2", "1", "2"]),
    }
    write(table.assign(**texts, whole=[True, False, True, True], cka=[0.5, np.nan, 1.0, 2.0]))
    again, sidecar = results.read("02_representation/within")
    for name, values in texts.items():
        assert again[name].tolist() == list(values), name
    assert sidecar["text"] == ["layer", *texts]
    assert again["images"].dtype == int and again["whole"].dtype == bool and np.isnan(again["cka"][1])


def test_a_table_that_notes_no_text_is_read_by_what_it_holds(folder, table):
    """As those of ``data/recorded`` that earlier versions wrote."""
    sidecar = write(table.assign(layer=["007", "NaN", "1", "2"])).with_suffix(".json")
    noted = json.loads(sidecar.read_text())
    del noted["text"]
    sidecar.write_text(json.dumps(noted))
    np.testing.assert_array_equal(results.read("02_representation/within")[0]["layer"], [7, np.nan, 1, 2])


def test_the_same_table_is_the_same_file(folder, table):
    first = write(table).read_bytes()
    assert write(table).read_bytes() == first


def test_models_are_noted_by_the_hash_of_their_weights(folder, table, tmp_path, monkeypatch):
    card, digest = tmp_path / "zoo" / "vit.json", hashlib.sha256(b"weights").hexdigest()
    files.write(card, json.dumps({"sha256": digest, "curve": [1, 2, 3]}))
    monkeypatch.setattr(results, "ZOO", card.parent)
    write(table, models=["vit"])
    sidecar = results.read("02_representation/within")[1]
    assert sidecar["models"] == {"vit": {"source": "zoo", "sha256": digest}}
    write(table, models={"resnet50": {"source": "a folder"}})
    assert results.read("02_representation/within")[1]["models"] == {"resnet50": {"source": "a folder"}}
    with pytest.raises(ValueError, match="list of names"):
        write(table, models="vit")
    with pytest.raises(ValueError, match=r"no card of 'vti' \(there is vit\)"):
        write(table, models=["vti"])
    card.write_text('{"sha256": null}')
    with pytest.raises(ValueError, match=r"vit\.json does not pin its weights: its sha256 is None"):
        write(table, models=["vit"])


def test_the_stored_models_are_noted_as_the_zoo_has_them(folder, table):
    write(table, models=["vit", "colours"])
    noted = results.read("02_representation/within")[1]["models"]
    for name in ("vit", "colours"):
        assert noted[name]["sha256"] == files.sha256(files.ROOT / "data" / "zoo" / f"{name}.safetensors")


def test_tables_and_verdicts_need_no_torch():
    code = (
        "import sys; from helpers import results; from helpers.claims import verdicts;"
        "results.recorded('rollout'); verdicts.verdicts();"
        "results._model_notes(['vit']); print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=files.ROOT, capture_output=True, text=True, timeout=300)
    assert ran.stdout.strip() == "[]", ran.stderr


# --- the version of the code


def test_one_version_is_said_everywhere(folder, table, root):
    write(table)
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert results.read("02_representation/within")[1]["version"] == version == helpers.__version__
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == version


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A repository of its own with the library's folder, as if the book lay there."""
    path = tmp_path / "elsewhere" / "book"
    for name in ("helpers/measures/heatmap.py", "notebooks/a.ipynb"):
        files.write(path / name, "1\n")
    files.write(path / ".gitignore", "build/\n__pycache__/\n")
    monkeypatch.setattr(results, "ROOT", path)
    git(path, "init", "-q")
    git(path, "add", ".")
    git(path, *AUTHOR, "commit", "-q", "-m", "all")
    return path


AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b.c")


def git(path, *arguments):
    return subprocess.run(["git", *arguments], cwd=path, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.fault(
    "Claims and results",
    "files in helpers that git does not track, or that were changed",
    "the note of provenance says so",
)
def test_a_commit_is_clean_only_if_the_code_is_that_of_the_commit(book):
    commit = git(book, "rev-parse", "HEAD")
    assert results.code_version() == {"commit": commit, "dirty": False}
    files.write(book / "helpers" / "__pycache__" / "cka.pyc", "built")
    files.write(book / "build" / "results" / "a.csv", "built")
    files.write(book / "notes.txt", "no code")
    assert results.code_version() == {"commit": commit, "dirty": False}
    (book / "helpers" / "hsic.py").write_text("of mine\n")
    assert results.code_version() == {"commit": commit, "dirty": True}  # a new room, which git does not know
    (book / "helpers" / "hsic.py").unlink()
    files.write(book / "helpers" / "measures" / "new.py", "of mine\n")
    assert results.code_version()["dirty"]
    (book / "helpers" / "measures" / "new.py").unlink()
    (book / "notebooks" / "a.ipynb").write_text("2\n")
    assert results.code_version()["dirty"]


@pytest.mark.fault(
    "Claims and results",
    "a copy of the book inside another repository",
    "that repository's commit is not taken for the book's",
)
def test_a_copy_inside_another_repository_has_no_commit(book, monkeypatch):
    """As from a tarball: neither the commit of the repository around it, nor one that a hook's variables name."""
    copy = book / "build" / "unpacked"
    files.write(copy / "helpers" / "cka.py", "1\n")
    monkeypatch.setattr(results, "ROOT", copy)
    assert results.code_version() == {}
    monkeypatch.setenv("GIT_DIR", str(book / ".git"))
    assert results.code_version() == {}
    monkeypatch.setattr(results, "ROOT", book)
    monkeypatch.setenv("GIT_DIR", str(files.ROOT / ".git"))
    assert (
        results.code_version()["commit"]
        == subprocess.run(
            ["git", "--git-dir", str(book / ".git"), "rev-parse", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
    )


def test_a_state_that_git_does_not_tell_is_not_clean(book, monkeypatch):
    ask = results._git
    monkeypatch.setattr(results, "_git", lambda *words: None if words[0] == "status" else ask(*words))
    assert results.code_version()["dirty"] is True
    monkeypatch.setattr(results, "_git", lambda *words: None)
    assert results.code_version() == {}


# --- tables that are changed, missing or refused


@pytest.mark.fault(
    "Claims and results",
    "a table or its sidecar changed by hand",
    "refused: they are out of step; what makes them is named",
)
def test_a_changed_table_is_noticed(folder, table):
    path = write(table)
    path.write_text(path.read_text().replace("40", "41"))
    with pytest.raises(ValueError, match=r"out of step.*notebooks/02_representation\.ipynb"):
        results.read("02_representation/within")
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"out of step"):
        results.read("02_representation/within")


@pytest.mark.fault(
    "Claims and results",
    "a sidecar or a card that is empty or damaged",
    "refused, naming the file and what to do",
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00"])
def test_a_damaged_sidecar_or_card_is_named(folder, table, tmp_path, monkeypatch, content):
    path = write(table).with_suffix(".json")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"within\.json .*notebooks/02_representation\.ipynb"):
        results.read("02_representation/within")
    with pytest.raises(ValueError, match=r"within\.json .*notebooks/02_representation\.ipynb"):
        results.arrays("02_representation/within", folder)
    files.write(tmp_path / "zoo" / "vit.json", content)
    monkeypatch.setattr(results, "ZOO", tmp_path / "zoo")
    with pytest.raises(ValueError, match=r"vit\.json .*restore it"):
        write(table, models=["vit"])


@pytest.mark.fault(
    "Claims and results",
    "a table or a sidecar that is not there",
    "its name, the nearest ones, and what makes it",
)
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
    with pytest.raises(ValueError, match="two columns of one name"):
        write(pd.concat([table, table[["images"]]], axis=1))
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
