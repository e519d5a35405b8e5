"""Lesions: against networks whose weights are set to zero, against whole passes, and on units that say nothing."""

import re

import pandas as pd
import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers.measures.lesions import first_minus_last, lesions, silenced, spatial_convolutions, units
from helpers.networks.architectures import build
from helpers.networks.catalogue import ZOO
from helpers.networks.inputs import normalise
from helpers.networks.taps import Tap
from helpers.uncertainty import whole

CONFIG = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def vit():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5)
    for block in model.blocks:  # branches that matter
        nn.init.normal_(block.attn.proj.weight, std=0.5)
        nn.init.normal_(block.mlp.fc2.weight, std=0.5)
    nn.init.normal_(model.head.weight)
    model.pretrained_cfg = CONFIG
    return model.eval()


def mixer():
    torch.manual_seed(0)
    model = MlpMixer(img_size=16, patch_size=4, embed_dim=16, num_blocks=2, num_classes=5)
    for block in model.blocks:
        for mlp in (block.mlp_tokens, block.mlp_channels):
            nn.init.normal_(mlp.fc2.weight, std=0.5)
    nn.init.normal_(model.head.weight)
    model.pretrained_cfg = CONFIG
    return model.eval()


def data(model, count=48, size=16):
    """Batches whose labels are the answers of the intact network, so that every wrong answer is a lesion's."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        labels = model(normalise(model, images)).argmax(1)
    return list(zip(images.split(20), labels.split(20), strict=True))


def lost(table, unit, way):
    rows = whole(table).set_index(["unit", "way"])["lost"]
    return float(rows[unit, way])


def accuracy(model, batches):
    with torch.inference_mode():
        return torch.cat([model(normalise(model, x)).argmax(1) == y for x, y in batches]).double().mean()


def assert_zeroed(make, batches, parts, table):
    """Each unit without which ``table`` was measured costs what its last layer costs when its weights are zero."""
    for unit, layer in parts.items():
        changed = make()
        for parameter in changed.get_submodule(layer).parameters():
            nn.init.zeros_(parameter)
        wanted = 100 * (1 - accuracy(changed, batches))
        assert wanted > 0 and lost(table, unit, "zero") == pytest.approx(float(wanted))


def test_without_a_unit_is_with_its_last_weights_zero():
    for make, parts in (
        (vit, {"blocks.1.attn": "blocks.1.attn.proj", "blocks.2.mlp": "blocks.2.mlp.fc2"}),
        (mixer, {"blocks.0.token_mix": "blocks.0.mlp_tokens.fc2", "blocks.1.channel_mix": "blocks.1.mlp_channels.fc2"}),
    ):
        batches = data(make())
        table = lesions(make(), batches, groups=4)
        assert_zeroed(make, batches, parts, table)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "swin",
            {
                "layers.0.blocks.1.attn": "layers.0.blocks.1.attn.proj",
                "layers.2.blocks.0.mlp": "layers.2.blocks.0.mlp.fc2",
            },
        ),
        (
            "pit",
            {
                "transformers.1.blocks.0.attn": "transformers.1.blocks.0.attn.proj",
                "transformers.2.blocks.1.mlp": "transformers.2.blocks.1.mlp.fc2",
            },
        ),
        ("convnext", {"stages.1.blocks.1.branch": "stages.1.blocks.1.mlp.fc2"}),
    ],
)
def test_networks_with_stages_are_silenced_unit_by_unit(name, parts):
    def make():
        model = build(ZOO[name], seed=0).eval()
        torch.manual_seed(0)
        for layer in parts.values():  # branches that matter
            nn.init.normal_(model.get_submodule(layer).weight, std=2)
        return model

    model = make()
    batches = data(model, 40, 64)
    every = units(model)
    table = lesions(model, batches, [tap for tap in every if tap.name in parts], groups=4)
    blocks = [module for module, _ in model.named_modules() if re.search(r"blocks\.\d+$", module)]
    assert len(every) == (1 if name == "convnext" else 2) * len(blocks)
    assert_zeroed(make, batches, parts, table)


def test_a_unit_that_says_the_same_of_every_image_costs_nothing_at_its_mean():
    model = vit()
    nn.init.zeros_(model.blocks[1].mlp.fc2.weight)
    nn.init.normal_(model.blocks[1].mlp.fc2.bias, std=3)
    table = lesions(model, data(model), groups=4)
    assert lost(table, "blocks.1.mlp", "mean") == 0
    assert lost(table, "blocks.1.mlp", "zero") > 0


def test_blocks_that_are_not_computed_again_change_nothing():
    model = build(ZOO["alternet-end4"]).eval()
    batches = data(model, 16, 64)
    for taps in (units(model), spatial_convolutions(model)):
        assert len(taps) == 16
        taps = [taps[0], taps[5], taps[15]]
        table = whole(lesions(model, batches, taps, groups=2))
        assert table["order"].tolist() == [0, 0, 1, 1, 2, 2] and set(table["intact"]) == {1.0}
        for unit in taps[1:]:
            with silenced(model, unit):
                assert lost(table, unit.name, "zero") == pytest.approx(float(100 * (1 - accuracy(model, batches))))
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_mean_is_over_all_images_whatever_the_batches():
    model = vit()
    (images, labels), *_ = data(model, 20)
    one = lesions(model, [(images, labels)], groups=4)
    several = lesions(model, list(zip(images.split(6), labels.split(6), strict=True)), groups=4)
    pd.testing.assert_frame_equal(one, several)


def test_leaving_a_group_out_is_a_measurement_without_it():
    model = vit()
    batches = data(model, 20)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    table = lesions(model, batches, units(model)[:2], groups=4)
    without, taps = torch.arange(20) % 4 != 3, units(model)[:2]
    own = whole(lesions(model, [(images[without], labels[without])], taps, groups=4))
    zero = table[(table["left_out"] == 3) & (table["way"] == "zero")]["lost"]
    assert zero.tolist() == pytest.approx(own[own["way"] == "zero"]["lost"].tolist())


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pit_ti_224", "resnet26", "convnext_atto"])
def test_families_of_timm_have_units(name):
    model = timm.create_model(name, num_classes=3).eval()
    taps = units(model)
    chosen = [taps[0], taps[-1]]
    table = lesions(model, [(torch.rand(2, 3, 224, 224), torch.tensor([0, 1]))], chosen, groups=2)
    assert whole(table)["unit"].tolist() == [tap.name for tap in chosen for _ in range(2)]
    assert table["lost"].between(-100, 100).all()


def test_the_first_of_a_stage_is_compared_with_its_last():
    names = [f"stages.{stage}.blocks.{block}.conv2" for stage in (0, 1) for block in (0, 1, 2)]
    rows = pd.DataFrame({"unit": names, "order": range(6), "way": "zero", "lost": [10.0, 50, 4, 3, 50, 1]})
    rows["kind"] = "conv"
    assert first_minus_last(rows.sample(frac=1, random_state=0)) == (6 + 2) / 2
    assert first_minus_last(rows.assign(unit=rows["unit"].str.replace("stages.", "layer"))) == 4
    with pytest.raises(ValueError, match="a first and a last unit"):
        first_minus_last(rows.assign(unit="blocks.0.attn"))
    with pytest.raises(ValueError, match="a first and a last unit"):
        first_minus_last(rows.iloc[:4])
    branches = [rows.assign(unit=rows["unit"].str.replace("stages.", "layers."), kind=kind) for kind in ("attn", "mlp")]
    both = pd.concat([branches[0], branches[1].assign(lost=-branches[1]["lost"])])
    assert first_minus_last(both, kind="attn") == 4 and first_minus_last(both, kind="mlp") == -4
    with pytest.raises(ValueError, match="say which of attn, mlp"):
        first_minus_last(both)
    with pytest.raises(ValueError, match="a first and a last unit"):
        first_minus_last(both, kind="conv")


def test_what_has_no_unit_or_no_accuracy_is_refused():
    model = vit()
    batches = data(model)
    with pytest.raises(ValueError, match="'resid_mid' is read at an input"):
        units(model, ["resid_mid"])
    with pytest.raises(ValueError, match="no bottlenecks"):
        spatial_convolutions(timm.create_model("resnet18"))
    with pytest.raises(ValueError, match="nothing is known about where to read it"):
        lesions(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), batches)
    with pytest.raises(ValueError, match=r"\(images, labels\)"):
        lesions(model, [batches[0][0]])
    with pytest.raises(ValueError, match="as many images; got 20"):
        lesions(model, batches[:1], groups=30)
    with pytest.raises(ValueError, match="two jackknife groups"):
        lesions(model, batches, groups=1)
    with pytest.raises(ValueError, match="no unit"):
        lesions(model, batches, [])
    with pytest.raises(ValueError, match="no images"):
        lesions(model, [])
    with pytest.raises(ValueError, match="read at an input"), silenced(model, Tap("x", "blocks.0", "input")):
        pass
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="no scores of classes|no accuracy to lose"):
        model.forward = lambda x: model.forward_features(x)
        lesions(model, batches)
