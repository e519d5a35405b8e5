"""What is computed on another device than the host: every measure, every recording, and functions of tensors.

The device is pretended (``accelerator``), so that these run where there is none. A network of the host and its copy on
the device are to give the same numbers.
"""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from accelerator import DEVICE, accelerator
from torch import nn

from helpers.measures.attention import distances, patches_attended
from helpers.measures.attention_maps import Grid
from helpers.measures.calibration import confidences
from helpers.measures.cka import MinibatchCKA, cka, feature_space_linear_cka
from helpers.measures.feature_variance import moments
from helpers.measures.fourier import amplitudes
from helpers.measures.hsic import gram_linear, gram_row, hsic_biased, hsic_unbiased
from helpers.measures.landscape import polar, random_direction
from helpers.measures.massive_tokens import statistics
from helpers.measures.patch_embedding import components, filter_components, overlap, share_within, total_variation
from helpers.measures.patch_shuffle import shuffle_patches
from helpers.measures.position_embedding import cosines, position_embeddings
from helpers.measures.receptive_field import central_share, half_mass_radius
from helpers.measures.ridge import ridge
from helpers.measures.rollout import attention_rollout
from helpers.measures.token_patches import token_rows
from helpers.recording.record import RECORDINGS
from tests.measures.battery import every_measure, network
from tests.recording.samples import noise, pair


def test_the_pretended_device_is_hard_to_please():
    on_host = torch.arange(6.0).view(2, 3)
    with accelerator() as device:
        x = on_host.to(device)
        assert x.device == device == DEVICE and (x + 1).device == device and x.sum().item() == 15
        assert torch.equal((x @ x.T).cpu(), on_host @ on_host.T) and x[:, [0, 2]].tolist() == [[0, 2], [3, 5]]
        assert torch.equal((x * torch.tensor(2.0)).cpu(), 2 * on_host)  # a number of the host is no tensor of it
        for mixed in (lambda: x + on_host, lambda: on_host @ x.T, lambda: torch.cat([x, on_host])):
            with pytest.raises(RuntimeError, match="expected all tensors to be on mps:0, found one on cpu"):
                mixed()
        for wanted in (
            x.numpy,
            x.double,
            lambda: np.asarray(x),
            lambda: torch.zeros(2, device=device).to(torch.double),
        ):
            with pytest.raises(TypeError, match="float64|numpy"):
                wanted()
        x[0] = 7
        assert x[0].tolist() == [7, 7, 7] and torch.tensor([1.0], device=device).device == device
        layer = nn.Linear(3, 1).to(device)
        layer(x).sum().backward()
        assert layer.weight.grad.device == device and layer.weight.grad.tolist() == [[10, 11, 12]]
    with pytest.raises(AssertionError, match="switched off"):
        x + 1


def test_measures_give_the_numbers_of_the_host():
    on_host = every_measure()
    with accelerator() as device:
        on_device = every_measure(device)
    assert set(on_device) == set(on_host)
    for name, right in on_host.items():
        within = 1e-3 if "errors" in name else 1e-5  # what CKA adds up is float32 on the device
        least = within * np.nanmax(np.abs(right))
        np.testing.assert_allclose(on_device[name], right, rtol=within, atol=least, err_msg=name)


NOT_COMPARED = {"frequency_noise": ("error", "lost", "accuracy")}  # by bfloat16 on the host, which nobody pretends


def recorded(name, folder, device="cpu"):
    """A recording's tables by the names of their files."""
    networks = pair(8, cut=name != "patch_shuffle")
    on_device = {label: model.to(device) for label, model in networks.items()}
    more = {"train": noise(40)} if name == "probes" else {}
    RECORDINGS[name].measure(on_device, noise(max(40, RECORDINGS[name].least)), folder, **more)
    return {file.name: pd.read_csv(file) for file in sorted(folder.glob("*.csv"))}


