"""``make record``: it works on anyone's networks and photographs, asks for what it needs, and goes on after a kill."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from samples import PHOTOGRAPHS, Killed, files

from helpers import results
from helpers.measures import structure
from helpers.networks import zoo
from helpers.recorded import recorded_arrays, recorded_cka, recorded_fields
from helpers.recording import frequency as record_frequency
from helpers.recording import layers as record_layers
from helpers.recording import record, store
from helpers.recording import spatial as record_spatial


def run(monkeypatch, folder, *more, models=("test_vit", "test_resnet")):
    """``make record`` with the reader's folders, into the folder ``out`` that is given last of all."""
    arguments = ["--weights", str(folder), "--images", str(folder / "photos"), "--size", "160"]
    monkeypatch.setattr(sys, "argv", ["record", *arguments, "--models", *models, *map(str, more)])
    record.main()


@pytest.mark.fault(
    "Recording", "a reader's own networks and 66 photographs", "every recording is made, into a folder of the reader's"
)
def test_make_record_works_on_anyones_models_and_photographs(reader, tmp_path, monkeypatch):
    for name, value in {"FIELD_CHANNELS": 1, "MANY_BLOCKS": 3, "MANY_FIELDS": 16}.items():
        monkeypatch.setattr(record_layers, name, value)
    monkeypatch.setattr(record_spatial, "DRAWS", 2)
    monkeypatch.setattr(record_frequency, "NOISE_IMAGES", 4)
    versions = iter([{"commit": "of the start", "dirty": False}])  # the first file that is written changes the folder
    monkeypatch.setattr(results, "code_version", lambda: next(versions))
    before, out = files(results.RECORDED), tmp_path / "measured"
    monkeypatch.setattr(record, "OUT", out)  # what is written to if nothing is said
    run(monkeypatch, reader, "--train-images", reader / "others")
    assert files(results.RECORDED) == before and [path.name for path in out.glob(".*")] == [".lock"]
    result, sidecar = recorded_cka("similarity", out)
    assert result.models == ["test_vit", "test_resnet"] and result.n_images == 64 and result.skipped == 2
    assert result.groups == 16 and np.isfinite(result.stderr).all()
    assert sidecar["models"]["test_vit"]["source"] == "this test" and sidecar["images"]["count"] == PHOTOGRAPHS
    weights = reader / "weights" / "test_vit.safetensors"  # its card does not pin it
    assert sidecar["models"]["test_vit"]["sha256"] == results.sha256(weights)
    tokens, _ = recorded_cka("token_similarity", out)
    stream = structure.places(result, "test_vit").index
    same = tokens.taps["model"].eq("test_vit, all tokens").to_numpy().nonzero()[0]
    assert tokens.n_images == 64 and tokens.skipped == 2
    np.testing.assert_allclose(tokens.matrix[np.ix_(same, same)], result.matrix[np.ix_(stream, stream)], atol=1e-5)
    large, small = (recorded_cka(f"similarity_batch{n}", out)[0] for n in (32, 4))
    assert large.n_images == small.n_images == 64 and np.abs(large.matrix - small.matrix).max() > 0
    heads, sidecar = results.read("attention_distance", out)
    assert set(heads["left_out"]) == set(range(-1, 16)) and sidecar["images"]["count"] == PHOTOGRAPHS
    assert heads["distance"].between(0, heads["uniform"] * 1.5).all() and heads["prefix"].between(0, 1).all()
    without, twin = (results.read(f"attention_distance_{name}", out)[0] for name in ("without_corners", "untrained"))
    assert len(without) == len(twin) == len(heads) and (without["uniform"] < heads["uniform"]).all()
    subsets, sidecar = results.read("head_subsets", out)
    assert set(subsets["resnet"]) == {"test_resnet"} and sidecar["batch"] == 4
    for name in ("without_corners", "untrained"):
        other, about = results.read(f"head_subsets_{name}", out)
        assert list(other["subset"]) == list(subsets["subset"]) and about["corners"] == (name == "untrained")
        assert np.allclose(other["cka"], subsets["cka"]) == (
            name == "untrained"
        )  # this reader's ViT has learnt nothing
    rolled, sidecar = results.read("rollout", out)
    assert abs(rolled.groupby("block")["mass"].sum() - 1).max() < 1e-5 and sidecar["images"]["count"] == PHOTOGRAPHS
    attended, _ = results.read("attended", out)
    assert abs(attended.groupby("block")["share"].sum() - 1).max() < 1e-5
    fields, maps, sidecar = recorded_fields(out)
    assert set(maps) == set(fields["model"]) == {"test_vit", "test_resnet"} and sidecar["images"]["count"] == 32
    for name, rows in fields[fields["left_out"] < 0].groupby("model"):
        assert maps[name].shape == (len(rows), 56, 56) and rows["depth"].iloc[0] == 0
    ways, _ = results.read("receptive_fields_without_corners", out)
    assert set(ways["kind"]) == {"embed", "resid_mid", "resid_post", "attn"} and ways["depth"].max() == 1
    skips, _ = results.read("skip_ratios", out)
    assert set(skips["left_out"]) == set(range(-1, 16)) and set(skips["branch"]) == {"attention", "MLP", "block"}
    tokens, _ = results.read("skip_tokens", out)
    assert set(tokens["model"]) == {"test_vit"} and tokens["token"].max() == 100  # of 160 pixels by patches of 16
    maps, table = recorded_arrays("token_patches", out), results.read("token_patches", out)[0]
    assert {f"{row.model}/{row.place}" for row in table.itertuples()} == set(maps)
    assert maps["test_vit/blocks.0.resid_post"].shape == (100, 100) and set(table["left_out"]) == set(range(-1, 16))
    assert set(skips["tokens"]) == {"all", "CLS", "patches", "ordinary", "ordinary patches"}
    skip_twins, many = (results.read(name, out)[0] for name in ("skip_ratios_untrained", "receptive_fields_many"))
    assert set(skip_twins["model"]) == {"test_vit", "test_resnet"} and set(skip_twins["left_out"]) == set(range(-1, 16))
    radius = many.groupby(["model", "tokens"])["radius"].max()
    assert set(radius.index) == {("test_vit", "all"), ("test_vit", "without corners"), ("test_resnet", "all")}
    clipped, _ = results.read("token_patches_clipped", out)
    assert list(dict.fromkeys(clipped["model"])) == ["test_vit", "test_vit, clipped", "pixels"]
    twins, _ = results.read("token_patches_untrained", out)
    assert set(twins["model"]) == {"test_vit", "test_resnet"}
    assert (table.loc[table["model"] == "pixels", "hit_rate"] == 1).all()
    spectra, _ = results.read("spectra", out)
    assert set(spectra["model"]) == {"test_vit", "test_resnet"} and set(spectra["left_out"]) == set(range(-1, 16))
    noisy, sidecar = results.read("frequency_noise", out)
    assert set(noisy["network"]) == {"test_vit", "test_resnet"} and sidecar["scored_by"] == "own answers"
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
@pytest.mark.fault(
    "Recording",
    "a disk that is full, or a folder that cannot be written to",
    "refused at once, with what to do; nothing is measured",
)
@pytest.mark.fault("Recording", "probes scored on pictures that they learnt from", "refused, with how many and which")
def test_what_is_needed_is_asked_for_before_anything_is_measured(reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "load", lambda *args, **options: pytest.fail("a network was loaded"))
    monkeypatch.setattr(record.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, reader, "--limit", 15, "--train-images", reader / "photos", "--out", tmp_path / "out")
    said = refused(capsys)
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    for wanted in (
        "batch_sizes needs 64 images",
        "head_subsets needs 64 images (16 jackknife groups of 4), and there are 15",
        "skip_ratios needs 16 images",
        "probes: more than 10 images of each class are needed to learn from; there are fewer of",
        "probes: 15 of the 15 pictures to score on are among those to learn from, such as",
        "1 MB left, and 200 MB must be free. Make room there, or name another folder in --out",
    ):
        assert wanted in said
    assert "similarity needs" not in said
    monkeypatch.setattr(record.os, "access", lambda *_: False)
    with pytest.raises(SystemExit):
        run(monkeypatch, reader, "--only", "rollout", "--out", tmp_path / "out")
    said = refused(capsys)
    assert said.endswith("cannot be written to. Make room there, or name another folder in --out")
    assert "--only" not in said


