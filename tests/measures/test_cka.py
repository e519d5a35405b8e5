"""CKA against independent derivations, closed forms and the traps of the literature; whole networks against loops."""

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.measures.cka import (
    MinibatchCKA,
    bootstrap,
    center_gram,
    cka,
    feature_space_linear_cka,
    gram_linear,
    gram_row,
    hsic_biased,
    hsic_unbiased,
)
from helpers.measures.heatmap import CKAResult, cka_heatmap
from helpers.networks.taps import Tap, capture, taps_for, taps_named

# ---- Independent derivations --------------------------------------------------------------------


def song(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """Unbiased HSIC of two Gram matrices in its three terms (Song et al. 2012). Float64 only."""
    n, one = len(k), torch.ones(len(k), dtype=torch.float64)
    k, l = (m.double() - m.double().diag().diag() for m in (k, l))  # noqa: E741
    trace = (k @ l).trace()
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((trace + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3)))


def u_statistic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """The same from its definition, E k(x,x')l(y,y') + E k(x,x') E l(y,y') − 2 E k(x,x')l(y,y''), images distinct."""
    n = len(k)
    both = [k[i, j] * l[i, j] for i, j in itertools.permutations(range(n), 2)]
    apart = [k[i, j] * l[q, r] for i, j, q, r in itertools.permutations(range(n), 4)]
    shared = [k[i, j] * l[i, q] for i, j, q in itertools.permutations(range(n), 3)]
    return float(np.mean(both) + np.mean(apart) - 2 * np.mean(shared))


