"""The recordings: that they hang together, that the recorder makes them, and that they can be computed again.

The last needs the weights and the photographs: set VIT_BOOK_WEIGHTS and VIT_BOOK_IMAGES to their folders.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers import results
from helpers.images.sources import ImageSet, batches, folder_images
from helpers.measures import structure
from helpers.measures.localization import hit_rate
from helpers.measures.massive_tokens import VIEWS
from helpers.networks import zoo
from helpers.networks.inputs import normalise
from helpers.networks.places import STREAM
from helpers.networks.taps import capture, taps_for
from helpers.recorded import recorded_arrays, recorded_cka, recorded_fields
from helpers.recording import layers as record_layers
from helpers.recording import record
from helpers.recording import similarity as record_similarity
from helpers.recording import spatial as record_spatial
from helpers.recording import store as recording

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


def test_recorded_maps_of_tokens_and_patches():
    table, sidecar = results.recorded("token_patches")
    maps = recorded_arrays("token_patches")
    assert set(table["left_out"]) == set(range(-1, 16)) and sidecar["images"]["count"] >= 2560
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


PHOTOGRAPHS = 66  # of two classes; the most that a recording needs is 64


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader's own folders: two small networks with a card each, and a few photographs of two classes."""
    folder, cards = tmp_path_factory.mktemp("reader"), {}
    (folder / "weights").mkdir()
    for name in ("test_vit", "test_resnet"):
        torch.manual_seed(0)
        model = timm.create_model(name, **({"zero_init_last": False} if "resnet" in name else {}))
        save_file(model.state_dict(), folder / "weights" / f"{name}.safetensors")
        card = {"architecture": name, "file": f"{name}.safetensors", "mean": [0.5] * 3, "std": [0.5] * 3}
        cards[name] = card | {"trained_on": "nothing", "complete": True, "source": "this test"}
    (folder / "cards.json").write_text(json.dumps(cards))
    for i in range(PHOTOGRAPHS):
        photo = folder / "photos" / ("one", "two")[i % 2] / f"{i}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, 160)).save(photo)
    return folder


def run(monkeypatch, folder, *more, models=("test_vit", "test_resnet")):
    """``make record`` with the reader's folders, into the folder ``out`` that is given last of all."""
    arguments = ["--weights", str(folder), "--images", str(folder / "photos"), "--size", "160"]
    monkeypatch.setattr(sys, "argv", ["record", *arguments, "--models", *models, *map(str, more)])
    record.main()


