"""Recordings of the shape of the loss: made piece by piece, and the book's own computed again in part."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from helpers import results
from helpers.measures import hessian, landscape, objective
from helpers.networks import architectures, zoo
from helpers.networks.catalogue import HEADS, PATCHES, STAGED, STRONG, ZOO
from helpers.networks.inputs import normalise
from helpers.networks.unfused import unfused
from helpers.recording import curvature
from helpers.recording.curvature import Piece, State

NAMES = sorted(set(curvature.TABLES) & set(results.names(results.RECORDED)))


def network(seed=0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 32))
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 64, 64)}
    return model


def piece(name="vit-small", table="hessian", **settings):
    return Piece(table, State(name), tuple((settings or {"batches": 2, "size": 4, "top": 2}).items()))


def test_pieces_add_up_and_are_made_once(tmp_path):
    first, second = piece(), piece("vit-small-seed1")
    assert curvature.record(first, tmp_path, network()) and curvature.record(second, tmp_path, network(1))
    before = (tmp_path / "hessian.csv").read_bytes()
    assert not curvature.record(first, tmp_path, network()) and not curvature.record(second, tmp_path, network(1))
    assert (tmp_path / "hessian.csv").read_bytes() == before
    table, sidecar = results.read("hessian", tmp_path)
    assert table.groupby("network").size().to_dict() == {"vit-small": 4, "vit-small-seed1": 4}
    assert list(sidecar["pieces"]) == ["vit-small 2 4 2", "vit-small-seed1 2 4 2"]
    assert list(sidecar["models"]) == ["vit-small", "vit-small-seed1"]


def test_networks_whose_claims_ask_for_spectra_are_among_the_pieces():
    of = {(piece.state.network, piece.state.seen) for piece in curvature.PIECES if piece.table == "hessian"}
    ends = {card.name for card in (*HEADS, *PATCHES, *STRONG, *STAGED)} | {"vit-small", "vit-small-seed1"}
    ends -= {"vit-small-patch4-seed1"}
    assert {(name, None) for name in ends} <= of
    early = {f"{network}{seed}" for network in ("vit-small", "pit", "swin") for seed in ("", "-seed1")}
    assert {(name, 16_000) for name in early} <= of and all(16_000 in ZOO[name].kept for name in early)


def test_strongly_augmented_images_are_other_inputs(monkeypatch):
    card, model, inputs = ZOO["vit-small"], network(), curvature._inputs
    before = inputs(piece(), model)
    monkeypatch.setitem(ZOO, "vit-small", replace(card, recipe=replace(card.recipe, strong=True)))
    assert inputs(piece(), model) != before


@pytest.mark.parametrize("name", ["swin", "pit", "convnext"])
def test_products_with_the_hessian_of_networks_with_stages_are_changes_of_their_gradient(name):
    """(∇L(w + h v) − ∇L(w − h v)) / 2h, in float64."""
    small = {"swin": {"depths": (2, 2)}, "pit": {"depth": (1, 1, 1)}, "convnext": {"dims": (8, 8, 8, 8)}}
    model = architectures.build(replace(ZOO[name], architecture=small[name])).eval()
    images, labels = objective.training_batches(ZOO[name], 1, 2)[0]
    inputs, model = normalise(model, images).double(), model.double()
    w = {key: each.detach() for key, each in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    v = {key: torch.randn(each.shape, generator=generator, dtype=torch.float64) for key, each in w.items()}
    v = {key: each / torch.cat([one.reshape(-1) for one in v.values()]).norm() for key, each in v.items()}

    def at(step):
        moved = {key: (w[key] + step * v[key]).requires_grad_() for key in w}
        return F.cross_entropy(functional_call(model, moved, (inputs,)), labels), list(moved.values())

    def gradient(step):
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(*at(step))])

    with unfused(model):
        found = hessian.hessian_vector_product(*at(0))(torch.cat([each.reshape(-1) for each in v.values()]))
        expected = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("change", ["weights", "settings", "recipe", "way of measuring"])
def test_a_piece_is_made_again_where_what_it_was_made_from_has_changed(tmp_path, monkeypatch, change):
    monkeypatch.setattr(
        curvature,
        "MEASURES",
        {"hessian": lambda *_, **__: pd.DataFrame({"eigenvalue": [1.0], "residual": 0.0, "loss": 0.0})},
    )
    curvature.record(piece(), tmp_path, network())
    model = network()
    if change == "weights":
        model[4].bias.data += 1e-3
    if change == "settings":
        monkeypatch.setattr(curvature, "TOLERANCE", 0.2)
    if change == "recipe":
        card = ZOO["vit-small"]
        monkeypatch.setitem(ZOO, "vit-small", replace(card, recipe=replace(card.recipe, weight_decay=0.1)))
    if change == "way of measuring":
        monkeypatch.setattr(curvature, "VERSION", 2)
    assert curvature.record(piece(), tmp_path, model)
    table, sidecar = results.read("hessian", tmp_path)
    assert len(table) == 1 and len(sidecar["pieces"]) == 1


def test_rays_and_planes_are_those_of_the_room(tmp_path, monkeypatch):
    monkeypatch.setattr(curvature, "LOOKED_AT", 8)
    monkeypatch.setattr(curvature, "AXIS", (-0.5, 0.0, 0.5))
    for table in ("landscape_rays", "landscape_planes"):
        assert curvature.record(piece(table=table, per="input"), tmp_path, network())
    drawn = objective.training_batches(ZOO["vit-small"], 1, 8)
    own = float(objective.loss(network(), objective.weights(network()), *drawn[0]))
    rays, planes = (results.read(table, tmp_path)[0] for table in ("landscape_rays", "landscape_planes"))
    assert len(rays) == 5 * 9 and (rays["per"] == "input").all()
    assert rays.loc[rays["radius"] == 0, "loss"].to_numpy() == pytest.approx(own, rel=1e-5)
    assert planes.set_index(["x", "y"])["loss"][0.0, 0.0] == pytest.approx(own, rel=1e-5) and len(planes) == 9


def shared(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    curvature.main(["vit-small", "--out", str(folder / "two")])
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="what is patched here is patched in a forked process alone")
def test_two_processes_record_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(curvature, "LOOKED_AT", 8)
    monkeypatch.setattr(curvature, "AXIS", (-0.5, 0.0, 0.5))
    pieces = [
        piece(batches=3, size=4, top=2),
        *(piece(table=f"landscape_{of}", per="input") for of in ("rays", "planes")),
    ]
    monkeypatch.setattr(curvature, "PIECES", pieces)
    monkeypatch.setattr(State, "load", lambda state: network())
    curvature.main(["vit-small", "--out", str(tmp_path / "one")])
    start = torch.multiprocessing.get_context("fork").Process
    processes = [start(target=shared, args=(rank, tmp_path)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
    assert [one.exitcode for one in processes] == [0, 0]
    assert results.names(tmp_path / "one") == results.names(tmp_path / "two") == sorted(curvature.TABLES)
    for name in curvature.TABLES:
        tables = (results.read(name, tmp_path / folder)[0] for folder in ("two", "one"))
        pd.testing.assert_frame_equal(*tables, rtol=1e-6, atol=1e-6)


def test_names_of_states():
    assert [state.name for state in (State("vit"), State("vit", -1), State("vit", 0), State("vit", 16000))] == [
        "vit", "vit-untrained", "vit-0", "vit-16000",
    ]  # fmt: skip
    keys = [(piece.table, piece.key) for piece in curvature.PIECES]
    assert len(set(keys)) == len(keys)


def test_a_network_that_is_not_recorded_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        curvature.main(["vit-huge", "--out", str(tmp_path)])
    assert "not among the networks that are recorded: vit-huge" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_the_books_own_hang_together(name):
    table, sidecar = results.recorded(name)
    wanted = {piece.key: piece for piece in curvature.PIECES if piece.table == name}
    assert set(table["piece"]) == set(sidecar["pieces"]) <= set(wanted)
    for key, made in sidecar["pieces"].items():
        assert not made["code"]["dirty"], f"{key} was measured by code that is in no commit"
        assert made["inputs"] == curvature._inputs(wanted[key], wanted[key].state.load()), f"record {key} again"


@pytest.mark.skipif("hessian" not in NAMES, reason="no Hessian is recorded yet")
def test_the_first_batch_of_a_network_has_the_recorded_eigenvalue():
    table, sidecar = results.recorded("hessian")
    first = table[(table["images"] == 16) & (table["batch"] == 0) & (table["rank"] == 0)].iloc[0]
    state = State(**sidecar["pieces"][first["piece"]]["network"])
    (batch,) = objective.training_batches(state.card, 1, 16)
    again = hessian.hessian_spectra(state.load(), [batch], state.card.recipe.weight_decay, 1, 0.05)
    assert again["loss"].iloc[0] == pytest.approx(first["loss"], rel=1e-3)
    np.testing.assert_allclose(again["eigenvalue"].iloc[0], first["eigenvalue"], rtol=0.02)


@pytest.mark.skipif("hessian" not in NAMES, reason="no Hessian is recorded yet")
def test_networks_are_drawn_as_they_were_when_they_were_recorded():
    """Their weights are not pinned, only the seed; the loss tells another draw."""
    table, sidecar = results.recorded("hessian")
    drawn = {key: State(**made["network"]) for key, made in sidecar["pieces"].items() if made["network"]["seen"] == -1}
    assert len(drawn) > 5
    for key, state in drawn.items():
        recorded = table[(table["piece"] == key) & (table["batch"] == 0)]["loss"].iloc[0]
        batch = objective.training_batches(state.card, 1, 16)
        again, other = (
            landscape.values(model, objective.weights(model), batch, state.card.recipe.weight_decay)["loss"]
            for model in (state.load(), zoo.load(state.network, pretrained=False, seed=state.card.seed + 1))
        )
        assert again == pytest.approx(recorded, rel=1e-3) != other, key


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hessian"])
def test_a_point_of_a_landscape_has_the_recorded_loss(name):
    table, sidecar = results.recorded(name)
    far = table.iloc[0]  # the end of a ray, or a corner of a plane
    state = State(**sidecar["pieces"][far["piece"]]["network"])
    model, drawn = state.load(), objective.training_batches(state.card, 1, curvature.LOOKED_AT)
    at = objective.weights(model)
    along = {far["ray"]: far["radius"]} if "ray" in far else {0: far["x"], 1: far["y"]}  # seed of a direction → step
    steps = [(landscape.random_direction(at, int(seed), far["per"]), step) for seed, step in along.items()]
    again = landscape.values(model, landscape.moved(at, *steps), drawn, state.card.recipe.weight_decay)
    assert again == pytest.approx({key: far[key] for key in again}, rel=1e-3)
    assert max(map(abs, along.values())) == 1
