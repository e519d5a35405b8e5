"""Rendered scenes on disk: the same as drawn anew, and drawn anew where a file is not what it was."""

import os

import pytest
import torch

from helpers.images.scenes import Corpus, render
from helpers.networks import rendered


def test_rendered_scenes_are_kept(tmp_path, monkeypatch):
    images, labels = rendered.training_scenes(Corpus(), 20, tmp_path)
    drawn = render(Corpus(), range(20))
    assert torch.equal(images, drawn.images) and torch.equal(labels, drawn.label)
    monkeypatch.setattr(rendered, "render", None)  # not called a second time
    again, _ = rendered.training_scenes(Corpus(), 20, tmp_path)
    assert torch.equal(again, images)


@pytest.mark.fault("Training", "rendered scenes that are zeroed, damaged or gone", "rendered again")
@pytest.mark.parametrize("which", ["images.npy", "labels.npy", "sha256"])
@pytest.mark.parametrize("damage", ["zeroed", "a flipped bit", "cut short", "no text", "gone"])
def test_damaged_scenes_are_rendered_again(tmp_path, which, damage):
    images, labels = (part.clone() for part in rendered.training_scenes(Corpus(), 6, tmp_path))
    (file,) = tmp_path.glob(f"scenes-*{which}")
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        zeroed = content[:128] + bytes(len(content) - 128)
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes(
            {
                "zeroed": zeroed,
                "a flipped bit": flipped,
                "cut short": content[: len(content) // 2],
                "no text": b"\xff\xfe" * 40,
            }[damage]
        )
    again, labels_again = rendered.training_scenes(Corpus(), 6, tmp_path)
    assert torch.equal(again, images) and torch.equal(labels_again, labels) and file.read_bytes() == content


def test_two_processes_may_render_the_same_scenes_at_once(tmp_path, monkeypatch):
    save, entered = rendered.np.save, []

    def interrupted(file, array):
        save(file, array)
        if not entered:  # in the middle of it, another process renders the same from start to end
            entered.append(file)
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: -1)
                rendered.training_scenes(Corpus(), 6, tmp_path)

    monkeypatch.setattr(rendered.np, "save", interrupted)
    images, _ = rendered.training_scenes(Corpus(), 6, tmp_path)
    assert torch.equal(images, render(Corpus(), range(6)).images) and len(list(tmp_path.iterdir())) == 3


def test_scenes_are_rendered_in_order_by_several_processes(tmp_path):
    images, labels = rendered.training_scenes(Corpus(), 1100, tmp_path)
    last = render(Corpus(), [999, 1000, 1099])
    assert len(images) == 1100 and torch.equal(images[[999, 1000, 1099]], last.images)
    assert torch.equal(labels[[999, 1000, 1099]], last.label)


def test_scenes_are_removed_with_what_a_killed_run_left(tmp_path):
    rendered.training_scenes(Corpus(), 6, tmp_path)
    (tmp_path / ".scenes-0-images.npy.1.part").touch()
    (tmp_path / "vit-0.pt").touch()
    rendered.remove(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["vit-0.pt"]