def files(folder):
    """Name → bytes of all files in a folder, hidden ones too."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.fault(
    "Recording", "a reader's own networks and 66 photographs", "every recording is made, into a folder of the reader's"
)
def test_make_record_works_on_anyones_models_and_photographs(reader, tmp_path, monkeypatch):
    for name, value in {"FIELD_CHANNELS": 1, "MANY_BLOCKS": 3}.items():
        monkeypatch.setattr(record_layers, name, value)
    monkeypatch.setattr(record_spatial, "DRAWS", 2)
    versions = iter([{"commit": "of the start", "dirty": False}])  # the first file that is written changes the folder
    monkeypatch.setattr(results, "code_version", lambda: next(versions))
    before, out = files(results.RECORDED), tmp_path / "measured"
    monkeypatch.setattr(record, "OUT", out)  # what is written to if nothing is said
    run(monkeypatch, reader, "--train-images", reader / "photos")
    assert files(results.RECORDED) == before and not list(out.glob(".*"))
    result, sidecar = recorded_cka("similarity", out)
    assert result.models == ["test_vit", "test_resnet"] and result.n_images == 64 and result.skipped == 2
    assert result.groups == 16 and np.isfinite(result.stderr).all()
    assert sidecar["models"]["test_vit"]["source"] == "this test" and sidecar["images"]["count"] == PHOTOGRAPHS
    tokens, _ = recorded_cka("token_similarity", out)
    stream = structure.places(result, "test_vit").index
    same = tokens.taps["model"].eq("test_vit, all tokens").to_numpy().nonzero()[0]
    assert tokens.n_images == 64 and tokens.skipped == 2
    np.testing.assert_allclose(tokens.matrix[np.ix_(same, same)], result.matrix[np.ix_(stream, stream)], atol=1e-5)
    large, small = (recorded_cka(f"similarity_batch{n}", out)[0] for n in (32, 4))
    assert large.n_images == small.n_images == 64 and structure.largest_difference(large, small)[0] > 0
    heads, sidecar = results.read("attention_distance", out)
    assert set(heads["left_out"]) == set(range(-1, 16)) and sidecar["images"]["count"] == PHOTOGRAPHS
    assert heads["distance"].between(0, heads["uniform"] * 1.5).all() and heads["prefix"].between(0, 1).all()
    subsets, sidecar = results.read("head_subsets", out)
    assert set(subsets["resnet"]) == {"test_resnet"} and sidecar["batch"] == 4
    rolled, sidecar = results.read("rollout", out)
    assert abs(rolled.groupby("block")["mass"].sum() - 1).max() < 1e-5 and sidecar["images"]["count"] == PHOTOGRAPHS
    attended, _ = results.read("attended", out)
    assert abs(attended.groupby("block")["share"].sum() - 1).max() < 1e-5
    fields, maps, sidecar = recorded_fields(out)
    assert set(maps) == set(fields["model"]) == {"test_vit", "test_resnet"} and sidecar["images"]["count"] == 32
    for name, rows in fields[fields["left_out"] < 0].groupby("model"):
        assert maps[name].shape == (len(rows), 56, 56) and rows["depth"].iloc[0] == 0
    skips, _ = results.read("skip_ratios", out)
    assert set(skips["left_out"]) == set(range(-1, 16)) and set(skips["branch"]) == {"attention", "MLP", "block"}
    tokens, _ = results.read("skip_tokens", out)
    assert set(tokens["model"]) == {"test_vit"} and tokens["token"].max() == 100  # of 160 pixels by patches of 16
    maps, table = recorded_arrays("token_patches", out), results.read("token_patches", out)[0]
    assert {f"{row.model}/{row.place}" for row in table.itertuples()} == set(maps)
    assert maps["test_vit/blocks.0.resid_post"].shape == (100, 100) and set(table["left_out"]) == set(range(-1, 16))
    twins, _ = results.read("token_patches_untrained", out)
    assert set(twins["model"]) == {"test_vit", "test_resnet"}
    assert (table.loc[table["model"] == "pixels", "hit_rate"] == 1).all()
    probed, sidecar = results.read("probes", out)
    assert set(probed["read_out"]) == {"cls", "mean token", "tokens"} and sidecar["train"]["count"] == PHOTOGRAPHS
    assert probed["accuracy"].between(0, 1).all() and (probed["low"] <= probed["high"]).all()
    assert sidecar["grid"] == [5, 5]  # of the ResNet's last stage; the ViT has 10 × 10 patches
    assert sidecar["code"] == {"commit": "of the start", "dirty": False}
    (out / "similarity.safetensors").write_bytes((out / "token_similarity.safetensors").read_bytes())
    with pytest.raises(ValueError, match="not the file its sidecar describes"):
        recorded_cka("similarity", out)


def refused(capsys) -> str:
    """The one line on which a run has ended."""
    said = capsys.readouterr().err.strip()
    assert said.startswith("record: ") and "\n" not in said and "Traceback" not in said
    return said


@pytest.mark.fault("Recording", "32 photographs", "refused at once, with what each measure needs; nothing is measured")
@pytest.mark.fault("Recording", "a disk that is full", "refused at once, before anything is measured")
def test_what_is_needed_is_asked_for_before_anything_is_measured(reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "load", lambda *args, **options: pytest.fail("a network was loaded"))
    monkeypatch.setattr(record.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, reader, "--limit", 15, "--train-images", reader / "photos", "--out", tmp_path / "out")
    said = refused(capsys)
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    for wanted in (
        "batch_sizes needs 64 images",
        "head_subsets needs 64 images (16 jackknife groups of 4), and there are 15",
        "skip_ratios needs 16 images",
        "probes: more than 10 images of each class are needed to learn from; there are fewer of",
        "1 MB left, and 200 MB must be free",
    ):
        assert wanted in said
    assert "similarity needs" not in said


@pytest.mark.parametrize(
    ("more", "models", "said"),
    [
        (["--images", "nowhere"], ["test_vit", "test_resnet"], "no folder of images at nowhere"),
        (["--limit", "0"], ["test_vit", "test_resnet"], "limit is a number of images"),
        ([], ["test_vit", "test_resnt"], "unknown model 'test_resnt'.*did you mean test_resnet"),
        ([], ["test_vit", "test_vit"], "named twice: test_vit"),
        (["--size", "224"], ["test_vit", "test_resnet"], "takes images of shape"),
        (
            ["--only", "rollout", "head_subsets"],
            ["test_resnet", "test_vit"],
            "rollout: ResNet has no attention.*head_subsets: ResNet has no",
        ),
        (["--only", "tokens"], ["test_resnet", "test_vit"], "tokens: tokens have shape"),
        (["--only", "probes"], ["test_vit"], "name their folder in --train-images"),
        (["--weights", "nowhere"], ["test_vit", "test_resnet"], "nowhere is no folder of weights"),
    ],
)
@pytest.mark.fault(
    "Recording",
    "wrong folders, names, sizes, or networks a measure makes no sense for",
    "one line, and nothing is measured",
)
def test_input_errors_are_one_line(more, models, said, reader, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, reader, "--out", tmp_path / "out", *more, models=models)
    assert re.search(said, refused(capsys)) and not (tmp_path / "out").exists()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.fault(
    "Recording", "a run is killed", "at most the recording that was being made is lost; the next run goes on from there"
)
def test_a_killed_run_loses_one_recording_and_goes_on(reader, tmp_path, monkeypatch, capsys):
    out, only = tmp_path / "out", ["--only", "rollout", "attended", "skip_ratios"]
    made = record.RECORDINGS["attended"]

    def killed(*args, **options):
        made.measure(*args, **options)
        raise Killed

    monkeypatch.setitem(record.RECORDINGS, "attended", replace(made, measure=killed))
    with pytest.raises(Killed):
        run(monkeypatch, reader, *only, "--out", out)
    assert results.names(out) == ["rollout"]
    monkeypatch.setitem(record.RECORDINGS, "attended", made)
    again = record.RECORDINGS["rollout"]
    monkeypatch.setitem(record.RECORDINGS, "rollout", replace(again, measure=lambda *a, **o: pytest.fail("once more")))
    run(monkeypatch, reader, *only, "--out", out)
    assert "rollout: there already" in capsys.readouterr().out
    assert results.names(out) == ["attended", "rollout", "skip_ratios", "skip_tokens"]
    monkeypatch.setitem(record.RECORDINGS, "rollout", again)
    first = files(out)
    (out / "skip_tokens.csv").unlink()  # one of two tables of a recording is lost
    run(monkeypatch, reader, *only, "--out", out)
    assert files(out)["rollout.csv"] == first["rollout.csv"] and "skip_tokens.csv" in files(out)
    run(monkeypatch, reader, *only, "--limit", 20, "--out", out)  # other images: all is measured again
    assert all(results.read(name, out)[1]["images"]["count"] == 20 for name in results.names(out))


def table(where, value, name="thing", **notes):
    """A recording of one number, with arrays."""
    save_file({"value": torch.tensor([value])}, where / f"{name}.safetensors")
    pinned = results.sha256(where / f"{name}.safetensors")
    rows = pd.DataFrame({"value": [value]})
    results.write(
        name, rows, what="a number", units={"value": "1"}, where=where, arrays=pinned, recording="it", **notes
    )


@pytest.mark.parametrize("moves", range(7))
@pytest.mark.fault(
    "Recording", "a kill between arrays and table", "the recording from before, or the new one: never a mixture"
)
def test_arrays_and_tables_are_replaced_together(moves, tmp_path, monkeypatch):
    """Two tables of three files each: a kill before any of the six moves, or after all of them."""

    def measure(value):
        def write(where):
            for name in ("thing", "other"):
                table(where, value, name, inputs=str(value))

        return write

    recording.make("it", tmp_path, measure(1.0))
    assert recording.is_done("it", "1.0", tmp_path)
    real, done = Path.replace, []

    def move(self, target):
        if ".ready" in str(self.parent):
            if len(done) == moves:
                raise Killed
            done.append(self.name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", move)
    if moves < 6:
        with pytest.raises(Killed):
            recording.make("it", tmp_path, measure(2.0))
    else:
        recording.make("it", tmp_path, measure(2.0))
    for name in ("thing", "other"):  # what is read meanwhile is whole, or an error
        with contextlib.suppress(ValueError):
            value = results.read(name, tmp_path)[0]["value"].item()
            assert recorded_arrays(name, tmp_path)["value"].item() == value
    monkeypatch.setattr(Path, "replace", real)
    recording.resume(tmp_path)
    assert recording.is_done("it", "2.0", tmp_path) and not recording.is_done("it", "1.0", tmp_path)
    assert not list(tmp_path.glob(".*"))
    for name in ("thing", "other"):
        assert recorded_arrays(name, tmp_path)["value"].item() == results.read(name, tmp_path)[0]["value"].item() == 2


def test_what_a_recording_no_longer_has_goes_with_the_old_one(tmp_path):
    recording.make("it", tmp_path, lambda where: [table(where, 1.0, name, inputs="a") for name in ("thing", "other")])
    recording.make("it", tmp_path, lambda where: table(where, 2.0, inputs="b"))
    assert results.names(tmp_path) == ["thing"] and recording.is_done("it", "b", tmp_path)


def test_a_measure_that_fails_leaves_what_was_there(tmp_path):
    recording.make("it", tmp_path, lambda where: table(where, 1.0, inputs="a"))
    before = files(tmp_path)

    def fail(where):
        table(where, 2.0, inputs="b")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        recording.make("it", tmp_path, fail)
    assert files(tmp_path) == before and not list(tmp_path.glob(".*"))


def test_inputs_are_weights_images_and_cards():
    one, same, other = (timm.create_model("test_resnet") for _ in range(3))
    same.load_state_dict(one.state_dict())
    key = recording.inputs("it", {"a": one}, images={"count": 3})
    assert recording.inputs("it", {"a": same.to(memory_format=torch.channels_last)}, images={"count": 3}) == key
    for changed in (
        recording.inputs("it", {"a": other}, images={"count": 3}),
        recording.inputs("it", {"b": one}, images={"count": 3}),
        recording.inputs("it", {"a": one}, images={"count": 4}),
    ):
        assert changed != key


@pytest.mark.fault("Recording", "two runs that write to one folder", "the second is refused")
def test_one_run_at_a_time(tmp_path):
    with recording.alone(tmp_path), pytest.raises(ValueError, match="another run is recording"):
        with recording.alone(tmp_path):
            pass
    with recording.alone(tmp_path):
        pass


@pytest.mark.parametrize(
    ("count", "usual", "size"),
    [
        (3925, 256, 256),
        (2560, 256, 256),
        (2560, 160, 160),
        (2048, 256, 256),
        (2047, 256, 127),
        (200, 256, 12),
        (8, 256, 4),
    ],
)
def test_batches_make_groups_for_the_jackknife(count, usual, size):
    """The book's own recordings keep their batches; with fewer images there are as many batches as groups."""
    assert recording.batch_size(count, usual) == size


