"""Ridge regression against scikit-learn; the choice of l2."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from helpers.measures.ridge import L2S, fit, ridge


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(60, 12), (20, 45)])  # more images than features, and fewer
@pytest.mark.parametrize("l2", [0.3, 30.0])
def test_ridge_is_scikit_learns(shape, l2):
    x, y = 3 + drawn(*shape), drawn(shape[0], 4, seed=1)
    weights, intercept = ridge(x, y, l2)
    theirs = Ridge(alpha=l2).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weights.T, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(intercept, theirs.intercept_, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 40, 8), (3, 10, 25)])
def test_one_decomposition_for_many_l2_equals_one_solution_each(shape):
    x, y = drawn(*shape), drawn(shape[1], 2, seed=1)
    weights, intercept = ridge(x, y, L2S)
    for k, l2 in enumerate(L2S):
        one_weights, one_intercept = ridge(x, y, l2)
        torch.testing.assert_close(weights[k], one_weights, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(intercept[k], one_intercept, atol=1e-9, rtol=1e-7)


def test_batched_equals_looped():
    x, y = drawn(5, 30, 6), drawn(30, 2, seed=1)
    weights, intercept = ridge(x, y, 2.0)
    for t in range(5):
        one_weights, one_intercept = ridge(x[t], y, 2.0)
        torch.testing.assert_close(weights[t], one_weights)
        torch.testing.assert_close(intercept[t], one_intercept)


def test_fit_prefers_the_larger_l2_of_two_that_do_as_well():
    y = torch.arange(40) % 4  # classes that any l2 tells apart
    x = (torch.nn.functional.one_hot(y) + 0.01 * drawn(40, 4)).float()
    probe = fit(
        x, 2.0 * torch.nn.functional.one_hot(y) - 1, x, y, [0.1, 1.0], lambda s, y: (s.argmax(-1) != y).float().mean(-1)
    )
    assert probe.l2 == 1
