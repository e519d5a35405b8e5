"""The page *At the paper's scale*: its Python runs on small untrained networks, its commands are understood."""

import re
import shlex
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.mlp_mixer import MlpMixer
from torch.distributed.run import get_args_parser

from helpers.building import book
from helpers.images import sources
from helpers.networks import zoo
from helpers.recording import record
from helpers.reporting import report

SIDE, COUNT = 96, 32
SMALLER = {  # on the page → here
    '"imagenet/val", "imagenet/train", "cuda", 8': '"val", "train", "cpu", 0',
    "10_240, 20, 1_024": "32, 2, 8",
    "batch=64": "batch=2",
    "batch=8": "batch=2",
}


@pytest.fixture(scope="module")
def page(root):
    return (root / "book" / "paper_scale.md").read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def small(name):
    """An untrained network of the same family, of few channels and blocks."""
    torch.manual_seed(0)
    if name.startswith("resnet"):
        return timm.create_model("resnet50", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), zero_init_last=False).eval()
    if name.startswith("mixer"):
        mixer = MlpMixer(img_size=SIDE, patch_size=16, num_blocks=2, embed_dim=16).eval()
        mixer.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, SIDE, SIDE)}
        return mixer
    without = {"class_token": False, "global_pool": "avg"} if "gap" in name else {}
    options = {"img_size": SIDE, "patch_size": 16, "depth": 2, "embed_dim": 32, "num_heads": 2, **without}
    return timm.create_model("vit_tiny_patch16_224", **options).eval()


def test_its_python_runs(page, tmp_path, monkeypatch):
    for i in range(2 * COUNT):
        file = tmp_path / ("val", "train")[i // COUNT] / ("n01440764", "n01443537")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((SIDE, SIDE)).save(file)
    loaded, folder_images = set(), sources.folder_images
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "load", lambda name: loaded.add(name) or small(name))
    monkeypatch.setattr(sources, "folder_images", lambda folder, size, **more: folder_images(folder, SIDE, **more))
    text = "\n".join(blocks(page, "python"))
    for here, there in SMALLER.items():
        assert here in text
        text = text.replace(here, there)
    names = {}
    exec(compile(text, "paper_scale.md", "exec"), names)
    plt.close("all")
    assert (tmp_path / "figures_1_and_2.safetensors").exists()
    assert names["result"].groups == 2 and names["result"].n_images == 2 * COUNT  # twice all of them
    assert names["maps"].shape == (16, 6, 6) and names["by_token"].shape == (4, 37)
    mentioned = set(re.findall(r"\b(?:vit|resnetv2|resnet50|mixer|deit3)[a-z0-9_]*\.[a-z0-9_]+", page))
    assert len(loaded) > 12 and loaded | mentioned <= set(timm.list_pretrained())


def test_its_commands_are_understood(page, root, monkeypatch):
    lines = [line for block in blocks(page, "shell") for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        if words[0] == "make":
            said = subprocess.run(
                ["make", "-n", "--no-print-directory", *words[1:]], cwd=root, capture_output=True, text=True, check=True
            )
            words = shlex.split(said.stdout.strip().splitlines()[-1])
        else:
            assert words[0] == ".venv/bin/torchrun"
            given = get_args_parser().parse_args(words[1:])
            assert given.nproc_per_node == "8"
            words = ["-m", given.training_script, *given.training_script_args] if given.module else ["-m", "figures.py"]
        module, *arguments = words[words.index("-m") + 1 :]
        if module == "helpers.reporting.report":
            found = report._arguments(arguments)
            assert found.limit == 10_240 and {found.model, *found.vs} <= set(timm.list_pretrained())
        elif module == "helpers.recording.record":
            monkeypatch.setattr(sys, "argv", [module, *arguments])
            found = record._arguments()
            assert set(found.models) <= set(timm.list_pretrained())
        else:
            assert module == "figures.py"
        if module != "figures.py":
            assert str(found.images) == "imagenet/val"


def test_the_table_is_a_part_of_the_page(page, root):
    assert "```{include} lineup.md" in page and "book/paper_scale" in book.documents(root)
    made = book.generated_pages(root, ["book/paper_scale"])
    assert list(made) == ["book/lineup"] and "ViT-H/14" in made["book/lineup"]
