"""What chapters ask for of the zoo: kept once, measured anew where anything differs, and recomputed in part."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import results
from helpers.images import scenes
from helpers.images.sources import batches, scene_images
from helpers.measures import batch_sizes, data_scale, localization, object_probes
from helpers.measures.attention import attention_distance
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.lesions import lesions
from helpers.measures.scores import scores
from helpers.measures.skip_ratios import skip_ratios
from helpers.measures.token_patches import token_patches
from helpers.networks import zoo
from helpers.networks.places import OUTPUTS, STREAM
from helpers.networks.taps import taps_for
from helpers.recording import beforehand, keeping
from helpers.recording.keeping import Network

SMALL = Network("vit-small")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDED", tmp_path)
    monkeypatch.setenv(keeping.KEEPING, str(tmp_path))
    return tmp_path


def counted(numbers=(1.0, 2.0)):
    """A measurement that counts how often it was made."""
    made = []

    def fresh():
        made.append(1)
        return {"numbers": np.array(numbers), "0.5": np.array([True, False])}

    return fresh, made


def test_a_piece_is_measured_once_and_again_where_anything_differs(folder, monkeypatch):
    fresh, made = counted()
    for _ in range(2):
        found = keeping.kept("count", {"ViT": SMALL}, {"images": 4}, fresh)
        assert found["numbers"].tolist() == [1, 2] and found["0.5"].dtype == bool and len(found) == 2
    assert len(made) == 1
    for networks, asked in [
        ({"ViT": SMALL}, {"images": 5}),
        ({"other": SMALL}, {"images": 4}),
        ({"ViT": Network("vit-small-seed1")}, {"images": 4}),
        ({"ViT": Network("vit-small", pretrained=False)}, {"images": 4}),
        ({"ViT": Network("vit-small", pretrained=False, seed=1)}, {"images": 4}),
    ]:
        before = len(made)
        keeping.kept("count", networks, asked, fresh)
        assert len(made) == before + 1
    table, sidecar = results.read(keeping.NAME, folder)
    assert len(sidecar["pieces"]) == 6 and len(table) == 12
    card = {**zoo.card("vit-small"), "sha256": "0" * 64}
    monkeypatch.setattr(zoo, "card", lambda name: card)  # other weights
    keeping.kept("count", {"ViT": SMALL}, {"images": 4}, fresh)
    monkeypatch.setattr(keeping, "VERSION", 2)
    keeping.kept("count", {"ViT": SMALL}, {"images": 4}, fresh)
    assert len(made) == 8


def test_nothing_is_written_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDED", tmp_path)
    monkeypatch.delenv(keeping.KEEPING, raising=False)
    fresh, made = counted()
    for _ in range(2):
        keeping.kept("count", {"ViT": SMALL}, {}, fresh)
    assert len(made) == 2 and not list(tmp_path.iterdir())


def test_probes_are_those_of_their_room(folder):
    read, test = (scenes.render(scenes.NOVEL, scenes.split(which, 320)) for which in ("validation", "test"))
    known = data_scale.probed(SMALL.load(), read, test, shots=2, draws=2, seed=1)
    for _ in range(2):
        found = beforehand.probes(SMALL, scenes.NOVEL, 320, 320, shots=2, draws=2, seed=1)
        assert list(found) == list(known) and all(torch.equal(found[depth], known[depth]) for depth in known)


def test_heat_maps_are_those_of_their_room(folder):
    networks = {"ViT": SMALL, "twin": Network("vit-small", pretrained=False, seed=3)}
    models = {label: network.load() for label, network in networks.items()}
    known = cka_heatmap(models, batches(scene_images(16), 8), OUTPUTS, shuffle=1)
    for shuffle in (1, 1, None):
        found = beforehand.heatmap(networks, 16, 8, OUTPUTS, shuffle=shuffle)
        np.testing.assert_array_equal(found.matrix, known.matrix)
        assert found.info == known.info | {"shuffle": shuffle} and found.labels == known.labels
        if shuffle:
            np.testing.assert_array_equal(found.between("ViT").control.matrix, known.between("ViT").control.matrix)
        else:
            assert found.control is None


def test_sizes_of_batches_are_those_of_their_room(folder):
    for _ in range(2):
        found = beforehand.in_batches({"ViT": SMALL}, 32, (16, 8), STREAM)
        for size, result in zip((16, 8), found, strict=True):
            known = cka_heatmap({"ViT": SMALL.load()}, batches(scene_images(32), size), STREAM)
            np.testing.assert_allclose(result.matrix, known.matrix, atol=1e-5)
            assert result.groups == 2 and result.n_images == 32


def test_probes_of_the_object_are_those_of_their_room(folder):
    model, size = SMALL.load(), (320, 32)
    blocks = taps_for(model, OUTPUTS)
    (last,) = token_patches(model, scene_images(8), blocks[-1:], batch=8).values()
    read, test = (
        scenes.render(scenes.Corpus(), scenes.split(*one)) for one in zip(("validation", "test"), size, strict=True)
    )
    asked = ["tokens", "cls"], last.grid, last.patches
    how = {"shots": 2, "draws": 2, "seed": 1}
    known = object_probes.probe_object(model, read, test, {0.5: blocks[1], 1.0: blocks[3]}, *asked, **how)
    for _ in range(2):
        found = beforehand.object_probes(SMALL, *size, [0.5, 1.0], *asked, **how)
        for table in ("classes", "positions", "masks"):
            pd.testing.assert_frame_equal(getattr(found, table), getattr(known, table))
        for of, wanted in ((found.right, known.right), (found.tiles, known.tiles)):
            assert set(of) == set(wanted) and all(torch.equal(of[key], wanted[key]) for key in wanted)


def test_skip_ratios_are_those_of_their_room(folder):
    known = skip_ratios(SMALL.load(), batches(scene_images(8), 4)).table()
    for _ in range(2):
        found = beforehand.ratios(SMALL, 8, 4)
        for kind in ("all", "CLS", "patches"):
            wanted = known.loc[known["tokens"] == kind, beforehand.RATIOS].reset_index(drop=True)
            pd.testing.assert_frame_equal(found[found["tokens"] == kind].reset_index(drop=True), wanted)


def test_heads_and_last_blocks_are_those_of_their_rooms(folder):
    model, pictures = SMALL.load(), torch.stack([image for image, _ in scene_images(32)])
    wanted = attention_distance(model, pictures.split(2))
    at_end = localization.token_patches(model, pictures, taps_for(model, OUTPUTS)[-1:], batch=8)
    for _ in range(2):
        pd.testing.assert_frame_equal(beforehand.distances(SMALL, 32, 2), wanted)
        pd.testing.assert_frame_equal(beforehand.localised(SMALL, 32, 8), localization.table(at_end, [1.0]))


def test_scores_and_lesions_are_those_of_their_rooms(folder):
    networks = {"ViT": SMALL, "another": Network("vit-small-seed1")}
    models = {label: network.load() for label, network in networks.items()}
    shown = list(batches(scene_images(40), 8))
    known, without = scores(models, shown), lesions(models["ViT"], shown)
    for _ in range(2):
        found = beforehand.scored(networks, 40, 8)
        pd.testing.assert_frame_equal(
            *(one.sort_values(["left_out", "network"], ignore_index=True) for one in (found, known))
        )
        pd.testing.assert_frame_equal(beforehand.lesioned(SMALL, 40, 8), without)
    with pytest.raises(ValueError, match="has no tap of kind .*conv"):
        beforehand.lesioned(SMALL, 40, 8, "convolutions")
    with pytest.raises(ValueError, match="units are branches or convolutions, not heads"):
        beforehand.lesioned(SMALL, 40, 8, "heads")
    with pytest.raises(ValueError, match="there is no network to score"):
        beforehand.scored({}, 40, 8)


def test_networks_on_their_way_are_told_apart():
    step = Network("vit", images=int(next(iter(zoo.card("vit")["steps"]))))
    keys = {keeping.key_of({"networks": {"ViT": asdict(one)}}) for one in (step, Network("vit"))}
    assert len(keys) == 2
    first, last = step.load().state_dict(), Network("vit").load().state_dict()
    assert any(not torch.equal(first[name], last[name]) for name in last)


def test_chapters_that_ask_for_nothing_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        beforehand.main(["11_nothing", "--out", str(tmp_path)])
    assert "not among the chapters that ask for something: 11_nothing" in capsys.readouterr().err


RECORDED = keeping.NAME in results.names(results.RECORDED)
PIECES = results.recorded(keeping.NAME)[1]["pieces"] if RECORDED else {}


def own(measure):
    """What was asked for in the book's own pieces of a measure."""
    found = [{key: value for key, value in about.items() if key != "code"} for about in PIECES.values()]
    return [about for about in found if about["measure"] == measure]