def biased(k: Tensor, l: Tensor) -> float:  # noqa: E741
    n = len(k)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    return float((k.double() @ h @ l.double() @ h).trace() / (n - 1) ** 2)


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def latents(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two representations in 256 dimensions that share 16 latent variables; their CKA is near 0.38."""
    shared = 0.49 * normal(n, 16, seed=seed)
    return tuple(shared @ normal(16, 256, seed=s) / 4 + normal(n, 256, seed=seed + 100 + s) for s in (1, 2))


def minibatch(x: Tensor, y: Tensor, batch: int, debiased: bool = True) -> float:
    metric = MinibatchCKA(2)
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        metric.update(torch.stack([gram_row(a, debiased), gram_row(b, debiased)]))
    return float(metric.compute()[0, 1])


# ---- Two arrays ---------------------------------------------------------------------------------


def test_k1_the_formulas_of_hsic_agree():
    for n, seed in ((4, 0), (5, 1), (7, 2)):
        k, l = gram_linear(normal(n, 3, seed=seed)), gram_linear(normal(n, 50, seed=seed + 10) + 1)  # noqa: E741
        assert math.isclose(song(k, l), u_statistic(k.numpy(), l.numpy()), rel_tol=1e-10, abs_tol=1e-12)
        assert math.isclose(song(k, l), float(hsic_unbiased(k, l)), rel_tol=1e-10, abs_tol=1e-12)
        assert math.isclose(biased(k, l), float(hsic_biased(k, l)), rel_tol=1e-10)
    x, y = normal(40, 6), normal(40, 90, seed=1)
    k, l = gram_linear(x), gram_linear(y)  # noqa: E741
    assert math.isclose(song(k, l), float(gram_row(x) @ gram_row(y)), rel_tol=1e-10, abs_tol=1e-12)
    assert math.isclose(biased(k, l), float(gram_row(x, False) @ gram_row(y, False)), rel_tol=1e-10)
    assert center_gram(k).sum(0).abs().max() < 1e-10 and not center_gram(k).diagonal().any()


@pytest.mark.parametrize("shapes", [((40, 6), (40, 90)), ((64, 300), (64, 300)), ((100, 5), (100, 3))])
@pytest.mark.parametrize("debiased", [True, False])
def test_gram_and_feature_forms_agree(shapes, debiased):
    x, y = normal(*shapes[0]) + 3, normal(*shapes[1], seed=1)
    y[:, :3] += x[:, :3]
    hsic = song if debiased else biased
    k, l = x @ x.T, y @ y.T  # noqa: E741
    expected = hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
    assert math.isclose(cka(x, y, debiased), expected, abs_tol=1e-10)
    assert math.isclose(feature_space_linear_cka(x, y, debiased), expected, abs_tol=1e-10)


def test_k2_invariances():
    x, y = normal(80, 12), normal(80, 20, seed=1)
    y[:, :12] += x
    rotation = torch.linalg.qr(normal(12, 12, seed=2))[0]
    for debiased in (True, False):
        for form in (cka, feature_space_linear_cka):
            assert math.isclose(form(x, x, debiased), 1, abs_tol=1e-12)
            for same in (x @ rotation, -7 * x, x + normal(1, 12, seed=3), x[:, torch.randperm(12)]):
                assert math.isclose(form(x, same, debiased), 1, abs_tol=1e-10)
                assert math.isclose(form(same, y, debiased), form(x, y, debiased), abs_tol=1e-10)
            order = torch.randperm(80)
            assert math.isclose(form(x[order], y[order], debiased), form(x, y, debiased), abs_tol=1e-10)
    assert math.isclose(cka(x.view(80, 3, 4), y.view(80, 2, 5, 2)), cka(x, y), abs_tol=1e-12)


def test_k3_an_invertible_map_is_not_invisible():
    x = normal(2000, 64)
    assert 0.6 < cka(x, x @ normal(64, 64, seed=1), debiased=False) < 0.8
    assert cka(x, x * torch.logspace(0, 2, 64, dtype=torch.float64)) < 0.5


@pytest.mark.parametrize(("n", "p"), [(64, 768), (256, 768), (1024, 768)])
def test_k4_k5_bias_of_independent_data(n, p):
    x, y = (normal(n, p, seed=seed, dtype=torch.float32) for seed in (0, 1))
    assert math.isclose(cka(x, y, debiased=False), 1 / (1 + n / p), abs_tol=0.01)
    assert abs(cka(x, y)) < 0.05


def test_k5_minibatches_of_independent_data():
    x, y = (normal(4096, 500, seed=seed, dtype=torch.float32) for seed in (0, 1))
    assert abs(minibatch(x, y, 32)) < 0.02
    assert minibatch(x, y, 32, debiased=False) > 0.8


def test_k6_minibatches_agree_with_the_full_set_unless_biased():
    x, y = latents(2048)
    full, full_biased = cka(x, y), cka(x, y, debiased=False)
    assert abs(full - 0.383) < 0.03 and abs(full_biased - 0.427) < 0.03
    for batch in (16, 64, 256):
        assert abs(minibatch(x, y, batch) - full) < 0.02
        assert minibatch(x, y, batch, debiased=False) - full_biased > 0.1


def test_k7_translating_a_subset_moves_cka_to_its_closed_form_limit():
    x = normal(1000, 64, seed=4)
    x -= x.mean(0)
    spectrum = torch.linalg.eigvalsh(x.T @ x)
    participation = spectrum.sum() ** 2 / spectrum.square().sum()
    for size in (1, 120, 500):
        moved, rho = x.clone(), size / 1000
        moved[:size] += 1e6 * normal(64, seed=5)
        share = x[:size].mean(0).square().sum() / x.square().sum(1).mean()
        limit = float(rho / (1 - rho) * share * participation.sqrt())
        assert math.isclose(feature_space_linear_cka(x, moved, debiased=False), limit, abs_tol=1e-4)
        assert limit < 0.1  # although the moved set is as separable as before


def test_k8_one_dominant_image_makes_independent_data_look_alike_unless_unbiased():
    x, y = normal(500, 64), normal(500, 64, seed=1)
    x[0], y[0] = 40 * x[0], 40 * y[0]
    assert cka(x, y, debiased=False) > 0.9
    assert abs(cka(x, y)) < 0.1 and abs(cka(x[1:], y[1:])) < 0.02


def test_k9_shuffled_rows_have_no_similarity():
    x, y = latents(500)
    order = torch.from_numpy(np.random.default_rng(0).permutation(500))
    assert cka(x, y) > 0.3 and abs(cka(x, y[order])) < 0.02 and cka(x, y[order], debiased=False) > 0.2


def test_negative_estimates_are_not_clamped():
    values = [cka(normal(6, 4, seed=seed), normal(6, 4, seed=seed + 50)) for seed in range(20)]
    assert min(values) < -0.05


@pytest.mark.parametrize("mean", [10, 100, 1e4])
def test_float32_survives_features_with_a_large_common_mean(mean):
    x, y = (normal(128, 2000, seed=seed) for seed in (0, 1))
    y[:, :500] += x[:, :500]
    x, y = (x + mean).float(), (y + mean).float()
    assert abs(cka(x, y) - cka(x.double(), y.double())) < 1e-4


def test_dtypes():
    x, y = latents(128)
    assert gram_row(x).dtype == torch.float64 and gram_row(x.half()).dtype == torch.float32
    assert abs(cka(x.float(), y.float()) - cka(x, y)) < 1e-6
    assert abs(cka(x.numpy(), y.numpy()) - cka(x, y)) < 1e-12
    row_x, row_y = (gram_row(100 + z.float(), dtype=torch.bfloat16) for z in (x, y))
    assert row_x.dtype == torch.float32
    assert abs(float(row_x @ row_y / (row_x.norm() * row_y.norm())) - cka(x, y)) < 5e-3
    whole = torch.randint(0, 255, (50, 30), dtype=torch.uint8)
    assert math.isclose(cka(whole, whole.double() * 2), 1, abs_tol=1e-5)
    halves = (gram_row(z, dtype=torch.bfloat16) for z in (whole, whole.float()))
    torch.testing.assert_close(*halves)  # whole numbers do not wrap around


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
def test_a_representation_that_does_not_vary_has_no_cka(dtype, value):
    dead, alive = torch.full((50, 700), value, dtype=dtype), normal(50, 7, dtype=dtype)
    for x, y in ((dead, alive), (alive, dead), (dead, dead)):
        for form, debiased in itertools.product((cka, feature_space_linear_cka), (True, False)):
            assert math.isnan(form(x, y, debiased=debiased))


def test_too_few_or_different_images_and_values_that_are_not_finite_are_errors():
    for form in (cka, feature_space_linear_cka):
        with pytest.raises(ValueError, match="at least 4 images, not 3"):
            form(normal(3, 5), normal(3, 5))
        with pytest.raises(ValueError, match="these are 6 and 7 images"):
            form(normal(6, 5), normal(7, 5))
        for value in (math.nan, math.inf):
            spoilt = normal(6, 5)
            spoilt[2, 3] = value
            for x, y in ((spoilt, normal(6, 5)), (normal(6, 5), spoilt.numpy())):
                with pytest.raises(ValueError, match="NaN or infinite"):
                    form(x, y)
    with pytest.raises(ValueError, match="6 and 7"):
        hsic_unbiased(normal(6, 6), normal(7, 7))
    with pytest.raises(ValueError, match="square"):
        center_gram(normal(6, 7))
    assert not math.isnan(cka(normal(3, 5), normal(3, 5, seed=1), debiased=False))


# ---- Minibatches --------------------------------------------------------------------------------


def layers(n: int = 333, seed: int = 0) -> list[Tensor]:
    """Four layers of n images; the last does not vary."""
    x, y = latents(n, seed)
    return [x, y, x + 2 * normal(n, 256, seed=seed + 7), torch.ones(n, 5, dtype=torch.float64)]


def rows_of(batch: list[Tensor]) -> Tensor:
    return torch.stack([gram_row(x) for x in batch])


def test_one_matrix_product_equals_the_loop_over_pairs_with_an_unequal_last_batch():
    data = layers()
    batches = list(zip(*(x.split(40) for x in data), strict=True))
    assert len(batches[-1][0]) == 13
    metric = MinibatchCKA(4)
    for batch in batches:
        metric.update(rows_of(batch))
    hsic = np.zeros((4, 4))
    for batch, i, j in itertools.product(batches, range(4), range(4)):
        hsic[i, j] += song(batch[i] @ batch[i].T, batch[j] @ batch[j].T)
    expected = hsic[:3, :3] / np.sqrt(np.outer(hsic.diagonal()[:3], hsic.diagonal()[:3]))
    matrix = metric.compute().numpy()
    np.testing.assert_allclose(matrix[:3, :3], expected, atol=1e-10)
    assert np.isnan(matrix[3]).all() and np.isnan(matrix[:, 3]).all()
    np.testing.assert_allclose(matrix[:3, :3].diagonal(), 1, atol=1e-12)
    assert metric.sums().images.sum() == 333 and metric.sums().batches.sum() == 9


def test_across_equals_the_block_of_within():
    within, across = MinibatchCKA(4), MinibatchCKA(3, 1)
    for batch in zip(*(x.split(40) for x in layers()), strict=True):
        rows = rows_of(batch)
        within.update(rows)
        across.update(rows[[0, 2, 3]], rows[1:2])
    np.testing.assert_allclose(across.compute(), within.compute()[[0, 2, 3], 1:2], atol=1e-12)
    np.testing.assert_allclose(across.stderr(), within.stderr()[[0, 2, 3], 1:2], atol=1e-12)


def test_update_refuses_rows_that_do_not_fit():
    for metric, shapes in [
        (MinibatchCKA(2), [(3, 25)]),
        (MinibatchCKA(2), [(2, 25), (2, 25)]),
        (MinibatchCKA(2, 1), [(2, 25)]),
        (MinibatchCKA(2, 1), [(2, 25), (1, 36)]),
    ]:
        with pytest.raises(ValueError, match="are expected, not"):
            metric.update(*(torch.zeros(shape) for shape in shapes))


def test_merging_over_ranks_equals_one_process():
    batches = [rows_of(batch) for batch in zip(*(x.split(20) for x in layers()[:3]), strict=True)]
    single, ranks = MinibatchCKA(3), [MinibatchCKA(3) for _ in range(2)]
    for index, rows in enumerate(batches):
        single.update(rows)
        ranks[index % 2].update(rows, batch_index=index)
    states = [[getattr(rank, name).clone() for name in ranks[0]._reductions] for rank in ranks]

    def gather(state: Tensor, group=None) -> list[Tensor]:  # what all ranks hold of this state
        position = next(i for i, own in enumerate(states[0]) if own.shape == state.shape and torch.equal(own, state))
        return [of_rank[position] for of_rank in states]

    ranks[0].sync(dist_sync_fn=gather, distributed_available=lambda: True)
    merged = ranks[0]._local_sums()
    for name, value in vars(single.sums()).items():
        np.testing.assert_allclose(getattr(merged, name), value, atol=1e-12)
    value, stderr = single.statistic(lambda matrix: matrix[0, 1])
    np.testing.assert_allclose(merged.statistic(lambda matrix: matrix[0, 1]), (value, stderr), atol=1e-12)


def test_the_metric_counts_batches_and_can_be_reset_and_called():
    batches = [rows_of(batch) for batch in zip(*(x.split(20) for x in layers()[:2]), strict=True)]
    metric = MinibatchCKA(2)
    for rows in batches:
        running = metric(rows)
    assert metric.sums().batches.tolist() == [2] + [1] * 15
    assert torch.equal(running, metric.compute())
    metric.reset()
    metric.update(batches[0])
    assert metric.sums().batches.tolist() == [1] + [0] * 15
    assert math.isclose(float(metric.compute()[0, 1]), cka(*(x[:20] for x in layers()[:2])), abs_tol=1e-10)
    assert metric.stderr().isnan().all()  # one group has no spread


def test_jackknife_is_the_textbook_one_for_equal_groups():
    batches = [rows_of(batch) for batch in zip(*(x.split(20) for x in layers(320)[:2]), strict=True)]
    metric = MinibatchCKA(2)
    for rows in batches:
        metric.update(rows)
    left_out = []
    for skip in range(16):
        part = MinibatchCKA(2)
        for index, rows in enumerate(batches):
            if index != skip:
                part.update(rows)
        left_out.append(float(part.compute()[0, 1]))
    expected = math.sqrt(15 / 16 * sum((value - np.mean(left_out)) ** 2 for value in left_out))
    assert math.isclose(float(metric.stderr()[0, 1]), expected, rel_tol=1e-9)
    value, stderr = metric.statistic(lambda matrix: 3 * matrix[0, 1] + 1)
    assert math.isclose(value, 3 * float(metric.compute()[0, 1]) + 1)
    assert math.isclose(stderr, 3 * expected, rel_tol=1e-9)


@pytest.mark.parametrize("batches", [8, 16, 24])  # fewer groups than sixteen, one batch each, unequal groups
def test_jackknife_error_is_the_spread_of_repeated_draws(batches):
    values, errors = [], []
    generator = torch.Generator().manual_seed(batches)
    for _ in range(200):
        shared = torch.randn(batches, 16, 4, generator=generator)
        x, y = (shared + 1.5 * torch.randn(batches, 16, 4, generator=generator) for _ in range(2))
        metric = MinibatchCKA(2)
        for a, b in zip(x, y, strict=True):
            metric.update(torch.stack([gram_row(a), gram_row(b)]))
        value, error = metric.statistic(lambda matrix: matrix[0, 1])
        values.append(value)
        errors.append(error)
    assert 0.8 < math.sqrt(np.mean(np.square(errors))) / np.std(values) < 1.35


def test_the_bootstrap_agrees_with_the_jackknife_where_that_works_and_has_an_interval_where_it_does_not():
    shared, *noise = torch.randn(3, 16, 64, 4, generator=torch.Generator().manual_seed(0))
    metric = MinibatchCKA(3)
    for batch in torch.stack([shared, shared + 0.8 * noise[0], shared + 0.8 * noise[1]], 1):
        metric.update(torch.stack([gram_row(layer) for layer in batch]))
    sums = metric.sums()
    value, (low, high) = bootstrap(lambda matrix: matrix[0, 1], sums)
    again, stderr = sums.statistic(lambda matrix: matrix[0, 1])
    assert value == again and (high - low) / 2 == pytest.approx(1.96 * stderr, rel=0.2)
    nearest = lambda matrix: [matrix[0, 1:].argmax(), matrix[0, 1:].max()]  # noqa: E731
    values, ends = bootstrap(nearest, sums)
    assert ends.shape == (2, 2) and ends[0].tolist() == [0, 1]  # the two are too close to tell
    assert (ends[:, 0] <= values).all() and (values <= ends[:, 1]).all()
    same, (low, high) = bootstrap(lambda a, b: (a - b).max(), sums, sums)  # the same groups on both sides
    assert same == low == high == 0
    with pytest.raises(ValueError, match="use more batches"):
        bootstrap(lambda a, b: 0.0, sums, replace(sums, batches=np.eye(16, dtype=int)[0]))


# ---- Whole networks -----------------------------------------------------------------------------

CONFIG = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "input_size": (3, 32, 32)}


def make(name: str, seed: int = 0, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    for weight, parameter in model.named_parameters():  # timm starts some branches at zero: they would be dead
        if parameter.ndim == 1 and not parameter.any() and not weight.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    model.pretrained_cfg = CONFIG
    return model


def vit(seed: int = 0) -> nn.Module:
    return make("vit_tiny_patch16_224", seed, img_size=32, depth=2, embed_dim=48)


def pictures(n: int, size: int = 32, seed: int = 0) -> Tensor:
    """Random images that are not all alike: coarse fields with noise, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size)
    return (200 * coarse + 55 * torch.rand(n, 3, size, size, generator=generator)).byte()


