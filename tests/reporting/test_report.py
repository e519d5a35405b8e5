"""``make report`` from end to end: what is measured, kept, drawn, told to be missing, and refused."""

import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from bs4 import BeautifulSoup
from PIL import Image

from helpers import results, uncertainty
from helpers.claims.registry import load as load_claims
from helpers.measures import figures
from helpers.measures.attention import attention_distance
from helpers.measures.result import Result
from helpers.networks.local_weights import model_from_file
from helpers.recording import layers, spatial, store
from helpers.recording.record import RECORDINGS
from helpers.reporting import claims, plan, report, subjects
from helpers.reporting.stored import Report

OWN = Path(__file__).with_name("networks_of_ones_own.py")
PHOTOGRAPHS, SIZE = 72, 48


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "FIELD_CHANNELS", 1)
        patch.setattr(layers, "FIELD_IMAGES", 16)
        patch.setattr(spatial, "DRAWS", 2)
        patch.setattr(uncertainty, "bootstrap", partial(uncertainty.bootstrap, times=50))
        patch.setattr(store, "CODE", OWN.parent)  # the same from run to run, whoever edits the library meanwhile
        yield


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Noise of two classes, one darker."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(PHOTOGRAPHS):
        file = folder / ("dark", "light")[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 128, (4, 4, 3)) + 100 * (i % 2)
        Image.fromarray(noise.astype(np.uint8)).resize((SIZE, SIZE)).save(file)
    return str(folder)


def run(photographs, out, *more, model="tokens", vs="maps"):
    beside = ["--vs", *([f"{OWN}:{vs}"] if vs else [])]
    given = ["--model", f"{OWN}:{model}", *beside, "--images", photographs, "--out", str(out), "--device", "cpu"]
    report.main([*given, *more])
    return out / f"networks_of_ones_own-{model}"


@pytest.fixture(scope="module")
def made(photographs, tmp_path_factory):
    return run(photographs, tmp_path_factory.mktemp("reports"))


def page(folder):
    return BeautifulSoup((folder / "index.html").read_text(encoding="utf-8"), "html.parser")


def test_the_page_holds_its_figures_and_asks_no_other_host(made):
    soup = page(made)
    figures = soup.find_all("figure")
    assert {figure["id"] for figure in figures} >= {
        "similarity", "attention", "fields", "maps", "skips", "localisation", "probes", "frequencies", "variance",
    }  # fmt: skip
    for figure in figures:
        image = figure.find("img")
        assert image["src"].startswith("data:image/png;base64,") and len(image["alt"]) >= 40
        assert figure.find("figcaption").text.strip()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', str(soup))
    assert "Traceback" not in soup.text and "nan" not in soup.text.lower().split()
    assert len(soup.find_all("h1")) == 1


def test_the_numbers_of_the_page_are_those_of_its_tables(made):
    found = Report(made)
    heads = found.table("attention_distance")
    heads = heads[heads["left_out"] == -1]
    near = heads["distance"].min()
    assert f"with {near:.1f} px" in page(made).text
    located = found.table("token_patches")
    last = located[(located["model"] == found.name) & (located["left_out"] == -1)].iloc[-1]
    assert f"{100 * last['hit_rate']:.0f} %" in page(made).text


