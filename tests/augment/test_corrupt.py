from collections.abc import Callable

import pytest
import torch
import torchio as tio
from torch import Tensor

from pcrl_cli.augment.chains import take
from pcrl_cli.augment.corrupt import Swap, _exchanges, draw_swap, swap_
from pcrl_cli.core.errors import ConfigError

SHAPE, PATCH = (20, 18, 12), (8, 4, 4)


def swap(batch: Tensor, params: Swap) -> Tensor:
    return swap_(batch.clone(), params)


def one_by_one(view: Tensor, params: Swap) -> Tensor:
    """The definition: read both, write the first's content to the second's place, then the reverse."""
    view = view.clone()
    for first, second in zip(params.first[0].tolist(), params.second[0].tolist(), strict=True):
        a, b = (
            (slice(None), *(slice(i, i + p) for i, p in zip(corner, params.patch, strict=True)))
            for corner in (first, second)
        )
        content_a, content_b = view[a].clone(), view[b].clone()
        view[b] = content_a
        view[a] = content_b
    return view


def overlapping(params: Swap) -> Tensor:
    return ((params.first - params.second).abs() < torch.tensor(params.patch)).all(dim=2)


def test_swap_is_the_clean_exchange_also_where_blocks_overlap(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(6, SHAPE, c=2), draw_swap(make_stream("swap", 6), SHAPE, PATCH)
    assert overlapping(params).sum() > 20
    expected = torch.stack([one_by_one(v, take(params, slice(i, i + 1))) for i, v in enumerate(batch)])
    assert torch.equal(swap(batch, params), expected)


def test_order_of_writing_within_an_exchange_is_free(make_stream: Callable) -> None:
    """An accelerator writes an exchange's voxels in any order: what is written twice must be read from one place."""
    source, target = _exchanges(draw_swap(make_stream("race", 4), SHAPE, PATCH), torch.Size((4, 2, *SHAPE)))
    reads: list[dict[int, int]] = [{} for _ in target]
    for seen, read, write in zip(reads, source.tolist(), target.tolist(), strict=True):
        assert all(seen.setdefault(w, r) == r for r, w in zip(read, write, strict=True))
    assert any(len(seen) < target.shape[1] for seen in reads)


def test_swap_equals_torchio_where_blocks_do_not_overlap(make_views: Callable, make_stream: Callable) -> None:
    batch, drawn = make_views(1, (64, 64, 32), c=2), draw_swap(make_stream("tio", 1), (64, 64, 32), PATCH)
    clean = ~overlapping(drawn)[0]
    params = Swap(drawn.first[:, clean], drawn.second[:, clean], PATCH)
    assert clean.sum() > 90
    pairs = list(zip(params.first[0].tolist(), params.second[0].tolist(), strict=True))
    assert torch.equal(swap(batch, params)[0], tio.Swap(patch_size=PATCH, locations=pairs)(batch[0]))


def test_torchio_differs_in_few_voxels_where_blocks_overlap(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(4, (64, 64, 32)), draw_swap(make_stream("few", 4), (64, 64, 32), PATCH)
    for i, view in enumerate(batch):
        pairs = list(zip(params.first[i].tolist(), params.second[i].tolist(), strict=True))
        theirs = tio.Swap(patch_size=PATCH, locations=pairs)(view)
        assert (swap(batch, params)[i] != theirs).float().mean() < 2e-3


def test_order_of_exchanges_matters(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(1, SHAPE), draw_swap(make_stream("order", 1), SHAPE, PATCH)
    backwards = Swap(params.first.flip(1), params.second.flip(1), PATCH)
    assert not torch.equal(swap(batch, params), swap(batch, backwards))


def test_no_exchange_changes_nothing_and_the_input_is_left_alone(make_views: Callable, make_stream: Callable) -> None:
    batch = make_views(2, SHAPE)
    before = batch.clone()
    assert torch.equal(swap(batch, draw_swap(make_stream("none", 2), SHAPE, PATCH, count=0)), batch)
    swap(batch, draw_swap(make_stream("some", 2), SHAPE, PATCH))
    assert torch.equal(batch, before)


def test_batch_equals_each_view_alone(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(5, SHAPE, c=2), draw_swap(make_stream("alone", 5), SHAPE, PATCH)
    alone = [swap(batch[i : i + 1], take(params, slice(i, i + 1))) for i in range(5)]
    assert torch.equal(swap(batch, params), torch.cat(alone))


def test_corners_reach_zero_and_never_the_last_position(make_stream: Callable) -> None:
    params = draw_swap(make_stream("range", 200), SHAPE, PATCH)
    for corner in (params.first, params.second):
        assert corner.amin(dim=(0, 1)).tolist() == [0, 0, 0]
        assert corner.amax(dim=(0, 1)).tolist() == [n - p - 1 for n, p in zip(SHAPE, PATCH, strict=True)]


def test_second_is_uniform_over_everything_but_the_first(make_stream: Callable) -> None:
    """Three positions along x only: each of the six ordered pairs has a sixth."""
    params = draw_swap(make_stream("tiny", 300), (11, 4, 4), PATCH)
    code = params.first[..., 0] * 3 + params.second[..., 0]
    counts = torch.bincount(code.flatten(), minlength=9)
    assert counts[[0, 4, 8]].tolist() == [0, 0, 0]
    assert (counts[[1, 2, 3, 5, 6, 7]] / 5000 - 1).abs().max() < 0.06


@pytest.mark.parametrize("shape", [(8, 4, 4), (9, 5, 5), (7, 18, 12)])
def test_views_without_two_positions_are_refused(make_stream: Callable, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"8x4x4 voxels .* choose a smaller swap_patch"):
        draw_swap(make_stream("small", 1), shape, PATCH)
