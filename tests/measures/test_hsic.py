"""Rows and their inner products for numbers of any size, in every precision, against float64."""

import math

import pytest
import torch
from torch import Tensor

from helpers.measures.hsic import gram_linear, gram_row, inner_products, power_of_two, row_of_gram

SCALES = [1e-30, 1e-15, 1e-12, 1e-5, 1.0, 1e5, 1e10, 1e15, 1e30]


def features(seed: int = 0, n: int = 20, p: int = 300) -> Tensor:
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed))


def test_powers_of_two_change_no_digit():
    x = torch.tensor([0.0, 1, 1.5, 2, 3, 0.7, 1e-44, 3e38])
    assert power_of_two(x)[:6].tolist() == [1, 1, 1, 2, 2, 0.5]
    for dtype in (torch.float32, torch.float64):
        x = (10 ** torch.linspace(-44, 38, 500, dtype=torch.float64)).to(dtype)
        power = power_of_two(x)
        unit = x / power
        assert (unit >= 1).all() and (unit < 2).all() and torch.equal(unit * power, x)
    assert not power_of_two(torch.tensor([math.inf, math.nan])).isfinite().any()


@pytest.mark.parametrize("scale", SCALES)
def test_rows_scale_with_the_square_of_the_features(scale):
    x = features()
    row = gram_row(scale * x)
    exact = gram_row((scale * x).double())
    torch.testing.assert_close(row.double() / exact.norm(), exact / exact.norm(), atol=1e-5, rtol=0)
    assert row.dtype == (torch.float64 if scale in (1e-30, 1e-15, 1e15, 1e30) else torch.float32)


@pytest.mark.parametrize("scale", SCALES)
def test_rows_of_images_that_are_nearly_alike_at_any_scale(scale):
    x = (scale * (torch.randn(1, 300) + 1e-5 * features())).float()
    row, exact = gram_row(x).double(), gram_row(x.double())
    torch.testing.assert_close(row / exact.norm(), exact / exact.norm(), atol=1e-4, rtol=0)


@pytest.mark.fault("Measures", "activations of 1e-15 to 1e15 in float32", "HSIC and CKA are those of float64")
def test_inner_products_of_rows_of_very_different_size():
    rows = torch.stack([gram_row(scale * features(k)) for k, scale in enumerate((1e-15, 1e-8, 1.0, 1e8, 1e15))])
    others = torch.stack([gram_row(features(3)), gram_row(1e-9 * features(1))])
    for columns in (None, others):
        cross, own_x, own_y = inner_products(rows.float() if columns is None else rows, columns)
        x, y = rows.double(), (rows if columns is None else columns).double()
        sizes = x.norm(dim=1)[:, None] * y.norm(dim=1)
        torch.testing.assert_close(cross / sizes, x @ y.T / sizes, atol=1e-6, rtol=0)
        torch.testing.assert_close(own_x, x.square().sum(1), rtol=1e-5, atol=0)
        torch.testing.assert_close(own_y, y.square().sum(1), rtol=1e-5, atol=0)
        assert cross.dtype == own_x.dtype == own_y.dtype == torch.float64


def test_where_no_scale_is_needed_the_products_are_the_plain_ones():
    rows = torch.stack([gram_row(features(k)) for k in range(4)] + [torch.zeros(400)])
    assert torch.equal(inner_products(rows)[0], (rows @ rows.T).double())
    far = torch.cat([rows, 2.0**60 * rows[:1]])  # one row makes all be scaled, which changes no digit of the others
    assert torch.equal(inner_products(far)[0][:5, :5], inner_products(rows)[0])


@pytest.mark.fault("Measures", "an infinite Gram matrix, as of products in half precision", "refused, with the remedy")
def test_a_gram_matrix_that_is_not_finite_is_refused():
    x = 100 * features().half()
    gram = x @ x.T  # above 65,504
    assert gram.isinf().any()
    with pytest.raises(ValueError, match="too large for torch.float16.*compute it in float32"):
        row_of_gram(gram)
    assert inner_products(torch.tensor([[1.0, 2], [math.inf, 0]]))[1].isfinite().tolist() == [True, False]


@pytest.mark.fault("Measures", "Gram matrices in half precision, activations of 1e-9 to 1e9", "right to half's digits")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 300.0, 1e9])
def test_halves_neither_overflow_nor_vanish(dtype, scale):
    x = scale * (features(p=5000) + 3)
    gram, exact = gram_linear(x, dtype), (scale * features(p=5000)).double()
    exact = exact - exact.mean(0)
    exact = exact @ exact.T
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram.double() / exact.max(), exact / exact.max(), atol=2e-2, rtol=0)
