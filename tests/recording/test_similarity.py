"""Recordings of CKA: sizes of batches, parts of tokens, Gram matrices of batches too large for one pass."""

import numpy as np
import pytest
import torch
from samples import noise, pair

from helpers import results
from helpers.images.sources import folder_images
from helpers.measures.massive_tokens import VIEWS
from helpers.networks import zoo
from helpers.networks.inputs import normalise
from helpers.networks.places import STREAM
from helpers.networks.taps import capture, taps_for
from helpers.recorded import recorded_cka
from helpers.recording import similarity as record_similarity


@pytest.mark.parametrize(("count", "sizes"), [(2560, (1024, 128)), (2048, (1024, 128)), (200, (64, 8)), (64, (32, 4))])
def test_two_sizes_of_batches(count, sizes):
    assert record_similarity.large_and_small(count) == sizes and count >= 2 * sizes[0]


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
