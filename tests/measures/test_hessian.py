"""Products with the Hessian and Lanczos' method, against matrices that are written down."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from test_objective import vit
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from helpers import uncertainty
from helpers.measures import hessian as measured
from helpers.measures import landscape, objective
from helpers.networks import zoo
from helpers.networks.catalogue import ZOO
from helpers.networks.inputs import normalise
from helpers.networks.unfused import unfused


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues, in an arbitrary basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return torch.from_numpy(basis @ np.diag(eigenvalues) @ basis.T).float()


def largest(values, count):
    values = np.asarray(values)
    return values[np.argsort(-np.abs(values))[:count]]


def test_products_are_exact_where_the_hessian_is_known():
    matrix, w = symmetric([5, -2, 1, 0.5]), torch.randn(4, requires_grad=True)
    product = measured.hessian_vector_product(0.5 * w @ matrix @ w + w.sum(), [w])
    for _ in range(2):  # as often as one likes
        v = torch.randn(4)
        torch.testing.assert_close(product(v), matrix @ v)


def test_a_weight_that_nothing_depends_on_has_zeros():
    w, idle = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    product = measured.hessian_vector_product((w**4).sum(), [w, idle])
    torch.testing.assert_close(product(torch.ones(5)), torch.tensor([12.0, 12, 0, 0, 0]))


def test_the_hessian_of_what_is_no_finite_scalar_is_refused():
    w = torch.ones(2, requires_grad=True)
    for value in (w, w.sum() * torch.nan):
        with pytest.raises(ValueError, match="finite scalar"):
            measured.hessian_vector_product(value, [w])


def test_lanczos_finds_the_largest_in_magnitude_with_their_signs():
    values = np.concatenate([[90, -70, 30, -20, 10], np.linspace(-3, 3, 295)])
    matrix = symmetric(values)
    found = measured.lanczos(lambda v: matrix @ v, 300)
    np.testing.assert_allclose(found.values, [90, -70, 30, -20, 10], rtol=2e-3)
    assert (found.residuals <= 0.05 * np.abs(found.values)).all() and 5 < found.steps < 40
    rough = measured.lanczos(lambda v: matrix @ v, 300, tolerance=0.5)
    exact = measured.lanczos(lambda v: matrix @ v, 300, tolerance=1e-4)
    assert rough.steps < found.steps < exact.steps
    np.testing.assert_allclose(exact.values, [90, -70, 30, -20, 10], rtol=1e-5)


def test_a_residual_bounds_the_error():
    values = np.random.default_rng(1).normal(size=60)
    matrix = symmetric(values)
    found = measured.lanczos(lambda v: matrix @ v, 60, most=12)
    assert found.steps == 12
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.abs(values - value).min() <= residual + 1e-5


def test_no_eigenvalue_comes_back_as_a_ghost():
    values = np.concatenate([[1000.0, 2.0, -1.5], np.linspace(0, 1, 97)])
    matrix = symmetric(values)
    found = measured.lanczos(lambda v: matrix @ v, 100, tolerance=1e-5)
    np.testing.assert_allclose(found.values[:3], [1000, 2, -1.5], rtol=1e-3)


def test_it_ends_where_the_matrix_has_no_more_eigenvalues():
    found = measured.lanczos(lambda v: 3 * v, 50, top=1)
    assert found.steps == 1 and found.values == pytest.approx([3])
    matrix = symmetric([4, 4, -1, -1, -1, 2])
    found = measured.lanczos(lambda v: matrix @ v, 6)
    np.testing.assert_allclose(found.values, [4, 2, -1], rtol=1e-4)  # of each multiplicity one


@pytest.mark.parametrize("top, most", [(0, 10), (5, 4), (7, 80)])
def test_numbers_of_eigenvalues_that_cannot_be(top, most):
    with pytest.raises(ValueError, match="can't be found"):
        measured.lanczos(lambda v: v, 6, top, most=most)


def test_products_that_are_not_finite_are_named():
    with pytest.raises(FloatingPointError, match="product 1"):
        measured.lanczos(lambda v: v * torch.inf, 8)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([0, 1, 2, 1])


@pytest.fixture(scope="module")
def dense(batch):
    """The Hessian of the tiny ViT's loss, written down by forward over reverse mode."""
    model, (images, labels) = vit(), batch
    names = list(objective.weights(model))
    shapes = [model.get_parameter(name).shape for name in names]
    sizes = [shape.numel() for shape in shapes]
    inputs = (images.float() / 255 - 0.5) / 0.25

    def loss(flat):
        parts = {n: p.view(s) for n, p, s in zip(names, flat.split(sizes), shapes, strict=True)}
        return F.cross_entropy(functional_call(model, parts, (inputs,)), labels)

    flat = torch.cat([model.get_parameter(name).detach().flatten() for name in names])
    with unfused(model):
        return hessian(loss)(flat).numpy()


