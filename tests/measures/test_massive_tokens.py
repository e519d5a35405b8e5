"""Parts of tokens, on tokens whose parts are known."""

import pytest
import timm
import torch

from helpers.measures.cka import cka
from helpers.measures.massive_tokens import VIEWS, cut, statistics, views


def drawn(n=64, tokens=10, d=12, prefix=1):
    return torch.randn(n, prefix + tokens, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_views_are_the_parts_they_are_named_for():
    x = drawn()
    parts = views(x, 1)
    assert list(parts) == list(VIEWS)
    assert torch.equal(parts["CLS token"], x[:, :1]) and torch.equal(parts["patch tokens"], x[:, 1:])
    assert torch.equal(parts["mean patch"], x[:, 1:].mean(1))
    assert torch.equal(parts["clipped tokens"], x[:, 1:])  # nothing is massive, so nothing changes
    assert parts["without top channel"].shape[-1] == 11
    assert "CLS token" not in views(x, 0)


def test_a_massive_token_decides_cka_until_it_is_clipped():
    x, y = drawn(), drawn()
    changed = y.clone()
    changed[:, 4] = 300 * torch.nn.functional.normalize(torch.randn(64, 12, dtype=torch.float64), dim=-1)
    before, after = views(x, 1), views(changed, 1)
    assert cka(before["patch tokens"], after["patch tokens"]) < 0.3
    assert cka(before["clipped tokens"], after["clipped tokens"]) > 0.8
    norms = after["clipped tokens"].norm(dim=-1)
    direction = torch.nn.functional.cosine_similarity(after["clipped tokens"], after["patch tokens"], dim=-1)
    assert norms.max() < 5 * norms.median() and torch.allclose(direction, torch.ones_like(direction))


def test_the_channel_left_out_is_the_one_that_varies_most():
    x = drawn()
    x[..., 7] *= 30
    assert torch.equal(views(x, 1)["without top channel"], torch.cat([x[:, 1:, :7], x[:, 1:, 8:]], dim=-1))
    assert statistics(x, 1)["top_channel"] == 7 and statistics(x, 1)["top_channel_variance"] > 0.9


def test_statistics_count_massive_tokens():
    x = drawn(n=50, tokens=20)
    x[:10, 3] *= 100  # one token in each of ten images
    found = statistics(x, 1)
    assert found["massive_share"] == pytest.approx(10 / 1000) and found["massive_images"] == pytest.approx(0.2)
    assert found["massive_variance"] > 0.9
    assert found["cls_norm"] == pytest.approx(float(x[:, 0].norm(dim=-1).mean()))
    assert found["largest_norm"] > 50 * found["median_norm"]


def test_a_shift_of_all_images_carries_no_variance():
    x = drawn()
    x[:, 5] += 1000  # the same for every image: massive in norm, nothing to CKA
    assert statistics(x, 1)["massive_images"] == 1 and statistics(x, 1)["massive_variance"] < 0.2


def test_what_is_no_token_tensor_is_refused():
    with pytest.raises(ValueError, match="tokens have shape"):
        views(torch.zeros(4, 8, 8, 3), 1)
    with pytest.raises(ValueError, match="prefix"):
        views(torch.zeros(4, 3, 8), 3)


def test_no_gradient_passes_through_tokens_that_are_cut_and_nothing_else_changes():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gradient(patches):  # gradient of a number of patch 5, in each of the 16 patches
        with cut(model.eval(), patches):
            features = model.forward_features(image)
        field = torch.autograd.grad(features[:, 6, 0].sum(), image)[0].abs().sum((0, 1))
        return features.detach(), field.unflatten(0, (4, 8)).unflatten(2, (4, 8)).sum((1, 3)).flatten()

    plain, open_ways = gradient([])
    corners = [0, 3, 12, 15]
    features, field = gradient(corners)
    assert torch.equal(features, plain) and (open_ways > 0).all()
    assert (field[corners] == 0).all() and field.count_nonzero() == 12
    _, alone = gradient([patch for patch in range(16) if patch != 5])
    assert alone[5] > 0 and alone.count_nonzero() == 1
    assert not any(block._forward_pre_hooks for block in model.blocks)
    with pytest.raises(ValueError, match="no plain transformer"), cut(timm.create_model("resnet18"), [0]):
        pass
