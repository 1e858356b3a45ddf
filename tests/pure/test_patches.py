"""Grids of patches, and which of them tell what."""

import numpy as np
import pytest
import torch

from pcrl_cli.pure.patches import context_indices, context_rows, patchify, target_indices, unpatchify


@pytest.mark.parametrize(("grid", "shape"), [((4, 4, 4), (16, 12, 8)), ((2, 3), (6, 9))])
def test_putting_patches_together_again_gives_the_view(grid, shape):
    x = torch.rand(2, 3, *shape)
    patches = patchify(x, grid)
    assert patches.shape == (2, np.prod(grid), 3, *(n // g for n, g in zip(shape, grid, strict=True)))
    assert torch.equal(unpatchify(patches, grid), x)


def test_patches_are_numbered_with_the_first_axis_slowest():
    x = torch.arange(4 * 4 * 4).float().view(1, 1, 4, 4, 4)
    patches = patchify(x, (4, 4, 4))
    assert torch.equal(patches.flatten(), torch.arange(64).float())


def test_overlapping_patches_share_half_with_their_neighbours():
    x = torch.rand(1, 1, 32)
    patches = patchify(x, (7,), overlap=True)
    assert patches.shape == (1, 7, 1, 8)
    assert torch.equal(patches[0, :-1, 0, 4:], patches[0, 1:, 0, :4])
    assert torch.equal(patches[0, 0, 0], x[0, 0, :8])


def test_a_grid_of_4_has_ten_telling_and_two_foretold_patches_a_column():
    context, targets = context_indices((4, 4, 4)), target_indices((4, 4, 4))
    assert context.shape == (16, 10)
    assert targets.shape == (16, 2)
    for anchor in range(16):
        assert not set(context[anchor]) & set(targets[anchor])
        assert context[anchor, -1] == 16 + anchor, "the last to tell is the column's own patch of row 1"
        assert targets[anchor].tolist() == [32 + anchor, 48 + anchor]
    assert context.min() >= 0
    assert context.max() < 32


def test_neighbours_beyond_the_edge_are_mirrored():
    corner = context_indices((4, 4, 4))[0]
    places = [divmod(i, 4) for i in corner[:9]]
    assert places == [(y, z) for y in (1, 0, 1) for z in (1, 0, 1)]
    inner = context_indices((4, 4, 4))[5]
    assert sorted(inner[:9].tolist()) == sorted(4 * y + z for y in range(3) for z in range(3))


@pytest.mark.parametrize(
    ("grid", "skip", "rows", "terms", "steps"),
    [((7, 7, 7), 0, 3, 35, 4), ((7, 7), 1, 3, 9, 3), ((5, 5), 1, 2, 4, 2), ((4, 4, 4), 0, 2, 10, 2)],
)
def test_the_pyramid_has_as_many_terms_as_its_formula(grid, skip, rows, terms, steps):
    assert context_rows(grid, skip) == rows
    assert context_indices(grid, skip).shape[1] == terms == sum((2 * j + 1) ** (len(grid) - 1) for j in range(rows))
    assert target_indices(grid, skip).shape[1] == steps
    columns = np.prod(grid[1:])
    assert target_indices(grid, skip).min() == (rows + skip) * columns
    assert context_indices(grid, skip).max() < rows * columns