@pytest.mark.parametrize("key", PIECES)
def test_the_books_own_are_of_todays_networks(key):
    about = dict(PIECES[key])
    assert not about.pop("code")["dirty"], f"{key} was measured by code that is in no commit"
    assert keeping.key_of(about) == key, "run `python -m helpers.recording.beforehand --out data/recorded` again"


@pytest.mark.skipif(not own("probes"), reason="no probes are recorded yet")
def test_probes_of_a_network_are_right_where_they_were(monkeypatch):
    about = min(own("probes"), key=lambda one: (one["networks"]["network"]["name"] != "vit-small", one["scored"]))
    corpus = scenes.NOVEL if about["corpus"] == repr(scenes.NOVEL) else scenes.Corpus()
    read, test = (
        scenes.render(corpus, scenes.split(which, about[count]))
        for which, count in (("validation", "learn"), ("test", "scored"))
    )
    how = {name: about[name] for name in ("shots", "draws", "seed")}
    monkeypatch.setattr(beforehand, "_rendered", None)  # nothing is measured
    network = Network(**about["networks"]["network"])
    recorded = beforehand.probes(network, corpus, about["learn"], about["scored"], **how)
    again = data_scale.probed(network.load(), read, test, **how)
    assert list(again) == list(recorded)
    for depth, right in again.items():
        assert (right == recorded[depth]).float().mean() > 0.995


