"""A device by its name: those that this machine has, and no others."""

import pytest
import torch

from helpers.networks import devices


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs, or one of Apple's."""

    def has(gpus=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.mps, "is_available", lambda: mps, raising=False)

    return has


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cuda:", "cuda:x", "cuda:-1", "mps", "cpu:0", "tpu", ""])
def test_a_device_that_is_not_there_is_refused(machine, name):
    machine(gpus=0 if name == "cuda" else 1)
    there = "cpu" if name == "cuda" else "cuda, cpu"
    with pytest.raises(ValueError, match=f"there is no device '{name}' here; there are {there}: leave DEVICE out"):
        devices.device(name)


def test_without_a_name_it_is_the_best_there_is(machine):
    machine(gpus=2)
    assert devices.device(None) == torch.device("cuda") and devices.device("cuda:1") == torch.device("cuda", 1)
    machine(mps=True)
    assert devices.device(None) == torch.device("mps") and devices.device("cpu") == torch.device("cpu")
    machine()
    assert devices.device(None) == torch.device("cpu")