def test_of_a_tiny_vit_it_finds_what_the_dense_hessian_has(batch, dense):
    found = measured.hessian_spectra(vit(), [batch], tolerance=1e-3)
    values = np.linalg.eigvalsh(dense)
    np.testing.assert_allclose(found["eigenvalue"], largest(values, 5), rtol=1e-3)
    assert values.min() < 0  # there is a sign to keep
    assert (found["residual"] <= 1e-3 * found["eigenvalue"].abs()).all() and (found["images"] == 4).all()
    model, (images, labels) = vit(), batch
    own = float(objective.loss(model, objective.weights(model), images, labels))
    assert found["loss"].iloc[0] == pytest.approx(own, rel=1e-5)


def test_weight_decay_adds_itself_to_every_eigenvalue(batch, dense):
    found = measured.hessian_spectra(vit(), [batch], decay=3.0, tolerance=1e-3)
    np.testing.assert_allclose(found["eigenvalue"], largest(np.linalg.eigvalsh(dense) + 3, 5), rtol=1e-3)


def test_attention_is_fused_again_afterwards_and_fused_has_no_hessian(batch):
    model = vit()
    model.blocks[0].attn.fused_attn = True
    measured.hessian_spectra(model, [batch], top=1)
    assert model.blocks[0].attn.fused_attn
    parameters = dict(model.named_parameters())
    product = measured.hessian_vector_product(objective.loss(model, parameters, *batch), list(parameters.values()))
    with pytest.raises(RuntimeError):
        product(torch.ones(sum(each.numel() for each in parameters.values())))


def test_of_a_trained_vit_it_finds_what_arpack_finds():
    model, (batch,) = zoo.load("vit-small"), objective.training_batches(ZOO["vit-small"], 1, 4)
    found = measured.hessian_spectra(model, [batch], top=2, tolerance=0.01)
    parameters = dict(model.named_parameters())
    size = sum(each.numel() for each in parameters.values())
    with unfused(model):
        product = measured.hessian_vector_product(objective.loss(model, parameters, *batch), list(parameters.values()))
        products = LinearOperator(
            (size,) * 2, lambda v: product(torch.from_numpy(v).float().ravel()).numpy(), dtype="f"
        )
        theirs = eigsh(products, 2, which="LM", tol=1e-3, return_eigenvectors=False)
    np.testing.assert_allclose(found["eigenvalue"], largest(theirs, 2), rtol=2e-3)


