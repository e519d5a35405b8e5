"""Training can be stopped anywhere: a run that was killed and resumed gives the weights of one that was not."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.optim import _muon

from helpers import files
from helpers.images.scenes import NOVEL, Corpus, render
from helpers.networks import training, zoo
from helpers.networks.catalogue import Card, Recipe
from helpers.networks.training import train, train_missing
from helpers.networks.weights import load_into

RECIPE = Recipe(images_seen=480, distinct_images=96, batch=16)  # 30 steps
STEPS = 30
VIT = Card("tiny-vit", "vit", "a tiny transformer", {"embed_dim": 32, "depth": 2, "num_heads": 2}, RECIPE)
STRONG = replace(VIT, name="tiny-strong", recipe=replace(RECIPE, strong=True))
RESNET = Card("tiny-resnet", "resnet", "a tiny ResNet", {"layers": (1, 1, 1, 1), "channels": (32,) * 4}, RECIPE)
QUICK = {"test_scenes": 16, "progress": False}

# A process that trains VIT, keeps a checkpoint after every step, and falls asleep while it writes the tenth.
KILLED = """
import sys, time, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import VIT
from helpers.networks import training
written, save = [], torch.save
def save_and_report(state, file):
    written.append(state["step"])
    if len(written) == 10:
        Path(file).write_bytes(b"half a checkpo")
        print("in the middle of it", flush=True)
        time.sleep(600)
    save(state, file)
torch.save = save_and_report
training.train(VIT, Path({work!r}), checkpoint_seconds=0, progress=False)
"""


@pytest.fixture(autouse=True)
def no_real_zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    monkeypatch.setattr(training, "WORK", tmp_path / "work")


def trained_without_a_stop(card, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(zoo, "FOLDER", tmp_path / "whole")
        train(card, tmp_path / "work whole", **QUICK)
        return stored(card)


def stored(card):
    """What two runs that are the same must share: the bytes of the weights, and the curve of the loss."""
    return (zoo.FOLDER / f"{card.name}.safetensors").read_bytes(), zoo.card(card.name)["curve"]


def checkpoint(work, card):
    (file,) = work.glob(f"{card.name}-*.pt")
    return torch.load(file, weights_only=True)


def same(a, b):
    """Whether two nested structures of tensors and numbers are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def once_and_often(card, folder, pieces):
    """The checkpoints of a run in one piece, and of one that stopped after so many steps each time."""
    for work, parts in ((folder / "once", [sum(pieces)]), (folder / "often", pieces)):
        for steps in parts:
            assert train(card, work, stop_after=steps, **QUICK) is None
    return checkpoint(folder / "once", card), checkpoint(folder / "often", card)


@pytest.mark.fault("Training", "a run is killed", "it goes on where it was, to the same weights")
def test_a_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    work = tmp_path / "work"
    code = KILLED.format(tests=os.path.dirname(__file__), work=str(work))
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout.readline().strip() == "in the middle of it"
        run.kill()
    assert run.returncode != 0
    assert checkpoint(work, VIT)["step"] == 9  # the one before: a half-written checkpoint replaces nothing
    assert not zoo.is_stored(VIT.name)

    train(VIT, work, **QUICK)
    assert stored(VIT) == trained_without_a_stop(VIT, tmp_path, monkeypatch)
    assert not list(work.glob("*.pt"))  # a finished run leaves no checkpoint


@pytest.mark.parametrize("card", [VIT, RESNET, STRONG], ids=lambda card: card.name)
def test_stops_change_neither_weights_nor_optimiser(card, tmp_path):
    """Compared before the weights are rounded to half precision, one step before the end."""
    assert sum(pieces := (1, 12, 3, 13)) == STEPS - 1
    once, often = once_and_often(card, tmp_path, pieces)
    for key in ("step", "model", "optimisers", "curve", "smoothed"):
        assert same(once[key], often[key]), key


def test_what_is_kept_on_the_way_is_stored_with_the_trained_network_and_not_before(tmp_path, monkeypatch):
    """Until then the zoo stays as it was: a run with another recipe, as a benchmark's, changes no stored step."""
    card = replace(VIT, kept=(32, 160))  # after 2 and 10 of 30 steps
    monkeypatch.setitem(zoo.ZOO, card.name, card)
    assert train(card, tmp_path, stop_after=10, **QUICK) is None
    after_ten = checkpoint(tmp_path, card)
    assert not zoo.FOLDER.exists()
    train(card, tmp_path, **QUICK)
    step = {images: zoo.load_step(card.name, images).state_dict() for images in (0, 32, 160, RECIPE.images_seen)}
    expected = {name: weights.half().float() for name, weights in after_ten["model"].items()}
    assert same(dict(step[160]), expected)
    assert not same(dict(step[32]), dict(step[160])) and not same(dict(step[0]), dict(step[32]))

    before = {file.name: file.read_bytes() for file in zoo.FOLDER.rglob("*.*")}
    assert train(replace(card, recipe=replace(RECIPE, learning_rate=5e-4)), tmp_path, stop_after=12, **QUICK) is None
    assert {file.name: file.read_bytes() for file in zoo.FOLDER.rglob("*.*")} == before


