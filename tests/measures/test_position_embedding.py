"""Position embeddings: cosines of known embeddings, symmetries, equal distances, the null, and models refused."""

import numpy as np
import pytest
import timm
import torch

from helpers.measures import position_embedding as positions
from helpers.networks import zoo


def sine_cosine(side: int, width: int = 32) -> torch.Tensor:
    """The two-dimensional sine-cosine embedding: half of the width for rows, half for columns."""
    rates = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * rates
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    return torch.cat([line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)], dim=2)


def test_cosines_are_those_of_torch():
    x = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    ours = positions.cosines(x)
    flat = x.flatten(0, 1).double()
    theirs = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    np.testing.assert_allclose(positions.cosines(4 * x), ours, atol=1e-12)  # lengths do not matter


def test_sine_cosine_embeddings_meet_the_claim_and_random_ones_do_not():
    grid = (8, 8)
    far = positions.grid_distances(grid)
    known = positions.cosines(sine_cosine(8))
    assert positions.distance_correlation(known, far) < -0.5 and positions.row_and_column(known, grid) > 0
    drawn = positions.cosines(torch.randn(8, 8, 128, generator=torch.Generator().manual_seed(0)))
    assert abs(positions.distance_correlation(drawn, far)) < 0.06 and abs(positions.row_and_column(drawn, grid)) < 0.05


def test_a_monotone_function_of_distance_has_no_rows_and_a_correlation_of_minus_one():
    grid = (14, 14)
    far = positions.grid_distances(grid)
    assert positions.distance_correlation(np.exp(-far), far) == pytest.approx(-1)
    assert positions.row_and_column(np.exp(-far), grid) == pytest.approx(0, abs=1e-12)
    row, column = np.divmod(np.arange(196), 14)
    by_row = np.equal.outer(row, row) | np.equal.outer(column, column)
    assert positions.row_and_column(by_row.astype(float), grid) == 1


@pytest.mark.parametrize(
    ("grid", "wanted"), [((7, 7), [5]), ((8, 8), [5]), ((14, 14), [5, 10, 13]), ((6, 14), [5, 13])]
)
def test_pairs_of_equal_distance_are_counted_right(grid, wanted):
    far = positions.grid_distances(grid)
    found = list(positions.equal_distances(grid))
    assert [distance for distance, _, _ in found] == wanted
    rows, columns = grid
    for distance, within, others in found:
        straight = rows * max(columns - distance, 0) + columns * max(rows - distance, 0)
        assert len(within[0]) == straight and len(others[0]) == np.isclose(np.triu(far), distance).sum() - straight
        np.testing.assert_allclose(far[within], distance)
        np.testing.assert_allclose(far[others], distance, rtol=1e-6)


def test_a_grid_without_such_pairs_is_refused():
    with pytest.raises(ValueError, match="no two patches of a 4 × 4 grid"):
        positions.row_and_column(np.eye(16), (4, 4))


def test_folded_distances_follow_the_symmetries_of_the_square():
    folded, far = positions.folded_distances((8, 8)), positions.grid_distances((8, 8))
    place = np.arange(64).reshape(8, 8)
    orbits = {
        tuple(sorted({int(side[row, column]) for side in sides(place)})) for row in range(8) for column in range(8)
    }
    for orbit in orbits:
        np.testing.assert_array_equal(folded[np.ix_(orbit, orbit)], 0)
    assert len(orbits) == 10 and (folded == 0).sum() == sum(len(orbit) ** 2 for orbit in orbits)
    np.testing.assert_allclose(folded, folded.T)
    assert (folded <= far + 1e-9).all()
    slow = min(np.hypot(2 - r, 5 - c) for side in sides(place) for r, c in [np.argwhere(side == 11)[0]])
    assert folded[2 * 8 + 5, 11] == pytest.approx(slow)
    with pytest.raises(ValueError, match="only a square"):
        positions.folded_distances((7, 8))


