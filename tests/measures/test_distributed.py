"""Measures on two and three processes: the numbers of one, whatever each is dealt; and a process that dies is named.

The processes are forked where that is safe, so that each need not import torch anew.
"""

import os
import signal
import sys
import time

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torch.distributed as dist
from torch import multiprocessing

from helpers.measures import landscape, objective
from helpers.measures.attention import attended_patches, attention_distance
from helpers.measures.batch_sizes import cka_in_batches
from helpers.measures.class_attention import class_attention
from helpers.measures.distributed import LostProcess, Share, alone, gathered, joined, process
from helpers.measures.feature_variance import feature_variance
from helpers.measures.fourier import spectra
from helpers.measures.frequency_noise import answers_under_noise
from helpers.measures.head_subsets import head_subsets
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.hessian import curvature_along, hessian_spectra
from helpers.measures.lesions import lesions
from helpers.measures.patch_shuffle import shuffled_answers
from helpers.measures.probes import features
from helpers.measures.receptive_field import effective_receptive_fields
from helpers.measures.rollout import rollout_maps
from helpers.measures.scores import scores
from helpers.measures.skip_ratios import skip_ratios
from helpers.measures.token_patches import token_patches

START = "fork" if sys.platform == "linux" else "spawn"
SIZE, BATCH, IMAGES = 32, 6, 47  # eight batches, of which the last has five images: unequal shares for three processes


