"""Attention rollout: rows sum to one, known attentions give known maps, and shares of mass on a mask."""

import numpy as np
import pytest
import timm
import torch

from helpers.measures.attention import attended_patches, attention_distance
from helpers.measures.rollout import attention_rollout, centred_gaussian, on_object, rollout_maps, share_on
from helpers.uncertainty import jackknife

CONFIG = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 32, 32)}


def random_maps(blocks: int = 3, tokens: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.rand(2, 4, tokens, tokens, dtype=torch.double).softmax(-1) for _ in range(blocks)]


def build(name: str, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, embed_dim=48, depth=2, num_heads=3, **options).eval()
    model.pretrained_cfg = CONFIG
    return model


def test_rows_sum_to_one_and_the_product_goes_upwards():
    maps = random_maps()
    rolled = attention_rollout(maps)
    for R in rolled:
        assert torch.allclose(R.sum(-1), torch.ones_like(R[..., 0]))
    steps = [(A.mean(1) + torch.eye(5)) / 2 for A in maps]  # rows of A sum to one, so those of A + I to two
    assert torch.allclose(rolled[-1], steps[2] @ steps[1] @ steps[0])


def test_attention_to_oneself_stays_where_it_is():
    eye = torch.eye(4).expand(1, 1, 4, 4)
    assert torch.equal(attention_rollout([eye, eye])[-1][0], torch.eye(4))


def test_maps_of_different_numbers_of_tokens_are_refused():
    with pytest.raises(ValueError, match="no rollout"):
        attention_rollout([torch.eye(4)[None], torch.eye(3)[None]])


@pytest.mark.parametrize(
    "name, options, first",
    [
        ("vit_tiny_patch16_224", {"patch_size": 8}, True),
        ("deit_tiny_distilled_patch16_224", {"patch_size": 8}, True),
        ("vit_tiny_patch16_224", {"patch_size": 8, "class_token": False, "global_pool": "avg"}, False),
        ("vit_tiny_patch16_224", {"patch_size": 8, "reg_tokens": 2}, True),
        ("vit_medium_patch16_reg4_gap_256", {"patch_size": 8}, False),
    ],
)
def test_maps_of_models_with_and_without_class_token(name, options, first):
    model, images = build(name, **options), torch.rand(3, 3, 32, 32)
    maps = rollout_maps(model, [images], chunk=2)
    assert maps.shape == (3, 2, 4, 4) and torch.allclose(maps.sum((2, 3)), torch.ones(3, 2))
    from helpers.measures.attention import attention_maps

    with torch.inference_mode(), attention_maps(model) as found:
        model(images)
    R, prefix = attention_rollout(found.values())[-1], model.num_prefix_tokens
    row = (R[:, 0] if first else R[:, prefix:].mean(1))[:, prefix:]
    assert torch.allclose(maps[:, -1].flatten(1), row / row.sum(1, keepdim=True), atol=1e-6)


def test_stages_and_windows_are_refused():
    pit = timm.create_model("pit_ti_224", img_size=64, depth=(1, 1, 1))
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=8, depths=(2,), num_heads=(2,))
    for model, error in ((pit, "no rollout"), (swin, "within windows")):
        model.pretrained_cfg = {**CONFIG, "input_size": (3, 64, 64)}
        with pytest.raises(ValueError, match=error):
            rollout_maps(model, [torch.rand(2, 3, 64, 64)])


@pytest.mark.fault("Measures", "rollout of a ViT with two attentions side by side in each block", "refused")
def test_attentions_side_by_side_are_refused():
    model = build("vit_small_patch16_18x2_224")
    with pytest.raises(ValueError, match="4 attentions side by side in 2 blocks"):
        rollout_maps(model, [torch.rand(2, 3, 32, 32)])


def test_shares_of_mass():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = True  # one of four patches
    masks[1, :, :2] = True  # half of two patches
    uniform = torch.full((2, 2, 2), 0.25)
    assert share_on(uniform, masks).tolist() == [0.25, 0.25]
    corner = torch.tensor([[[1.0, 0], [0, 0]]]).expand(2, 2, 2)
    assert share_on(corner, masks).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="do not divide"):
        share_on(torch.full((2, 3, 3), 1 / 9), masks)


def test_a_map_that_finds_the_object_is_told_from_one_that_finds_the_middle():
    torch.manual_seed(0)
    masks = torch.zeros(64, 32, 32, dtype=torch.bool)
    for i, (row, column) in enumerate(torch.randint(4, 20, (64, 2)).tolist()):
        masks[i, row : row + 8, column : column + 8] = True
    finds = torch.nn.functional.adaptive_avg_pool2d(masks.float()[:, None], 8)[:, 0]
    finds = finds / finds.sum((1, 2), keepdim=True)
    for maps, image in ((finds, True), (centred_gaussian((8, 8)).expand(64, 8, 8), False)):
        table = on_object(maps, masks)
        value, stderr = jackknife(lambda t: [t["own"][0] - t["area"][0], t["own"][0] - t["common"][0]], table)
        assert value[0] > 5 * stderr[0] > 0
        assert (value[1] > 0.1) == image and (image or abs(value[1]) < 1e-6)
    assert table["own"][0] == pytest.approx(table["gaussian"][0])
    with pytest.raises(ValueError, match="as many images"):
        on_object(finds[:4], masks[:4])


def test_the_gaussian_knows_the_middle_and_nothing_else():
    weight = centred_gaussian((4, 6))
    assert weight.sum() == pytest.approx(1.0) and np.allclose(weight, weight.flip(0).flip(1))
    assert weight.argmax().item() in (8, 9, 14, 15)


@pytest.mark.fault("Measures", "rollout of a Swin with any windows", "refused: it attends within windows")
def test_windows_are_named_before_maps_are_multiplied():
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1), num_heads=(1, 2)
    )
    swin.pretrained_cfg = {**CONFIG, "input_size": (3, 64, 64)}
    with pytest.raises(ValueError, match="attends within windows"):
        rollout_maps(swin, [torch.rand(2, 3, 64, 64)])


@pytest.mark.fault("Measures", "no images, no group, or chunks of none, for attention", "refused in a line")
def test_nothing_to_roll_out_is_named():
    model, images = build("vit_tiny_patch16_224", patch_size=8), [torch.rand(2, 3, 32, 32)]
    for measure in (rollout_maps, attended_patches):
        with pytest.raises(ValueError, match="no images were given"):
            measure(model, [])
    for measure in (rollout_maps, attended_patches, attention_distance):
        with pytest.raises(ValueError, match="chunk is a whole number, at least 1; got 0"):
            measure(model, images, chunk=0)
    with pytest.raises(ValueError, match="two jackknife groups or more; got 0"):
        on_object(torch.rand(4, 2, 2), torch.ones(4, 4, 4), groups=0)