@pytest.mark.parametrize("name", RECORDINGS)
def test_recordings_give_the_numbers_of_the_host(name, tmp_path):
    right = recorded(name, tmp_path / "host")
    with accelerator() as device:
        found = recorded(name, tmp_path / "device", device)
    assert right and set(found) == set(right)
    for file, table in right.items():
        left_out = list(NOT_COMPARED.get(name, ()))
        pd.testing.assert_frame_equal(
            found[file].drop(columns=left_out), table.drop(columns=left_out), rtol=1e-4, atol=1e-5, check_dtype=False
        )


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def metric(x, y):
    """CKA of two arrays by way of sums over a batch; the sums are where ``on`` puts them."""
    sums = MinibatchCKA(2).on(x.device)
    sums.update(torch.stack([gram_row(x), gram_row(y)]))
    return sums.compute()


X, Y, PICTURES, OTHER = drawn(24, 6), drawn(24, 9), drawn(40, 3, 4, 4), drawn(41, 3, 4, 4)
MAPS, ATTENTION, VIT = drawn(2, 5, 6, 6), drawn(2, 3, 17, 17).softmax(-1), network()
OF_TENSORS = {
    "CKA": (cka, X, Y),
    "biased CKA": (partial(cka, debiased=False), X, Y),
    "CKA of features": (feature_space_linear_cka, X, Y),
    "CKA by sums": (metric, X, Y),
    "biased HSIC": (lambda x, y: hsic_biased(gram_linear(x), gram_linear(y)), X, Y),
    "unbiased HSIC": (lambda x, y: hsic_unbiased(gram_linear(x), gram_linear(y)), X, Y),
    "ridge": (lambda x, y: ridge(x, y, [1.0, 2.0])[0], X, Y),
    "confidences": (lambda logits, labels: confidences(logits, labels)[0], Y, torch.arange(24) % 9),
    "right answers": (lambda logits, labels: confidences(logits, labels)[1], Y, torch.arange(24) % 9),
    "components": (lambda x: components(x, 4).pictures, PICTURES),
    "overlap": (lambda x, y: overlap(components(x, 4), components(y, 4)), PICTURES, OTHER),
    "share within": (lambda x, y: share_within(x, components(y, 4)), PICTURES, OTHER),
    "total variation": (total_variation, PICTURES),
    "cosines": (cosines, drawn(4, 4, 7)),
    "sizes of tokens": (lambda x: list(statistics(x, 1).values()), drawn(4, 17, 8)),
    "rollout": (lambda x: attention_rollout([x, x])[-1], ATTENTION),
    "attention distance": (lambda x: distances(x, Grid((4, 4), (8, 8), 1)), ATTENTION),
    "patches attended": (lambda x: patches_attended(x, 1), ATTENTION),
    "radius": (lambda x: half_mass_radius(x, (4.0, 4.0)), drawn(8, 8).abs()),
    "share in the centre": (lambda x: central_share(x, (4.0, 4.0), 3), drawn(8, 8).abs()),
    "amplitudes": (lambda x: torch.stack(list(amplitudes(x).values())), MAPS),
    "moments": (lambda x: torch.cat([each.flatten() for each in moments(x).values()]), MAPS),
    "rows of tokens": (token_rows, drawn(5, 16, 8)),
    "shuffled patches": (lambda x: shuffle_patches(x, 8), drawn(2, 3, 32, 32)),
    "polar": (lambda x, y: polar([{"w": x[:6]}, {"w": y[:6, :6]}, {"w": x[6:12]}]).to_numpy(float), X, Y),
}  # fmt: skip
OF_NETWORKS = {
    "filters": lambda vit: filter_components(vit, 4).pictures,
    "position embeddings": position_embeddings,
    "direction": lambda vit: random_direction(dict(vit.named_parameters()), 0)["blocks.0.attn.qkv.weight"],
}


def numbers(value):
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, dtype=float)


@pytest.mark.parametrize("name", OF_TENSORS)
def test_functions_take_tensors_from_the_device(name):
    fn, *tensors = OF_TENSORS[name]
    with accelerator() as device:
        found = numbers(fn(*(x.to(device) for x in tensors)))
    np.testing.assert_allclose(found, numbers(fn(*tensors)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OF_NETWORKS)
def test_functions_take_networks_on_the_device(name):
    with accelerator() as device:
        found = numbers(OF_NETWORKS[name](network().to(device)))
    np.testing.assert_allclose(found, numbers(OF_NETWORKS[name](VIT)), rtol=1e-4, atol=1e-5)
