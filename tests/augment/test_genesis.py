"""The corruptions of Models Genesis, against their definition and against shares that were measured once."""

import dataclasses
import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor

from pcrl_cli.augment import genesis
from pcrl_cli.augment.chains import take
from pcrl_cli.augment.genesis import (
    BORDER,
    Corruption,
    Curve,
    GenesisRates,
    bezier,
    boxes_of,
    corrupt,
    curve,
    draw_corruption,
    draw_curve,
    draw_elastic,
    draw_flips,
    draw_one_of,
    draw_paint,
    draw_shuffle,
    elastic,
    flip,
    last_cover,
    paint,
    permuted,
    shuffle,
    shuffle_all,
)
from pcrl_cli.core.rng import Stream

SHAPE = (64, 64, 32)
SHAPES = pytest.mark.parametrize("shape", [(24, 18, 13), (40, 30)], ids=["3d", "2d"])


def distinct(n: int, shape: tuple[int, ...]) -> Tensor:
    """Views in [0, 1) no two voxels of which are equal."""
    size = int(torch.tensor(shape).prod())
    return (torch.arange(size).float() / size).view(1, 1, *shape).repeat(n, 1, *[1] * len(shape))


def streams(name: str, n: int) -> Stream:
    return Stream.of("genesis", name).each(n)


# ---- flip


def test_flips_leave_a_view_alone_as_often_as_their_definition_says() -> None:
    flips = draw_flips(streams("flips", 20_000), 3)
    assert abs((~flips.any(dim=1)).float().mean() - 0.632) < 0.01
    assert all(abs(flips[:, a].float().mean() - flips.float().mean()) < 0.01 for a in range(3)), "an axis is neglected"
    assert not draw_flips(streams("flips", 50), 3, chance=0.0).any()


@SHAPES
def test_flip_reverses_the_drawn_axes_of_each_view(shape: tuple[int, ...]) -> None:
    batch, flips = torch.rand(6, 2, *shape), draw_flips(streams("f", 6), len(shape), chance=0.9)
    expected = [
        v.flip([1 + a for a in axes.nonzero().flatten().tolist()]) for v, axes in zip(batch, flips, strict=True)
    ]
    assert torch.equal(flip(batch, flips), torch.stack(expected))


# ---- local pixel shuffling


@SHAPES
def test_last_cover_is_the_last_window_of_a_loop_over_windows(shape: tuple[int, ...]) -> None:
    params = draw_shuffle(streams("cover", 3), shape, 1.0, windows=80)
    expected = torch.zeros(3, *shape, dtype=torch.int32)
    for view, (starts, sides) in enumerate(zip(params.start, params.side, strict=True)):
        for i, (start, side) in enumerate(zip(starts.tolist(), sides.tolist(), strict=True)):
            expected[(view, *(slice(s, s + n) for s, n in zip(start, side, strict=True)))] = i + 1
    assert torch.equal(last_cover(params.start, params.side, shape, params.most), expected)


@SHAPES
def test_shuffle_equals_a_loop_that_writes_window_after_window(shape: tuple[int, ...]) -> None:
    batch, params = torch.rand(2, 2, *shape), draw_shuffle(streams("loop", 2), shape, 1.0, windows=60)
    expected = batch.clone()
    for view in range(2):
        for start, side, key in zip(
            params.start[view].tolist(), params.side[view].tolist(), params.keys[view], strict=True
        ):
            window = (slice(None), *(slice(s, s + n) for s, n in zip(start, side, strict=True)))
            content = batch[view][window].flatten(1)
            read = orders(side[0], math.prod(side[1:]), key[None])[0]
            expected[view][window] = content[:, read].view(2, *side)
    assert torch.equal(shuffle(batch, params), expected)