def test_another_recipe_or_seed_starts_anew(tmp_path):
    assert train(VIT, tmp_path, stop_after=5, **QUICK) is None
    for other in (replace(VIT, seed=1), replace(VIT, recipe=replace(RECIPE, learning_rate=5e-4))):
        assert train(other, tmp_path, stop_after=1, **QUICK) is None
    assert sorted(torch.load(file)["step"] for file in tmp_path.glob("tiny-vit-*.pt")) == [1, 1, 5]


def test_a_seed_decides_the_weights(tmp_path):
    states = []
    for seed in (0, 1):
        train(replace(VIT, seed=seed), tmp_path / str(seed), stop_after=3, **QUICK)
        states.append(checkpoint(tmp_path / str(seed), VIT)["model"])
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])


def test_what_is_measured_is_what_is_stored(tmp_path):
    model = train(VIT, tmp_path, **QUICK)
    card, again = zoo.card(VIT.name), zoo.build(VIT)
    load_into(again, zoo.FOLDER / "tiny-vit.safetensors", card["sha256"], "")
    assert same(dict(model.state_dict()), dict(again.state_dict()))
    assert card["test_scenes"] == 16 and card["accuracy"]["all cues"].keys() == {"pair", "shape", "texture"}
    assert card["run"]["threads"] == torch.get_num_threads() and card["curve"][-1][0] == 480
    assert zoo.is_current(VIT)


