"""Position encodings: sines of a known form, networks that have them, and a network that cannot tell places."""

import numpy as np
import pytest
import torch

from helpers.measures import position_embedding as positions
from helpers.networks import encodings
from helpers.networks.positions import prefix_tokens, token_grid

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def test_sines_are_those_of_the_paper():
    found = encodings.sines(torch.tensor([0.0, 3.0]), 8)
    for k in range(4):
        angle = 3 / 10_000 ** (2 * k / 8)
        assert float(found[1, k]) == pytest.approx(np.sin(angle), rel=1e-6)
        assert float(found[1, 4 + k]) == pytest.approx(np.cos(angle), rel=1e-6)
    assert found[0].tolist() == [0] * 4 + [1] * 4


def test_the_dot_product_of_sines_depends_on_the_step_alone():
    x = encodings.sines(torch.arange(20), 16)
    gram = x @ x.T
    for step in range(20):
        assert gram.diagonal(step).std(unbiased=False) < 1e-5


def test_one_dimension_knows_nothing_of_columns_and_two_know_rows_and_columns():
    grid, far = (8, 8), positions.grid_distances((8, 8))
    one, two = (positions.cosines(of(grid, 128)) for of in encodings.SINES.values())
    assert one[0, 8] == pytest.approx(one[7, 15]) and one[0, 7] == pytest.approx(one[1, 8])  # by number
    assert one[7, 8] > one[0, 8]  # the end of a row and the beginning of the next are neighbours
    assert two[7, 8] < two[0, 8] == pytest.approx(two[0, 1])
    assert positions.distance_correlation(two, far) < positions.distance_correlation(one, far) < 0
    assert positions.row_and_column(two, grid) > 0


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
def test_every_kind_is_a_vit_that_learns(encoding):
    torch.manual_seed(0)
    model = encodings.vit(encoding, **SMALL).eval()
    assert prefix_tokens(model) == 1 and token_grid(model) == (4, 4)
    x = torch.randn(3, 3, 32, 32)
    out = model(x)
    out.square().sum().backward()
    assert out.shape == (3, 5) and model.patch_embed.proj.weight.grad.abs().sum() > 0
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    tiles = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, order].unflatten(2, (4, 4))
    shuffled = tiles.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    if encoding == "relative":
        torch.nn.init.zeros_(model.shared_rel_pos.relative_position_bias_table)  # no bias: a set again
    moved = float((model(shuffled) - model(x)).abs().max().detach())
    assert moved < 1e-5 if encoding in ("none", "relative") else moved > 1e-4
    if encoding == "relative":
        torch.nn.init.normal_(model.shared_rel_pos.relative_position_bias_table)
        assert float((model(shuffled) - model(x)).abs().max().detach()) > 1e-4
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert ("pos_embed" in trained) == (encoding == "learned")
    assert ("shared_rel_pos.relative_position_bias_table" in trained) == (encoding == "relative")
    if encoding in encodings.SINES:
        assert torch.equal(model.pos_embed[0, 1:], encodings.SINES[encoding]((4, 4), 32).flatten(0, 1))
        assert "pos_embed" in model.state_dict() and not model.pos_embed[0, 0].any()


def test_kinds_differ_in_nothing_else():
    counted = {}
    for encoding in encodings.ENCODINGS:
        model = encodings.vit(encoding, **SMALL)
        counted[encoding] = sum(
            value.numel()
            for name, value in model.named_parameters()
            if not name.startswith(("pos_embed", "shared_rel"))
        )
    assert len(set(counted.values())) == 1, counted


def test_wrong_widths_and_kinds_are_refused():
    for call, why in (
        (lambda: encodings.sines(torch.arange(3), 7), "the width is even; got 7"),
        (lambda: encodings.sines_2d((2, 2), 6), "a multiple of four; got 6"),
        (lambda: encodings.vit("rotary", **SMALL), "unknown position encoding 'rotary'"),
    ):
        with pytest.raises(ValueError, match=why):
            call()
