"""Weights are those that are pinned, whole and finite, whatever they were wrapped in; no pickle runs code."""

import hashlib
import os
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.networks.weights import load_into, not_finite


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.safetensors"


def test_weights_come_back_exactly_and_without_a_word(file):
    made, found = network(1), network(2)
    save_file(made.state_dict(), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_into(found, file, hashlib.sha256(file.read_bytes()).hexdigest(), "")
        load_into(network(3), file, None, "")
    assert equal(made.state_dict(), found.state_dict())


@pytest.mark.fault(
    "Networks and weights", "weights that are not those of their card (sha256)", "refused, naming the file"
)
@pytest.mark.parametrize("expected", ["0" * 64, ""])
def test_weights_of_another_hash_are_refused(file, expected):
    save_file(network().state_dict(), file)
    with pytest.raises(OSError, match=r"not those of their card \(sha256 differs\); fetch them"):
        load_into(network(), file, expected, "fetch them")


@pytest.mark.fault("Networks and weights", "weights that are NaN or infinite", "refused, naming the first of them")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["3.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_refused(file, name, value):
    state = network().state_dict()
    state[name].view(-1)[0] = value
    save_file(state, file)
    with pytest.raises(OSError, match=rf"a\.safetensors are not finite: {name}; fetch them"):
        load_into(network(), file, None, "fetch them")


def test_the_first_names_are_listed():
    broken = {str(i): torch.full((2,), float("nan")) for i in range(5)}
    assert not_finite({"whole": torch.arange(3), "half": torch.ones(2).half()}) == ""
    assert not_finite({"good": torch.ones(1), **broken}) == "0, 1, 2 and 2 more"


# --- wrappers


def compiled_within(model):
    """As after ``model[3] = torch.compile(model[3])``."""
    model[3] = torch.compile(model[3])
    return model


WRAPPED = {
    "module.": lambda model: nn.DataParallel(model).state_dict(),
    "_orig_mod.": lambda model: torch.compile(model).state_dict(),
    "_orig_mod.module.": lambda model: torch.compile(nn.DataParallel(model)).state_dict(),
    "module.module.": lambda model: nn.DataParallel(nn.DataParallel(model)).state_dict(),
    "model.": lambda model: nn.ModuleDict({"model": model}).state_dict(),
    "state_dict.": lambda model: {f"state_dict.{key}": value for key, value in model.state_dict().items()},
    "state_dict.model.": lambda model: {f"state_dict.model.{key}": value for key, value in model.state_dict().items()},
    "one module of it": lambda model: compiled_within(model).state_dict(),
}


@pytest.mark.fault(
    "Networks and weights",
    "names of weights that a wrapper has made longer (module., _orig_mod., model., state_dict.)",
    "read without it, with a warning",
)
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_weights_are_read_with_a_warning(file, wrapper):
    made, found = network(1), network(2)
    wanted = {key: value.clone() for key, value in made.state_dict().items()}
    save_file(WRAPPED[wrapper](made), file)
    first, short = ("3._orig_mod.bias", "3.bias") if wrapper == "one module of it" else (f"{wrapper}0.bias", "0.bias")
    with pytest.warns(UserWarning, match=rf"a\.safetensors .*'{first}' is read as '{short}'"):
        load_into(found, file, None, "")
    assert equal(wanted, found.state_dict())


@pytest.mark.parametrize("lead", ["", "module.", "model."])
def test_a_lead_that_is_the_networks_own_is_left(file, lead):
    made, found = (nn.ModuleDict({"model": network(seed)}) for seed in (1, 2))
    save_file({f"{lead}{key}": value for key, value in made.state_dict().items()}, file)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_into(found, file, None, "")
    assert equal(made.state_dict(), found.state_dict()) and len(said) == bool(lead)


def test_a_lead_of_some_names_is_no_wrapper(file):
    state = network().state_dict()
    save_file({f"module.{key}" if key.startswith("0") else key: value for key, value in state.items()}, file)
    with pytest.raises(OSError, match=r"missing 0\.weight, 0\.bias, unexpected module\.0\."):
        load_into(network(), file, None, "")
    twice = {**state, "_orig_mod.0.bias": torch.zeros(4)}
    save_file(twice, file)
    with pytest.raises(OSError, match=r"unexpected _orig_mod\.0\.bias"):
        load_into(network(), file, None, "")


@pytest.mark.fault(
    "Networks and weights",
    "weights kept with an epoch and the state of an optimiser",
    "read without these, with a warning",
)
@pytest.mark.parametrize("lead", ["model.", ""])
def test_what_training_scripts_keep_beside_the_weights_is_left_out(file, lead):
    made, found = network(1), network(2)
    state = {f"{lead}{key}": value for key, value in made.state_dict().items()}
    save_file({**state, "epoch": torch.ones(1), "optimizer.state.0.exp_avg": torch.ones(3)}, file)
    with pytest.warns(UserWarning, match=r"also holds epoch, optimizer\.state\.0\.exp_avg, which are no weights"):
        load_into(found, file, None, "")
    assert equal(made.state_dict(), found.state_dict())
    save_file({**state, "odd": torch.ones(1)}, file)
    with pytest.raises(OSError, match=r"unexpected .*odd"):
        load_into(network(2), file, None, "")


@pytest.mark.fault("Networks and weights", "a BatchNorm with variances below zero", "refused, naming it")
def test_variances_below_zero_are_refused(file):
    state = network().state_dict()
    state["1.running_var"][2] = -1e-3
    save_file(state, file)
    with pytest.raises(OSError, match=r"have variances below zero: 1\.running_var; fetch them"):
        load_into(network(), file, None, "fetch them")


@pytest.mark.fault("Networks and weights", "a sha256 in capitals", "the same as in small letters")
def test_a_hash_may_be_in_capitals(file):
    save_file(network().state_dict(), file)
    load_into(network(), file, hashlib.sha256(file.read_bytes()).hexdigest().upper(), "")


# --- pickles

NESTED = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "lr": 0.1},
    "both": lambda state: {"model": {"state_dict": state}},
    "the other way": lambda state: {"state_dict": {"model": state}},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
}