def test_fine_tuning_starts_from_the_stored_weights_with_a_new_classifier(tmp_path):
    train(VIT, **QUICK)
    tuned = replace(VIT, name="tuned", corpus=NOVEL, seed=5, start="tiny-vit", recipe=replace(RECIPE, images_seen=16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.ZOO, VIT.name, VIT)
        before, first = zoo.load(VIT.name).state_dict(), training._start(tuned).state_dict()
    same = {key for key in before if torch.equal(before[key], first[key])}
    assert {key for key in before if key.startswith("head")} - same == {"head.weight", "head.bias"}
    assert same >= {key for key in before if not key.startswith("head")}
    with pytest.raises(FileNotFoundError, match="not trained yet"):
        training._start(replace(tuned, start="vit"))


@pytest.mark.fault("Training", "a loss that is not finite", "the run stops; nothing is stored")
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    wild = replace(VIT, recipe=replace(RECIPE, learning_rate=1e30, matrix_learning_rate=1e30))
    with pytest.raises(FloatingPointError, match="tiny-vit: the loss is (nan|inf) at step"):
        train(wild, tmp_path, **QUICK)


@pytest.mark.fault("Training", "weights that are not finite after the last step", "not stored")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_after_the_last_step_are_not_stored(tmp_path, monkeypatch, value):
    """The loss of a step is that before it, so that of the last step says nothing of the weights after it."""
    steps, clip = [], torch.nn.utils.clip_grad_norm_

    def clipped(parameters, norm):
        parameters = list(parameters)
        clip(parameters, norm)
        steps.append(len(steps))
        if len(steps) == STEPS:
            parameters[0].grad.fill_(value)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    with pytest.raises(FloatingPointError, match="tiny-vit is not stored: not finite in half precision are cls_token"):
        train(VIT, tmp_path, **QUICK)
    assert not zoo.is_stored(VIT.name) and not list(zoo.FOLDER.glob("*"))


# --- damage, and two at a time


@pytest.mark.fault("Training", "a checkpoint with a flipped bit", "refused: delete it, and the run starts anew")
def test_a_damaged_checkpoint_is_refused_or_changes_nothing(tmp_path):
    """One byte anywhere in the file: where it is of no account, what is read is what was written."""
    train(VIT, tmp_path, stop_after=2, **QUICK)
    (file,) = tmp_path.glob("tiny-vit-*.pt")
    whole, wanted, generator = file.read_bytes(), checkpoint(tmp_path, VIT), random.Random(0)
    refused = 0
    for place in (
        *range(0, 400, 7),
        *range(len(whole) - 400, len(whole), 7),
        *generator.choices(range(len(whole)), k=150),
    ):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << generator.randrange(8)]) + whole[place + 1 :])
        try:
            assert same(training._read_checkpoint(file, torch.device("cpu")), wanted), place
        except OSError as error:
            assert f"{file} is damaged" in str(error) and "delete it" in str(error)
            refused += 1
    assert refused > 150
    tensor = whole.index(wanted["model"]["head.weight"].numpy().tobytes())
    file.write_bytes(whole[:tensor] + bytes([whole[tensor] ^ 64]) + whole[tensor + 1 :])
    with pytest.raises(OSError, match="is damaged .*delete it, and the run starts anew"):
        train(VIT, tmp_path, **QUICK)
    assert not zoo.is_stored(VIT.name)
    older = {key: value for key, value in wanted.items() if key != "kept"}
    torch.save(older, tmp_path / "older")
    for damaged in (b"", whole[:1000], b"no checkpoint", (tmp_path / "older").read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(OSError, match="is damaged"):
            train(VIT, tmp_path, **QUICK)


TRAINS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import VIT
from helpers.networks import training
def first_batch(*arguments):
    print("in the middle of it", flush=True)
    time.sleep(600)
training._batch = first_batch
training.train(VIT, Path({work!r}), progress=False)
"""


@pytest.mark.fault(
    "Training", "two processes that train one model", "the second is refused, and goes on with the others"
)
def test_one_process_at_a_time_trains_a_model(tmp_path, capsys):
    code = TRAINS.format(tests=os.path.dirname(__file__), work=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout.readline().strip() == "in the middle of it"
        with pytest.raises(BlockingIOError, match="tiny-vit is being trained by another process, which holds .*lock"):
            train(VIT, tmp_path, **QUICK)
        assert train_missing([VIT, RESNET], tmp_path, **QUICK) == ["tiny-resnet"]  # it goes on with what is free
        assert "tiny-vit is being trained by another process" in capsys.readouterr().out
        run.kill()
    assert train(VIT, tmp_path, stop_after=1, **QUICK) is None  # a process that is gone holds nothing
    assert train(VIT, tmp_path, stop_after=1, **QUICK) is None


# --- the images of a step


def test_a_batch_shows_scenes_under_the_symmetries_of_the_square(tmp_path):
    drawn, device = render(Corpus(), range(96)), torch.device("cpu")
    symmetries = [lambda x, k=k: torch.rot90(x, k, (1, 2)) for k in range(4)]
    symmetries += [lambda x, k=k: torch.rot90(x, k, (1, 2)).flip(2) for k in range(4)]
    known = {
        turn(image).numpy().tobytes(): (k, label)
        for image, label in zip(drawn.images, drawn.label.tolist(), strict=True)
        for k, turn in enumerate(symmetries)
    }
    used = set()
    for step in range(6):
        images, labels = training._batch(drawn.images, drawn.label, VIT, step, device)
        assert images.shape == (16, 3, 64, 64) and images.dtype == torch.uint8
        for image, label in zip(images, labels.tolist(), strict=True):
            symmetry, of = known[image.numpy().tobytes()]
            assert of == label
            used.add(symmetry)
    assert used == set(range(8))


def test_without_augmentation_each_pass_shows_every_scene_once_as_it_is(tmp_path):
    drawn, device = render(Corpus(), range(96)), torch.device("cpu")
    plain = replace(VIT, recipe=replace(RECIPE, augmented=False))
    known = {image.numpy().tobytes(): (i, int(drawn.label[i])) for i, image in enumerate(drawn.images)}
    passes = []
    for step in range(12):  # six steps of 16 make a pass
        images, labels = training._batch(drawn.images, drawn.label, plain, step, device)
        found = [known[image.numpy().tobytes()] for image in images]
        assert [label for _, label in found] == labels.tolist()
        passes += [i for i, _ in found]
    assert sorted(passes[:96]) == sorted(passes[96:]) == list(range(96)) and passes[:96] != passes[96:]


def test_strongly_augmented_labels_are_shares_and_a_step_decides_them():
    """What is mixed is scenes under the symmetries of the square, as ``augmentation.strong`` mixes them."""
    drawn, device = render(Corpus(), range(96)), torch.device("cpu")
    images, shares = training._batch(drawn.images, drawn.label, STRONG, 3, device)
    assert images.shape == (16, 3, 64, 64) and images.dtype == torch.uint8 and shares.shape == (16, 32)
    again, other = (training._batch(drawn.images, drawn.label, STRONG, step, device) for step in (3, 4))
    assert torch.equal(images, again[0]) and torch.equal(shares, again[1]) and not torch.equal(images, other[0])
    plain, labels = training._batch(drawn.images, drawn.label, VIT, 3, device)
    top = shares.topk(2).indices
    assert all(label in pair for label, pair in zip(labels.tolist(), top.tolist(), strict=True))  # the same scenes
    assert not torch.equal(images, plain)


def test_a_strongly_augmented_run_is_stored_with_its_accuracies(tmp_path):
    """It learns from shares and is measured on labels, as any other network that was told classes."""
    train(replace(STRONG, recipe=replace(STRONG.recipe, images_seen=64)), tmp_path, **QUICK)
    card = zoo.card(STRONG.name)
    assert card["recipe"]["strong"] and card["accuracy"]["all cues"].keys() == {"pair", "shape", "texture"}
    assert card["curve"][0][1] == pytest.approx(3.47, abs=0.2)  # ln 32: shares of 32 classes, not yet learnt


# --- what a step computes in


@pytest.mark.parametrize("native", [True, False])
def test_a_step_is_in_bfloat16_where_the_processor_has_it_and_else_in_float32(tmp_path, monkeypatch, native):
    """Activations, Muon's routine and attention; the card says which it was."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen, step, theirs = [], training._step, _muon._zeropower_via_newtonschulz

    def watched(run, *rest):
        hook = run.model.blocks[0].mlp.fc1.register_forward_hook(
            lambda module, given, out: seen.append((out.dtype, run.model.blocks[0].attn.fused_attn))
        )
        seen.append(_muon._zeropower_via_newtonschulz is theirs)
        loss = step(run, *rest)
        hook.remove()
        return loss

    monkeypatch.setattr(training, "_step", watched)
    model = train(replace(VIT, recipe=replace(RECIPE, images_seen=16)), tmp_path, **QUICK)
    assert seen == [native, (torch.bfloat16 if native else torch.float32, not native)]
    assert zoo.card(VIT.name)["run"]["precision"] == ("bfloat16" if native else "float32")
    assert _muon._zeropower_via_newtonschulz is theirs and model.blocks[0].attn.fused_attn


def test_a_gpu_computes_in_bfloat16():
    assert training._precision(torch.device("cuda")) == "bfloat16"


# --- make zoo


def test_what_is_stored_is_not_trained_again(tmp_path, monkeypatch, capsys):
    options = {"work": tmp_path / "work", **QUICK}
    assert train_missing([VIT], **options) == ["tiny-vit"]
    assert "tiny-vit: pair " in capsys.readouterr().out
    before = stored(VIT)
    monkeypatch.setattr(training, "train", None)
    assert train_missing([VIT], **options) == [] and stored(VIT) == before
    assert capsys.readouterr().out == "tiny-vit: there already\n"
    assert train_missing([replace(VIT, seed=7)], **options) == []
    assert "there already, but from another recipe; delete its files" in capsys.readouterr().out


def test_progress_shows_images_a_second(tmp_path, capsys):
    train(VIT, tmp_path, stop_after=4, test_scenes=16)
    shown = capsys.readouterr().err
    assert "tiny-vit:" in shown and "64/480" in shown and " images/s" in shown and "loss " in shown


def test_the_command_knows_its_names(capsys):
    with pytest.raises(SystemExit) as stopped:
        training.main(["vit", "vti"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "not in the zoo: vti; it has vit-mae, vit-mae-seed1" in said and "usage:" in said


def test_the_command_skips_what_is_stored_and_tidies_up_when_all_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "ZOO", {})
    scenes_file = tmp_path / "work" / "scenes-0-images.npy"
    scenes_file.parent.mkdir()
    scenes_file.touch()
    scenes_file.with_name(".scenes-0-images.npy.1.part").touch()
    small = replace(zoo.BASELINE, recipe=replace(RECIPE, distinct_images=600))
    monkeypatch.setattr(zoo, "BASELINE", small)
    training.train(small, tmp_path / "work", test_scenes=16)
    training.main([])
    assert capsys.readouterr().out == "colours: there already\n"
    assert [file.name for file in scenes_file.parent.iterdir()] == [".colours.lock"]


@pytest.mark.fault("Training", "a recipe of fewer images than a batch", "refused: an untrained network is not stored")
def test_a_recipe_without_a_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tiny-vit: 15 images make no batch of 16, so nothing would be learnt"):
        train(replace(VIT, recipe=replace(RECIPE, images_seen=15)), tmp_path / "work", **QUICK)
    assert not zoo.is_stored(VIT.name)