GRIDS = [(1, 1), (1, 2), (3, 1), (2, 2), (1, 7), (13, 1), (6, 3), (6, 18), (22, 22)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_permuted_is_a_permutation_that_favours_no_place(grid: tuple[int, int]) -> None:
    n = math.prod(grid)
    keys = Stream.of("permutations").bits(2000)[0]
    places = orders(*grid, keys)
    assert torch.equal(places.sort(dim=1).values, torch.arange(n, dtype=torch.int32).expand(len(keys), n))
    counts = torch.stack([torch.bincount(column, minlength=n) for column in places.unbind(1)])
    assert chi2(counts) < 1 + 6 * (2 / max(1, n - 1) ** 2) ** 0.5


@pytest.mark.parametrize("grid", [(1, 2), (3, 1), (1, 3), (4, 1), (2, 2), (2, 3)], ids=str)
def test_every_order_of_a_small_window_is_equally_likely(grid: tuple[int, int]) -> None:
    assert chi2(counts_of_orders(grid)) < bound(math.prod(grid))


@pytest.mark.parametrize("grid", [(3, 1), (2, 2), (2, 3)], ids=str)
def test_an_order_that_is_less_likely_would_be_found(grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genesis, "SMALL", 0 if min(grid) > 1 else 6)  # rows and columns, where those are not enough
    monkeypatch.setattr(genesis, "ROUNDS", 3 if min(grid) > 1 else 0)
    assert chi2(counts_of_orders(grid)) > bound(math.prod(grid))


def counts_of_orders(grid: tuple[int, int]) -> Tensor:
    """How often each order of a window's voxels comes up, of 200 windows an order."""
    every = list(permutations(range(math.prod(grid))))
    found = orders(*grid, Stream.of("orders").bits(200 * len(every))[0])
    number = {order: i for i, order in enumerate(every)}
    return torch.bincount(torch.tensor([number[tuple(order)] for order in found.tolist()]), minlength=len(every))


def bound(n: int) -> float:
    """Of chi-square a degree of freedom: five standard deviations above what it is on average."""
    return 1 + 5 * (2 / (math.factorial(n) - 1)) ** 0.5


def chi2(counts: Tensor) -> float:
    """A degree of freedom, against counts that are all alike; a table's rows and columns have fixed sums."""
    mean = counts.double().mean()
    free = math.prod(n - 1 for n in counts.shape)
    return float((counts - mean).square().sum() / mean / max(1, free))


@pytest.mark.parametrize("grid", [(2, 4), (6, 3), (6, 18)], ids=str)
def test_two_voxels_of_a_window_land_together_in_a_row_as_often_as_of_any(grid: tuple[int, int]) -> None:
    rows, columns = grid
    places = orders(*grid, Stream.of("pairs").bits(4000)[0])
    chance = (columns - 1) / (rows * columns - 1)
    for other in (1, columns):  # were in one row, in one column
        together = (places[:, 0] // columns == places[:, other] // columns).double().mean()
        assert abs(together - chance) < 4 * (chance * (1 - chance) / len(places)) ** 0.5


def test_equal_windows_with_different_keys_have_different_orders() -> None:
    places = orders(6, 18, Stream.of("keys").bits(1000)[0])
    assert len(places.unique(dim=0)) == 1000


def orders(rows: int, columns: int, keys: Tensor) -> Tensor:
    """What `permuted` makes of windows of one shape: (keys, voxels)."""
    n = rows * columns
    i = torch.arange(n, dtype=torch.int32).repeat(len(keys))
    sides = (torch.full_like(i, rows), torch.full_like(i, columns))
    return permuted(i, *sides, keys.repeat_interleave(n), max(rows, columns)).view(len(keys), n)


@SHAPES
def test_without_the_host_the_same_voxels_are_shuffled_to_the_same_places(shape: tuple[int, ...]) -> None:
    batch = torch.rand(6, 2, *shape)
    for windows in (1, 60, 2000):
        params = draw_shuffle(streams("host", 6), shape, 0.5, windows)
        assert 0 < params.on.sum() < 6
        assert torch.equal(shuffle_all(batch, params), shuffle(batch, params))
        alone = [shuffle_all(batch[i : i + 1], take(params, slice(i, i + 1))) for i in range(6)]
        assert torch.equal(torch.cat(alone), shuffle(batch, params))


@SHAPES
def test_a_window_keeps_its_values_and_nothing_else_is_touched(shape: tuple[int, ...]) -> None:
    batch, params = distinct(20, shape), draw_shuffle(streams("window", 20), shape, 1.0, windows=1)
    out = shuffle(batch, params)
    for before, after, start, side in zip(batch, out, params.start, params.side, strict=True):
        window = (slice(None), *(slice(s, s + n) for s, n in zip(start[0].tolist(), side[0].tolist(), strict=True)))
        assert torch.equal(before[window].flatten().sort().values, after[window].flatten().sort().values)
        changed = before != after
        assert changed.sum() == changed[window].sum()


def test_shuffling_covers_and_changes_as_many_voxels_as_measured_and_invents_no_value() -> None:
    batch = distinct(2, SHAPE)
    params = draw_shuffle(streams("share", 2), SHAPE, 1.0)
    out = shuffle(batch, params)
    assert abs((last_cover(params.start, params.side, SHAPE, params.most) > 0).float().mean() - 0.820) < 0.01
    assert abs((out != batch).float().mean() - 0.787) < 0.01
    assert abs(out.mean() - batch.mean()) < 0.002
    for view in range(2):
        assert torch.isin(out[view], batch[view]).all()
        assert len(out[view].unique()) < out[view].numel(), "a permutation of all: later windows overwrote nothing"


def test_windows_have_sides_up_to_a_tenth_and_lie_inside() -> None:
    params = draw_shuffle(streams("sides", 8), SHAPE)
    assert params.side.flatten(0, 1).amin(0).tolist() == [1, 1, 1]
    assert params.side.flatten(0, 1).amax(0).tolist() == [6, 6, 3]
    assert (params.start >= 0).all()
    assert (params.start + params.side).flatten(0, 1).amax(0).tolist() == list(SHAPE)


# ---- non-linear intensity


def test_every_curve_is_monotone_has_exact_ends_and_stays_in_the_unit_interval() -> None:
    control = torch.rand(5000, 2, 2, generator=torch.Generator().manual_seed(0))
    control[:4] = torch.tensor([[[a, b], [b, a]] for a in (0.0, 1.0) for b in (0.0, 1.0)])
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    p1, p2 = control.double()[:, :, :1], control.double()[:, :, 1:]
    exact = 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3
    assert (exact.diff(dim=2) >= -1e-15).all()
    ours = bezier(control, 200)
    assert torch.allclose(ours, exact.float(), atol=1e-6)
    assert torch.equal(ours[:, :, 0], torch.zeros(5000, 2))
    assert torch.equal(ours[:, :, -1], torch.ones(5000, 2))


def test_a_thousand_points_are_as_good_as_a_hundred_thousand() -> None:
    params = draw_curve(streams("points", 20), 1.0)
    x = torch.linspace(0, 1, 500).expand(20, 1, -1).contiguous()
    import numpy as np

    for view in range(20):
        a, b = bezier(params.control[view : view + 1], 100_000)[0].double().numpy()
        fine = np.interp(x[view, 0].double().numpy(), a, b[::-1] if params.falling[view] else b)
        assert np.abs(curve(x, params)[view, 0].double().numpy() - fine).max() < 3e-4


def test_half_the_curves_fall_and_the_ends_are_mapped_exactly() -> None:
    params = draw_curve(streams("fall", 4000), 1.0)
    assert abs(params.falling.float().mean() - 0.5) < 0.03
    ends = curve(torch.tensor([0.0, 1.0]).expand(4000, 1, 2).contiguous(), params)[:, 0]
    assert torch.equal(ends, torch.where(params.falling[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])))
    x = torch.linspace(-0.2, 1.2, 300).expand(4000, 1, -1).contiguous()
    y = curve(x, params)
    assert ((y >= 0) & (y <= 1)).all()
    steps = y.diff(dim=2)[:, 0] * torch.where(params.falling, -1.0, 1.0)[:, None]
    assert (steps >= -1e-6).all()


# ---- painting


def shares(inside: float) -> Tensor:
    params = draw_paint(streams("paint", 1200), SHAPE, 1.0, inside)
    parts = [take(params, slice(i, i + 60)) for i in range(0, 1200, 60)]
    return torch.cat([boxes_of(part, SHAPE).flatten(1).float().mean(dim=1) for part in parts])


def test_in_painting_replaces_as_many_voxels_as_measured() -> None:
    replaced = shares(inside=1.0)
    assert abs(replaced.mean() - 0.056) < 0.003
    assert abs((replaced == 0).float().mean() - 0.05) < 0.02
    assert replaced.max() < 0.13
    boxes = (draw_paint(streams("boxes", 4000), SHAPE, 1.0, 1.0).side[:, :, 0] > 0).sum(dim=1).float()
    assert abs(boxes.mean() - 4.3) < 0.07


def test_out_painting_keeps_as_many_voxels_as_measured() -> None:
    kept = shares(inside=0.0)
    assert abs(kept.mean() - 0.318) < 0.01
    assert kept.min() > 0.08
    assert kept.max() < 0.47


@pytest.mark.parametrize("inside", [0.0, 1.0])
@pytest.mark.parametrize("shape", [SHAPE, (24, 16, 16), (48, 40)])
def test_no_box_comes_nearer_to_a_face_than_the_border(inside: float, shape: tuple[int, ...]) -> None:
    params = draw_paint(streams("border", 30), shape, 1.0, inside)
    batch = torch.full((30, 1, *shape), 2.0)
    out = paint(batch, params)
    inner = tuple(slice(BORDER, n - BORDER) for n in shape)
    frame = torch.ones(shape, dtype=torch.bool)
    frame[inner] = False
    changed = (out != batch)[:, 0]
    assert not changed[:, frame].any() if inside else changed[:, frame].all()


def test_noise_is_uniform_and_differs_from_voxel_to_voxel() -> None:
    out = paint(torch.full((2, 1, *SHAPE), 2.0), draw_paint(streams("noise", 2), SHAPE, 1.0, 0.0))
    noise = out[out != 2]
    assert abs(noise.mean() - 0.5) < 0.01
    assert abs(noise.std() - 12**-0.5) < 0.01
    assert len(noise.unique()) > 0.98 * len(noise)


def test_painting_happens_as_often_and_inside_as_often_as_asked() -> None:
    params = draw_paint(streams("often", 20_000), SHAPE)
    painted = params.inside | params.outside
    assert not (params.inside & params.outside).any()
    assert abs(painted.float().mean() - 0.9) < 0.02
    assert abs(params.inside[painted].float().mean() - 0.2) < 0.02


# ---- the chain


def test_a_view_escapes_every_corruption_as_rarely_as_the_rates_say() -> None:
    rates = GenesisRates()
    free = (1 - rates.curve) * (1 - rates.shuffle) * (1 - rates.paint + rates.paint * rates.inside * 0.05)
    assert abs(free - 0.00545) < 1e-6
    drawn = draw_corruption(streams("free", 20_000), (8, 8, 8), rates.model_copy(update={"windows": 1}))
    untouched = ~drawn.shuffle.on & ~drawn.curve.on & ~drawn.paint.outside
    untouched &= ~drawn.paint.inside | (drawn.paint.side.prod(dim=2).sum(dim=1) == 0)
    assert abs(untouched.float().mean() - free) < 0.002


@SHAPES
def test_with_all_rates_zero_nothing_changes_bitwise(shape: tuple[int, ...]) -> None:
    batch = torch.rand(3, 2, *shape)
    rates = GenesisRates(flip=0, shuffle=0, curve=0, paint=0)
    assert torch.equal(corrupt(batch, draw_corruption(streams("none", 3), shape, rates)), batch)


@SHAPES
def test_a_batch_is_corrupted_as_its_views_alone(shape: tuple[int, ...]) -> None:
    batch, stream = torch.rand(6, 1, *shape), streams("alone", 6)
    for draw in (lambda s: draw_corruption(s, shape, GenesisRates(windows=50)), lambda s: draw_one_of(s, shape)):
        whole = corrupt(batch, draw(Stream(stream.keys)))
        alone = [corrupt(batch[i : i + 1], draw(Stream(stream.keys[i : i + 1]))) for i in range(6)]
        assert torch.equal(whole, torch.cat(alone))


def test_one_of_four_corruptions_changes_as_many_voxels_as_measured() -> None:
    drawn = draw_one_of(streams("one", 2000), SHAPE)
    kinds = torch.stack([drawn.shuffle.on, drawn.curve.on, drawn.paint.inside, drawn.paint.outside])
    assert torch.equal(kinds.sum(dim=0), torch.ones(2000, dtype=torch.long))
    assert all(abs(kind.float().mean() - 0.25) < 0.03 for kind in kinds)

    def share(chosen: Tensor) -> Tensor:
        part = dataclasses.replace(
            drawn.paint, **{f.name: getattr(drawn.paint, f.name)[chosen][:60] for f in dataclasses.fields(drawn.paint)}
        )
        return boxes_of(part, SHAPE).float().mean()

    assert abs(share(drawn.paint.inside) - 0.014) < 0.002
    assert abs(share(drawn.paint.outside) - 0.134) < 0.02
    few = Corruption(
        dataclasses.replace(drawn.shuffle, on=torch.ones(2000, dtype=torch.bool)),
        Curve(torch.zeros(2000, dtype=torch.bool), drawn.curve.control, drawn.curve.falling),
        draw_paint(streams("no", 2000), SHAPE, 0.0),
    )
    few = take(few, slice(0, 20))
    assert (corrupt(distinct(20, SHAPE), few) != distinct(20, SHAPE)).float().mean() < 0.002


# ---- elastic deformation


@pytest.mark.parametrize("shape", [SHAPE, (64, 64)])
def test_displacements_are_as_large_as_measured_and_smooth(shape: tuple[int, ...]) -> None:
    shift = draw_elastic(streams("elastic", 8), shape).displacement
    assert 2.3 < shift.abs().mean() < 3.1
    assert shift.abs().max() < 15
    assert shift.diff(dim=2).abs().max() < 3


@SHAPES
def test_elastic_without_displacement_changes_nothing_and_whole_shifts_shift(shape: tuple[int, ...]) -> None:
    batch, params = torch.rand(2, 2, *shape), draw_elastic(streams("e", 2), shape)
    still = elastic(batch, dataclasses.replace(params, displacement=torch.zeros(2, 2, *shape)))
    assert torch.allclose(still, batch, atol=1e-5)
    step = torch.zeros(2, 2, *shape)
    step[:, 0] = 2.0
    moved = elastic(batch, dataclasses.replace(params, displacement=step))
    assert torch.allclose(moved[:, :, :-2], batch[:, :, 2:], atol=1e-5)
    assert torch.allclose(moved[:, :, -2:], batch[:, :, -1:].expand_as(moved[:, :, -2:]), atol=1e-5)


def test_elastic_of_a_batch_is_that_of_its_views(make_views: Callable) -> None:
    batch, stream = make_views(3), streams("batch", 3)
    whole = elastic(batch, draw_elastic(Stream(stream.keys), tuple(batch.shape[2:])))
    alone = [
        elastic(batch[i : i + 1], draw_elastic(Stream(stream.keys[i : i + 1]), tuple(batch.shape[2:])))
        for i in range(3)
    ]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-6)
