"""Linear probes, against scikit-learn; shots; what is read from networks."""

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import RidgeClassifier

from helpers.images import scenes
from helpers.images.sources import scene_images
from helpers.measures import probes
from helpers.measures.probes import few_shot, probe_accuracy, probe_error, probe_scores
from helpers.measures.ridge import L2S, ridge
from helpers.networks import zoo
from helpers.networks.positions import CHANNELS_LAST, positions, prefix_tokens
from helpers.networks.taps import capture, taps_for, taps_named


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classes(n, d=10, seed=0, spread=1.0, tokens=None, count=4):
    """Features around one centre a class, and the labels."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.permutation(np.arange(n) % count))
    centres = drawn(count, d, seed=99)
    shape = (n, d) if tokens is None else (tokens, n, d)
    return (centres[labels] + spread * torch.from_numpy(rng.normal(size=shape))).float(), labels


def test_accuracy_is_that_of_scikit_learns_classifier_on_standardised_features():
    (x, y), (valid_x, valid_y), (test_x, test_y) = (classes(200, seed=s, spread=2.0) for s in range(3))
    found = probe_accuracy(x, y, valid_x, valid_y, test_x, test_y, l2s=[5.0])
    mean, std = x.mean(0), x.std(0, correction=0)
    theirs = RidgeClassifier(alpha=5.0).fit((x - mean) / std, y)
    assert found.value == pytest.approx(theirs.score((test_x - mean) / std, test_y))
    assert 0.4 < found.value < 0.99 and found.l2 == 5


def test_accuracy_does_not_depend_on_the_scale_of_features():
    (x, y), (valid_x, valid_y), (test_x, test_y) = (classes(80, seed=s, spread=2.0) for s in range(3))
    scale, shift = torch.logspace(-3, 3, 10), torch.linspace(-50, 50, 10)
    plain = probe_accuracy(x, y, valid_x, valid_y, test_x, test_y)
    moved = probe_accuracy(
        *(v for z, w in ((x, y), (valid_x, valid_y), (test_x, test_y)) for v in (z * scale + shift, w))
    )
    assert moved.value == pytest.approx(float(plain.value), abs=0.02)


def test_l2_is_chosen_without_the_test_images():
    (x, y), (valid_x, valid_y), (test_x, test_y) = (classes(60, d=40, seed=s, spread=3.0, tokens=5) for s in range(3))
    found = probe_accuracy(x, y, valid_x, valid_y, test_x, test_y)
    mixed = probe_accuracy(x, y, valid_x, valid_y, test_x.flip(1), test_y[torch.randperm(60)])
    assert torch.equal(found.l2, mixed.l2) and len(found.l2.unique()) > 1
    each = [probe_accuracy(x, y, valid_x, valid_y, valid_x, valid_y, l2s=[l2]).value for l2 in L2S]
    chosen = probe_accuracy(x, y, valid_x, valid_y, valid_x, valid_y)
    torch.testing.assert_close(chosen.value, torch.stack(each).amax(0))


def test_tokens_at_once_equal_tokens_one_by_one(monkeypatch):
    sets = [classes(40, seed=s, spread=2.0, tokens=6) for s in range(3)]
    at_once = probe_accuracy(*(part for pair in sets for part in pair))
    monkeypatch.setattr(probes, "CHUNK", 900)  # two tokens at a time
    in_parts = probe_accuracy(*(part for pair in sets for part in pair))
    looped = [probe_accuracy(*(part for x, y in sets for part in (x[t], y))) for t in range(6)]
    assert torch.equal(at_once.score, in_parts.score) and at_once.score.shape == (6, 40)
    assert torch.equal(at_once.score, torch.stack([one.score for one in looped]))
    assert torch.equal(at_once.l2, torch.stack([one.l2 for one in looped]))


def test_a_position_that_features_hold_linearly_is_read_without_error():
    truth, mixing = 32 + 10 * drawn(300, 2), drawn(2, 20, seed=1)
    x = (truth @ mixing + 0.01 * drawn(300, 20, seed=2)).float()
    parts = [v.float() for at in (slice(0, 100), slice(100, 200), slice(200, 300)) for v in (x[at], truth[at])]
    assert probe_error(*parts).value < 0.1
    blind = [v for i, v in enumerate(parts)]
    blind[::2] = [drawn(100, 20, seed=s).float() for s in range(3)]
    spread = (truth[200:] - truth[200:].mean(0)).norm(dim=1).mean()
    assert probe_error(*blind).value == pytest.approx(float(spread), rel=0.1)


def test_a_feature_that_never_changes_is_left_out():
    (x, y), (valid_x, valid_y), (test_x, test_y) = (classes(60, seed=s) for s in range(3))
    plain = probe_accuracy(x, y, valid_x, valid_y, test_x, test_y)
    more = [torch.cat([z, torch.full((60, 1), 7.0)], 1) for z in (x, valid_x, test_x)]
    more[2][:, -1] = 1e6  # nor may it matter when it changes later
    with_constant = probe_accuracy(more[0], y, more[1], valid_y, more[2], test_y)
    assert torch.equal(plain.score, with_constant.score)


def test_bad_input_is_refused():
    (x, y), (valid_x, valid_y), (test_x, test_y) = (classes(40, seed=s) for s in range(3))
    rest = (valid_x, valid_y, test_x, test_y)
    with pytest.raises(ValueError, match="the same for all images"):
        probe_accuracy(torch.ones_like(x), y, *rest)
    with pytest.raises(ValueError, match="training features hold NaN"):
        probe_accuracy(x.masked_fill(x > 2, torch.nan), y, *rest)
    with pytest.raises(ValueError, match="test labels go from 0 to 7, the probe knows 0 to 3"):
        probe_accuracy(x, y, valid_x, valid_y, test_x, test_y + 4 * (test_y == 3))
    with pytest.raises(ValueError, match="one whole number an image"):
        probe_accuracy(x, y.float(), *rest)
    with pytest.raises(ValueError, match=r"no training image of class \[1\]"):
        probe_accuracy(x, y.masked_fill(y == 1, 2), *rest)
    with pytest.raises(ValueError, match="the test features are"):
        probe_accuracy(x, y, valid_x, valid_y, test_x[:, :5], test_y)
    with pytest.raises(ValueError, match="positive"):
        ridge(x, x, 0.0)
    with pytest.raises(ValueError, match="40 images and targets of 39"):
        ridge(x, x[1:], 1.0)


@pytest.mark.fault("Measures", "labels of a probe that are floats, negative, or not one an image", "refused in a line")
def test_labels_that_are_none_are_named():
    (x, y), (test_x, test_y) = classes(40), classes(20, seed=1)
    for shots in (3, None):
        for labels, message in (
            (y.float(), "training labels are one whole number an image"),
            (y - 1, "training labels are numbers of classes, from 0; got -1"),
            (y[:-1], "training features are those of 40 images, and there are labels of 39"),
            (torch.cat([y, y[:1]]), "training features are those of 40 images, and there are labels of 41"),
        ):
            with pytest.raises(ValueError, match=message):
                probe_scores(x, labels, test_x, test_y, shots=shots)
        with pytest.raises(ValueError, match="test features are those of 20 images, and there are labels of 19"):
            probe_scores(x, y, test_x, test_y[1:], shots=shots)
    with pytest.raises(ValueError, match="validation features are those of 20 images, and there are labels of 19"):
        probe_error(x, x[:, :2], test_x, test_x[1:, :2], test_x, test_x[:, :2])


@pytest.mark.fault("Measures", "no draws, no shots or no penalties for a probe", "refused in a line")
def test_a_probe_needs_draws_shots_and_penalties():
    (x, y), (test_x, test_y) = classes(40), classes(20, seed=1)
    for options, message in (
        ({"draws": 0}, "draws is a whole number, at least 1; got 0"),
        ({"shots": 0}, "shots is a number of images a class, at least 1; got 0"),
        ({"shots": 3, "l2s": []}, r"l2 is a positive number, or several; got \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            probe_scores(x, y, test_x, test_y, **options)


def test_shots_are_drawn_from_each_class():
    labels = torch.tensor([2, 0, 1, 2, 0, 1, 2, 0, 1, 1])
    chosen, rest = few_shot(labels, 2, seed=0)
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(10))
    assert torch.equal(chosen, few_shot(labels, 2, seed=0)[0])
    assert any(not torch.equal(chosen, few_shot(labels, 2, seed=s)[0]) for s in range(1, 5))
    with pytest.raises(ValueError, match=r"class \[0, 2\] has \[3, 3\]"):
        few_shot(labels, 4, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        few_shot(labels, 0, seed=0)


def test_scores_over_draws_of_shots():
    (x, y), (test_x, test_y) = classes(60, spread=2.0, tokens=3), classes(50, seed=1, spread=2.0, tokens=3)
    few = probe_scores(x, y, test_x, test_y, shots=3, draws=4)
    assert few.shape == (4, 3, 50) and not torch.equal(few[0], few[1])
    assert torch.equal(few[2], probe_scores(x, y, test_x, test_y, shots=3, draws=1, seed=2)[0])
    full = probe_scores(x, y, test_x, test_y, shots=None)
    assert full.shape == (1, 3, 50) and full.float().mean() > few.float().mean()
    chosen, rest = few_shot(y, 3, seed=0)
    by_hand = probe_accuracy(x[:, chosen], y[chosen], x[:, rest], y[rest], test_x, test_y)
    assert torch.equal(few[0], by_hand.score)  # the rest of the images, whatever their order, choose l2
    with pytest.raises(ValueError, match="none is left"):
        probe_scores(x, y, test_x, test_y, shots=15)


NETWORKS = {  # name → prefix tokens, positions of the last block
    "vit_tiny_patch16_224": (1, 16),
    "deit_tiny_distilled_patch16_224": (2, 16),
    "vit_base_patch16_siglip_gap_224": (0, 16),
    "vit_small_patch14_reg4_dinov2": (5, 16),
    "vit_medium_patch16_reg4_gap_256": (4, 16),  # registers, and no class token
    "vit_medium_patch16_rope_reg1_gap_256": (1, 16),  # an Eva
    "beit_base_patch16_224": (1, 16),
    "pit_ti_224": (1, None),
    "swin_tiny_patch4_window7_224": (0, None),
    "mixer_s32_224": (0, None),
    "convnext_atto": (0, 4),
    "resnet10t": (0, 4),
    "resnetv2_50x1_bit": (0, 4),
}


def network(name):
    """A small relative of a model, and images for it."""
    small = {
        "vit": {"depth": 2, "embed_dim": 32, "num_heads": 2},
        "beit": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    }
    small["deit"] = small["vit"]
    options = dict(small.get(name.split("_")[0], {}))
    sized = 224 if name.startswith(("pit", "swin", "mixer")) else 56 if "patch14" in name else 64
    if not name.startswith(("convnext", "resnet", "pit", "mixer")):
        options["img_size"] = sized
    model = timm.create_model(name, **options).eval()
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, sized, sized)}
    return model, torch.randint(0, 256, (6, 3, sized, sized), dtype=torch.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_read_outs_of_every_kind_of_network(name):
    model, images = network(name)
    prefix, count = NETWORKS[name]
    assert prefix_tokens(model) == prefix
    last = taps_for(model, probes.OUTPUTS)[-1:]
    found = probes.features(model, images, ["first token", "mean token", "tokens"], last, batch=4)
    tokens = found["tokens"][last[0].name]
    assert tokens.shape[1] == 6 and tokens.shape[0] == (count or tokens.shape[0])
    torch.testing.assert_close(found["mean token"][last[0].name], tokens.mean(0))
    assert torch.equal(found["first token"][last[0].name], tokens[0])
    if prefix and "_gap_" not in name:
        assert probes.features(model, images, ["cls"], last)["cls"][last[0].name].shape == (6, tokens.shape[-1])
    else:
        with pytest.raises(ValueError, match="has no CLS token"):
            probes.features(model, images, ["cls"], last)


def test_read_outs_are_the_networks_own():
    """The CLS token of the last block, normalised, is what the classifier sees; the mean of a GAP model likewise."""
    images = scenes.render(scenes.Corpus(), range(5)).images
    for name, read_out in {"vit": "cls", "vit-gap": "mean token"}.items():
        model = zoo.load(name, pretrained=False)
        places = taps_named(model, ["norm"])
        seen = probes.features(model, images, [read_out], places)[read_out]["norm"]
        with torch.inference_mode():
            torch.testing.assert_close(model.head(seen), model(probes.normalise(model, images)))


def test_features_do_not_depend_on_mode_or_batch_and_change_nothing():
    model, images = network("resnet10t")
    wanted = probes.features(model, images, ["mean token"])["mean token"]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train().layer1.eval()
    modes = [module.training for module in model.modules()]
    found = probes.features(model, images, ["mean token"], batch=2)["mean token"]
    for place in wanted:
        torch.testing.assert_close(found[place], wanted[place])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


LAST = {  # networks with channels last → options that make them small
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24},
    "swinv2_tiny_window8_256": {"img_size": 64, "window_size": 4, "embed_dim": 24},
    "swinv2_cr_tiny_ns_224": {"img_size": 64, "window_size": 4, "embed_dim": 24},
    "samvit_base_patch16": {"img_size": 96, "embed_dim": 48, "num_heads": 3, "depth": 2},
    "mambaout_femto": {},
    "sequencer2d_s": {},
    "gcvit_xxtiny": {"img_size": 64, "window_size": (2, 2, 2, 2), "window_ratio": None},
}


@pytest.mark.parametrize("name", LAST)
def test_positions_of_networks_with_channels_last(name):
    """The token that changes most lies where the image changes, at the left below the middle."""
    torch.manual_seed(0)
    model = timm.create_model(name, **LAST[name]).eval()
    first = taps_for(model, probes.OUTPUTS)[:1]
    size = LAST[name].get("img_size", 64)
    images = torch.rand(1, 3, size, size).repeat(2, 1, 1, 1)
    images[1, :, 5 * size // 8 : 6 * size // 8, size // 8 : 2 * size // 8] += 1
    with torch.inference_mode(), capture(model, first, lambda x: (positions(model, x), x.shape)) as out:
        model(images)
    at, shape = out[first[0].name]
    assert isinstance(model, CHANNELS_LAST) and at.grid == shape[1:3] and at.tokens.shape[-1] == shape[3]
    row, column = divmod(int((at.tokens[1] - at.tokens[0]).norm(dim=-1).argmax()), at.grid[1])
    assert ((row + 0.5) / at.grid[0], (column + 0.5) / at.grid[1]) == pytest.approx((11 / 16, 3 / 16), abs=0.12)


def test_positions_of_a_tiny_vit_whose_stages_hand_over_two_layouts():
    """As above, block by block: its first stage has channels first, the blocks of the others have them last."""
    torch.manual_seed(0)
    small = {"embed_dims": (8, 16, 20, 40), "depths": (1, 1, 1, 1), "num_heads": (2, 4, 5, 10)}
    model = timm.create_model("tiny_vit_5m_224", **small).eval()
    images = torch.rand(1, 3, 128, 192).repeat(2, 1, 1, 1)
    images[1, :, 80:96, 24:48] += 1
    taps = taps_for(model, probes.OUTPUTS)
    with (
        torch.inference_mode(),
        capture(model, taps, lambda x, tap: (positions(model, x, tap=tap), x.shape), with_tap=True) as out,
    ):
        model(images)
    assert [at.grid for at, _ in out.values()] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    for i, (at, shape) in enumerate(out.values()):
        assert at.grid == (shape[1:3] if i else shape[2:]) and at.tokens.shape[-1] == (shape[3] if i else shape[1])
        row, column = divmod(int((at.tokens[1] - at.tokens[0]).norm(dim=-1).argmax()), at.grid[1])
        assert ((row + 0.5) / at.grid[0], (column + 0.5) / at.grid[1]) == pytest.approx(
            (11 / 16, 3 / 16), abs=max(0.1, 1 / at.grid[0])
        )


@pytest.mark.parametrize("name", ["hiera_tiny_224", "sam2_hiera_tiny", "tiny_vit_5m_224"])
def test_networks_of_unknown_layout_are_refused(name):
    model = timm.create_model(name)
    for x in (torch.zeros(2, 49, 8), torch.zeros(2, 7, 7, 8)):
        with pytest.raises(ValueError, match="layout not known"):
            positions(model, x)


def test_maps_are_averaged_to_a_grid():
    model = zoo.load("resnet", pretrained=False)
    places = taps_for(model, ["block"])[::5]
    data = scene_images(6)
    found = probes.features(model, data, ["tokens", "mean token"], places, grid=(5, 5), batch=4)
    assert {x.shape[:2] for x in found["tokens"].values()} == {(25, 6)}
    x = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    at = positions(model, x, (3, 3))
    torch.testing.assert_close(at.tokens[0, 4, 1], x[0, 1, 2:4, 2:4].mean())
    assert at.grid == (3, 3) and positions(model, x).tokens[1, 7, 2] == x[1, 2, 1, 1]


def test_some_of_the_tokens_can_be_kept():
    model, images = zoo.load("vit", pretrained=False), scenes.render(scenes.Corpus(), range(3)).images
    last = taps_for(model, probes.OUTPUTS)[-1:]
    every, some = (
        probes.features(model, images, ["tokens"], last, which=which, dtype=dtype)["tokens"][last[0].name]
        for which, dtype in ((None, torch.float32), ([5, 60], torch.float16))
    )
    assert some.dtype == torch.float16
    torch.testing.assert_close(some.float(), every[[5, 60]], atol=1e-2, rtol=1e-3)


def test_activations_without_positions_are_refused():
    vit, resnet = zoo.load("vit", pretrained=False), zoo.load("resnet", pretrained=False)
    with pytest.raises(ValueError, match="no positions"):
        positions(resnet, torch.zeros(2, 8))
    with pytest.raises(ValueError, match="no square grid"):
        positions(vit, torch.zeros(2, 12, 8))
    with pytest.raises(ValueError, match="cannot be averaged"):
        positions(resnet, torch.zeros(2, 8, 4, 4), (5, 5))
    with pytest.raises(ValueError, match="unknown read-out"):
        probes.features(vit, torch.zeros(2, 3, 64, 64), ["class"])