def test_the_tables_are_those_of_the_measures(made, photographs):
    network = subjects.load(f"{OWN}:tokens", None)
    images = subjects.folder_images(photographs, SIZE, crop=subjects.CROP_SHARE)
    table = Report(made).table("attention_distance")
    pictures = torch.stack([images[i][0] for i in range(len(images))])
    expected = attention_distance(network, pictures.split(PHOTOGRAPHS // 16))
    assert np.allclose(table["distance"], expected["distance"], rtol=1e-5)
    folder = made / "networks_of_ones_own-tokens"
    _, sidecar = results.read("attention_distance", folder)
    assert sidecar["images"]["crop"] == subjects.CROP_SHARE and "code" in sidecar["models"][Report(made).name]


def test_a_report_leaves_its_results(made):
    """Of all networks in one table each, to be loaded, drawn and kept elsewhere."""
    found, own = Report(made), "networks_of_ones_own tokens"
    assert {path.stem for path in made.glob("*.csv")} == set(figures.NAMES)
    heads = Result.load(made, "attention_distance")
    assert heads.to_frame()["model"].unique().tolist() == [own, f"{own}, untrained"]  # the third has no attention
    mine = heads.table[heads.table["model"] == own].drop(columns="side").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, found.table("attention_distance"))
    assert heads.units["distance"] == "px" and set(heads.provenance["models"]) == {own, f"{own}, untrained"}
    assert heads.table["side"].unique().tolist() == [SIZE] and heads.provenance["images"]["count"] == PHOTOGRAPHS
    located = Result.load(made, "token_patches").to_frame()
    pixels = located[located["model"] == "pixels"]
    assert located["model"].nunique() == 4 and not pixels.duplicated(["place", "left_out"]).any()
    for name in figures.NAMES:
        plt.close(Result.load(made, name).plot())
    assert found.cka().between(own).plot().get_xlabel().startswith(own)
    plt.close("all")


def test_the_example_of_the_page_on_ones_own_models_runs(made, tmp_path, monkeypatch, root):
    text = (root / "book" / "using_your_own.md").read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Result.load(" in code)
    shutil.copytree(made, tmp_path / "build" / "reports" / "vit")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "using_your_own.md", "exec"), names := {})
    plt.close("all")
    assert (tmp_path / "heads.png").stat().st_size > 5000 and names["far"].index.name == "model"
    kept = Result.load(tmp_path / "mine", "attention_distance")
    pd.testing.assert_frame_equal(kept.table, Result.load(made, "attention_distance").table)