def network(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    options = options or {"img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
    return timm.create_model(name, **{"num_classes": 10, **options}).eval()


def every_measure():
    """Name of a measure → its numbers, of one tiny ViT; what needs a single batch has less than there are processes."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=np.uint8))
    batches, few, vit = images.split(BATCH), [images[:5]], network()
    labels = torch.arange(IMAGES) % 10
    labelled, of_few = list(zip(batches, labels.split(BATCH), strict=True)), [(few[0], labels[:5])]
    noisy, sure = (answers_under_noise(vit, given, [0.5, 2.0], 2) for given in (labelled, few))
    start = objective.weights(vit)
    ways = [landscape.random_direction(start, seed) for seed in range(3)]
    resnet, some = network("test_resnet", num_classes=10), [(few[0][:4], labels[:4])]
    sums = cka_heatmap({"vit": vit}, batches, ["resid_post"], shuffle=0)
    located = token_patches(vit, images, batch=BATCH, shuffle=0)
    found = {
        "CKA": sums.matrix, "its errors": sums.stderr, "its control": sums.control.matrix,
        "attention distance": attention_distance(vit, batches, groups=4),
        "skip ratios": skip_ratios(vit, batches, 4).table(),
        "skip ratios of one batch": skip_ratios(vit, few, 4).table(),
        "skip ratios by token": skip_ratios(vit, batches, 4).by_token(),
        "token patches": np.stack([at.matrix for at in located.values()]),
        "token patches of one batch": np.stack([at.matrix for at in token_patches(vit, few[0]).values()]),
        "errors of token patches": np.stack([at.statistic(lambda m, grid: m)[1] for at in located.values()]),
        "control of token patches": np.stack([at.control.matrix for at in located.values()]),
        "receptive fields": effective_receptive_fields(vit, images, channels=1, groups=4, batch=BATCH).maps.numpy(),
        "features": torch.stack(list(features(vit, images, batch=BATCH)["mean token"].values())).numpy(),
        "rollout": rollout_maps(vit, batches, chunk=4).numpy(), "class attention": class_attention(vit, few).numpy(),
        "spectra": spectra(vit, batches, 4).table(), "variance": feature_variance(vit, batches, 4).table(),
        "variance of one batch": feature_variance(vit, few, 4).table(),
        "attended": attended_patches(vit, batches, chunk=4), "attended of one batch": attended_patches(vit, few),
        "answers": torch.cat([noisy.clean, noisy.noisy.flatten(), noisy.labels]).numpy(),
        "answers of one batch": torch.cat([sure.clean, sure.noisy.flatten()]).numpy(),
        "shuffled": shuffled_answers(vit, labelled, [8, 16], groups=4),
        "shuffled of one batch": shuffled_answers(vit, few, [8], groups=4),
        "scores": scores({"one": vit, "other": resnet}, labelled, 4), "scores of one": scores({"": vit}, of_few, 4),
        "lesions": lesions(vit, labelled, groups=4), "lesions of one batch": lesions(vit, of_few, groups=4),
        "head subsets": head_subsets(vit, resnet, batches, groups=4),
        "Hessian": hessian_spectra(vit, labelled[-3:], 0.1, 2, most=8),
        "Hessian of one batch": hessian_spectra(vit, some, 0.1, 2, most=8),
        "curvature along": curvature_along(vit, *some[0], ways, [0.1]),
        "rays": landscape.rays(vit, labelled[-2:], [-0.5, 0.5], [0, 1], 0.1),
        "plane": landscape.plane(vit, some, [-0.5, 0.0, 0.5], (0, 1), 0.1),
        "in batches": np.concatenate([one.matrix for one in cka_in_batches({"vit": vit}, images, [20, 12])]),
        "errors in batches": np.concatenate([one.stderr for one in cka_in_batches({"vit": vit}, images, [20, 12])]),
    }  # fmt: skip
    return {name: value.select_dtypes("number").to_numpy(float) if isinstance(value, pd.DataFrame) else value
            for name, value in found.items()}  # fmt: skip


def work(rank, world, folder, what):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    with joined() as here:  # they know each other already
        assert here == process() == (rank, world)
        what(rank, folder)
    dist.destroy_process_group()


def run(world, folder, what):
    """Let ``what`` run in so many processes; returns their exit codes."""
    start = multiprocessing.get_context(START).Process
    processes = [start(target=work, args=(rank, world, folder, what)) for rank in range(world)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(180)
        one.kill()
    return [one.exitcode for one in processes]


def measure(rank, folder):
    np.savez(folder / f"{rank}.npz", **every_measure())


@pytest.fixture(scope="module")
def single():
    return every_measure()


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_give_the_numbers_of_one(world, single, tmp_path):
    assert run(world, tmp_path, measure) == [0] * world
    for rank in range(world):
        found = np.load(tmp_path / f"{rank}.npz")
        assert set(found) == set(single)
        for name, value in single.items():
            assert found[name].shape == value.shape, name
            np.testing.assert_allclose(
                found[name], value, rtol=1e-6, atol=1e-6 * np.nanmax(np.abs(value)), err_msg=name
            )


def shares(rank, folder):
    share = Share()
    assert dict(share.dealt("abcde")) == [{0: "a", 2: "c", 4: "e"}, {1: "b", 3: "d"}][rank]
    assert gathered(rank) == [0, 1]
    assert share.in_order({rank: [torch.tensor(rank)], 2 + rank: []}) == [0, 1]
    few = Share()
    assert dict(few.dealt("a")) == {0: "a"} and few.summed(1) == 1  # the other's is dropped
    with alone():
        assert process() == (0, 1) and gathered(rank) == [rank]
    one = {"both": [rank + 1.0, torch.ones(2)], f"of {rank}": (np.full(2, rank), 0 if rank else torch.ones(1))}
    found = share.summed(one)
    assert found["both"][0] == 3 and torch.equal(found["both"][1], torch.full((2,), 2.0))
    assert set(found) == {"both", "of 0", "of 1"} and found["of 1"][0].tolist() == [1, 1]


def test_batches_are_dealt_and_sums_added(tmp_path):
    assert run(2, tmp_path, shares) == [0, 0]
    share = Share()
    assert list(share.dealt("ab")) == [(0, "a"), (1, "b")] and share.summed({"a": 1}) == {"a": 1}
    assert process() == (0, 1) and Share().summed([]) == [] and list(Share().dealt("")) == []


def dies(rank, folder):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        skip_ratios(network(), [torch.zeros(2, 3, SIZE, SIZE)])
    except LostProcess as error:
        (folder / f"{rank}.txt").write_text(str(error), encoding="utf-8")


@pytest.mark.fault("Measures", "one of several processes dies", "the others end with an error that names it")
def test_a_process_that_dies_is_named(tmp_path):
    started = time.monotonic()
    codes = run(3, tmp_path, dies)
    assert codes[1] == -signal.SIGTERM and time.monotonic() - started < 120
    for rank in (0, 2):
        assert "process 1 of 3 (counted from 0) has died" in (tmp_path / f"{rank}.txt").read_text(encoding="utf-8")