@pytest.mark.fault(
    "Networks and weights", "weights that torch.save wrote (.pth, .pt, .bin)", "their tensors are read, nothing is run"
)
@pytest.mark.parametrize(
    "nesting, name",
    [("plain", "really a pickle.safetensors"), ("plain", "my 'best' weights.pth"), *((key, "a.bin") for key in NESTED)],
)
def test_what_torch_saved_is_read(tmp_path, nesting, name):
    made, found = network(1), network(2)
    made[3].weight = nn.Parameter(made[3].weight.detach().t().contiguous().t())  # not contiguous
    torch.save(NESTED[nesting](made.state_dict()), tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_into(found, tmp_path / name, None, "")
    assert equal(made.state_dict(), found.state_dict())


def test_averaged_weights_come_before_those_they_were_averaged_from(tmp_path):
    made, found = network(1), network(2)
    torch.save({"state_dict": network(3).state_dict(), "state_dict_ema": made.state_dict()}, tmp_path / "a.pth")
    load_into(found, tmp_path / "a.pth", None, "")
    assert equal(made.state_dict(), found.state_dict())


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(2)], {}])
def test_a_file_without_weights_by_name_is_named(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(OSError, match=r"a\.pth holds no weights by name.*fetch them"):
        load_into(network(), tmp_path / "a.pth", None, "fetch them")


def test_a_pickle_that_is_cut_off_is_named(tmp_path):
    torch.save(network().state_dict(), tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"a\.pth are corrupt .*fetch them"):
        load_into(network(), tmp_path / "a.pth", None, "fetch them")


@pytest.mark.fault("Networks and weights", "a pickle that runs code", "neither read nor run")
def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model": Evil()}, tmp_path / "a.safetensors")
    torch.save({"model": Evil()}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pt"):
        with pytest.raises(OSError, match="holds more than tensors, and is not read"):
            load_into(network(), tmp_path / name, None, "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault(
    "Networks and weights", "a file of weights that is damaged or something else", "refused, naming the file"
)
def test_other_files_are_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(OSError, match=r"a\.safetensors are corrupt or no safetensors .*fetch them"):
        load_into(network(), tmp_path / "a.safetensors", None, "fetch them")
    for missing in (tmp_path / "b.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="no weights at .*fetch them"):
            load_into(network(), missing, None, "fetch them")
