"""Steps of a training: their order, and that they are the networks that were kept."""

import pytest
import torch

from helpers.networks import zoo
from helpers.networks.steps import Step, steps

CARDS = {
    "first": {"recipe": {"images_seen": 480, "objective": "masked pixels"}, "steps": {"128": "", "32": ""}},
    "second": {"recipe": {"images_seen": 240}, "steps": {"64": ""}, "start": "first"},
    "plain": {"recipe": {"images_seen": 160}},
}


def test_steps_go_on_where_those_of_the_model_before_ended(monkeypatch):
    monkeypatch.setattr(zoo, "card", CARDS.__getitem__)
    masked = [Step("first", images, images, "masked pixels") for images in (0, 32, 128, 480)]
    assert steps("first") == masked
    assert steps("second") == [*masked, Step("second", 64, 544, "labels"), Step("second", 240, 720, "labels")]
    assert steps("plain") == [Step("plain", 0, 0, "labels"), Step("plain", 160, 160, "labels")]


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_zoos_own_steps_lead_from_an_untrained_network_to_the_trained_one(name):
    found = steps(name)
    assert found[0].seen == 0 and found[-1].model == name and len(found) >= 8
    assert [step.seen for step in found] == sorted({step.seen for step in found})
    key = {"vit": "blocks.3.mlp.fc1.weight", "resnet": "stages.1.blocks.2.conv2.weight"}[name]
    first, middle, last = (step.load().state_dict()[key] for step in (found[0], found[len(found) // 2], found[-1]))
    assert torch.equal(last, zoo.load(name).state_dict()[key])
    assert torch.equal(first, zoo.load(found[0].model, pretrained=False).state_dict()[key])
    assert not torch.equal(first, middle) and not torch.equal(middle, last)