@pytest.mark.parametrize(("count", "sizes"), [(2560, (1024, 128)), (2048, (1024, 128)), (200, (64, 8)), (64, (32, 4))])
def test_two_sizes_of_batches(count, sizes):
    assert record_similarity.large_and_small(count) == sizes and count >= 2 * sizes[0]


def noise(count: int) -> ImageSet:
    """Images of two classes, 64 × 64."""

    def get(i: int) -> tuple[torch.Tensor, int]:
        return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)), i % 2

    return ImageSet(count, get, {"source": "noise"}, [f"{i}.png" for i in range(count)], [i % 2 for i in range(count)])


def pair(patch: int = 16, cut: bool = False, **options) -> dict:
    """A small ViT of another kind, and a ResNet: complete, with 2 × 2 positions in the end, or cut after 4 × 4."""
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", img_size=64, patch_size=patch, depth=2, **options)
    resnet = timm.create_model("test_resnet", zero_init_last=False)
    if cut:
        resnet.layer4 = resnet.fc = torch.nn.Identity()
    for model in (vit, resnet):
        model.eval().pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 64, 64)}
    return {"vit": vit, "resnet": resnet}


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


@pytest.mark.parametrize(("registers", "seen"), [(0, len(VIEWS) - 1), (2, len(VIEWS))])
def test_tokens_of_a_vit_without_class_token(registers, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(record_similarity, "BATCH", 8)
    networks = pair(class_token=False, global_pool="avg", reg_tokens=registers)
    record_similarity.tokens(networks, noise(16), tmp_path)
    result, _ = recorded_cka("token_similarity", tmp_path)
    assert len(result.models) == seen + 1 and ("vit, CLS token" in result.models) == (registers > 0)
    fixed = (result.taps["model"] == "vit, CLS token") & (result.taps["name"] == "embed")  # the same for all images
    assert (np.isnan(np.diag(result.matrix)) == fixed).all()
    sizes, _ = results.read("token_sizes", tmp_path)
    assert sizes["cls_norm"].isna().all() == (registers == 0) and sizes["median_norm"].notna().all()


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


@pytest.mark.parametrize("given", ["", "vit_base_patch32_224 resnet101"])
def test_make_record_hands_the_models_on(given):
    command = ["make", "-n", "record", f"MODELS={given}", "WEIGHTS=some folder", "IMAGES=i"]
    said = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True, check=True).stdout
    assert '--weights "some folder"' in said and (f"--models {given}" in said if given else "--models" not in said)