@pytest.mark.parametrize("name", ["vit-small", "resnet-data10"])
def test_of_a_trained_network_a_product_is_the_change_of_the_gradient(name):
    model, (batch,) = zoo.load(name).double(), objective.training_batches(ZOO[name], 1, 1)
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    v = {key: torch.randn(w.shape, generator=generator).double() for key, w in parameters.items()}
    length = torch.cat([each.flatten() for each in v.values()]).norm()
    v = {key: each / length for key, each in v.items()}

    def gradient(step):
        there = {key: (w + step * v[key]).detach().requires_grad_() for key, w in parameters.items()}
        logits = functional_call(model, there, (normalise(model, batch[0]),))  # in double, all through
        value = F.cross_entropy(logits, batch[1])
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(there.values()))])

    with unfused(model):
        logits = model(normalise(model, batch[0]))
        product = measured.hessian_vector_product(F.cross_entropy(logits, batch[1]), list(parameters.values()))
        ours = product(torch.cat([each.flatten() for each in v.values()]))
        near = 1e-5  # within a piece between the kinks of ReLUs, which have no curvature of their own
        change = (gradient(near) - gradient(-near)) / (2 * near)
    assert float((ours - change).norm() / ours.norm()) < 1e-4


def test_steps_find_the_curvature_of_the_hessian_where_the_loss_is_smooth(batch):
    direction = landscape.random_direction(objective.weights(vit()), 0)
    idle = {name: torch.zeros_like(value) for name, value in direction.items()}
    found = measured.curvature_along(vit(), *batch, [direction, idle], [0.05])
    assert found.loc[1].tolist() == pytest.approx([1, 0, 0], abs=1e-3) and found["direction"].tolist() == [0, 1]
    assert found.loc[0, 0.05] == pytest.approx(found.loc[0, "hessian"], rel=0.03)
    assert abs(found.loc[0, "hessian"]) > 1e-3


def test_a_step_over_a_kink_finds_what_the_hessian_has_not():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False))
    model[1].weight.data.fill_(1e-3)
    model[3].weight.data = torch.tensor([[1.0], [0.0]])
    model.pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 1, 1)}
    towards = {"1.weight": torch.full((1, 3), 1 / 3), "3.weight": torch.zeros(2, 1)}
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    found = measured.curvature_along(model, white, torch.tensor([0]), [towards], [0.1, 0.002]).loc[0]
    # h along it the logit is x = max(0.003 + h, 0), and the loss log(1 + exp(−x)) has curvature 1/4 before the kink
    assert found["hessian"] == pytest.approx(0.25, rel=1e-3) and found[0.002] == pytest.approx(0.25, abs=0.1)
    beyond = np.log1p(np.exp(-0.103)) + np.log(2) - 2 * np.log1p(np.exp(-0.003))
    assert found[0.1] == pytest.approx(beyond / 0.01, rel=1e-3) and found[0.1] < -4


def test_steps_have_lengths(batch):
    with pytest.raises(ValueError, match="above 0"):
        measured.curvature_along(vit(), *batch, [], [0.1, 0.0])


def test_without_a_batch_there_is_no_hessian():
    with pytest.raises(ValueError, match="no batch"):
        measured.hessian_spectra(vit(), [])


def test_nep_and_ape_with_their_jackknife():
    values = [[4, -3, 2, -1, 1], [10, 6, 5, 2, 1]]
    rows = [(b, e, loss) for b, (v, loss) in enumerate(zip(values, (0.5, 1.5), strict=True)) for e in v]
    spectra = pd.DataFrame(rows, columns=["batch", "eigenvalue", "loss"])
    assert measured.negative_share(spectra) == pytest.approx(0.2)
    assert measured.mean_positive(spectra) == pytest.approx(31 / 8)
    assert np.isnan(measured.mean_positive(spectra.assign(eigenvalue=-1.0)))
    table = measured.summary(spectra).set_index("left_out")
    assert list(table.index) == [-1, 0, 1]
    assert table["nep"].tolist() == pytest.approx([0.2, 0, 0.4])
    assert table["ape"].tolist() == pytest.approx([31 / 8, 24 / 5, 7 / 3])
    assert table["loss"].tolist() == pytest.approx([1, 1.5, 0.5])
    value, stderr = uncertainty.jackknife(lambda part: part["nep"].iloc[0], table.reset_index())
    assert value == pytest.approx(0.2) and stderr == pytest.approx(0.2)  # half the difference of two batches