def test_probes_learn_from_other_photographs_than_they_are_scored_on(made):
    _, sidecar = results.read("probes", made / "networks_of_ones_own-tokens")
    assert sidecar["images"]["every"].startswith("second image, from number 0")
    assert sidecar["train"]["every"].startswith("second image, from number 1")
    scored = Report(made).table("probes")
    assert scored["n"].unique().tolist() == [PHOTOGRAPHS // 2] and scored["accuracy"].max() > 0.9


def test_what_does_not_apply_is_said_with_its_reason(made):
    found, other = Report(made), "networks_of_ones_own maps"
    assert "has no attention" in found.reason("attention_distance", other)
    assert "no residual branches" in found.reason("skip_ratios", other)
    text = page(made).text
    assert "has no attention" in text and "No network of stages without attention" in text


def test_claims_that_apply_have_verdicts_and_the_others_a_reason(made):
    found, reasons = claims.verdicts(Report(made))
    assert claims.parts(Report(made)) == ("networks_of_ones_own tokens", None)
    assert {verdict.claim.id for verdict in found} == {"R7", "R8", "C3", "C4", "R15", "R16", "R19"}
    assert set(reasons) == {asked.claim for asked in claims.ASKED} - {verdict.claim.id for verdict in found}
    text = page(made).text
    for verdict in found:
        assert verdict.track == "imagenet" and verdict.word in text and verdict.trainings == 1
        assert [other.name for other in verdict.controls] == ["untrained twin"]
    heads = Report(made).table("attention_distance")
    whole = heads[(heads["left_out"] == -1) & (heads["block"] >= 2)]
    r8 = next(verdict for verdict in found if verdict.claim.id == "R8")
    assert r8.parts[0].value == pytest.approx((whole["distance"] / whole["uniform"]).min())


def test_a_claim_that_two_networks_do_not_answer_has_the_reason_of_the_model_alone(made, monkeypatch):
    """The network beside it was not measured since the model could not be, which is no reason of its own."""
    found = Report(made)
    why = {found.name: "the model has no branches", "beside": "the model has none that it could stand beside"}
    monkeypatch.setattr(claims, "parts", lambda _: ("beside", found.name))
    monkeypatch.setattr(Report, "reason", lambda self, recording, network: why[network])
    _, reasons = claims.verdicts(found)
    assert reasons["R14"].endswith("than in a ResNet. The model has no branches.")


def test_every_claim_that_is_asked_is_in_the_book():
    known = load_claims()
    assert all(asked.claim in known and asked.recording in RECORDINGS for asked in claims.ASKED)


def test_a_second_run_measures_nothing_again(made, photographs, capsys):
    before = {file: file.read_bytes() for file in made.rglob("*.csv")}
    stamps = {file: file.stat().st_mtime_ns for file in made.rglob("*.csv")}
    run(photographs, made.parent, "--no-page")
    told = capsys.readouterr().out
    assert "everything is there already" in told and "about" not in told.split("everything")[1]
    assert {file: file.read_bytes() for file in made.rglob("*.csv")} == before
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*.csv")} == stamps


def test_the_plan_alone_measures_nothing(photographs, tmp_path, capsys):
    folder = run(photographs, tmp_path, "--plan", vs=None)
    told = capsys.readouterr().out
    assert re.search(r"attention distance and prefix mass of .*: about \d+ s on 72 images, \d+\.\d GiB", told)
    assert "in all about" in told and "GiB of memory at most" in told
    assert not list(folder.rglob("*.csv")) and not (folder / "plan.json").exists()


def test_an_interrupted_report_goes_on_where_it_stopped(photographs, tmp_path, monkeypatch, capsys):
    class Killed(BaseException):
        """The process ends here."""

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        cut = {**RECORDINGS, "skip_ratios": plan.replace(RECORDINGS["skip_ratios"], measure=killed)}
        patch.setattr(report, "RECORDINGS", cut)
        with pytest.raises(Killed):
            run(photographs, tmp_path, "--no-page", "--limit", "32", vs=None)
    folder = tmp_path / "networks_of_ones_own-tokens"
    there = {file: file.stat().st_mtime_ns for file in folder.rglob("*.csv")}
    assert {file.stem for file in there} >= {"similarity", "attention_distance"}
    assert not list(folder.rglob("skip_ratios.csv")) and not (folder / "plan.json").exists()
    capsys.readouterr()
    run(photographs, tmp_path, "--no-page", "--limit", "32", vs=None)
    told = capsys.readouterr().out
    assert told.count("there already") == 3 and list(folder.rglob("skip_ratios.csv"))
    assert {file: file.stat().st_mtime_ns for file in there} == there


def test_a_measure_that_fails_although_its_trial_did_not_is_told_and_the_rest_is_made(
    photographs, tmp_path, monkeypatch
):
    def broken(*_, **__):
        raise ValueError("no luck")

    cut = {**RECORDINGS, "attention_distance": plan.replace(RECORDINGS["attention_distance"], measure=broken)}
    monkeypatch.setattr(report, "RECORDINGS", cut)
    folder = run(photographs, tmp_path, "--no-page", "--limit", "32", vs=None)
    found = Report(folder)
    assert found.reason("attention_distance", found.name) == "no luck" and found.table("attention_distance") is None
    assert found.table("skip_ratios") is not None


def test_a_network_of_maps_is_told_what_does_not_apply(photographs, tmp_path):
    folder = run(photographs, tmp_path, "--no-page", "--limit", "32", model="maps", vs=None)
    found = Report(folder)
    assert found.cka() is not None and found.table("token_patches") is not None
    assert found.table("attention_distance") is None and "no attention" in found.reason(
        "attention_distance", found.name
    )
    assert claims.verdicts(found)[0] == []


def test_what_does_not_apply_to_the_model_is_not_measured_of_the_networks_beside_it(photographs):
    given = subjects.subjects(f"{OWN}:maps", [f"{OWN}:tokens"], None, photographs, 32, None, torch.device("cpu"))
    asked = plan.jobs(given)
    other = "networks_of_ones_own tokens"
    reasons = {job.measure.recording: job.reason for job in asked if job.subjects[0].name == other}
    assert reasons["skip_ratios"] == plan.ALONE and not reasons["attention_distance"] and not reasons["token_patches"]
    told = report.told(asked, [False] * len(asked))
    line = next(line for line in told.splitlines() if "skip ratios of networks_of_ones_own maps" in line)
    assert line.count("no residual branches") == 1 and "networks_of_ones_own maps, untrained" in line


def test_a_network_whose_attention_cannot_be_read_is_not_taken_for_a_resnet():
    class Staged:
        def reason(self, recording, network):
            return {"similarity": "", "attention_distance": self.why}[recording]

        def cka(self):
            taps = pd.DataFrame({"model": "net", "name": [f"stages.{i}.blocks.0" for i in range(2)], "kind": "block"})
            return SimpleNamespace(models=["net"], taps=taps.assign(depth=[0.0, 1.0]), index=lambda *_: np.arange(2))

    found = Staged()
    found.why = "TinyVit: 10 of 10 attention modules have no attn_drop"
    assert not claims._has_stages(found, "net")
    found.why = "ResNetV2 has no attention: attention maps are those of transformers"
    assert claims._has_stages(found, "net")


def shared(rank, photographs, out, store):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    run(photographs, out, "--no-page")
    torch.distributed.destroy_process_group()


def test_two_processes_make_the_tables_of_one(made, photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    start = torch.multiprocessing.get_context("fork").Process  # what is patched here is patched there
    given = (photographs, tmp_path / "out", tmp_path / "store")
    processes = [start(target=shared, args=(rank, *given)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(300)
    assert [one.exitcode for one in processes] == [0, 0]
    tables = {file.relative_to(made) for file in made.rglob("*.csv")}
    other = tmp_path / "out" / made.name
    assert tables == {file.relative_to(other) for file in other.rglob("*.csv")} and len(tables) > 6
    for table in tables:
        pd.testing.assert_frame_equal(pd.read_csv(other / table), pd.read_csv(made / table), rtol=1e-6, atol=1e-6)
    assert np.allclose(Report(other).cka().matrix, Report(made).cka().matrix, atol=1e-6, equal_nan=True)


# --- what is refused


@pytest.mark.parametrize(
    "given, says",
    [
        (["--model", "vit_tinny_patch16_224"], "unknown model 'vit_tinny_patch16_224'.*did you mean"),
        (["--model", "test_vit", "--weights", "nowhere.pth"], "no file and no folder of weights at nowhere.pth"),
        (["--model", f"{OWN}:absent"], "has no function 'absent'"),
        (["--model", f"{OWN}:nothing"], "is to return a network, and returned a dict"),
        (["--model", "nowhere.py:net"], "no file of Python at .*nowhere.py"),
        (["--model", "test_vit", "--weights", "none", "--images", "nowhere"], "no folder of images at nowhere"),
        (["--model", "test_vit", "--weights", "none", "--vs", "test_vit"], "a network is named twice"),
        (["--model", "test_vit", "--limit", "0"], "limit is a number of images, at least 1; got 0"),
        (["--model", "test_vit", "--device", "tpu"], "there is no device 'tpu' here; there are .*cpu"),
    ],
)
def test_what_does_not_do_is_told_in_one_line(tmp_path, capsys, given, says):
    with pytest.raises(SystemExit) as ended:
        report.main([*given, "--out", str(tmp_path)])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1
    assert re.search(f"report: .*{says}", told), told


# --- networks, images, weights


def test_weights_with_another_head_and_other_images_are_read_as_they_are(tmp_path):
    torch.manual_seed(3)
    own = timm.create_model("test_vit", num_classes=10, img_size=96).eval()
    torch.save({"model": own.state_dict(), "epoch": 3}, tmp_path / "mine.pth")
    found = subjects.load("test_vit", str(tmp_path / "mine.pth"))
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(found(images), own(images)) and found(images).shape == (2, 10)
    assert subjects.side(found) == 96
    twin = model_from_file("test_vit", tmp_path / "mine.pth", pretrained=False)
    assert twin.head.weight.shape == own.head.weight.shape and not torch.equal(twin.head.weight, own.head.weight)


def test_scenes_are_resized_and_keep_their_labels():
    small, large = (subjects.scenes_at(size, 4, "test") for size in (64, 96))
    assert large[0][0].shape == (3, 96, 96) and large[0][0].dtype == torch.uint8
    assert [large[i][1] for i in range(4)] == small.labels == large.labels
    assert large.describe()["resized_to"] == 96 and "resized_to" not in small.describe()
    assert abs(float(large[0][0].float().mean()) - float(small[0][0].float().mean())) < 1


def test_a_report_on_scenes_says_what_probes_lack():
    own = subjects.subjects("vit-small", [], None, None, 24, None, torch.device("cpu"))
    assert [one.role for one in own] == ["model", "model twin"] and len(own[0].images) == 24
    asked = {(job.measure.recording, job.subjects[0].name): job for job in plan.jobs(own)}
    assert "more than 10 images of each class are needed" in asked["probes", "vit-small"].reason
    assert asked["attention_distance", "vit-small"].seconds > 0 and not asked["similarity", "vit-small"].reason


def test_too_few_images_are_told(photographs):
    own = subjects.subjects(f"{OWN}:tokens", [], None, photographs, 12, None, torch.device("cpu"))
    asked = {job.measure.recording: job for job in plan.jobs(own)}
    assert asked["attention_distance"].reason.startswith("it needs 16 images (16 groups for the jackknife)")


def test_times_are_told_for_reading():
    assert [report.clock(seconds) for seconds in (0.2, 40, 300, 7800)] == ["1 s", "40 s", "5 min", "2 h 10 min"]