def test_one_model_alone_is_refused_unless_recordings_are_chosen(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["record", "--images", "nowhere", "--models", "resnet50"])
    with pytest.raises(SystemExit):
        record.main()
    assert "name a ViT and a ResNet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "scale",
    [
        1.0,
        pytest.param(
            1e12,
            marks=pytest.mark.fault(
                "Recording", "activations too large for half precision", "they are scaled; the numbers stay right"
            ),
        ),
        1e-12,
    ],
)
def test_large_batches_have_the_gram_matrices_of_one_forward_pass(scale, reader):
    model = zoo.load("test_vit", folder=reader)
    taps = taps_for(model, STREAM)
    model.patch_embed.proj.weight.data *= scale
    if scale < 1:  # what is added would take all digits
        taps = taps[:1]
        for added in (model.pos_embed, model.cls_token, model.patch_embed.proj.bias):
            added.data.zero_()
    photographs = folder_images(reader / "photos", 160)
    images = torch.stack([photographs[i][0] for i in range(12)])
    with torch.inference_mode(), capture(model, taps) as out:
        model(normalise(model, images))
    for tap, gram in zip(taps, record_similarity._large_grams(model, taps, images), strict=True):
        x = out[tap.name].flatten(1).double()
        x = x - x.mean(0)
        centred = torch.eye(12, dtype=torch.double) - 1 / 12
        difference = centred @ gram.double() @ centred - x @ x.T
        assert difference.norm() < 2e-3 * (x @ x.T).norm(), tap.name


@pytest.mark.fault("Recording", "activations that are not finite", "refused, naming the place")
def test_large_batches_that_are_not_finite_are_refused(reader):
    model = zoo.load("test_vit", folder=reader)
    model.blocks[1].mlp.fc2.bias.data[0] = torch.inf
    with pytest.raises(ValueError, match="blocks.1.resid_post: activations are not finite"):
        record_similarity._large_grams(model, taps_for(model, STREAM), torch.zeros(8, 3, 160, 160, dtype=torch.uint8))


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
    recorded = result.sums.cross[0][np.ix_(index, index)]  # the first batch is the first jackknife group
    again = np.array([[hsic_song(k, m) for m in grams] for k in grams])
    scale = np.sqrt(np.outer(np.diag(again), np.diag(again)))
    np.testing.assert_allclose(recorded / scale, again / scale, atol=1e-3)
