"""CKA against independent derivations, closed forms and the traps of the literature."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.measures.cka import (
    MinibatchCKA,
    Sums,
    bootstrap,
    center_gram,
    cka,
    feature_space_linear_cka,
    gram_linear,
    gram_row,
    hsic_biased,
    hsic_unbiased,
    inner_products,
)

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


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e-12, 1e-6, 1e6, 1e10, 1e15, 1e30])
def test_cka_knows_no_scale_in_float32_either(scale):
    x, y = (normal(40, 300, seed=seed, dtype=torch.float32) for seed in (0, 1))
    y[:, :100] += x[:, :100]
    for form, debiased in itertools.product((cka, feature_space_linear_cka), (True, False)):
        assert math.isclose(form(scale * x, y, debiased), form(x, y, debiased), abs_tol=1e-5)
        assert math.isclose(form(x, scale * y, debiased), form(x.double(), y.double(), debiased), abs_tol=1e-5)
        power = 2.0 ** round(math.log2(scale))
        assert form(power * x, y, debiased) == form(x, y, debiased)  # no digit is lost


def test_minibatches_of_layers_of_very_different_size():
    data, plain, scaled = layers(120)[:3], MinibatchCKA(3), MinibatchCKA(3)
    across = MinibatchCKA(3, 2)
    for batch in zip(*(x.float().split(20) for x in data), strict=True):
        plain.update(rows_of(batch))
        rows = rows_of([1e-12 * batch[0], batch[1], 1e13 * batch[2]])
        scaled.update(rows)
        across.update(rows, rows[1:])
    np.testing.assert_allclose(scaled.compute(), plain.compute(), atol=1e-5)
    np.testing.assert_allclose(scaled.stderr(), plain.stderr(), atol=1e-5)
    np.testing.assert_allclose(across.compute(), plain.compute()[:, 1:], atol=1e-5)
    with pytest.raises(ValueError, match="NaN or infinite"):
        plain.update(torch.full((3, 25), math.inf))


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
        hsic[i, j] += len(batch[i]) * song(batch[i] @ batch[i].T, batch[j] @ batch[j].T)
    expected = hsic[:3, :3] / np.sqrt(np.outer(hsic.diagonal()[:3], hsic.diagonal()[:3]))
    matrix = metric.compute().numpy()
    np.testing.assert_allclose(matrix[:3, :3], expected, atol=1e-10)
    assert np.isnan(matrix[3]).all() and np.isnan(matrix[:, 3]).all()
    np.testing.assert_allclose(matrix[:3, :3].diagonal(), 1, atol=1e-12)
    assert metric.sums().images.sum() == 333 and metric.sums().batches.sum() == 9


def test_a_small_last_batch_weighs_by_its_images_and_what_counted_alike_is_weighted_so():
    batches = [
        torch.stack([gram_row(x) for x in part]) for part in zip(*(x.split(40) for x in layers()[:3]), strict=True)
    ]
    metric, alike = MinibatchCKA(3), []
    for rows in batches:
        metric.update(rows)
        alike.append(inner_products(rows)[0].double().numpy())
    sums = metric.sums()
    images = np.array([40] * 8 + [13])
    assert sums.images[:9].tolist() == images.tolist()
    own = np.stack([cross.diagonal() for cross in alike])
    former = Sums(np.stack(alike), own, own, np.ones(9, int), images).weighted()
    np.testing.assert_allclose(former.cka(), sums.cka(), atol=1e-12)
    np.testing.assert_allclose(former.statistic(lambda m: m)[1], sums.statistic(lambda m: m)[1], atol=1e-12)


def test_weighing_batches_by_their_images_is_surer_than_counting_them_alike():
    generator, spread = torch.Generator().manual_seed(0), {"by images": [], "alike": []}
    for _ in range(300):
        metric, parts = MinibatchCKA(2), []
        for size in (64, 64, 8, 8):
            shared = torch.randn(size, 4, generator=generator)
            x, y = (shared + torch.randn(size, 4, generator=generator) for _ in range(2))
            rows = torch.stack([gram_row(x), gram_row(y)])
            metric.update(rows)
            parts.append(inner_products(rows)[0].double())
        total = sum(parts)
        spread["by images"].append(float(metric.compute()[0, 1]))
        spread["alike"].append(float(total[0, 1] / (total[0, 0] * total[1, 1]).sqrt()))
    assert np.std(spread["by images"]) < 0.8 * np.std(spread["alike"])


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