def loader(n: int = 56, batch: int = 16, size: int = 32, **options) -> DataLoader:
    return DataLoader(TensorDataset(pictures(n, size), torch.zeros(n)), batch_size=batch, **options)


@pytest.fixture(scope="module")
def pair() -> dict[str, nn.Module]:
    return {"vit": vit(), "resnet": make("resnet18")}


def read_apart(model: nn.Module, tap: Tap, images: Tensor) -> Tensor:
    """A tap's activation (n, p) in float64, by a hook of this test's own and a forward pass for it alone."""
    seen = []
    module = model.get_submodule(tap.module)
    if tap.where == "input":
        handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].double().clone()))
    else:
        handle = module.register_forward_hook(lambda module, args, output: seen.append(output.double().clone()))
    mean, std = (torch.tensor(CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        model((images / 255 - mean) / std)
    handle.remove()
    return seen[0].flatten(1)


def test_heatmap_equals_an_independent_loop_over_pairs(pair):
    kinds = ["embed", "attn", "resid_mid", "resid_post", "stem", "branch", "block"]
    result = cka_heatmap(pair, loader(), kinds)
    places = [(model, tap) for model in pair.values() for tap in taps_for(model, kinds)]
    assert [tap.name for _, tap in places] == list(result.taps["name"])
    hsic = 0
    for images, _ in loader():
        grams = [x @ x.T for x in (read_apart(model, tap, images) for model, tap in places)]
        hsic = hsic + np.array([[song(k, l) for l in grams] for k in grams])  # noqa: E741
    expected = hsic / np.sqrt(np.outer(hsic.diagonal(), hsic.diagonal()))
    np.testing.assert_allclose(result.matrix, expected, atol=2e-5)
    assert (result.n_images, result.batch, result.batches, result.skipped) == (56, 16, 4, 0)
    assert (result.dtype, result.models) == ("float32", ["vit", "resnet"]) and "unbiased" in result.estimator
    np.testing.assert_allclose(result.matrix.diagonal(), 1, atol=1e-6)


def test_parts_of_a_result(pair):
    result = cka_heatmap(pair, loader(), ["resid_post", "mlp", "stem", "block"])
    part = result.between("vit", "resnet")
    assert part.matrix.shape == part.stderr.shape == (4, 9)
    np.testing.assert_array_equal(part.matrix, result.matrix[:4, 4:])
    np.testing.assert_array_equal(part.stderr, result.stderr[:4, 4:])
    assert list(part.to_frame().index) == [f"blocks.{i}.{kind}" for i in (0, 1) for kind in ("mlp", "resid_post")]
    assert part.labels[0] == "vit/blocks.0.mlp" and list(part.y["name"])[0] == "stem"
    np.testing.assert_allclose(part.x["depth"], [0, 1 / 3, 2 / 3, 1])
    assert part.between("vit", kinds=["mlp"]).matrix.shape == (2, 2)
    value, stderr = part.statistic(lambda matrix: matrix.mean())
    assert value == part.matrix.mean() and 0 < stderr < 1
    table = part.to_table()
    columns = [f"{column}_{side}" for side in "xy" for column in ("model", "name", "kind", "depth")]
    assert list(table.columns) == [*columns, "cka", "stderr"]
    line = table[(table["name_x"] == "blocks.1.mlp") & (table["name_y"] == "layer2.0")]
    assert line["cka"].item() == part.to_frame().loc["blocks.1.mlp", "layer2.0"] and len(table) == 36
    with pytest.raises(ValueError, match=r"no model 'resnett' \(nearest: resnet\); there are vit, resnet"):
        result.between("vit", "resnett")
    with pytest.raises(ValueError, match=r"resnet has no tap of kind \['mlp'\]; it has stem, block"):
        result.between("vit", "resnet", kinds=["mlp"])


def test_kinds_may_differ_between_models(pair):
    kinds = {"vit": ["resid_post"], "resnet": taps_named(pair["resnet"], ["layer1.0.conv1", "fc"])}
    result = cka_heatmap(pair, loader(), kinds, batches=1)
    assert result.labels == ["vit/blocks.0.resid_post", "vit/blocks.1.resid_post", "resnet/layer1.0.conv1", "resnet/fc"]


def test_a_result_survives_the_disk(pair, tmp_path):
    result = cka_heatmap(pair, loader(), ["resid_post", "block"], shuffle=3).between("vit", "resnet")
    again = CKAResult.load(result.save(tmp_path / "cka.safetensors"))
    assert again.info == result.info and again.taps.equals(result.taps) and again.shuffle == 3
    turned = [r.between("resnet", "vit") for r in (again, result)]
    for one, other in ((again, result), (again.control, result.control), turned):
        np.testing.assert_array_equal(one.matrix, other.matrix)
        np.testing.assert_array_equal(one.stderr, other.stderr)
    assert again.to_table().equals(result.to_table())
    plain = cka_heatmap(pair, loader(), ["resid_post", "block"], batches=1)
    assert CKAResult.load(plain.save(tmp_path / "plain.safetensors")).control is None
    first = (tmp_path / "plain.safetensors").read_bytes()
    assert plain.save(tmp_path / "plain.safetensors").read_bytes() == first


def test_shuffled_control_is_near_zero_and_seeded(pair):
    result = cka_heatmap(pair, loader(256, 32), ["resid_post", "block"], shuffle=0)
    value, stderr = result.between("vit", "resnet").control.statistic(lambda matrix: matrix.mean())
    assert result.between("vit", "resnet").matrix.mean() > 0.2 and abs(value) < 0.05 and abs(value) < 4 * stderr
    own = result.between("vit").control  # also of a layer with itself
    assert np.abs(own.matrix).max() < 0.15 and (own.matrix.diagonal() < 0.15).all()
    same, other = (cka_heatmap(pair, loader(256, 32), ["resid_post", "block"], shuffle=seed) for seed in (0, 1))
    np.testing.assert_array_equal(same.control.matrix, result.control.matrix)
    assert not np.allclose(other.control.matrix, result.control.matrix)
    np.testing.assert_array_equal(other.matrix, result.matrix)
    biased_control = cka_heatmap(pair, loader(), ["resid_post", "block"], shuffle=0, debiased=False).control
    assert biased_control.matrix.mean() > 0.1  # what the biased estimate makes of no relation at all


def test_all_models_see_the_same_images_of_one_pass():
    models = {"a": vit(), "b": vit()}
    result = cka_heatmap(models, loader(shuffle=True), ["resid_post"])
    np.testing.assert_allclose(result.between("a", "b").matrix, result.between("a").matrix, atol=1e-6)

    class Once:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(loader())

    once = Once()
    assert cka_heatmap(models, once, ["resid_post"]).n_images == 56 and once.passes == 1


def test_order_within_batches_does_not_matter_and_plain_tensors_will_do():
    model = vit()
    images = pictures(48)
    order = torch.cat([torch.randperm(16) + start for start in (0, 16, 32)])
    straight, shuffled = (cka_heatmap({"vit": model}, x.split(16)) for x in (images, images[order]))
    np.testing.assert_allclose(shuffled.matrix, straight.matrix, atol=1e-5)
    np.testing.assert_allclose(shuffled.stderr, straight.stderr, atol=1e-5)


def test_small_last_batches_are_counted_or_skipped_and_said():
    model = {"vit": vit()}
    whole = cka_heatmap(model, loader(52, 16), ["resid_post"])
    assert (whole.n_images, whole.batches, whole.skipped) == (52, 4, 0)
    parts = [cka_heatmap(model, [x], ["resid_post"]).sums for x in pictures(52).split(16)]
    np.testing.assert_allclose(whole.sums.cross.sum(0), sum(part.cross.sum(0) for part in parts), rtol=1e-6)
    cut = cka_heatmap(model, pictures(51).split(16), ["resid_post"])
    assert (cut.n_images, cut.batches, cut.skipped) == (48, 3, 3)
    np.testing.assert_array_equal(cut.matrix, cka_heatmap(model, pictures(51)[:48].split(16), ["resid_post"]).matrix)
    with pytest.raises(ValueError, match="no batch of at least 4"):
        cka_heatmap(model, loader(3), ["resid_post"])
    with pytest.raises(ValueError, match="no models"):
        cka_heatmap({}, loader())


def test_only_so_many_batches_are_read():
    def endless():
        for index in itertools.count():
            assert index < 3, "read on"
            yield pictures(8, seed=index)

    assert cka_heatmap({"vit": vit()}, endless(), ["resid_post"], batches=3).n_images == 24


def test_own_preprocessing():
    model = vit()
    half = {"vit": lambda images: images[:, :, ::2, ::2].float()}
    with pytest.raises(ValueError, match="32"):
        cka_heatmap({"vit": model}, loader(size=64))
    small = cka_heatmap({"vit": model}, [pictures(16, 64)], ["resid_post"], preprocess=half)
    plain = cka_heatmap({"vit": model}, [pictures(16, 64)[:, :, ::2, ::2]], ["resid_post"])
    assert not np.allclose(small.matrix, plain.matrix)
    as_it_is = {"vit": lambda images: images}
    plain = cka_heatmap({"vit": model}, [half["vit"](pictures(16, 64))], ["resid_post"], preprocess=as_it_is)
    np.testing.assert_allclose(small.matrix, plain.matrix, atol=1e-6)
    for wrong in ({"preprocess": {"vti": half["vit"]}}, {"kinds": {"vti": ["resid_post"]}}):
        with pytest.raises(ValueError, match=r"for \['vti'\], but the models are vit"):
            cka_heatmap({"vit": model}, [pictures(16)], **wrong)
    with pytest.raises(ValueError, match="vit/blocks.0.resid_post: its first axis is not the 16 images"):
        cka_heatmap({"vit": model}, [pictures(16)], ["resid_post"], preprocess={"vit": lambda x: x[:8].float()})


def test_modes_and_hooks_are_as_before_even_after_an_error():
    model = make("resnet18").train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    in_eval = cka_heatmap({"resnet": make("resnet18")}, loader(), ["block"])
    np.testing.assert_array_equal(cka_heatmap({"resnet": model}, loader(), ["block"]).matrix, in_eval.matrix)
    model.layer4[1].conv2.weight.data[:] = math.nan
    with pytest.raises(ValueError, match=r"resnet/layer4.1: activations are not finite"):
        cka_heatmap({"resnet": model}, loader(), ["block"])
    assert [module.training for module in model.modules()] == modes
    del weights["layer4.1.conv2.weight"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_dead_layer_is_nan_and_the_others_are_not():
    model = vit()
    model.blocks[1].mlp.fc2.weight.data[:] = 0
    result = cka_heatmap({"vit": model}, loader(), ["mlp", "resid_post"])
    dead = result.labels.index("vit/blocks.1.mlp")
    assert np.isnan(result.matrix[dead]).all() and np.isnan(result.matrix).sum() == 2 * 4 - 1
    assert np.isfinite(result.statistic(np.nanmean)).all()


def test_fused_and_unfused_attention_give_one_heatmap():
    fused, unfused = vit(), vit()
    for block in unfused.blocks:
        block.attn.fused_attn = False
    result = cka_heatmap({"fused": fused, "unfused": unfused}, loader())
    np.testing.assert_allclose(result.between("fused", "unfused").matrix, result.between("fused").matrix, atol=1e-5)


def test_lower_and_higher_precision_of_the_gram_matrices():
    results = {
        dtype: cka_heatmap({"vit": vit()}, loader(), ["resid_mid", "attn"], gram_dtype=dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }
    exact = results[torch.float64].matrix
    np.testing.assert_allclose(results[torch.float32].matrix, exact, atol=2e-5)
    np.testing.assert_allclose(results[torch.bfloat16].matrix, exact, atol=1e-2)
    assert results[torch.bfloat16].dtype == "bfloat16"


FAMILIES = {
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "pit_ti_224": {"img_size": 64},
    "beit_base_patch16_224": {"img_size": 32, "depth": 1},
    "resnet26": {},
    "resnetv2_18": {},
    "convnext_atto": {},
    "mixer_s32_224": {"img_size": 64},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_goes_through(name):
    size = FAMILIES[name].get("img_size", 64)
    model = make(name, **FAMILIES[name])
    result = cka_heatmap({name: model}, pictures(16, size).split(8), preprocess={name: lambda x: x / 255})
    alive = np.isfinite(result.matrix.diagonal())
    assert alive.mean() > 0.5 and len(alive) == len(taps_for(model))
    np.testing.assert_allclose(result.matrix.diagonal()[alive], 1, atol=1e-6)
    np.testing.assert_allclose(result.matrix, result.matrix.T, atol=1e-6)
    assert np.nanmax(np.abs(result.matrix)) < 1.001


def test_windows_are_not_images():
    model = make("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1))
    inside = {"swin": taps_named(model, ["layers.0.blocks.0.attn.proj"])}  # (images × windows, …)
    with pytest.raises(ValueError, match="first axis is not the 8 images"):
        cka_heatmap({"swin": model}, [pictures(8, 64)], inside, preprocess={"swin": lambda x: x / 255})


def test_rows_are_all_that_a_tap_keeps():
    model = vit()
    with torch.inference_mode(), capture(model, taps_for(model), gram_row) as rows:
        model(torch.randn(6, 3, 32, 32))
    assert all(row.untyped_storage().nbytes() == 6 * 6 * 4 for row in rows.values())


RANK = """
import sys
import helpers  # before timm
import torch.distributed as dist
from tests.test_cka import cka_heatmap, loader, vit
rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
cka_heatmap({"vit": vit()}, loader(), ["resid_mid", "resid_post"], shuffle=1).save(out)
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file store of gloo")
def test_two_processes_give_the_result_of_one(root, tmp_path):
    outs = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), "2", str(tmp_path / "store"), str(out)], cwd=root, env=environment
        )
        for rank, out in enumerate(outs)
    ]
    try:
        assert [process.wait(timeout=900) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    single = cka_heatmap({"vit": vit()}, loader(), ["resid_mid", "resid_post"], shuffle=1)
    for out in outs:
        result = CKAResult.load(out)
        assert result.info == single.info
        for name, value in vars(single.sums).items():
            np.testing.assert_allclose(getattr(result.sums, name), value, rtol=1e-6)
        np.testing.assert_allclose(result.control.matrix, single.control.matrix, atol=1e-6)
        np.testing.assert_allclose(result.stderr, single.stderr, atol=1e-6)