@pytest.mark.fault("Recording", "probes scored on pictures that they learnt from", "refused, with how many and which")
def test_pictures_that_were_learnt_are_not_scored_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "load", lambda *args, **options: pytest.fail("a network was loaded"))
    learn, score = colours(tmp_path / "learn", "abc", 12), tmp_path / "score"
    (score / "b").mkdir(parents=True)
    for name in ("new.png", "other.png"):
        Image.new("RGB", (160, 160), (len(name), 0, 0)).save(score / "b" / name)
    shutil.copy(learn / "c" / "3.png", score / "b" / "copy.png")  # another name, another class
    arguments = ["--images", score, "--train-images", learn, "--models", "test_vit", "--only", "probes"]
    monkeypatch.setattr(sys, "argv", ["record", *map(str, arguments), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        record.main()
    assert "probes: 1 of the 3 pictures to score on are among those to learn from, such as b/copy.png" in refused(
        capsys
    )


@pytest.mark.parametrize(
    ("more", "models", "said"),
    [
        (["--images", "nowhere"], ["test_vit", "test_resnet"], "no folder of images at nowhere"),
        (["--limit", "0"], ["test_vit", "test_resnet"], "limit is a number of images"),
        ([], ["test_vit", "test_resnt"], "unknown model 'test_resnt'.*did you mean test_resnet"),
        ([], ["test_vit", "test_vit"], "named twice: test_vit"),
        (["--only", "attended"], ["vit-small"], r"takes images of shape \(3, 64, 64\) and was given \(3, 160, 160\)"),
        (
            ["--only", "rollout", "head_subsets"],
            ["test_resnet", "test_vit"],
            "rollout: ResNet has no attention.*head_subsets: ResNet has no",
        ),
        (["--only", "tokens"], ["test_resnet", "test_vit"], "tokens: tokens have shape"),
        (["--only", "probes"], ["test_vit"], "name their folder in --train-images"),
        (["--weights", "nowhere"], ["test_vit", "test_resnet"], "nowhere is no folder of weights"),
        (["--device", "tpu"], ["test_vit", "test_resnet"], "there is no device 'tpu' here; there are .*cpu"),
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


def shared(rank, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    record.main()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="what is patched here is patched in a forked process alone")
def test_two_processes_make_the_recordings_of_one_and_go_on_together(reader, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(record_frequency, "NOISE_IMAGES", 4)
    monkeypatch.setattr(store, "CODE", Path(__file__).parent)  # the same from run to run, whoever edits the library
    only = ["--only", "tokens", "batch_sizes", "head_subsets", "attended", "patch_shuffle", "frequency_noise"]
    one, two = tmp_path / "one", tmp_path / "two"
    run(monkeypatch, reader, *only, "--out", one)
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(two)])
    start = torch.multiprocessing.get_context("fork").Process
    made = []
    for attempt in range(2):
        processes = [start(target=shared, args=(rank, tmp_path / f"store {attempt}")) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0, 0]
        made.append({file.name: file.stat().st_mtime_ns for file in two.glob("*.csv")})
    assert made[0] == made[1]  # all was there already
    assert results.names(one) == results.names(two) and len(made[0]) == 8
    for name in results.names(one):
        tables = (results.read(name, folder)[0] for folder in (two, one))
        pd.testing.assert_frame_equal(*tables, rtol=1e-6, atol=1e-6)
    for name in ("token_similarity", "similarity_batch32", "similarity_batch4"):
        ours, theirs = (recorded_cka(name, folder)[0] for folder in (two, one))
        assert ours.info == theirs.info
        np.testing.assert_allclose(ours.matrix, theirs.matrix, atol=1e-6)
        np.testing.assert_allclose(ours.stderr, theirs.stderr, atol=1e-6)


COLOURS = {"a": (200, 40, 40), "b": (40, 200, 40), "c": (40, 40, 200)}


def colours(folder, classes, count, first=0):
    """Noisy pictures of one colour, a sub-folder for each class; ``first`` is the number of the first of them."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(first, first + count):
            noise = np.random.default_rng((number, i)).integers(-30, 30, (160, 160, 3))
            Image.fromarray((noise + COLOURS[name]).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.fault(
    "Recording",
    "probes that learn from folders a, b, c and are scored on a, c",
    "classes are matched by the folders' names, and b is named",
)
@pytest.mark.fault("Recording", "probes scored on a folder of a class they have not learnt", "refused, naming it")
def test_probes_match_classes_by_the_names_of_folders(reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record_spatial, "DRAWS", 2)
    learn = colours(tmp_path / "learn", "abc", 12)
    score = colours(tmp_path / "score", "ac", 4, first=12)
    common = ["--only", "probes", "--images", score, "--out", tmp_path / "out"]
    run(monkeypatch, reader, *common, "--train-images", learn, models=["test_vit"])
    assert "probes: learnt, but not among the images to score on: b" in capsys.readouterr().out
    probed, sidecar = results.read("probes", tmp_path / "out")
    mean = probed[(probed["read_out"] == "mean token") & (probed["images"] == "all")]
    assert (mean["accuracy"] > 0.9).all()  # by the numbers of the folders, all pictures of c would be wrong
    assert sidecar["images"]["classes"] == ["a", "b", "c"]
    with pytest.raises(SystemExit):
        run(monkeypatch, reader, *common, "--train-images", score, "--images", learn, models=["test_vit"])
    assert re.search("classes that are not among those matched to: b", refused(capsys))


def test_networks_are_measured_on_the_device_that_is_asked_for(reader, tmp_path, monkeypatch):
    """Where there is no GPU, torch's device without memory stands for one."""
    asked, seen = [], {}

    class Moved(torch.nn.Module):
        def to(self, *args, **options):
            asked.append((*args, options.get("memory_format")))
            return self

    monkeypatch.setattr(zoo, "load", lambda *args, **options: Moved())
    monkeypatch.setattr(record, "device", lambda name: torch.device("meta") if name == "cuda" else None)
    monkeypatch.setattr(record, "normalise", lambda network, few: few)

    def measure(networks, images, where, **notes):
        seen.update(networks=networks, **notes)

    made = replace(record.RECORDINGS["attended"], attempt=lambda *_: None, measure=measure)
    monkeypatch.setitem(record.RECORDINGS, "attended", made)
    run(monkeypatch, reader, "--only", "attended", "--device", "cuda", "--out", tmp_path / "out")
    assert asked == [(torch.device("meta"), torch.channels_last)] * 2
    assert all(isinstance(network, Moved) for network in seen["networks"].values()) and seen["device"] == "meta"


@pytest.mark.parametrize("given", ["", "vit_base_patch32_224 resnet101"])
def test_make_record_hands_the_models_on(given):
    command = ["make", "-n", "record", f"MODELS={given}", "WEIGHTS=some folder", "IMAGES=i", "DEVICE=cuda:1"]
    said = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True, check=True).stdout
    assert '--device "cuda:1"' in said
    assert '--weights "some folder"' in said and (f"--models {given}" in said if given else "--models" not in said)


def test_one_model_alone_is_refused_unless_recordings_are_chosen(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["record", "--images", "nowhere", "--models", "resnet50"])
    with pytest.raises(SystemExit):
        record.main()
    assert "name a ViT and a ResNet" in capsys.readouterr().err
