"""A reader's own folders: two small networks, and a few photographs."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from samples import PHOTOGRAPHS


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader's own folders: two small networks with a card each, and twice a few photographs of two classes."""
    folder, cards = tmp_path_factory.mktemp("reader"), {}
    (folder / "weights").mkdir()
    for name in ("test_vit", "test_resnet"):
        torch.manual_seed(0)
        model = timm.create_model(name, **({"zero_init_last": False} if "resnet" in name else {}))
        save_file(model.state_dict(), folder / "weights" / f"{name}.safetensors")
        card = {"architecture": name, "file": f"{name}.safetensors", "mean": [0.5] * 3, "std": [0.5] * 3}
        cards[name] = card | {"trained_on": "nothing", "complete": True, "source": "this test"}
    (folder / "cards.json").write_text(json.dumps(cards))
    for i in range(2 * PHOTOGRAPHS):
        photo = folder / ("photos", "others")[i // PHOTOGRAPHS] / ("one", "two")[i % 2] / f"{i}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, 160)).save(photo)
    return folder
