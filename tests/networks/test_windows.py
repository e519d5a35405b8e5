"""Windows of attention: who sees whom, how far anything travels, and that a window of everything changes nothing."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from helpers.measures.attention_maps import attention_maps
from helpers.networks.architectures import build
from helpers.networks.catalogue import ZOO
from helpers.networks.unfused import unfused
from helpers.networks.windows import neighbours, restrict, restricted


def vit(**network):
    torch.manual_seed(0)
    small = {"img_size": 40, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**{**small, **network}).eval()


def test_a_patch_sees_its_window_and_no_class_token_which_sees_all():
    seen = neighbours((4, 5), 3)
    assert seen[0].all() and not seen[1:, 0].any()
    patches = seen[1:, 1:].unflatten(0, (4, 5)).unflatten(2, (4, 5))
    for row, column in ((0, 0), (2, 2), (3, 4)):
        wanted = torch.zeros(4, 5, dtype=torch.bool)
        wanted[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        assert torch.equal(patches[row, column], wanted)
    assert torch.equal(seen[1:, 1:], seen[1:, 1:].T)
    assert torch.equal(neighbours((3, 3), 1, prefix=0), torch.eye(9, dtype=torch.bool))


@pytest.mark.parametrize("side", [0, 2, -1])
def test_a_window_without_a_middle_is_refused(side):
    with pytest.raises(ValueError, match="odd number of patches"):
        neighbours((4, 4), side)


def test_maps_are_zero_outside_the_window_and_still_sum_to_one():
    model, x = vit(), torch.randn(2, 3, 40, 40)
    with torch.inference_mode(), restricted(model, 3), attention_maps(model) as maps:
        model(x)
    for one in maps.values():
        assert (one[..., ~neighbours((5, 5), 3)] == 0).all()
        torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))


def test_with_and_without_the_fused_kernel_it_is_the_same():
    model, x = vit(), torch.randn(2, 3, 40, 40)
    with torch.inference_mode(), restricted(model, 3):
        fused = model(x)
        with unfused(model):
            torch.testing.assert_close(model(x), fused)


def test_news_travel_one_step_a_block():
    """After two blocks of 3 × 3 windows a patch depends on patches up to two steps away, and on none further."""
    model, x = vit(), torch.randn(1, 3, 40, 40, requires_grad=True)
    with restricted(model, 3):
        model.forward_features(x)[0, 1].square().sum().backward()  # the patch in the corner
    by_patch = x.grad.abs().amax((0, 1)).unflatten(0, (5, 8)).unflatten(2, (5, 8)).amax((1, 3))
    assert (by_patch[:3, :3] > 0).all()
    assert by_patch[3:].max() == 0 and by_patch[:, 3:].max() == 0


def test_without_class_token_a_window_of_everything_changes_nothing():
    model, x = vit(class_token=False, global_pool="avg"), torch.randn(2, 3, 40, 40)
    with torch.inference_mode():
        plain = model(x)
        with restricted(model, 9):
            torch.testing.assert_close(model(x), plain)
        with restricted(model, 7):
            assert not torch.allclose(model(x), plain)
        assert torch.equal(model(x), plain)  # and after it the model is as it was


def test_the_zoo_is_trained_with_its_window():
    model, free, x = build(ZOO["vit-small-window3"]).eval(), build(ZOO["vit-small"]).eval(), torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), free.state_dict().values(), strict=True))
    with torch.inference_mode():
        assert not torch.allclose(model(x), free(x))
        with restricted(free, 3):
            torch.testing.assert_close(model(x), free(x))


def test_what_has_no_patches_on_a_grid_is_refused():
    with pytest.raises(TypeError, match="not a VisionTransformer"):
        restrict(build(ZOO["resnet-brief"]), 3)
    model = vit(dynamic_img_size=True)
    with restricted(model, 3), pytest.raises(ValueError, match="for 26 tokens, and this attention has 17"):
        model(torch.zeros(1, 3, 32, 32))