def sides(place: np.ndarray) -> list[np.ndarray]:
    """A square seen in its eight ways, by flips and a transposition."""
    flips = [place, place[::-1], place[:, ::-1], place[::-1, ::-1]]
    return flips + [one.T for one in flips]


def test_embeddings_alike_under_all_symmetries_follow_folded_distances_alone():
    blobs = np.exp(-(positions.grid_distances((8, 8)) ** 2) / 8).reshape(8, 8, 64)  # near places have like blobs
    cosine = positions.cosines(torch.from_numpy(sum(sides_of(blobs)) / 8))
    plain = positions.distance_correlation(cosine, positions.grid_distances((8, 8)))
    folded = positions.distance_correlation(cosine, positions.folded_distances((8, 8)))
    assert folded < -0.8 and abs(plain) < 0.4


def sides_of(embedding: np.ndarray) -> list[np.ndarray]:
    flips = [embedding, embedding[::-1], embedding[:, ::-1], embedding[::-1, ::-1]]
    return flips + [one.swapaxes(0, 1) for one in flips]


def test_the_null_keeps_the_vectors_and_loses_the_places():
    known, far = positions.cosines(sine_cosine(6)), positions.grid_distances((6, 6))
    null = positions.permuted(known, lambda cosine: positions.distance_correlation(cosine, far), 50)
    assert len(set(null)) == 50 and abs(null.mean()) < 0.05
    assert positions.distance_correlation(known, far) < null.min()
    total = positions.permuted(known, np.sum, 3)
    np.testing.assert_allclose(total, known.sum())
    with pytest.raises(ValueError, match="one draw or more"):
        positions.permuted(known, np.sum, 0)


def test_embeddings_are_those_of_the_patches_in_their_places():
    model = zoo.load("vit", pretrained=False)
    found = positions.position_embeddings(model)
    assert found.shape == (8, 8, 128)
    assert torch.equal(found[2, 3], model.pos_embed[0, 1 + 2 * 8 + 3])
    found.zero_()
    assert model.pos_embed.any()
    small = {"img_size": 64, "patch_size": 16, "depth": 1}
    registers = timm.create_model("test_vit", reg_tokens=4, no_embed_class=True, **small)  # positions of patches alone
    gap = timm.create_model("test_vit", class_token=False, global_pool="avg", **small)
    for other in (registers, gap):
        assert torch.equal(positions.position_embeddings(other)[1, 2], other.pos_embed[0, 6])


@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_224", "vit_relpos_small_patch16_224", "mixer_s16_224", "test_resnet", "pit_ti_224"],
)
def test_networks_without_such_embeddings_are_refused(name):
    with pytest.raises(ValueError, match="position embedding|how many patches"):
        with torch.device("meta"):  # no weights are needed to refuse it
            model = timm.create_model(name)
        positions.position_embeddings(model)


def test_positions_are_replaced_and_put_back():
    model = zoo.load("vit", pretrained=False, seed=1)
    before = model.pos_embed.detach().clone()
    for way in positions.WAYS:
        with positions.positions_replaced(model, way):
            inside = model.pos_embed.detach().clone()
        assert torch.equal(model.pos_embed, before) and torch.equal(inside[:, 0], before[:, 0])
        if way == "none":
            assert not inside[:, 1:].any()
        elif way == "mean":
            assert torch.allclose(inside[:, 1:], before[:, 1:].mean(1, keepdim=True).expand(1, 64, -1))
        else:
            assert not torch.equal(inside, before)
            assert torch.equal(inside[0, 1:].sort(0).values, before[0, 1:].sort(0).values)
    with pytest.raises(RuntimeError), positions.positions_replaced(model, "none"):
        raise RuntimeError
    assert torch.equal(model.pos_embed, before)
    with pytest.raises(ValueError, match="none, mean, permuted"), positions.positions_replaced(model, "noise"):
        pass


def test_what_has_no_cosine_is_refused():
    for embeddings, why in ((torch.zeros(3, 3, 4), "length zero"), (torch.ones(64, 4), "rows, columns, D")):
        with pytest.raises(ValueError, match=why):
            positions.cosines(embeddings)
