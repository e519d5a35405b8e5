"""Measures on two and three processes: the numbers of one, whatever each is dealt; and a process that dies is named.

The processes are forked where that is safe, so that each need not import torch anew.
"""

import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from battery import SIZE, every_measure, network
from torch import multiprocessing

from helpers.measures.distributed import LostProcess, Share, alone, gathered, joined, process
from helpers.measures.skip_ratios import skip_ratios

START = "fork" if sys.platform == "linux" else "spawn"


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
