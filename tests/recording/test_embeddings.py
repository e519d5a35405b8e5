"""Recordings of the inside of a ViT: what is kept of it, the book's own, and that they can be computed again.

The last needs the weights: set VIT_BOOK_WEIGHTS to their folder.
"""

import os

import numpy as np
import pytest
import torch
from samples import noise, pair

from helpers import results
from helpers.images.examples import EXAMPLES, example_photographs
from helpers.measures import patch_embedding
from helpers.measures import position_embedding as positions
from helpers.networks import local_weights, zoo
from helpers.recorded import recorded_arrays, recorded_table
from helpers.recording import embeddings

OWN = ("patch_filters", "patch_filters_untrained", "position_cosines", "class_attention", "patch_shuffle")


def test_a_small_vit_is_recorded(tmp_path, monkeypatch):
    vit = {"vit": pair(patch=8)["vit"]}
    embeddings.patch_filters(vit, noise(8), tmp_path)
    table, sidecar = recorded_table("patch_filters", tmp_path)
    known = patch_embedding.filter_components(vit["vit"])
    kept = recorded_arrays("patch_filters", tmp_path)
    np.testing.assert_allclose(kept["filters"], known.pictures, atol=1e-3)
    np.testing.assert_allclose(table.loc[table["of"] == "filters", "share"], known.shares, rtol=1e-6)
    assert table.groupby("of").size().to_dict() == {"filters": 28, "photographs": 28} and 0 < sidecar["overlap"] < 1
    embeddings.positions(vit, noise(8), tmp_path)
    cosine = recorded_arrays("position_cosines", tmp_path)["cosine"]
    table, sidecar = recorded_table("position_cosines", tmp_path)
    by_kind = table.set_index("kind")["cosine"]
    assert sidecar["grid"] == [8, 8] and cosine.shape == (64, 64)
    assert positions.row_and_column(cosine, (8, 8)) == pytest.approx(
        by_kind["one row or column"] - by_kind["other"], abs=1e-6
    )
    monkeypatch.setattr(embeddings, "example_photographs", lambda size: torch.zeros(2, 3, size, size).byte())
    size = {"size": 64}
    images = noise(20)
    monkeypatch.setattr(images, "describe", lambda: size | {"count": 20, "source": "noise"})
    embeddings.class_token(vit, images, tmp_path)
    table, sidecar = recorded_table("class_attention", tmp_path)
    arrays = recorded_arrays("class_attention", tmp_path)
    heads = vit["vit"].blocks[0].attn.num_heads
    assert arrays["mean"].shape == (2, heads, 8, 8) and arrays["examples"].shape == (2, 2, heads, 8, 8)
    np.testing.assert_allclose(arrays["mean"].astype(float).sum((2, 3)), 1, atol=1e-2)
    assert table["patches"].between(1, 64).all() and sidecar["examples"] == list(EXAMPLES)
    embeddings.shuffled(vit, images, tmp_path)
    table, _ = recorded_table("patch_shuffle", tmp_path)
    assert sorted(set(table["patch"])) == [0, 8, 16, 32] and set(table["left_out"]) == set(range(-1, 16))
    assert (table.loc[table["patch"] == 0, "kept"] == 1).all()


def test_networks_that_make_no_sense_are_refused_at_once():
    few = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    resnet = {"resnet": pair()["resnet"]}
    small = {"vit": pair(patch=16)["vit"]}  # 4 × 4 patches: no two pairs to compare
    gap = {"vit": pair(class_token=False, global_pool="avg")["vit"]}
    for attempt, networks, why in (
        (embeddings.attempt_filters, resnet, "no patch embedding"),
        (embeddings.attempt_positions, resnet, "how many patches|no position embedding"),
        (embeddings.attempt_positions, small, "4 × 4 grid"),
        (embeddings.attempt_class, gap, "no class token"),
        (embeddings.attempt_shuffled, resnet, "no patch embedding"),
    ):
        with pytest.raises(ValueError, match=why):
            attempt(networks, few)


def test_the_examples_are_two_photographs():
    shown = example_photographs(32)
    assert shown.shape == (2, 3, 32, 32) and shown.dtype == torch.uint8
    grass = shown[1].float().mean((1, 2))  # the flower stands before green
    assert shown.float().std() > 20 and grass[1] > grass[2]


@pytest.mark.parametrize("name", OWN)
def test_the_books_own_are_there(name):
    table, sidecar = results.recorded(name)
    assert len(table) and set(sidecar["models"]) == {"vit_tiny_patch16_224"}


def test_the_books_own_hang_together():
    table, sidecar = results.recorded("patch_filters")
    kept = recorded_arrays("patch_filters")
    for of, part in kept.items():
        pictures = torch.from_numpy(part).double()
        rows = table[table["of"] == of]
        np.testing.assert_allclose(patch_embedding.total_variation(pictures), rows["variation"], rtol=2e-3)
        gram = pictures.flatten(1) @ pictures.flatten(1).T
        np.testing.assert_allclose(gram, np.eye(28), atol=5e-3)
        assert rows["share"].is_monotonic_decreasing and rows["share"].sum() < 1
    a, b = (torch.from_numpy(part).double().flatten(1) for part in kept.values())
    assert float((a @ b.T).square().sum() / 28) == pytest.approx(sidecar["overlap"], abs=1e-3)
    cosine = recorded_arrays("position_cosines")["cosine"]
    np.testing.assert_allclose(cosine, cosine.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(cosine), 1, atol=1e-6)
    arrays = recorded_arrays("class_attention")
    assert arrays["examples"].shape == (2, 12, 3, 14, 14) and arrays["mean"].shape == (12, 3, 14, 14)
    for maps in arrays.values():
        np.testing.assert_allclose(maps.astype(float).sum((-2, -1)), 1, atol=2e-2)
    answers, sidecar = results.recorded("patch_shuffle")
    assert sidecar["images"]["count"] == 512 and set(answers["patch"]) == {0, 16, 32, 112}


@pytest.mark.skipif(
    local_weights.WEIGHTS_VARIABLE not in os.environ, reason="set VIT_BOOK_WEIGHTS to compute recorded numbers again"
)
def test_the_weights_and_the_examples_give_the_recorded_numbers_again():
    vit = zoo.load("vit_tiny_patch16_224")
    known = results.recorded("patch_filters")[0].query("of == 'filters'")
    np.testing.assert_allclose(patch_embedding.filter_components(vit).shares, known["share"], rtol=1e-5)
    cosine = positions.cosines(positions.position_embeddings(vit))
    np.testing.assert_allclose(recorded_arrays("position_cosines")["cosine"], cosine, atol=1e-6)
    with torch.inference_mode():  # the first block by hand, from queries and keys
        x = (example_photographs().float() / 255 - 0.5) / 0.5
        tokens = torch.cat([vit.cls_token.expand(2, -1, -1), vit.patch_embed(x)], dim=1) + vit.pos_embed
        query, key, _ = vit.blocks[0].attn.qkv(vit.blocks[0].norm1(tokens)).view(2, 197, 3, 3, 64).unbind(2)
        row = (torch.einsum("bhd,bnhd->bhn", query[:, 0], key) / 64**0.5).softmax(-1)[..., 1:]  # of the class token
    row = (row / row.sum(-1, keepdim=True)).unflatten(-1, (14, 14))
    recorded = recorded_arrays("class_attention")["examples"][:, 0]
    np.testing.assert_allclose(recorded.astype(float), row, atol=1e-4)