@pytest.mark.skipif(not own("heatmap"), reason="no heat-map is recorded yet")
def test_the_first_batch_of_a_heat_map_adds_what_it_did(monkeypatch):
    about = own("heatmap")[0]
    networks = {label: Network(**one) for label, one in about["networks"].items()}
    corpus = scenes.NOVEL if about["corpus"] == repr(scenes.NOVEL) else scenes.Corpus()
    stream = batches(scene_images(about["batch"], corpus=corpus), about["batch"])
    again = cka_heatmap({label: one.load() for label, one in networks.items()}, stream, about["kinds"])
    monkeypatch.setattr(beforehand, "cka_heatmap", None)  # nothing is measured
    asked = (about[name] for name in ("images", "batch", "kinds"))
    recorded = beforehand.heatmap(networks, *asked, corpus=corpus, shuffle=about["shuffle"])
    assert recorded.sums.batches[0] == 1
    np.testing.assert_allclose(again.sums.cross[0], recorded.sums.cross[0], rtol=1e-3)


@pytest.mark.skipif(not own("in batches"), reason="no sizes of batches are recorded yet")
def test_cka_in_batches_is_near_that_of_fewer_images(monkeypatch):
    about = own("in batches")[0]
    networks = {label: Network(**one) for label, one in about["networks"].items()}
    models = {label: one.load() for label, one in networks.items()}
    (part, _), *_ = batches(scene_images(256), 256)
    (again,) = batch_sizes.cka_in_batches(models, part, [128], about["kinds"])
    monkeypatch.setattr(beforehand.batch_sizes, "cka_in_batches", None)  # nothing is measured
    for recorded in beforehand.in_batches(networks, about["images"], about["sizes"], about["kinds"]):
        assert recorded.labels == again.labels and recorded.n_images == about["images"]
        np.testing.assert_allclose(recorded.matrix, again.matrix, atol=0.1)


def scored(network, *asked):
    return beforehand.scored({"": network}, *asked)


ROOMS = {
    "skip ratios": (beforehand.ratios, "skip_ratios"),
    "distances": (beforehand.distances, "attention_distance"),
    "localised": (beforehand.localised, "localization"),
    "scores": (scored, "scores"),
    "lesions": (beforehand.lesioned, "lesions"),
}


@pytest.mark.parametrize("measure", ROOMS)
def test_tables_of_a_network_are_measured_again(measure, tmp_path, monkeypatch):
    ask, room = ROOMS[measure]
    about = own(measure)[0]
    asked = [Network(**about["networks"]["network"]), about["images"], about["batch"]]
    asked += [about["units"]] if measure == "lesions" else []
    with monkeypatch.context() as patched:
        patched.setattr(beforehand, room, None)  # nothing is measured
        recorded = ask(*asked)
    monkeypatch.setattr(results, "RECORDED", tmp_path)  # nothing is there
    pd.testing.assert_frame_equal(ask(*asked), recorded, rtol=5e-3, atol=5e-3)
