import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchio as tio
from torch import Tensor

from pcrl_cli.augment import spatial
from pcrl_cli.augment.chains import take
from pcrl_cli.augment.spatial import Affine, affine, affine_map, draw_affine, resample

SHAPES = [(20, 18, 12), (16, 16, 16), (64, 64, 32), (9, 14, 2)]


def identity(n: int) -> Affine:
    return Affine(torch.zeros(n, 3, dtype=torch.bool), torch.ones(n, 3), torch.zeros(n, 3), torch.zeros(n, 3))


def by_torchio(batch: Tensor, params: Affine) -> Tensor:
    views = []
    for i, view in enumerate(batch):
        flipped = params.flip[i].nonzero().flatten().tolist()
        view = tio.Flip(axes=flipped)(view) if flipped else view
        placed = tio.Affine(
            scales=tuple(params.scale[i].tolist()),
            degrees=tuple(params.rotation_deg[i].tolist()),
            translation=tuple(params.translation_voxel[i].tolist()),
            center="image",
            default_pad_value="minimum",
        )
        views.append(placed(view))
    return torch.stack(views)


def positions(matrix: Tensor, shift: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Where every voxel comes from, an axis each, counted from the first voxel's centre."""
    return [line + plane for line, plane in zip(*spatial._sources(matrix, shift, torch.Size(shape)), strict=True)]


def same_but_for_the_rim(ours: Tensor, theirs: Tensor) -> bool:
    """Within 1e-5 except where rounding decides which side of the border half a voxel out a source is on."""
    return ((ours - theirs).abs() > 1e-5).sum().item() <= max(2, 2e-5 * ours.numel())


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_equals_torchio(make_views: Callable, make_stream: Callable, shape: tuple[int, int, int]) -> None:
    batch = make_views(6, shape, c=2)
    params = draw_affine(make_stream("affine", 6), flip_axes=(0, 1, 2), translation_voxel=(-3.0, 3.0))
    assert params.flip.any()
    assert not params.flip.all()
    assert same_but_for_the_rim(affine(batch, params), by_torchio(batch, params))


def test_large_angles_and_scales_equal_torchio(make_views: Callable, make_stream: Callable) -> None:
    batch = make_views(6)
    params = draw_affine(make_stream("wild", 6), (0, 2), 0.5, (0.4, 2.5), (-180.0, 180.0), (-6.0, 6.0))
    assert same_but_for_the_rim(affine(batch, params), by_torchio(batch, params))


@pytest.mark.parametrize("shape", [*SHAPES, (5, 1, 7)])
def test_gather_equals_grid_sample(make_views: Callable, make_stream: Callable, shape: tuple[int, int, int]) -> None:
    batch = make_views(4, shape, c=2)
    matrix, shift = affine_map(draw_affine(make_stream("paths", 4), translation_voxel=(-2.0, 2.0)))
    sources = positions(matrix, shift, shape)
    (sampled, by_grid), (gathered, inside) = (
        way(batch, sources) for way in (spatial._by_grid_sample, spatial._by_gather)
    )
    assert (gathered - sampled).abs().max() <= 1e-5
    assert (by_grid != inside).float().mean() < 2e-3
    assert inside.any() != (1 in shape)  # half a voxel beyond one is soon passed


@pytest.mark.parametrize("part", [1, 700, 2500])
def test_views_looked_up_in_parts_equal_views_looked_up_at_once(
    make_views: Callable, make_stream: Callable, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    batch, params = make_views(5, (9, 14, 8), c=2), draw_affine(make_stream("parts", 5))
    expected = affine(batch, params)
    monkeypatch.setattr(spatial, "PART_VOXELS", part)
    assert torch.equal(affine(batch, params), expected)


def test_large_views_take_grid_sample(
    make_views: Callable, make_stream: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, params = make_views(3), draw_affine(make_stream("limit", 3))
    gathered = affine(batch, params)
    monkeypatch.setattr(spatial, "GATHER_LIMIT", 0)
    monkeypatch.delattr(spatial, "_by_gather")
    assert torch.allclose(affine(batch, params), gathered, atol=1e-5)


def test_no_change_drawn_changes_nothing(make_views: Callable) -> None:
    batch = make_views(3, c=2)
    assert torch.equal(affine(batch, identity(3)), batch)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flip_is_an_exact_reversal(make_views: Callable, axis: int) -> None:
    batch = make_views(2)
    flip = torch.zeros(2, 3, dtype=torch.bool)
    flip[1, axis] = True
    out = affine(batch, dataclasses.replace(identity(2), flip=flip))
    assert torch.equal(out[0], batch[0])
    assert torch.equal(out[1], batch[1].flip(axis + 1))


def test_whole_voxels_of_translation_move_content_forward(make_views: Callable) -> None:
    batch = make_views(1)
    out = affine(batch, dataclasses.replace(identity(1), translation_voxel=torch.tensor([[0.0, 2.0, 0.0]])))
    assert torch.allclose(out[..., 2:, :], batch[..., :-2, :], atol=1e-5)
    assert (out[..., :2, :] == batch.amin()).all()


def test_each_channel_is_filled_with_its_own_minimum(make_views: Callable) -> None:
    batch = make_views(2, c=2)
    out = affine(batch, dataclasses.replace(identity(2), translation_voxel=torch.full((2, 3), 100.0)))
    assert torch.equal(out, batch.amin(dim=(2, 3, 4), keepdim=True).expand_as(out))
    assert out[0, 0, 0, 0, 0] != out[0, 1, 0, 0, 0]


def test_batch_equals_each_view_alone(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(5, c=2), draw_affine(make_stream("alone", 5))
    alone = [affine(batch[i : i + 1], take(params, slice(i, i + 1))) for i in range(5)]
    assert torch.equal(affine(batch, params), torch.cat(alone))


def test_no_views_at_all() -> None:
    assert affine(torch.zeros(0, 1, 16, 16, 16), identity(0)).shape == (0, 1, 16, 16, 16)


def test_a_nan_is_no_neighbours_but_the_nearest(make_views: Callable) -> None:
    batch = make_views(1, (16, 16, 16))
    batch[0, 0, 8, 8, 8] = torch.nan
    moved = affine(batch, dataclasses.replace(identity(1), translation_voxel=torch.full((1, 3), 0.5)))
    assert 0 < moved[:, :, 1:, 1:, 1:].isnan().sum() <= 27


def test_a_nan_stays_in_its_view(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(3), draw_affine(make_stream("nan", 3))
    clean = affine(batch, params)
    batch[1] = torch.nan
    out = affine(batch, params)
    assert torch.equal(out[[0, 2]], clean[[0, 2]])
    assert out[1].isnan().any()


def test_wrong_conventions_would_be_seen(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(8, (32, 32, 16)), draw_affine(make_stream("wrong", 8))
    theirs, (matrix, shift) = by_torchio(batch, params), affine_map(params)
    shape = (32, 32, 16)
    centred = [p - (n - 1) / 2 for p, n in zip(positions(matrix, shift, shape), shape, strict=True)]
    corners = [s * (2 / (n - 1)) for s, n in zip(centred, shape, strict=True)]
    halves = [s * (2 / n) for s, n in zip(centred, shape, strict=True)]
    grid, mixed = torch.stack(corners[::-1], -1), torch.stack(halves[::-1], -1)
    wrong = {
        "align_corners on the half-pixel grid": F.grid_sample(batch, mixed, align_corners=True, padding_mode="border"),
        "no fill": F.grid_sample(batch, grid, align_corners=True, padding_mode="border"),
        "zeros outside": F.grid_sample(batch, mixed, align_corners=False, padding_mode="zeros"),
        "forward matrix": resample(batch, matrix.inverse(), shift),
        "transposed": resample(batch, matrix.transpose(1, 2), shift),
    }
    assert (affine(batch, params) - theirs).abs().mean() < 1e-5
    for name, out in wrong.items():
        assert (out - theirs).abs().mean() > 1e-3, name


def test_order_of_rotations_matters(make_views: Callable, make_stream: Callable) -> None:
    """Rz Ry Rx, the order that a reader would guess first, is another map."""
    batch, params = make_views(4), draw_affine(make_stream("order", 4))
    params = dataclasses.replace(params, scale=torch.ones(4, 3), flip=torch.zeros(4, 3, dtype=torch.bool))
    single = [spatial.rotation(params.rotation_deg * torch.eye(3)[axis]) for axis in range(3)]  # Rx, Ry, Rz
    assert torch.allclose(spatial.rotation(params.rotation_deg), single[2] @ single[0] @ single[1], atol=1e-6)
    guessed = (single[2] @ single[1] @ single[0]).transpose(1, 2)
    wrong = resample(batch, guessed, torch.zeros(4, 3))
    assert (wrong - by_torchio(batch, params)).abs().mean() > 1e-4
